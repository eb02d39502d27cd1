"""The city itself: its public catalogue, and the same facts as arrays for the choice model."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from fedlearn.catalogue import Catalogue, Item
from fedlearn.lab.city.config import CityConfig
from fedlearn.lab.city.tables import (
    CONTENT_APPS,
    CUISINES,
    FACILITIES,
    SIGHTS,
    SUFFIXES,
    SYLLABLES,
    THEMES,
    TYPE_PRICE,
    TYPES,
    AppKind,
    Term,
)
from fedlearn.rng import simulation_rng

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

AREAS = 20
"""Neighbourhoods; two places are near each other when they share one."""
SIGHTS_PER_AREA = 5
ITEMS_PER_APP = 120
DISHES = tuple((c, dish) for c, cuisine in enumerate(CUISINES) for dish in cuisine.dishes)
TAGS = len(CUISINES) + len(THEMES)


@dataclass(frozen=True)
class Restaurants:
    """Facts of the N restaurants; positions are catalogue positions.

    Args:
        cuisine: int[N], index into ``CUISINES``.
        theme: int[N], index into ``THEMES``.
        kind: int[N], index into ``TYPES``.
        area: int[N], 0..AREAS-1.
        dishes: 0/1 f64[number of dishes, N].
        facilities: 0/1 f64[number of facilities, N].
        price: f64[N], per head.
        rating: f64[N], 3.0..5.0.
    """

    cuisine: I64
    theme: I64
    kind: I64
    area: I64
    dishes: F64
    facilities: F64
    price: F64
    rating: F64


@dataclass(frozen=True)
class Places:
    """The whole city.

    Args:
        catalogue: what everybody sees; ``context`` holds sights, then each content app's items.
        restaurants: facts of ``catalogue.items``.
        sight_area: int[sights]; sights come first in ``context``.
        sight_theme: int[sights].
        content_tag: one int[ITEMS_PER_APP] per content app; a tag below ``len(CUISINES)`` is a cuisine, else a theme.
    """

    catalogue: Catalogue
    restaurants: Restaurants
    sight_area: I64
    sight_theme: I64
    content_tag: tuple[I64, ...]

    def context_position(self, app: int, item: int) -> int:
        """Return the position in ``catalogue.context`` of item ``item`` of app ``app`` (0: sights)."""
        return item if app == 0 else len(self.sight_area) + (app - 1) * ITEMS_PER_APP + item


def build_places(config: CityConfig) -> Places:
    """Draw the city of a config; a function of ``seed`` and ``restaurants`` alone."""
    rng = simulation_rng(config.seed, -1, "", f"city:{config.restaurants}")
    facts = _draw_restaurants(rng, config.restaurants)
    sight_area = np.repeat(np.arange(AREAS), SIGHTS_PER_AREA)
    sight_theme = rng.permutation(np.arange(len(sight_area)) % len(THEMES))
    tags = tuple(rng.permutation(np.arange(ITEMS_PER_APP) % TAGS) for _ in CONTENT_APPS)
    names = _names(rng, config.restaurants)
    sights = _sight_names(rng, sight_theme)
    near = _nearby_lists(names, facts.area, sights, sight_area)
    items = tuple(_restaurant(names[i], facts, i, near[facts.area[i]]) for i in range(config.restaurants))
    context = [_sight(sights[i], int(sight_theme[i]), near[sight_area[i]]) for i in range(len(sights))]
    for kind, app_tags in zip(CONTENT_APPS, tags, strict=True):
        context += [_content(rng, kind, int(tag), number) for number, tag in enumerate(app_tags)]
    catalogue = Catalogue("CrossApp-Sim", "restaurant", items, tuple(context))
    return Places(catalogue, facts, sight_area, sight_theme, tags)


def _draw_restaurants(rng: np.random.Generator, count: int) -> Restaurants:
    cuisine = rng.permutation(np.arange(count) % len(CUISINES))
    theme = rng.integers(len(THEMES), size=count)
    kind = rng.integers(len(TYPES), size=count)
    area = rng.permutation(np.arange(count) % AREAS)
    level = np.array([c.price for c in CUISINES])[cuisine] * np.array(TYPE_PRICE)[kind]
    price = np.clip(np.round(level * np.exp(0.35 * rng.standard_normal(count))), 12, 900)
    rating: F64 = np.round(np.clip(4.1 + 0.45 * rng.standard_normal(count), 3.0, 5.0), 1).astype(np.float64)
    dishes = np.zeros((len(DISHES), count))
    per_cuisine = len(CUISINES[0].dishes)
    for i in range(count):
        own = cuisine[i] * per_cuisine + rng.choice(per_cuisine, size=3, replace=False)
        dishes[own, i] = 1.0
    facilities = (rng.random((len(FACILITIES), count)) < 0.35).astype(float)
    return Restaurants(cuisine, theme, kind, area, dishes, facilities, price, rating)


def _names(rng: np.random.Generator, count: int) -> list[str]:
    pairs = [(a, b, s) for a, b in product(SYLLABLES, SYLLABLES) if a != b for s in SUFFIXES]
    chosen = rng.choice(len(pairs), size=count, replace=False)
    names = []
    for a, b, suffix in (pairs[k] for k in chosen):
        names.append(f"{a[0]}{b[0]}{suffix.zh} {(a[1] + b[1]).capitalize()} {suffix.en}")
    return names


def _sight_names(rng: np.random.Generator, themes: I64) -> list[str]:
    starts = rng.permutation([(a, b) for a in range(len(SYLLABLES)) for b in range(len(SYLLABLES)) if a != b])
    names = []
    for i, theme in enumerate(themes):
        a, b = SYLLABLES[starts[i][0]], SYLLABLES[starts[i][1]]
        what, sight = THEMES[theme], SIGHTS[i % len(SIGHTS)]
        names.append(f"{a[0]}{b[0]}{what.zh}{sight.zh} {(a[1] + b[1]).capitalize()} {what.en.title()} {sight.en}")
    return names


def _nearby_lists(names: list[str], area: I64, sights: list[str], sight_area: I64) -> list[tuple[str, ...]]:
    lists: list[list[str]] = [[] for _ in range(AREAS)]
    for name, place in zip(names, area, strict=True):
        lists[place].append(f"restaurant:{name}")
    for name, place in zip(sights, sight_area, strict=True):
        lists[place].append(f"attraction:{name}")
    return [tuple(keys) for keys in lists]


def _both(*terms: Term) -> tuple[str, ...]:
    return tuple(word for term in terms for word in term)


def _restaurant(name: str, facts: Restaurants, i: int, near: tuple[str, ...]) -> Item:
    attributes = {
        "cuisine": _both(CUISINES[facts.cuisine[i]].name),
        "dish": _both(*(DISHES[d][1] for d in np.flatnonzero(facts.dishes[:, i]))),
        "facility": _both(*(FACILITIES[f] for f in np.flatnonzero(facts.facilities[:, i]))),
        "theme": _both(THEMES[facts.theme[i]]),
        "type": _both(TYPES[facts.kind[i]]),
    }
    others = tuple(key for key in near if key != f"restaurant:{name}")
    return Item("restaurant", name, attributes, float(facts.price[i]), float(facts.rating[i]), "", others)


def _sight(name: str, theme: int, near: tuple[str, ...]) -> Item:
    others = tuple(key for key in near if key != f"attraction:{name}")
    return Item("attraction", name, {"theme": _both(THEMES[theme])}, nearby=others)


def _content(rng: np.random.Generator, kind: AppKind, tag: int, number: int) -> Item:
    cuisine = tag < len(CUISINES)
    term = CUISINES[tag].name if cuisine else THEMES[tag - len(CUISINES)]
    word = kind.words[rng.integers(len(kind.words))]
    name = f"{term.zh}{word.zh}{number + 1} {term.en.title()} {word.en} {number + 1}"
    return Item(kind.domain, name, {"cuisine" if cuisine else "theme": _both(term)})

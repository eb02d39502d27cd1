"""People and how they choose: latent tastes, the discrete intent of a session, and the true utility.

Everything is (log-)linear in what the catalogue shows, so that a linear choice model can come close to the oracle.
Every choice is a conditional logit (McFadden 1974): ``P(item) = softmax(utility)``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from fedlearn.lab.city.places import AREAS, F64, I64, TAGS, Places
from fedlearn.lab.city.tables import CONTENT_APPS, CUISINES, FACILITIES, FLOORS, GROUPS, PRICE_EDGES, TYPES

Floats = NDArray[np.floating]

LATENTS = TAGS + 1
"""A taste vector: one weight per cuisine, one per theme, one for dear against cheap."""
BUDGET = TAGS
APPS = 2 + len(CONTENT_APPS)
"""Apps with a taste vector: 0 sights (maps), 1.. the content apps, the last one restaurants."""
DINING = APPS - 1


@dataclass(frozen=True, slots=True)
class Weights:
    """Utility weights, chosen so that the city meets the calibration in docs/city.md."""

    cuisine: float = 1.0
    theme: float = 0.8
    budget: float = 0.5
    quality: float = 0.5
    dish: float = 5.5
    wanted_cuisine: float = 4.0
    facility: float = 2.5
    kind: float = 2.5
    band: float = 1.6
    floor: float = 1.6
    avoid: float = 4.0
    home: float = 1.0
    home_nearby: float = 1.5
    sight_nearby: float = 6.5
    content: float = 1.0
    sight_theme: float = 0.8
    sight_home: float = 2.0
    intent_taste: float = 1.0


WEIGHTS = Weights()


class Want(IntEnum):
    """What a session is about."""

    OPEN = 0
    DISH = 1
    CUISINE = 2


class Hint(IntEnum):
    """How a price was said: exactly, or by a word that covers two bands."""

    EXACT = 0
    CHEAP = 1
    FANCY = 2


WANT_PROB = (0.2, 0.5, 0.3)
FACILITY_PROB = 0.35
KIND_PROB = 0.15
BAND_PROB = 0.4
FLOOR_PROB = 0.25
AVOID_PROB = 0.12
NEAR_PROB = 0.45
VAGUE_PROB = 0.1
HINT_PROB = 0.15
HINT_BANDS = {Hint.CHEAP: (0, 1), Hint.FANCY: (3, 4)}
GROUP_OF = tuple(next(g for g, group in enumerate(GROUPS) if c in group.cuisines) for c in range(len(CUISINES)))
DISHES_PER_CUISINE = len(CUISINES[0].dishes)


@dataclass(frozen=True, slots=True)
class Intent:
    """What a person is after in one session; -1 means no wish.

    Args:
        want: what the session is about.
        cuisine: the wanted cuisine, or the wanted dish's; -1 when open.
        dish: index into ``DISHES``.
        facility: index into ``FACILITIES``.
        kind: index into ``TYPES``.
        band: price band.
        floor: index into ``FLOORS``.
        avoid: a cuisine that must not be.
        near: wants something nearby.
    """

    want: Want
    cuisine: int = -1
    dish: int = -1
    facility: int = -1
    kind: int = -1
    band: int = -1
    floor: int = -1
    avoid: int = -1
    near: bool = False


@dataclass(frozen=True, slots=True)
class Content:
    """What the outgoing messages of a session say: the intent, seen through vague words.

    Args:
        intent: as said; ``cuisine`` and ``band`` are -1 where a vague word stands for them.
        group: index into ``GROUPS`` where a vague word stands for the cuisine, else -1.
        hint: whether a vague word stands for the price band.
    """

    intent: Intent
    group: int = -1
    hint: Hint = Hint.EXACT

    @property
    def cuisines(self) -> tuple[int, ...]:
        """Cuisines the words allow; (-1,) when none is wanted."""
        return GROUPS[self.group].cuisines if self.group >= 0 else (self.intent.cuisine,)

    @property
    def bands(self) -> tuple[int, ...]:
        """Price bands the words allow; (-1,) when none is wanted."""
        return (self.intent.band,) if self.hint is Hint.EXACT else HINT_BANDS[self.hint]

    def intents(self) -> tuple[Intent, ...]:
        """Every intent the words can mean."""
        return tuple(replace(self.intent, cuisine=c, band=b) for c in self.cuisines for b in self.bands)


@dataclass(frozen=True)
class Tastes:
    """One person's hidden state.

    Args:
        theta: f64[APPS, LATENTS]: ``sqrt(rho) * shared + sqrt(1 - rho) * own``, standard normal each.
        home: the area the person dines around.
        maps_home: the area the maps app knows; equals ``home`` with probability rho, else any area.
    """

    theta: F64
    home: int
    maps_home: int


class ChoiceModel:
    """The true utilities of a city as tables; the generator draws from them and the oracle inverts them.

    Args:
        places: the city.
        rho: correlation between apps; it also scales how far today's sight pulls the dinner.
    """

    def __init__(self, places: Places, rho: float) -> None:
        facts, w = places.restaurants, WEIGHTS
        log_price = np.log(facts.price)
        self.rho = rho
        self.area: I64 = facts.area
        self.dining_phi = np.zeros((len(facts.area), LATENTS))
        rows = np.arange(len(facts.area))
        self.dining_phi[rows, facts.cuisine] = w.cuisine
        self.dining_phi[rows, len(CUISINES) + facts.theme] = w.theme
        self.dining_phi[:, BUDGET] = w.budget * (log_price - log_price.mean()) / log_price.std()
        self.sight_area = places.sight_area
        self.app_phi = (
            w.sight_theme * np.eye(LATENTS)[len(CUISINES) + places.sight_theme],
            *(w.content * np.eye(LATENTS)[tags] for tags in places.content_tag),
        )
        self._quality: F64 = w.quality * (facts.rating - facts.rating.mean()) / facts.rating.std()
        self._dish = w.dish * facts.dishes
        self._cuisine = (facts.cuisine == np.arange(len(CUISINES))[:, None]).astype(float)
        self._facility = w.facility * facts.facilities
        self._kind = w.kind * (facts.kind == np.arange(len(TYPES))[:, None])
        self._band = w.band * _band_fit(facts.price)
        self._floor = w.floor * _floor_fit(facts.rating)
        self.band_level: F64 = (np.arange(len(PRICE_EDGES), dtype=np.float64) - 2.0) / 1.5

    def public_utility(self, intent: Intent) -> F64:
        """Return f64[N]: the part of the utility that a wish and the catalogue decide."""
        utility = self._quality.copy()
        if intent.want is Want.DISH:
            utility += self._dish[intent.dish]
        elif intent.want is Want.CUISINE:
            utility += WEIGHTS.wanted_cuisine * self._cuisine[intent.cuisine]
        wishes = ((self._facility, intent.facility), (self._kind, intent.kind), (self._band, intent.band))
        for table, wish in (*wishes, (self._floor, intent.floor)):
            if wish >= 0:
                utility += table[wish]
        if intent.avoid >= 0:
            utility -= WEIGHTS.avoid * self._cuisine[intent.avoid]
        return utility

    def sight_pull(self, near: bool) -> float:
        """Return the utility of being near today's sight: 0 unless "nearby" is wished, and at rho = 0."""
        return self.rho * WEIGHTS.sight_nearby if near else 0.0

    def home_pull(self, near: bool) -> float:
        """Return the utility of being in the home area."""
        return WEIGHTS.home_nearby if near else WEIGHTS.home

    def utility(self, tastes: Tastes, intent: Intent, sight: int) -> F64:
        """Return f64[N]: the true utility of every restaurant, before the Gumbel noise of the choice."""
        utility = self.public_utility(intent) + self.dining_phi @ tastes.theta[DINING]
        utility += self.home_pull(intent.near) * (self.area == tastes.home)
        utility += self.sight_pull(intent.near) * (self.area == self.sight_area[sight])
        return np.asarray(utility)

    def sight_utility(self, tastes: Tastes) -> F64:
        """Return f64[sights]: the true utility of every sight."""
        own = WEIGHTS.sight_home * (self.sight_area == tastes.maps_home)
        return np.asarray(self.app_phi[0] @ tastes.theta[0] + own)


def _band_fit(price: F64) -> F64:
    """f64[bands, N]: 1 in the band; outside minus the distance in octaves, -1 at most."""
    low, high = np.array(PRICE_EDGES, dtype=float), np.array([*PRICE_EDGES[1:], np.inf])
    octaves = np.log2(np.maximum(np.maximum(low[:, None], 1.0) / price, price / high[:, None]))
    return np.asarray(np.where(octaves <= 0.0, 1.0, -np.minimum(octaves, 1.0)), dtype=np.float64)


def _floor_fit(rating: F64) -> F64:
    """f64[floors, N]: 1 at the floor or above it; below it minus the missing stars, -1 at most."""
    short = np.array(FLOORS)[:, None] - rating
    return np.where(short <= 1e-9, 1.0, -np.minimum(short, 1.0))


def softmax(utility: Floats) -> Floats:
    """Return choice probabilities over the last axis."""
    weights = np.exp(utility - utility.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def pick(probabilities: Floats, uniform: float) -> int:
    """Return the index an inverse-CDF draw lands on."""
    place = int(np.searchsorted(np.cumsum(probabilities), uniform, side="right"))
    return min(place, len(probabilities) - 1)


def draw_tastes(rng: np.random.Generator, rho: float) -> Tastes:
    """Draw a person: see ``Tastes``."""
    shared, own = rng.standard_normal(LATENTS), rng.standard_normal((APPS, LATENTS))
    theta = np.sqrt(rho) * shared + np.sqrt(1.0 - rho) * own
    home, elsewhere = (int(area) for area in rng.integers(AREAS, size=2))
    return Tastes(theta, home, home if rng.random() < rho else elsewhere)


def cuisine_probabilities(theta: Floats) -> Floats:
    """Return P(wanted cuisine | tastes), [..., cuisines], for dining tastes [..., LATENTS]."""
    return softmax(WEIGHTS.intent_taste * theta[..., : len(CUISINES)])


def band_probabilities(theta: Floats, level: F64) -> Floats:
    """Return P(wanted price band | tastes), [..., bands]."""
    return softmax(WEIGHTS.intent_taste * theta[..., BUDGET, None] * level)


def draw_intent(rng: np.random.Generator, model: ChoiceModel, theta: F64) -> Intent:
    """Draw the wishes of one session from dining tastes f64[LATENTS]."""
    u = rng.random(12)
    want = Want(pick(np.array(WANT_PROB), u[0]))
    cuisine = -1 if want is Want.OPEN else pick(cuisine_probabilities(theta), u[1])
    dish = cuisine * DISHES_PER_CUISINE + int(u[2] * DISHES_PER_CUISINE) if want is Want.DISH else -1
    facility = int(u[4] * len(FACILITIES)) if u[3] < FACILITY_PROB else -1
    kind = int(u[4] * len(TYPES)) if FACILITY_PROB <= u[3] < FACILITY_PROB + KIND_PROB else -1
    band = pick(band_probabilities(theta, model.band_level), u[6]) if u[5] < BAND_PROB else -1
    floor = int(u[8] * len(FLOORS)) if u[7] < FLOOR_PROB else -1
    avoid = -1
    if u[9] < AVOID_PROB:
        others = [c for c in range(len(CUISINES)) if c != cuisine]
        avoid = others[int(u[10] * len(others))]
    return Intent(want, cuisine, dish, facility, kind, band, floor, avoid, bool(u[11] < NEAR_PROB))


def draw_content(rng: np.random.Generator, intent: Intent) -> Content:
    """Draw how an intent is said: exactly, or by words that cover several cuisines or bands."""
    u = rng.random(2)
    group = GROUP_OF[intent.cuisine] if intent.want is Want.CUISINE and u[0] < VAGUE_PROB else -1
    hints = [hint for hint, bands in HINT_BANDS.items() if intent.band in bands]
    hint = hints[0] if hints and u[1] < HINT_PROB else Hint.EXACT
    cuisine = -1 if group >= 0 else intent.cuisine
    band = intent.band if hint is Hint.EXACT else -1
    return Content(replace(intent, cuisine=cuisine, band=band), group, hint)


def content_probability(content: Content, intent: Intent) -> float:
    """Return P(content | intent): 0 where the words cannot mean the intent."""
    fields = ("want", "dish", "facility", "kind", "floor", "avoid", "near")
    same = all(getattr(content.intent, name) == getattr(intent, name) for name in fields)
    vague_dish = content.group >= 0 and intent.want is not Want.CUISINE
    if not same or vague_dish or intent.cuisine not in content.cuisines or intent.band not in content.bands:
        return 0.0
    probability = 1.0
    if intent.want is Want.CUISINE:
        probability *= VAGUE_PROB if content.group >= 0 else 1.0 - VAGUE_PROB
    if any(intent.band in bands for bands in HINT_BANDS.values()):
        probability *= HINT_PROB if content.hint is not Hint.EXACT else 1.0 - HINT_PROB
    return probability

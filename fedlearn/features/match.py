"""``match``: how well each catalogue item answers a Query. Dense, small, and the same numbers everywhere."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import CatalogueMismatch, UnknownSetting
from fedlearn.features.index import DISH, FACILITY, KIND, CatalogueIndex
from fedlearn.features.query import FREE, HOURS_HIGH, HOURS_LOW, NEAR, PRICE_HIGH, PRICE_LEVEL, PRICE_LOW, RATING, Query

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """One column of ``match``.

    Args:
        name: stable name.
        source: what it is made from: ``"chat"``, ``"choices"`` (earlier choices, any app) or ``"catalogue"``.
        needs: every source that must be switched on for the column to be made.
    """

    name: str
    source: str
    needs: frozenset[str]


def _spec(name: str, source: str, *also: str) -> FeatureSpec:
    return FeatureSpec(name, source, frozenset((source, *also)))


FEATURES: tuple[FeatureSpec, ...] = (
    _spec("words", "chat"),
    _spec("words_earlier", "chat"),
    _spec("dish", "chat"),
    _spec("facility", "chat"),
    _spec("kind", "chat"),
    _spec("values_earlier", "chat"),
    _spec("rejected", "chat"),
    _spec("price_fit", "chat"),
    _spec("price_level_fit", "chat"),
    _spec("free", "chat"),
    _spec("rating_fit", "chat"),
    _spec("hours_fit", "chat"),
    _spec("near_named", "chat"),
    _spec("near_own", "choices"),
    _spec("near_other", "choices"),
    _spec("near_wished", "choices", "chat"),
    _spec("near_last_wished", "choices", "chat"),
    _spec("alike_own", "choices"),
    _spec("alike_other", "choices"),
    _spec("price_alike", "choices"),
    _spec("chosen_before", "choices"),
    _spec("rating", "catalogue"),
    _spec("price_level", "catalogue"),
)
"""Columns of ``match``, in order. All lie in [-1, 1]. Definitions: docs/features.md."""

COLUMN = {spec.name: i for i, spec in enumerate(FEATURES)}
SOURCES = frozenset(spec.source for spec in FEATURES)


def feature_mask(sources: Iterable[str]) -> NDArray[np.bool_]:
    """Return bool[d]: the columns for which every needed source is among ``sources``.

    Raises:
        UnknownSetting: a source that does not exist.
    """
    allowed = frozenset(sources)
    if not allowed <= SOURCES:
        raise UnknownSetting(f"sources={sorted(allowed - SOURCES)}: choose among {', '.join(sorted(SOURCES))}.")
    return np.array([spec.needs <= allowed for spec in FEATURES])


def match(query: Query, index: CatalogueIndex, candidates: NDArray[np.int64]) -> F32:
    """Return f32[K, d] for the named items; bit-identical to the same rows of ``match_all``.

    Args:
        query: made with the same index.
        index: index of the catalogue.
        candidates: item ids in 0..n-1.

    Raises:
        CatalogueMismatch: the query was made with another index.
    """
    return np.ascontiguousarray(_columns(query, index)[:, candidates].T)


def match_all(query: Query, index: CatalogueIndex) -> F32:
    """Return f32[n, d] (stored by columns) for every item of the target domain, in catalogue order.

    Raises:
        CatalogueMismatch: the query was made with another index.
    """
    return _columns(query, index).T


def _columns(query: Query, index: CatalogueIndex) -> F32:
    if query.digest != index.digest:
        raise CatalogueMismatch(
            f"query.digest={query.digest[:12]} but the index is {index.digest[:12]}: make the query again."
        )
    out = np.zeros((len(FEATURES), index.n), dtype=np.float32)
    _words(query, index, out)
    _values(query, index, out)
    _wishes(query, index, out)
    _choices(query, index, out)
    out[COLUMN["rating"]] = index.rating_share
    out[COLUMN["price_level"]] = index.price_share
    return out


def _words(query: Query, index: CatalogueIndex, out: F32) -> None:
    """BM25 of the wanted words, now and before, and of the rejected ones; each over its own maximum."""
    ids, _, polarity, age = query.terms.T
    wanted = polarity > 0
    for column, chosen in (
        (COLUMN["words"], wanted & (age == 0)),
        (COLUMN["words_earlier"], wanted & (age > 0)),
        (COLUMN["rejected"], ~wanted),
    ):
        if chosen.any():
            score = index.term_items.total(ids[chosen], index.n)
            out[column] = score / score.max()


def _values(query: Query, index: CatalogueIndex, out: F32) -> None:
    """Share of the mentioned values that an item has."""
    if not len(query.values):
        return
    ids, polarity, age = query.values.T
    group = index.value_groups[ids]
    wanted, present = polarity > 0, age == 0
    for column, chosen in (
        (COLUMN["dish"], wanted & present & (group == DISH)),
        (COLUMN["facility"], wanted & present & (group == FACILITY)),
        (COLUMN["kind"], wanted & present & (group == KIND)),
        (COLUMN["values_earlier"], wanted & ~present),
        (COLUMN["rejected"], polarity < 0),
    ):
        named = ids[chosen]
        if len(named):
            out[column] = 0.0
        for value in named:
            out[column, index.value_items.row(int(value))] += np.float32(1.0 / len(named))


def _wishes(query: Query, index: CatalogueIndex, out: F32) -> None:
    wishes = [float(w) for w in query.wishes]
    if not math.isnan(wishes[PRICE_LOW]):
        out[COLUMN["price_fit"]] = _price_fit(wishes[PRICE_LOW], wishes[PRICE_HIGH], index)
    if not math.isnan(wishes[PRICE_LEVEL]):
        out[COLUMN["price_level_fit"]] = _known(wishes[PRICE_LEVEL] * (2.0 * index.price_level[: index.n] - 1.0))
    if not math.isnan(wishes[FREE]):
        out[COLUMN["free"]] = index.free
    if not math.isnan(wishes[RATING]):
        out[COLUMN["rating_fit"]] = _rating_fit(wishes[RATING], index)
    if not math.isnan(wishes[HOURS_LOW]):
        out[COLUMN["hours_fit"]] = _hours_fit(wishes[HOURS_LOW], wishes[HOURS_HIGH], index)
    bearers = [index.name_items.row(int(name)) for name, age in query.names if age == 0]
    if bearers:
        out[COLUMN["near_named"]] = np.minimum(index.near.total(np.concatenate(bearers), index.n), 1.0)


def _price_fit(low: float, high: float, index: CatalogueIndex) -> F64:
    """1 inside the band; outside it minus the log2 distance to it, -1 at a factor of two; 0 where unknown."""
    price = index.log_price
    # by the function that made log_price: math.log2 may differ in the last bit, and put a price at its bound outside
    least, most = np.log2(np.array([low, high]) + 1.0)
    distance = np.maximum(least - price, price - most)
    return _known(np.where(distance <= 0, 1.0, -np.minimum(distance, 1.0)))


def _rating_fit(floor: float, index: CatalogueIndex) -> F64:
    """1 at or above the floor, else minus the shortfall in stars, -1 at most; 0 where unknown."""
    short = floor - index.rating.astype(np.float64)
    return _known(np.where(short <= 1e-6, 1.0, -np.minimum(short, 1.0)))


def _hours_fit(low: float, high: float, index: CatalogueIndex) -> F64:
    """Overlap of the two spans over their union, each widened a little; 0 where unknown."""
    shortest, longest = index.hours[:, 0] * 0.9, index.hours[:, 1] * 1.1 + 0.1
    low, high = low * 0.9, high * 1.1 + 0.1
    overlap = np.maximum(np.minimum(longest, high) - np.maximum(shortest, low), 0.0)
    return _known(overlap / (np.maximum(longest, high) - np.minimum(shortest, low)))


def _known(fit: NDArray[np.floating[Any]]) -> F64:
    """Put 0 where the catalogue does not know."""
    return np.where(np.isnan(fit), 0.0, fit).astype(np.float64, copy=False)


def _choices(query: Query, index: CatalogueIndex, out: F32) -> None:
    ids = query.choices[:, 0]
    if not len(ids):
        return
    own = index.domains[ids] == 0
    near_all = np.zeros(index.n)
    for side, chosen in (("own", ids[own]), ("other", ids[~own])):
        if len(chosen):
            near = index.near.total(chosen, index.n)
            near_all += near
            out[COLUMN[f"near_{side}"]] = near / (len(chosen) + 1.0)
            out[COLUMN[f"alike_{side}"]] = _likeness(chosen, index)
    if not math.isnan(float(query.wishes[NEAR])):
        out[COLUMN["near_wished"]] = near_all / (len(ids) + 1.0)
        out[COLUMN["near_last_wished"]] = index.near.total(ids[:1], index.n)
    levels = index.price_level[ids].astype(np.float64)
    levels = levels[~np.isnan(levels)]
    if len(levels):
        out[COLUMN["price_alike"]] = _known(1.0 - 2.0 * np.abs(index.price_level[: index.n] - levels.mean()))
    out[COLUMN["chosen_before"], ids[own]] = 1.0


def _likeness(chosen: I32, index: CatalogueIndex) -> F64:
    """How much of the choices' attribute values an item has; grows with the number of choices that agree."""
    taste = index.tags.total(chosen, len(index.value_groups))
    held = np.flatnonzero(taste)
    if not len(held):
        return np.zeros(index.n)
    alike = index.value_items.total(held, index.n, taste[held])
    return np.minimum(2.0 * alike / (len(chosen) + 4.0), 1.0)

"""Occasions become the columns of a batch; docs/device-worker.md has the definitions for other languages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from fedlearn.device.plan import DevicePlan
from fedlearn.engine.negatives import Candidates, sample_candidates
from fedlearn.errors import BundleRefused, CatalogueMismatch, DataCorrupt
from fedlearn.features.index import CatalogueIndex
from fedlearn.features.ingest import make_query_from
from fedlearn.features.match import COLUMN, feature_mask, match, match_all
from fedlearn.features.query import Query
from fedlearn.features.said import said_from_bytes
from fedlearn.proto import worker_pb2 as pb
from fedlearn.signals import Choice
from fedlearn.types import I64
from fedlearn_client.worker.documents import F32, Columns

NEVER: Final = np.float32(1e30)
"""``logq`` of a place that no item fills: its logit is so low that its share of the softmax is exactly 0."""


@dataclass(frozen=True, slots=True)
class Known:
    """Everything that turns occasions into columns: plan, catalogue and the granted sources."""

    plan: DevicePlan
    index: CatalogueIndex
    sources: frozenset[str]

    def __post_init__(self) -> None:
        if self.plan.catalogue.domain != self.index.domain:
            raise BundleRefused("catalogue.domain: is not the one that the plan ranks.")
        unknown = [name for name in self.plan.features if name not in COLUMN]
        if unknown:
            raise BundleRefused(f"plan.features: {', '.join(unknown)}: this runtime has no such feature.")


def query_of(occasion: pb.Occasion, index: CatalogueIndex) -> Query | None:
    """Return the occasion's Query, or None where what is stored does not fit the catalogue."""
    try:
        said = [said_from_bytes(body) for body in occasion.said]
        earlier = [Choice(choice.item, choice.app) for choice in occasion.earlier]
        return make_query_from(said, earlier, index)
    except (CatalogueMismatch, DataCorrupt):
        return None


def examples(occasions: Sequence[pb.Occasion], index: CatalogueIndex, most: int) -> list[tuple[Query, int]]:
    """Return the newest ``most`` usable occasions, oldest first: Query and position of the chosen item.

    An occasion whose item is not ranked by this catalogue, or that was read with another one, is left out.
    """
    found: list[tuple[Query, int]] = []
    for occasion in reversed(occasions):
        chosen = index.keys.get(occasion.chosen, index.n)
        query = query_of(occasion, index) if chosen < index.n else None
        if query is not None:
            found.append((query, chosen))
        if len(found) == most:
            break
    return found[::-1]


def make_columns(known: Known, found: Sequence[tuple[Query, int]], rng: np.random.Generator) -> Columns:
    """Return the plan's columns for the examples, n >= 0 rows each.

    Args:
        known: plan, catalogue, sources.
        found: from ``examples``.
        rng: ``simulation_rng(shuffle_seed, step, "", "negatives")``.

    Raises:
        BundleRefused: the plan names a builder or columns that this runtime does not have.
    """
    builder = _BUILDERS.get(known.plan.examples)
    if builder is None:
        raise BundleRefused(f"plan.examples={known.plan.examples!r}: choose among {', '.join(sorted(_BUILDERS))}.")
    positive = np.array([chosen for _, chosen in found], np.int64)
    drawn = sample_candidates(positive, known.index.n, known.plan.training.candidates, rng)
    columns = builder(known, [query for query, _ in found], _filled(drawn, known.plan.training.candidates))
    for spec in known.plan.columns:
        column = columns.get(spec.name)
        if column is None or column.dtype != np.dtype(spec.dtype) or column.shape[1:] != spec.shape:
            raise BundleRefused(f"plan.columns.{spec.name}: {known.plan.examples} makes no such column.")
    return {spec.name: columns[spec.name] for spec in known.plan.columns}


def _filled(drawn: Candidates, k: int) -> Candidates:
    """Fill up to K places where the catalogue has fewer items: with the chosen item, at no weight."""
    short = k - drawn.items.shape[1]
    if short <= 0:
        return drawn
    items = np.concatenate([drawn.items, np.repeat(drawn.items[:, :1], short, axis=1)], axis=1)
    logq = np.concatenate([drawn.logq, np.full((len(items), short), NEVER, np.float32)], axis=1)
    return Candidates(items, drawn.label, logq)


def features_of(known: Known, query: Query, candidates: I64 | None) -> F32:
    """Return f32[K, d]: the plan's features of the candidates (None: of all items), 0 where a source is not granted."""
    columns = [COLUMN[name] for name in known.plan.features]
    rows = match_all(query, known.index) if candidates is None else match(query, known.index, candidates)
    granted = feature_mask(known.sources)[columns]
    return np.ascontiguousarray(np.where(granted, rows[:, columns], np.float32(0)))


def terms_of(known: Known, query: Query) -> Columns:
    """Return ``terms`` i64[T] and ``term_weight`` f32[T]: what the owner asked for, newest first."""
    options = dict(known.plan.example_options)
    most, rows = options.get("terms", 0), options.get("rows", 0)
    if most < 1 or rows < 1:
        raise BundleRefused("plan.example_options: two_tower needs terms >= 1 and rows >= 1.")
    terms, weight = np.zeros(most, np.int64), np.zeros(most, np.float32)
    if "chat" in known.sources:
        wanted = query.terms[query.terms[:, 2] > 0]
        newest = wanted[np.lexsort((wanted[:, 0], wanted[:, 3]))][:most, 0]
        terms[: len(newest)] = newest % rows
        weight[: len(newest)] = 1.0
    return {"terms": terms, "term_weight": weight}


def _match(known: Known, queries: Sequence[Query], drawn: Candidates) -> Columns:
    features = np.empty((*drawn.items.shape, len(known.plan.features)), np.float32)
    for row, query, items in zip(features, queries, drawn.items, strict=True):
        row[...] = features_of(known, query, items)
    return {"features": features, "label": drawn.label, "logq": drawn.logq}


def _two_tower(known: Known, queries: Sequence[Query], drawn: Candidates) -> Columns:
    table = next((spec for spec in known.plan.parameters if spec.name == "item_rows"), None)
    if table is not None and known.index.n > table.shape[0]:
        raise BundleRefused(f"catalogue: {known.index.n} items, the model's item_rows has {table.shape[0]}.")
    most = dict(known.plan.example_options).get("terms", 0)
    terms, weights = np.empty((len(queries), most), np.int64), np.empty((len(queries), most), np.float32)
    for i, query in enumerate(queries):
        made = terms_of(known, query)
        terms[i], weights[i] = made["terms"], made["term_weight"]
    return {
        "terms": terms,
        "term_weight": weights,
        "items": drawn.items,
        "label": drawn.label,
        "logq": drawn.logq,
    }


_BUILDERS: Final[dict[str, Callable[[Known, Sequence[Query], Candidates], Columns]]] = {
    "match": _match,
    "two_tower": _two_tower,
}

"""``golden.json``: what a phone's own code must compute, worked out with numpy and torch. Format: docs/export.md.

It brings a small catalogue of its own, cut from the public one, so that it stays valid when the catalogue is replaced.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from fedlearn.catalogue import Catalogue, Item
from fedlearn.clip import clip_l2
from fedlearn.device.catalogue_file import catalogue_bytes
from fedlearn.device.plan import DevicePlan, Scope
from fedlearn.engine.example_privacy import PrivateSgd, private_local_step
from fedlearn.engine.step import Tensors, local_step
from fedlearn.errors import ContributionRejected
from fedlearn.export.golden_texts import Session, Spans, occasions, spoken
from fedlearn.export.plan import Trained
from fedlearn.features import CatalogueIndex, Query, feature_mask, make_query_from, match_all, read_message, said_bytes
from fedlearn.features.match import COLUMN, SOURCES
from fedlearn.models.base import Model, Parameters
from fedlearn.policy.canonical import canonical_bytes
from fedlearn.privacy.grid import to_grid
from fedlearn.signals import Choice

SCHEMA: Final = "fedlearn.golden/1"
TOLERANCE: Final = 1e-5
"""Of a delta's coordinates, and of scores and features, where a plan's numbers are of order one."""

_ITEMS, _CONTEXT = 16, 8
_BATCHES: Final = ((0, 1, 2), (2, 0), (1,), (), (1, 2, 0), (0, 2, 1))
_EXAMPLES: Final = 3
_SHOWN: Final = 256
_PRIVATE_SCALE: Final = 0.1
_SUBSETS: Final = (("catalogue", "chat", "choices"), ("catalogue", "choices"), ("catalogue", "chat"), ("catalogue",))
_VECTORS: Final = (
    (0.0,) * 8,
    (0.25, -0.125, 0.0, 2.0**-29, -(2.0**-31), 0.03125, 0.5, -0.5),
    (0.6, 0.8, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    (1.5, -2.25, 3.125, 0.7, -11.0, 0.001, 5.0, 0.3),
    (1e30, -1e30, 1e29, 0.0, 1.0, 0.0, 0.0, 0.0),
    (1e-40, 0.0, -1e-42, 0.0, 0.0, 0.0, 0.0, 0.0),
    (math.nan, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    (math.inf, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
)
"""In units of the clip norm."""


@dataclass(frozen=True, slots=True)
class _Town:
    """What every vector is computed from."""

    model: Model
    plan: DevicePlan
    parameters: Parameters
    catalogue: Catalogue
    index: CatalogueIndex
    texts: Sequence[tuple[str, Spans]]

    @property
    def keys(self) -> list[str]:
        return [item.key for item in self.catalogue.items]


def golden_bytes(trained: Trained, plan: DevicePlan) -> bytes:
    """Return the golden vectors of a plan, as canonical JSON; equal arguments give equal bytes."""
    catalogue = small_catalogue(trained.catalogue)
    index = CatalogueIndex.build(catalogue)
    parameters = _parameters(trained.parameters, plan)
    town = _Town(trained.model, plan, parameters, catalogue, index, spoken(catalogue))
    body = {
        "schema": SCHEMA,
        "tolerance": TOLERANCE,
        "catalogue": catalogue_bytes(catalogue).decode("ascii"),
        "index_digest": index.digest,
        "texts": [
            {"text": text, "foreign_spans": [list(span) for span in spans], "said": _said(text, spans, index).hex()}
            for text, spans in town.texts
        ],
        "sessions": [_session(session, town) for session in occasions(catalogue)],
        "training": _training(town),
        "clip": [_clip(vector, plan) for vector in _VECTORS],
    }
    return canonical_bytes(body)


def small_catalogue(catalogue: Catalogue) -> Catalogue:
    """Return a few items of a catalogue, spread over it, in its order, near to one another only."""
    items, context = _spread(catalogue.items, _ITEMS), _spread(catalogue.context, _CONTEXT)
    kept = {item.key for item in (*items, *context)}

    def alone(item: Item) -> Item:
        return replace(item, nearby=tuple(key for key in item.nearby if key in kept))

    return Catalogue(catalogue.name, catalogue.domain, tuple(map(alone, items)), tuple(map(alone, context)))


def fill(count: int, salt: int) -> NDArray[np.float32]:
    """Return f32[count] in [-1, 1) by a rule that any language can repeat.

    Value k is ``((k * 2654435761 + salt * 40503) mod 2^32) / 2^31 - 1``, rounded to f32.
    """
    k = np.arange(count, dtype=np.uint64)
    mixed = (k * np.uint64(2654435761) + np.uint64(salt * 40503)) % np.uint64(2**32)
    return (mixed.astype(np.float64) / 2.0**31 - 1.0).astype(np.float32)


def _spread(items: Sequence[Item], count: int) -> tuple[Item, ...]:
    return tuple(items[i * len(items) // count] for i in range(count)) if len(items) > count else tuple(items)


def _parameters(trained: Parameters, plan: DevicePlan) -> dict[str, NDArray[np.float32]]:
    """The bundle's weights; a phone's own parameters are not the bundle's business and come from ``fill``."""
    return {
        spec.name: trained[spec.name]
        if spec.scope is Scope.SHARED
        else (_PRIVATE_SCALE * fill(math.prod(spec.shape), place)).astype(np.float32).reshape(spec.shape)
        for place, spec in enumerate(plan.parameters)
    }


def _said(text: str, spans: Sequence[tuple[int, int]], index: CatalogueIndex) -> bytes:
    said = read_message(text, spans, index)
    return b"" if said is None else said_bytes(said)


def _session(session: Session, town: _Town) -> dict[str, object]:
    heard = [read_message(*town.texts[i], town.index) for i in session.texts]
    earlier = [Choice(item, app) for item, app in session.earlier]
    query = make_query_from([said for said in heard if said is not None], earlier, town.index)
    return {
        "texts": list(session.texts),
        "earlier": [list(pair) for pair in session.earlier],
        "query": query.flat().tolist(),
        "uses": [_use(query, sources, town) for sources in _SUBSETS[: None if session.every_subset else 1]],
    }


def _use(query: Query, sources: Sequence[str], town: _Town) -> dict[str, object]:
    """What one Query gives with only some sources granted: what the model reads of it, and the ranking."""
    found: dict[str, object] = {"sources": list(sources)}
    if town.plan.examples == "match":
        rows = features_of(query, town.plan, sources, town.index)
        found["features"] = array_json(rows)
        scores = town.model.scores(town.parameters, rows)
    else:
        terms = terms_of(query, dict(town.plan.example_options), sources)
        found["terms"] = terms.tolist()
        scores = town.model.scores(town.parameters, terms)[: town.index.n]
    return {**found, "scores": scores.tolist(), "ranking": certain_ranking(scores, town.keys)}


def features_of(query: Query, plan: DevicePlan, sources: Iterable[str], index: CatalogueIndex) -> NDArray[np.float32]:
    """Return f32[N, d]: the plan's features of all items, 0 where a source is not granted."""
    columns = [COLUMN[name] for name in plan.features]
    granted = feature_mask(SOURCES & set(sources))[columns]
    return np.where(granted, match_all(query, index)[:, columns], np.float32(0.0))


def terms_of(query: Query, options: Mapping[str, int], sources: Iterable[str]) -> NDArray[np.int64]:
    """Return rows of the term table: what was asked for, newest first, then by term id; at most ``terms`` of them."""
    wanted = [(age, term) for term, _, polarity, age in query.terms.tolist() if polarity > 0]
    chosen = sorted(wanted)[: options["terms"]] if "chat" in set(sources) else []
    return np.array([term % options["rows"] for _, term in chosen], dtype=np.int64)


def certain_ranking(scores: NDArray[np.float64], keys: Sequence[str]) -> list[str]:
    """Return keys, best first, equal scores by position; up to where rounding could turn the order round."""
    order = np.argsort(-scores, kind="stable").tolist()
    for place, (above, below) in enumerate(pairwise(order)):
        if 0.0 < scores[above] - scores[below] <= 2 * TOLERANCE:
            return [keys[i] for i in order[:place]]
    return [keys[i] for i in order]


def _training(town: _Town) -> dict[str, object]:
    """A few steps on given columns: short and empty batches too."""
    columns, size = _columns(town), town.plan.training.batch_size
    weights = {name: torch.from_numpy(np.array(value)) for name, value in sorted(town.parameters.items())}
    delta = {name: torch.zeros_like(value) for name, value in weights.items()}
    batches = [rows[:size] for rows in _BATCHES]
    for step, rows in enumerate(batches):
        picked = np.array([*rows, *[0] * size][:size])
        batch = {name: torch.from_numpy(column[picked]).unsqueeze(0) for name, column in columns.items()}
        mask = torch.from_numpy(np.arange(size) < len(rows)).unsqueeze(0)
        change = _change(town, {name: weights[name] + delta[name] for name in weights}, batch, mask, step)
        delta = {name: delta[name] + change[name].squeeze(0) for name in delta}
    flat = np.concatenate([delta[name].numpy().ravel() for name in sorted(delta)])
    shown = np.sort(np.argsort(-np.abs(flat), kind="stable")[:_SHOWN])
    return {
        "columns": {name: array_json(column) for name, column in sorted(columns.items())},
        "batches": [list(rows) for rows in batches],
        "size": flat.size,
        "index": shown.tolist(),
        "delta": array_json(flat[shown]),
        "l2_norm": float(np.linalg.norm(flat.astype(np.float64))),
    }


def _change(town: _Town, weights: Tensors, batch: Tensors, mask: torch.Tensor, step: int) -> Tensors:
    rate, privacy = town.plan.training.learning_rate, town.plan.training.example_privacy
    one = {name: value.unsqueeze(0) for name, value in weights.items()}
    if privacy is None:
        return local_step(town.model, rate)(one, batch, mask)
    drawn, start = torch.from_numpy(fill(sum(value.numel() for value in weights.values()), step + 1)), 0
    noise = {}
    for name, value in one.items():
        noise[name] = drawn[start : start + value.numel()].reshape(value.shape)
        start += value.numel()
    private = PrivateSgd(privacy.noise_multiplier, privacy.l2_clip_norm, town.plan.training.batch_size)
    return private_local_step(town.model, rate, private)(one, batch, mask, noise)


def _columns(town: _Town) -> dict[str, NDArray[Any]]:
    """Columns of a few examples that stand for no person."""
    rng = np.random.Generator(np.random.Philox(key=np.array([7, 0], np.uint64)))
    bound = {"label": town.plan.training.candidates}
    for table, names in town.model.row_columns.items():
        bound |= dict.fromkeys(names, len(town.parameters[table]))
    found: dict[str, NDArray[Any]] = {}
    for spec in town.plan.columns:
        shape = (_EXAMPLES, *spec.shape)
        if spec.dtype == "<i8":
            found[spec.name] = rng.integers(0, bound[spec.name], shape)
        elif spec.name == "logq":
            found[spec.name] = np.full(shape, -1.5, np.float32)
        elif spec.name == "term_weight":
            found[spec.name] = (rng.random(shape) < 0.7).astype(np.float32)
        else:
            found[spec.name] = (np.round(rng.uniform(-1, 1, shape) * 128) / 128).astype(np.float32)
    return found


def _clip(vector: Sequence[float], plan: DevicePlan) -> dict[str, object]:
    """An update before the clip, and its integers on the grid; null: it must be refused."""
    values = (np.array(vector, dtype=np.float64) * plan.mechanism.l2_clip_norm).astype(np.float32)
    found: dict[str, object] = {"values": array_json(values), "grid": None}
    try:
        clipped = clip_l2(values, plan.mechanism.l2_clip_norm)
    except ContributionRejected:
        return found
    return {**found, "grid": to_grid(clipped.values, plan.mechanism.grid_step).tolist()}


def array_json(array: NDArray[Any]) -> dict[str, object]:
    """Return an array as little-endian base64 with its dtype (``<f4``, ``<i8``) and shape."""
    kind = "<f4" if array.dtype.kind == "f" else "<i8"
    data = np.ascontiguousarray(array).astype(kind).tobytes()
    return {"dtype": kind, "shape": list(array.shape), "data": base64.b64encode(data).decode("ascii")}

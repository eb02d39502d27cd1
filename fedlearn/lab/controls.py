"""What a federated model is compared with. None of it is private; nothing here is ever released.

Controls are computed per fold from the same rows and the same features as the federated model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from fedlearn.engine.population import FeatureSource, MatchPopulation
from fedlearn.engine.registry import make_engine
from fedlearn.engine.schedule import LocalTraining, schedule
from fedlearn.features import FEATURES, Query
from fedlearn.lab import central
from fedlearn.lab.config import ExperimentConfig
from fedlearn.lab.dataset import OracleDataset
from fedlearn.lab.evaluation import ranks
from fedlearn.lab.feature_table import FeatureTable, QueryOf, block
from fedlearn.lab.prepare import Prepared, Split
from fedlearn.lab.registry import build_model
from fedlearn.models.base import Model, Parameters, unflatten
from fedlearn.rng import simulation_rng
from fedlearn.types import F64, I64

ROWS_AT_ONCE = 128
ALONE = LocalTraining(epochs=30, batch_size=16, learning_rate=0.5)
"""Local-only training: enough passes to converge on a handful of sessions."""

WORDS = "words"
"""The match feature that is BM25 of the last message."""

Scorer = Callable[[I64], NDArray[np.floating]]
"""Rows of the store -> scores [n, N]."""


@dataclass(frozen=True, slots=True)
class ControlResult:
    """Ranks of one control in one fold.

    Args:
        name: name of its row in the result table.
        note: a few words for the reader.
        reference: whether it is a bound (an oracle) rather than something one could deploy.
        ranks: i64[n], aligned with the fold's test rows.
    """

    name: str
    note: str
    reference: bool
    ranks: I64 = field(repr=False)


POPULARITY = "popularity"
BM25 = "BM25, last message"
LOCAL_ONLY = "local-only"
CENTRAL = "central, same features"
CENTRAL_POPULARITY = "central, with popularity"
CENTRAL_NO_CHOICES = "central, without other apps"
CENTRAL_PLACEBO = "central, placebo source"
CENTRAL_SHUFFLED = "central, shuffled chat"
ORACLE = "oracle"
TRUTH = "truth oracle"


def rank_rows(rows: I64, labels: I64, score: Scorer) -> I64:
    """Return the rank of each row's chosen item, a few rows at a time."""
    parts = [rows[start : start + ROWS_AT_ONCE] for start in range(0, len(rows), ROWS_AT_ONCE)]
    return np.concatenate([ranks(score(part), labels[part]) for part in parts]) if parts else np.zeros(0, np.int64)


def model_scorer(model: Model, parameters: Parameters, table: FeatureSource) -> Scorer:
    """Return the scorer of a trained model."""
    return lambda rows: model.scores(parameters, block(table, rows))


def run_controls(config: ExperimentConfig, prepared: Prepared, split: Split) -> Iterator[ControlResult]:
    """Yield every control of one fold, cheapest first."""
    labels = prepared.labels
    items = len(prepared.dataset.catalogue)
    counts = central.popularity(labels[split.train], items)

    def ranked(name: str, note: str, score: Scorer, *, reference: bool = False) -> ControlResult:
        return ControlResult(name, note, reference, rank_rows(split.test, labels, score))

    yield ranked(POPULARITY, "non-private control", lambda rows: np.tile(counts, (len(rows), 1)))
    yield ranked(BM25, "no training", _bm25(prepared))
    yield ranked(LOCAL_ONLY, "each phone alone", _local_only(config, prepared, split))
    yield ranked(
        CENTRAL, "non-private control", _central(config, prepared, split, prepared.table(config.features.sources))
    )
    yield ranked(CENTRAL_POPULARITY, "non-private control", _central_popularity(config, prepared, split))
    if "choices" in config.features.sources:
        yield from _source_controls(config, prepared, split, ranked)
    if isinstance(prepared.dataset, OracleDataset):
        first_row = np.array([prepared.store.rows(device).start for device in range(len(prepared.store.devices))])
        owner = prepared.device_of_row

        def asked(scores_of: Callable[[int, int], F64]) -> Scorer:
            return lambda rows: np.stack([scores_of(int(owner[r]), int(r - first_row[owner[r]])) for r in rows])

        yield ranked(ORACLE, "sees what the phone sees", asked(prepared.dataset.oracle_scores), reference=True)
        yield ranked(TRUTH, "sees the truth", asked(prepared.dataset.truth_scores), reference=True)


def _source_controls(
    config: ExperimentConfig, prepared: Prepared, split: Split, ranked: Callable[[str, str, Scorer], ControlResult]
) -> Iterator[ControlResult]:
    sources = tuple(source for source in config.features.sources if source != "choices")
    alone = replace(config, features=replace(config.features, sources=sources))
    if sources:
        score = _central(alone, prepared, split, prepared.table(sources))
        yield ranked(CENTRAL_NO_CHOICES, "non-private control", score)
    donors = _donors(prepared)
    if donors is None:
        return
    placebo = FeatureTable(_with_choices_of(prepared, donors), prepared.index, config.features.sources)
    yield ranked(CENTRAL_PLACEBO, "another user's choices", _central(config, prepared, split, placebo))
    if "chat" in sources:
        shuffled = FeatureTable(_with_chat_of(prepared, donors), prepared.index, config.features.sources)
        yield ranked(CENTRAL_SHUFFLED, "another user's messages", _central(config, prepared, split, shuffled))


def _bm25(prepared: Prepared) -> Scorer:
    table = prepared.table(tuple(sorted({spec.source for spec in FEATURES})))
    column = [spec.name for spec in FEATURES].index(WORDS)
    return lambda rows: block(table, rows)[:, :, column]


def _central(config: ExperimentConfig, prepared: Prepared, split: Split, table: FeatureSource) -> Scorer:
    model = build_model(config.model, table.width)
    labels = prepared.labels[split.train]
    items = len(prepared.dataset.catalogue)
    candidates = central.candidates_that_fit(len(labels), items, table.width)
    drawn = central.sampled_positions(labels, items, candidates, config.seeds[0])
    features = np.stack([table.features(int(row))[chosen] for row, chosen in zip(split.train, drawn, strict=True)])
    parameters = central.fit(model, features, np.zeros(len(labels), np.int64))
    return model_scorer(model, parameters, table)


def _central_popularity(config: ExperimentConfig, prepared: Prepared, split: Split) -> Scorer:
    table = prepared.table(config.features.sources)
    model = build_model(config.model, table.width + 1)
    labels = prepared.labels[split.train]
    items = len(prepared.dataset.catalogue)
    candidates = central.candidates_that_fit(len(labels), items, table.width + 1)
    drawn = central.sampled_positions(labels, items, candidates, config.seeds[0])
    counts = central.popularity(labels, items)
    features = np.empty((*drawn.shape, table.width + 1), np.float32)
    for place, (row, chosen) in enumerate(zip(split.train, drawn, strict=True)):
        features[place, :, :-1] = table.features(int(row))[chosen]
        # without this choice itself, or the model would read its own label
        features[place, :, -1] = np.log1p(counts[chosen] - (chosen == labels[place]))
    parameters = central.fit(model, features, np.zeros(len(labels), np.int64))
    column = np.log1p(counts).astype(np.float32)

    def score(rows: I64) -> F64:
        features = block(table, rows)
        popular = np.broadcast_to(column[None, :, None], (*features.shape[:2], 1))
        return model.scores(parameters, np.concatenate([features, popular], axis=2))

    return score


def _local_only(config: ExperimentConfig, prepared: Prepared, split: Split) -> Scorer:
    """Train one model per phone on its own training rows; a phone without any keeps the initial model."""
    table = prepared.table(config.features.sources)
    model = build_model(config.model, table.width)
    initial = model.initial(config.seeds[0])
    engine = make_engine("vmap", model, learning_rate=ALONE.learning_rate)
    trained: dict[int, Parameters] = {}
    labels = prepared.labels
    items = len(prepared.dataset.catalogue)
    groups = central.per_device(prepared.device_of_row[split.train])
    for start in range(0, len(groups), ROWS_AT_ONCE):
        part = groups[start : start + ROWS_AT_ONCE]
        population = MatchPopulation(
            [prepared.store.devices[device] for device, _ in part],
            [split.train[places] for _, places in part],
            labels,
            items,
            table,
        )
        clients = population.draw(range(len(part)), config.client.candidates, config.seeds[0], 0)
        orders = [
            schedule(client.count, ALONE, simulation_rng(config.seeds[0], -1, population.ids[place], "local-only"))
            for place, client in enumerate(clients)
        ]
        updates = engine.updates(initial, clients, orders)
        flat = np.concatenate([array.ravel() for _, array in sorted(initial.items())])
        for (device, _), delta in zip(part, updates.deltas, strict=True):
            trained[device] = unflatten(flat + delta, initial)
    owner = prepared.device_of_row

    def score(rows: I64) -> F64:
        return np.stack([model.scores(trained.get(int(owner[row]), initial), table.features(int(row))) for row in rows])

    return score


def _donors(prepared: Prepared) -> I64 | None:
    """Return for every row a row of another phone, or None where there is only one phone."""
    owner = prepared.device_of_row
    if len(np.unique(owner)) < 2:
        return None
    rng = simulation_rng(0, -1, "", "placebo")
    donors = rng.permutation(len(owner))
    while (same := np.flatnonzero(owner[donors] == owner)).size:
        donors[same] = rng.integers(0, len(owner), size=same.size)
    return donors


def _with_choices_of(prepared: Prepared, donors: I64) -> QueryOf:
    def query_of(row: int) -> Query:
        donor = prepared.store.query(int(donors[row]))
        return replace(prepared.store.query(row), choices=donor.choices)

    return query_of


def _with_chat_of(prepared: Prepared, donors: I64) -> QueryOf:
    def query_of(row: int) -> Query:
        donor = prepared.store.query(int(donors[row]))
        return replace(donor, choices=prepared.store.query(row).choices)

    return query_of

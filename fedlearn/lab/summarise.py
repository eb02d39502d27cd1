"""From a study's ranks and ledgers to the one ``Summary`` that every output shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedlearn.errors import Reason
from fedlearn.lab import controls as c
from fedlearn.lab.code import code_digest, code_version
from fedlearn.lab.config import CityData, ExperimentConfig, flat_settings
from fedlearn.lab.evaluation import Metric, UserBootstrap, percentile_interval
from fedlearn.lab.privacy_record import privacy_record
from fedlearn.lab.registry import build_metric
from fedlearn.lab.rundir import RunIdentity
from fedlearn.lab.study import NO_PRIVACY, Study, StudyResult
from fedlearn.report.rounds import RoundRecord
from fedlearn.report.summary import (
    SCHEMA_VERSION,
    Digests,
    EvaluationProtocol,
    Expectation,
    FoldValue,
    GapClosed,
    Lift,
    MetricResult,
    ModelKind,
    ModelRow,
    Rejections,
    Setting,
    Summary,
    WallTime,
)
from fedlearn.types import F64, I64

FEWEST_USERS = 10
METHOD = "paired bootstrap over users, 95 %"


@dataclass(frozen=True, slots=True)
class Scored:
    """All ranks of one row of the result table.

    Args:
        name: name of the row.
        kind: what the row is.
        note: a few words.
        protected: whether the model was released only through the mechanism.
        ranks: (seed, fold) -> ranks aligned with the fold's test rows; controls have the first seed only.
    """

    name: str
    kind: ModelKind
    note: str
    protected: bool
    ranks: Mapping[tuple[int, int], I64]


class Scoreboard:
    """Per-session metric values of every row, aligned over folds, and the shared bootstrap.

    Args:
        study: what was run.
        result: what came out.
    """

    def __init__(self, study: Study, result: StudyResult) -> None:
        self._study = study
        self._folds = [split.fold for split in result.splits]
        self.rows = {row.name: row for row in _scored(study, result)}
        tested = np.concatenate([split.test for split in result.splits])
        users = study.prepared.device_of_row[tested]
        self.bootstrap = UserBootstrap(users, study.config.evaluation.bootstrap)

    @property
    def _many(self) -> bool:
        """Whether there are users enough for an interval to mean anything."""
        return self.bootstrap.user_count >= FEWEST_USERS

    @cached_property
    def metrics(self) -> Mapping[str, Metric]:
        """The metrics asked for, in order."""
        return {name: build_metric(name) for name in self._study.config.evaluation.metrics}

    def values(self, name: str, metric: str) -> F64:
        """Return f64[n]: the row's metric of every tested session, averaged over seeds, folds one after another."""
        ranks = self.rows[name].ranks
        measure = self.metrics[metric]
        parts = [
            np.mean([measure(found) for (_, at), found in sorted(ranks.items()) if at == fold], axis=0)
            for fold in self._folds
        ]
        return np.concatenate(parts)

    def metric_result(self, name: str, metric: str) -> MetricResult:
        """Return mean, interval and the figure of every training."""
        values = self.values(name, metric)
        low, high = self.bootstrap.interval(values) if self._many else (None, None)
        measure = self.metrics[metric]
        each = tuple(
            FoldValue(seed, fold, float(measure(ranks).mean()))
            for (seed, fold), ranks in sorted(self.rows[name].ranks.items())
        )
        return MetricResult(metric, float(values.mean()), low, high, each)

    def lift(self, name: str, of: str, over: str, metric: str, expectation: Expectation) -> Lift | None:
        """Return the paired difference of two rows, or None where one is absent."""
        if of not in self.rows or over not in self.rows or not self._many:
            return None
        difference = self.values(of, metric) - self.values(over, metric)
        low, high = self.bootstrap.interval(difference)
        count = self.bootstrap.user_count
        return Lift(name, metric, float(difference.mean()), low, high, METHOD, count, expectation)

    def gap(self, model: str, metric: str) -> GapClosed | None:
        """Return (model - popularity) / (oracle - popularity), or None without an oracle."""
        if c.ORACLE not in self.rows or c.POPULARITY not in self.rows:
            return None
        model_means, base, bound = (
            self.bootstrap.means(self.values(name, metric)) for name in (model, c.POPULARITY, c.ORACLE)
        )
        low, high = percentile_interval((model_means - base) / np.maximum(bound - base, 1e-9))
        at = {name: float(self.values(name, metric).mean()) for name in (model, c.POPULARITY, c.ORACLE)}
        way = at[c.ORACLE] - at[c.POPULARITY]
        if way <= 0.0:
            return None
        value = (at[model] - at[c.POPULARITY]) / way
        return GapClosed(model, c.POPULARITY, c.ORACLE, metric, value, low, high)


def summarise(
    study: Study, result: StudyResult, identity: RunIdentity, rounds: Sequence[RoundRecord], command: str
) -> Summary:
    """Return the summary of a finished study."""
    board = Scoreboard(study, result)
    protocol = study.prepared.dataset.protocol
    record = privacy_record(study, rounds)
    headline = study.arms[0].name
    metric = study.config.evaluation.metrics[0] if len(board.metrics) == 1 else _headline_metric(board)
    federated = [arm.name for arm in study.arms]
    return Summary(
        schema_version=SCHEMA_VERSION,
        run_id=identity.run_id,
        created=identity.created,
        command=command,
        code_version=code_version(),
        task=protocol.task,
        data=study.prepared.dataset.catalogue.name,
        split=_split_text(study),
        protocol=EvaluationProtocol(protocol.negatives, protocol.tie_rule),
        seeds=study.config.seeds,
        folds=len(study.splits),
        headline=headline,
        models=tuple(_model_row(board, row, metric, record.epsilon) for row in board.rows.values()),
        lifts=_lifts(board, headline, metric),
        gaps=tuple(gap for name in federated if (gap := board.gap(name, metric)) is not None),
        privacy=record,
        digests=Digests(
            config=study.config.digest,
            data=study.prepared.dataset.digest,
            catalogue=study.prepared.dataset.catalogue.digest,
            code=code_digest(),
        ),
        rejected=_rejections(rounds),
        wall=tuple(WallTime(part, seconds) for part, seconds in result.wall.items()),
        settings=_settings(study.config),
    )


def _split_text(study: Study) -> str:
    data = study.config.data
    said = study.prepared.dataset.protocol.split
    if isinstance(data, CityData) or data.fold_by == "last_session":
        return said
    return f"{said}, {data.folds} folds by {data.fold_by}"


def _rejections(rounds: Sequence[RoundRecord]) -> tuple[Rejections, ...]:
    total: Counter[Reason] = Counter()
    for record in rounds:
        total.update(record.rejected)
    return tuple(Rejections(reason, count) for reason, count in sorted(total.items()))


def _headline_metric(board: Scoreboard) -> str:
    return "HR@10" if "HR@10" in board.metrics else next(iter(board.metrics))


def _scored(study: Study, result: StudyResult) -> list[Scored]:
    first_seed = study.config.seeds[0]
    rows: dict[str, Scored] = {}
    for fold, control in result.controls:
        kind = ModelKind.REFERENCE if control.reference else ModelKind.CONTROL
        row = rows.setdefault(control.name, Scored(control.name, kind, control.note, False, {}))
        rows[control.name] = Scored(
            row.name, row.kind, row.note, False, {**row.ranks, (first_seed, fold): control.ranks}
        )
    bounds = [row for row in rows.values() if row.kind is ModelKind.REFERENCE]
    plain = [row for row in rows.values() if row.kind is ModelKind.CONTROL]
    federated = []
    for arm in reversed(study.arms):
        ranks = {(t.seed, t.fold): t.ranks for t in result.trained if t.arm == arm.name}
        private = arm.config.privacy.is_private
        note = "noised sums" if private else "NO PRIVACY GUARANTEE" if arm.headline else "non-private control"
        federated.append(Scored(arm.name, ModelKind.FEDERATED, note, private, ranks))
    return [*plain, *federated, *bounds]


def _model_row(board: Scoreboard, row: Scored, headline_metric: str, epsilon: float | None) -> ModelRow:
    order = [headline_metric, *(name for name in board.metrics if name != headline_metric)]
    metrics = tuple(board.metric_result(row.name, name) for name in order)
    return ModelRow(row.name, row.kind, row.protected, epsilon if row.protected else None, metrics, row.note)


def _lifts(board: Scoreboard, headline: str, metric: str) -> tuple[Lift, ...]:
    wanted = (
        ("over popularity", headline, c.POPULARITY, Expectation.POSITIVE),
        ("other apps' signals", c.CENTRAL, c.CENTRAL_NO_CHOICES, Expectation.POSITIVE),
        ("placebo source (another user's choices)", c.CENTRAL_PLACEBO, c.CENTRAL_NO_CHOICES, Expectation.ZERO),
        ("own chat over shuffled chat", c.CENTRAL, c.CENTRAL_SHUFFLED, Expectation.POSITIVE),
        ("federated against central, same features", headline, c.CENTRAL, Expectation.OPEN),
        ("the price of privacy", headline, NO_PRIVACY, Expectation.OPEN),
    )
    found = [board.lift(name, of, over, metric, expectation) for name, of, over, expectation in wanted if of != over]
    return tuple(lift for lift in found if lift is not None)


def _settings(config: ExperimentConfig) -> tuple[Setting, ...]:
    return tuple(Setting(key, value) for key, value in flat_settings(config))

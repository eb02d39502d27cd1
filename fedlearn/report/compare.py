"""Runs side by side: what differs in their settings, what they reached, what it cost in epsilon."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedlearn.errors import DataCorrupt, DataMissing, OutOfRange, UnknownSetting
from fedlearn.privacy.accountants import epsilon
from fedlearn.privacy.events import Event, NeighboringRelation, event_from_json
from fedlearn.report import view
from fedlearn.report.guarantee import NO_GUARANTEE, PrivacyRecord, figure
from fedlearn.report.schema import dumps
from fedlearn.report.summary import SUMMARY_FILE, MetricResult, ModelKind, Setting, Summary, read_summary

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class RunView:
    """A finished run on disk."""

    path: Path
    summary: Summary


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """One federated model of one run.

    Args:
        run: the run's directory, as given.
        model: name of the model's row.
        group: what rows are comparable with: the task, and data and split where one task was run on several.
        devices: devices in the population.
        epsilon: of this model at ``delta``; null where there is no guarantee.
        delta: null where there is no guarantee.
        metrics: as in the run's summary.
        differs: the settings that are not the same in all runs compared.
    """

    run: str
    model: str
    group: str
    devices: int
    epsilon: float | None
    delta: float | None
    metrics: tuple[MetricResult, ...]
    differs: tuple[Setting, ...]

    def metric(self, name: str) -> MetricResult | None:
        """Return the metric of that name, or None."""
        return next((m for m in self.metrics if m.name == name), None)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Several runs side by side.

    Args:
        schema_version: version of this schema.
        metric: the metric that the plot shows.
        metrics: every metric of the rows, in order of first appearance.
        rows: one per run and federated model.
        notes: what a reader must know before ranking the rows.
    """

    schema_version: int
    metric: str
    metrics: tuple[str, ...]
    rows: tuple[ComparisonRow, ...]
    notes: tuple[str, ...]

    def to_json(self) -> str:
        """Return the comparison as indented JSON."""
        return dumps(self, indent=2)

    def run_names(self) -> Mapping[str, str]:
        """Return what to call each run: its directory's name, or the whole path where two share a name."""
        short = {row.run: Path(row.run).resolve().name for row in self.rows}
        uses = Counter(short.values())
        return {run: name if uses[name] == 1 else run for run, name in short.items()}

    def groups(self) -> tuple[str, ...]:
        """Return the groups of comparable rows, in order of first appearance."""
        return tuple(dict.fromkeys(row.group for row in self.rows))


def load_run(path: Path) -> RunView:
    """Load a finished run.

    Args:
        path: a run directory.

    Raises:
        DataMissing: not a directory, or one without a summary.
        DataCorrupt: the summary is unreadable or of another schema version.
    """
    if not path.is_dir():
        raise DataMissing(f"{path}: not a run directory; name a directory that holds {SUMMARY_FILE}.")
    inner = sorted(p.parent.name for p in path.glob(f"*/{SUMMARY_FILE}"))
    if inner and not (path / SUMMARY_FILE).exists():
        raise DataMissing(f"{path}: holds {len(inner)} runs and is none itself; name them, e.g. {path / inner[0]}.")
    return RunView(path, read_summary(path / SUMMARY_FILE))


def compare(runs: Sequence[Path], metric: str | None = None) -> Comparison:
    """Put runs side by side.

    Args:
        runs: run directories, at least one.
        metric: the metric to plot; by default the first that the first run measured.

    Raises:
        OutOfRange: no run was named.
        UnknownSetting: no model has the metric; the message lists those there are.
        DataMissing, DataCorrupt: as in ``load_run``.
    """
    if not runs:
        raise OutOfRange("runs=[]: name at least one run directory.")
    views = [load_run(path) for path in runs]
    differing = _differing(views)
    rows = tuple(row for run in views for row in _rows(run, differing, _group(run, views)))
    names = tuple(dict.fromkeys(m.name for row in rows for m in row.metrics))
    if not names:
        raise OutOfRange(f"runs={[str(p) for p in runs]}: none holds a federated model with a metric; name others.")
    if metric is not None and metric not in names:
        raise UnknownSetting(f"metric={metric!r}: no run measured it; choose one of {', '.join(names)}.")
    return Comparison(SCHEMA_VERSION, names[0] if metric is None else metric, names, rows, _notes(views, rows))


def _rows(run: RunView, differing: Sequence[str], group: str) -> list[ComparisonRow]:
    settings = {s.key: s.value for s in run.summary.settings}
    differs = tuple(Setting(key, settings.get(key, view.DASH)) for key in differing)
    privacy = run.summary.privacy
    return [
        ComparisonRow(
            run=str(run.path),
            model=model.name,
            group=group,
            devices=privacy.devices,
            epsilon=model.epsilon,
            delta=None if model.epsilon is None else privacy.delta,
            metrics=model.metrics,
            differs=differs,
        )
        for model in run.summary.models
        if model.kind is ModelKind.FEDERATED
    ]


def _differing(views: Sequence[RunView]) -> list[str]:
    """Keys whose value is not the same in all runs, in order of key; an absent key is a value of its own."""
    seen: dict[str, set[str]] = {}
    for run in views:
        for s in run.summary.settings:
            seen.setdefault(s.key, set()).add(s.value)
    count = {key: sum(any(s.key == key for s in v.summary.settings) for v in views) for key in seen}
    return sorted(key for key, values in seen.items() if len(values) > 1 or count[key] < len(views))


def _group(run: RunView, views: Sequence[RunView]) -> str:
    """Name what a run may be ranked against: same task, data, split and protocol."""
    own = run.summary
    same_task = [v.summary for v in views if v.summary.task == own.task]
    if len({_conditions(s) for s in same_task}) == 1:
        return own.task
    return f"{own.task} ({own.data}, {own.split}, {own.protocol.negatives})"


def _conditions(s: Summary) -> tuple[str, ...]:
    return (s.task, s.digests.data, s.split, s.protocol.negatives, s.protocol.ties)


def _notes(views: Sequence[RunView], rows: Sequence[ComparisonRow]) -> tuple[str, ...]:
    notes = []
    if any(row.epsilon is None for row in rows):
        notes.append(f"Rows without an epsilon: {NO_GUARANTEE}.")
    private = sum(row.epsilon is not None for row in rows)
    if private > 1:
        notes.append(
            f"{private} private models: each epsilon stands for its own model alone. To publish several, or the best "
            "of them, from the same devices spends more than any one row says."
        )
    notes += _if_all_published([v.summary for v in views])
    if len({row.delta for row in rows if row.delta is not None}) > 1:
        notes.append("The rows have different deltas: their epsilons are not on one scale.")
    if len({_conditions(v.summary) for v in views}) > 1:
        notes.append("Tasks, data, splits or protocols differ: rank rows within a group only.")
    notes += sorted({f"{v.summary.task}: {v.summary.privacy.caveat}." for v in views if v.summary.privacy.caveat})
    return tuple(notes)


def _if_all_published(summaries: Sequence[Summary]) -> list[str]:
    """Say, for each population that several private runs share, what publishing all their models spends."""
    notes = []
    for digest in dict.fromkeys(s.digests.data for s in summaries):
        shared = [s.privacy for s in summaries if s.digests.data == digest and s.privacy.charges is not None]
        if len(shared) < 2:
            continue
        models = sum(1 if p.if_all_published is None else p.if_all_published.models for p in shared)
        relations = {p.neighboring_relation or "" for p in shared}
        if len(relations) > 1:
            notes.append(
                f"If all {models} private models on these devices were published: no figure, their guarantees have "
                f"different adjacencies ({', '.join(sorted(relations))}), and none is converted to another."
            )
            continue
        delta = max(p.delta for p in shared if p.delta is not None)
        relation = NeighboringRelation(relations.pop().replace("-", "_"))
        events = [pair for p in shared for pair in _spend(p)]
        spent = figure(epsilon(events, delta, neighboring_relation=relation))
        notes.append(
            f"If all {models} private models on these devices were published: epsilon {spent} at delta {figure(delta)}."
        )
    return notes


def _spend(privacy: PrivacyRecord) -> list[tuple[Event, int]]:
    """Return what a run's ledgers hold, as its summary recorded it."""
    if not privacy.spend:
        raise DataCorrupt("summary.json: private, yet nothing was spent; run again.")
    return [(event_from_json(spent.event), spent.count) for spent in privacy.spend]

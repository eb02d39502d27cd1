"""What a run leaves behind: ``summary.json``, one ``Summary``.

The records hold figures and words; whoever trains fills them in, and the report, the tables and the comparison only
show them. ``docs/summary-schema.md`` and ``summary.schema.json`` are generated from these classes.

``protected`` says whether a figure left under the privacy mechanism. A figure computed from private devices without
noise carries ``false``: publishing it is a release that no epsilon here covers.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import ClassVar

from fedlearn.errors import DataCorrupt, OutOfRange, Reason
from fedlearn.files import write_durably
from fedlearn.report.guarantee import PrivacyRecord
from fedlearn.report.schema import decode, dumps, parse, read_bytes

SCHEMA_VERSION = 2
SUMMARY_FILE = "summary.json"
ROUNDS_FILE = "metrics.jsonl"
REPORT_FILE = "report.html"


class ModelKind(StrEnum):
    """What a row of the result table is."""

    CONTROL = "control"
    FEDERATED = "federated"
    REFERENCE = "reference"


class Expectation(StrEnum):
    """What a sound study shows for a lift."""

    ZERO = "zero"
    POSITIVE = "positive"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class FoldValue:
    """One metric of one training.

    Args:
        seed: seed of the training.
        fold: index of the test fold, 0 where the task has one split.
        value: the metric, in the metric's unit.
    """

    seed: int
    fold: int
    value: float


@dataclass(frozen=True, slots=True)
class MetricResult:
    """One metric of one model over all seeds and folds.

    Args:
        name: e.g. ``HR@10``; the same spelling in every model of a summary.
        mean: mean over seeds and folds, 0..1 for ranking metrics.
        lo: lower end of the interval, or null where none was computed.
        hi: upper end of the interval, or null where none was computed.
        values: each seed's and fold's figure.
        protected: false: computed on the devices' own choices, without noise.
    """

    name: str
    mean: float
    lo: float | None
    hi: float | None
    values: tuple[FoldValue, ...]
    protected: bool = False


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One row of the result table.

    Args:
        name: name shown, unique in the summary, e.g. ``federated, epsilon 3``.
        kind: ``control`` (a baseline), ``federated`` (what the run trained) or ``reference`` (a bound, e.g. an oracle).
        protected: true if the model's parameters were released only through the privacy mechanism.
        epsilon: epsilon of this one model at the summary's delta; null where there is no guarantee.
        metrics: the model's metrics; the first is the headline metric.
        note: a few words for the reader, e.g. ``non-private control`` or ``sees the truth``; may be empty.
    """

    name: str
    kind: ModelKind
    protected: bool
    epsilon: float | None
    metrics: tuple[MetricResult, ...]
    note: str

    def metric(self, name: str) -> MetricResult | None:
        """Return the metric of that name, or None where this model has none."""
        return next((m for m in self.metrics if m.name == name), None)


@dataclass(frozen=True, slots=True)
class Lift:
    """A difference between two models on the same users, with its interval.

    Args:
        name: what is compared, e.g. ``placebo source`` or ``other apps' signals``.
        metric: the metric's name.
        lift: difference of the means, in the metric's unit.
        lo: lower end of the interval.
        hi: upper end of the interval.
        method: how the interval was made, e.g. ``paired bootstrap over users, 95 %``.
        n: users compared.
        expectation: ``zero`` (a placebo), ``positive`` (a claimed gain) or ``open``.
        protected: false: computed on the devices' own choices, without noise.
        ok: derived. ``zero``: the interval holds 0; ``positive``: it lies above 0; ``open``: null.
    """

    DERIVED: ClassVar[tuple[str, ...]] = ("ok",)

    name: str
    metric: str
    lift: float
    lo: float
    hi: float
    method: str
    n: int
    expectation: Expectation
    protected: bool = False

    @property
    def ok(self) -> bool | None:
        """Whether the interval agrees with the expectation; None where nothing is expected."""
        if self.expectation is Expectation.OPEN:
            return None
        return self.lo <= 0 <= self.hi if self.expectation is Expectation.ZERO else self.lo > 0


@dataclass(frozen=True, slots=True)
class GapClosed:
    """How much of the way from the baseline to the bound a model went: (model - baseline) / (bound - baseline).

    Args:
        model: name of the model's row.
        baseline: name of the row at 0, e.g. popularity.
        bound: name of the row at 1, e.g. the oracle.
        metric: the metric's name.
        value: 1 is the bound, 0 the baseline.
        lo: lower end of the interval, or null.
        hi: upper end of the interval, or null.
        protected: false: computed on the devices' own choices, without noise.
    """

    model: str
    baseline: str
    bound: str
    metric: str
    value: float
    lo: float | None
    hi: float | None
    protected: bool = False


@dataclass(frozen=True, slots=True)
class EvaluationProtocol:
    """How the ranking was judged.

    Args:
        negatives: what the positive competes with, e.g. ``all 951 items`` or ``999 drawn once per seed``.
        ties: the tie rule, e.g. ``ties count against the positive``.
    """

    negatives: str
    ties: str


@dataclass(frozen=True, slots=True)
class Digests:
    """SHA-256 (hex) of what went in, or null where it does not exist.

    Args:
        config: of the resolved config's canonical text.
        data: of the data set's files or generator settings.
        catalogue: of the catalogue.
        code: of the installed package's source files.
    """

    config: str
    data: str
    catalogue: str | None
    code: str


@dataclass(frozen=True, slots=True)
class WallTime:
    """Wall time of one part of the run.

    Args:
        part: e.g. ``train``.
        seconds: wall seconds, >= 0.
        protected: false: time depends on who took part.
    """

    part: str
    seconds: float
    protected: bool = False


@dataclass(frozen=True, slots=True)
class Rejections:
    """Contributions that were left out of the sums of all trainings, for one reason.

    Args:
        reason: a ``fedlearn.errors.Reason``, e.g. ``not_finite``.
        count: how often, over all rounds.
        protected: false: counted without noise.
    """

    reason: Reason
    count: int
    protected: bool = False


@dataclass(frozen=True, slots=True)
class Setting:
    """One leaf of the resolved config.

    Args:
        key: dotted key, e.g. ``server_opt.lr``.
        value: its value as text.
    """

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class Summary:
    """The content of ``summary.json``.

    Args:
        schema_version: version of this schema; a reader refuses any other.
        run_id: name of the run.
        created: UTC, ISO 8601 with ``Z``, e.g. ``2026-01-31T12:00:00Z``.
        command: the command that made it, ready to paste.
        code_version: package version and source digest or revision.
        task: e.g. ``chat to restaurant``.
        data: name of the data set.
        split: e.g. ``5 folds by dialogue``.
        protocol: how the ranking was judged.
        seeds: seeds of the trainings.
        folds: test folds, >= 1.
        headline: name of the model row that the run is about.
        models: the result table, in the order to show it.
        lifts: controls and ablations as differences.
        gaps: gap closed, one per model of interest; may be empty.
        privacy: the privacy of the headline model, and of the study.
        digests: what went in.
        rejected: contributions left out, by reason; empty when every one entered its sum.
        wall: wall time per part.
        settings: the resolved config, flat, in order of key.
    """

    schema_version: int
    run_id: str
    created: str
    command: str
    code_version: str
    task: str
    data: str
    split: str
    protocol: EvaluationProtocol
    seeds: tuple[int, ...]
    folds: int
    headline: str
    models: tuple[ModelRow, ...]
    lifts: tuple[Lift, ...]
    gaps: tuple[GapClosed, ...]
    privacy: PrivacyRecord
    digests: Digests
    rejected: tuple[Rejections, ...]
    wall: tuple[WallTime, ...]
    settings: tuple[Setting, ...]

    def __post_init__(self) -> None:
        """Refuse a summary whose headline is not a row, or whose rows share a name."""
        names = [m.name for m in self.models]
        if self.headline not in names:
            raise OutOfRange(f"headline={self.headline!r}: must be the name of a model row, one of {names}.")
        if len(set(names)) < len(names):
            raise OutOfRange(f"models: names must differ, found {names}.")

    def model(self, name: str) -> ModelRow | None:
        """Return the row of that name, or None."""
        return next((m for m in self.models if m.name == name), None)


def write_summary(path: Path, summary: Summary) -> None:
    """Write ``summary.json``, whole or not at all."""
    write_durably(path, (dumps(summary, indent=2) + "\n").encode())


def read_summary(path: Path) -> Summary:
    """Read ``summary.json``.

    Raises:
        DataMissing: no such file: not a run directory, or a run that has not finished.
        DataCorrupt: not JSON, another schema version, an unknown or missing key, or a value of another type; the
            message names file and key.
    """
    fix = "name the directory of a finished run, or resume the run first."
    data = parse(read_bytes(path, "summary", fix), str(path))
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise DataCorrupt(
            f"{path}: schema_version: found {version!r}, this version reads {SCHEMA_VERSION}; "
            "read it with the fedlearn version that wrote it, or make the run again."
        )
    return decode(Summary, data, str(path))

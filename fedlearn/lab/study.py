"""A study: every training and every control that one config asks for, each resumable, in one order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fedlearn.lab.config import ExperimentConfig
from fedlearn.lab.controls import ControlResult, model_scorer, rank_rows, run_controls
from fedlearn.lab.prepare import Prepared, Split, limit_test_users, prepare, splits
from fedlearn.lab.recorder import RoundRecorder
from fedlearn.lab.registry import build_metric, build_model
from fedlearn.lab.training import SUBMITTED, Training, run_training, without_privacy
from fedlearn.models.base import Parameters
from fedlearn.report.rounds import RoundRecord, read_rounds
from fedlearn.report.summary import ROUNDS_FILE
from fedlearn.types import I64
from fedlearn_server.checkpoint import MODEL_FILE, load_model
from fedlearn_server.publication import complete_publication

NO_PRIVACY = "federated, no privacy"


@dataclass(frozen=True, slots=True)
class Arm:
    """One federated row of the result table.

    Args:
        name: name of the row.
        config: the experiment its trainings run.
        headline: whether it is what the run is about, not a control.
    """

    name: str
    config: ExperimentConfig
    headline: bool


@dataclass(frozen=True, slots=True)
class TrainedRanks:
    """Ranks of one training's model on its fold's test rows."""

    arm: str
    seed: int
    fold: int
    ranks: I64 = field(repr=False)


@dataclass(slots=True)
class StudyResult:
    """Everything the summary is made from."""

    arms: tuple[Arm, ...]
    splits: tuple[Split, ...]
    trained: list[TrainedRanks] = field(default_factory=list)
    controls: list[tuple[int, ControlResult]] = field(default_factory=list)
    wall: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the block's wall time to ``part``."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.wall[part] = self.wall.get(part, 0.0) + time.perf_counter() - started


Observe = Callable[[RoundRecord], None]
ObserverOf = Callable[[Arm, Training], Observe]
"""(arm, training) -> called with each round's record; the progress bar and the trackers."""
Say = Callable[[str], None]
"""Tells whoever waits something in passing."""


@dataclass(frozen=True)
class Study:
    """One config, prepared: what to train, on which rows, into which directories.

    Args:
        config: the experiment.
        prepared: the data.
        splits: folds, with the tested rows limited to ``evaluation.users`` users.
        directory: the run directory.
        run_id: names the run.
    """

    config: ExperimentConfig
    prepared: Prepared
    splits: tuple[Split, ...]
    directory: Path
    run_id: str

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The headline, and the same training without privacy as a control."""
        config = self.config
        if not config.privacy.is_private:
            return (Arm(NO_PRIVACY, config, headline=True),)
        headline = Arm(private_name(config), config, headline=True)
        if not config.evaluation.controls:
            return (headline,)
        return (headline, Arm(NO_PRIVACY, without_privacy(config), headline=False))

    def training(self, arm: Arm, split: Split, seed: int) -> Training:
        """Return one training and the directory it lives in."""
        name = f"fold{split.fold}-seed{seed}"
        several = len(self.splits) * len(self.config.seeds) > 1
        if not arm.headline:
            directory = self.directory / "controls" / f"no-privacy-{name}"
        else:
            directory = self.directory / "trainings" / name if several else self.directory
        run_id = f"{self.run_id}.{'main' if arm.headline else 'control'}.{name}"
        width = self.prepared.table(self.config.features.sources).width
        return Training(arm.config, split, seed, run_id, directory, width)

    def trainings(self) -> Iterator[tuple[Arm, Training]]:
        """Yield every training, the headline's first."""
        for arm in self.arms:
            for split in self.splits:
                for seed in self.config.seeds:
                    yield arm, self.training(arm, split, seed)


def prepare_study(config: ExperimentConfig, directory: Path, run_id: str) -> Study:
    """Return the study of a config: its data, splits and model are made, or refused; nothing is written but caches.

    Args:
        config: the experiment.
        directory: the run directory.
        run_id: names the run; "" before it has a name.
    """
    prepared = prepare(config.data)
    limited = tuple(
        limit_test_users(split, prepared.device_of_row, config.evaluation.users)
        for split in splits(prepared, config.data)
    )
    build_model(config.model, prepared.table(config.features.sources).width)
    return Study(config, prepared, limited, directory, run_id)


def private_name(config: ExperimentConfig) -> str:
    """Return the row name of the private model."""
    privacy = config.privacy
    if privacy.epsilon is not None:
        return f"federated, epsilon {privacy.epsilon:g}"
    return f"federated, noise {privacy.noise_multiplier:g}"


def run_study(study: Study, observer_of: ObserverOf, say: Say) -> StudyResult:
    """Run or resume every training, then the controls."""
    result = StudyResult(study.arms, study.splits)
    for arm, training in study.trainings():
        with result.timed("train"):
            parameters = _train(study, arm, training, observer_of(arm, training), say)
        with result.timed("evaluate"):
            ranks = _ranks(study, training, parameters)
        result.trained.append(TrainedRanks(arm.name, training.seed, training.split.fold, ranks))
    if study.config.evaluation.controls:
        with result.timed("controls"):
            for split in study.splits:
                result.controls.extend(
                    (split.fold, control) for control in run_controls(study.config, study.prepared, split)
                )
    return result


def round_records(study: Study) -> tuple[RoundRecord, ...]:
    """Return the rounds of every training, in order."""
    paths = [training.directory / ROUNDS_FILE for _, training in study.trainings()]
    return tuple(record for path in paths if path.exists() for record in read_rounds(path))


def make_recorder(study: Study, arm: Arm, training: Training, observe: Observe) -> RoundRecorder:
    """Return what keeps the records of a training, in the one process that trains; observes what is there already."""
    if training.plan is not None:
        complete_publication(training.directory, training.run_id)  # before the recorder asks what was published
    return RoundRecorder(
        model=arm.name,
        training=training,
        metrics={name: build_metric(name) for name in study.config.evaluation.metrics},
        rank=lambda parameters: _ranks(study, training, parameters),
        observe=observe,
    )


def _train(study: Study, arm: Arm, training: Training, observe: Observe, say: Say) -> Parameters:
    if (training.directory / MODEL_FILE).exists():
        return load_model(training.directory)
    training.directory.mkdir(parents=True, exist_ok=True)
    if training.config.runtime.name in SUBMITTED:
        from fedlearn.lab.superlink.submit import run_on_superlink  # noqa: PLC0415 - the operator's side of Flower

        return run_on_superlink(study, arm, training, observe, say)
    return run_training(training, make_recorder(study, arm, training, observe))


def _ranks(study: Study, training: Training, parameters: Parameters) -> I64:
    table = study.prepared.table(training.config.features.sources)
    model = build_model(training.config.model, training.width)
    score = model_scorer(model, parameters, table)
    return rank_rows(training.split.test, study.prepared.labels, score)

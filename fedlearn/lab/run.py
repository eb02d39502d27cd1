"""Train from a config: the command's and the notebook's one way in."""

from __future__ import annotations

import shlex
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from rich.console import Console

from fedlearn.errors import RunInterrupted
from fedlearn.lab import rundir
from fedlearn.lab.config import ExperimentConfig
from fedlearn.lab.policy_check import require_allowed
from fedlearn.lab.progress import progress_bars
from fedlearn.lab.registry import build_metric
from fedlearn.lab.study import Arm, Observe, Study, prepare_study, round_records, run_study
from fedlearn.lab.summarise import summarise
from fedlearn.lab.tracking import make_tracker, tracked
from fedlearn.lab.training import Training, check_runtime, check_server_optimizer
from fedlearn.report.html import write_report
from fedlearn.report.rounds import write_rounds
from fedlearn.report.summary import REPORT_FILE, ROUNDS_FILE, SUMMARY_FILE, Summary, read_summary, write_summary
from fedlearn.report.tables import print_result_table


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """A finished run.

    Args:
        directory: the run directory.
        summary: what ``summary.json`` holds.
    """

    directory: Path
    summary: Summary

    @property
    def report(self) -> Path:
        """The page to open."""
        return self.directory / REPORT_FILE


def train(config: ExperimentConfig, *, command: str = "", console: Console | None = None) -> TrainedRun:
    """Run the study a config describes, or go on with it if its directory holds part of it.

    Args:
        config: a validated experiment, e.g. from ``fedlearn.lab.compose(["experiment=city_quick"])``.
        command: what to print in the report as the way to repeat it.
        console: where progress and the table go; standard error and output by default. Pass
            ``Console(quiet=True)`` for silence.

    Raises:
        ConfigError, DataError: before any work.
        RunDirectoryInUse, ResumeRefused: the run directory belongs to something else.
        BudgetExceeded, LedgerError: before a round that may not happen.
        RunInterrupted: Ctrl-C; the run can be resumed.
    """
    out = console or Console()
    directory = Path(config.run.dir) if config.run.dir else rundir.default_directory(config)
    command = command or shlex.join(["fedlearn", "train", "--config-dir", str(directory)])
    _check_names(config)
    rundir.check_free(directory, config)
    if not rundir.is_finished(directory):
        check_runtime(config)
    try:
        with _interruptible():
            study = _study(config, directory)
    except KeyboardInterrupt as error:
        raise RunInterrupted("stopped before the run began; nothing was written: start it again.") from error
    with rundir.locked(directory):
        identity = rundir.claim(directory, config, study.prepared.dataset.digest, command)
        study = replace(study, run_id=identity.run_id)
        if rundir.is_finished(directory):
            out.print(f"{directory} holds this run, finished; shown as it is.", markup=False)
            return _shown(TrainedRun(directory, read_summary(directory / SUMMARY_FILE)), out)
        try:
            with _interruptible():
                summary = _run(study, identity, command, out)
        except KeyboardInterrupt as error:
            raise RunInterrupted(f"stopped; nothing is lost. Go on with: fedlearn resume {directory}") from error
    return _shown(TrainedRun(directory, summary), out)


def resume(directory: Path, *, console: Console | None = None) -> TrainedRun:
    """Go on with an interrupted run; a finished one is shown."""
    config = rundir.reopen(directory)
    identity = rundir.read_identity(directory)
    moved = rundir.placed(config, directory)
    return train(moved, command=identity.command, console=console)


def _study(config: ExperimentConfig, directory: Path) -> Study:
    """Prepare data, splits, model and privacy plans: everything that can be refused before anything is written."""
    study = prepare_study(config, directory, run_id="")
    for _, training in study.trainings():
        training.calibrate()
    require_allowed(config, (training.plan for arm, training in study.trainings() if arm.headline))
    return study


def _run(study: Study, identity: rundir.RunIdentity, command: str, out: Console) -> Summary:
    config = study.config
    tracker = make_tracker(config.tracking, study.directory, identity.run_id)
    count = sum(1 for _ in study.trainings())
    with progress_bars(out, count) as bar_of:

        def observer_of(arm: Arm, training: Training) -> Observe:
            series = f"{arm.name}/fold{training.split.fold}/seed{training.seed}"
            return tracked(tracker, series, bar_of(arm, training))

        result = run_study(study, observer_of, lambda words: out.print(words, markup=False))
    rounds = round_records(study)
    with result.timed("report"):
        summary = summarise(study, result, identity, rounds, command)
        if count > 1 and len(study.splits) * len(config.seeds) > 1:
            write_rounds(study.directory / ROUNDS_FILE, rounds)
        write_report(study.directory / REPORT_FILE, summary, rounds)
    write_summary(study.directory / SUMMARY_FILE, summary)
    return summary


def _shown(run: TrainedRun, out: Console) -> TrainedRun:
    print_result_table(run.summary, out, run.report)
    return run


def _check_names(config: ExperimentConfig) -> None:
    """Refuse unknown names before any data is read."""
    for metric in config.evaluation.metrics:
        build_metric(metric)
    check_server_optimizer(config)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM end a run as Ctrl-C does, where signals can be handled (the main thread)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise KeyboardInterrupt

    with ExitStack() as stack:
        before = signal.signal(signal.SIGTERM, interrupt)
        stack.callback(signal.signal, signal.SIGTERM, before)
        yield

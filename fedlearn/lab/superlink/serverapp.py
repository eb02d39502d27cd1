"""What a submitted ServerApp does with an order: the training, as a runtime in the submitter's own process would.

It writes the same files into the same run directory. Whoever follows it needs nothing but that directory.
"""

# Torch and all that needs it are imported once the lock is held: it is how the submitter knows that this one lives.
# ruff: noqa: PLC0415

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from flwr.serverapp import Grid

from fedlearn.errors import MalformedMessage, ResumeRefused, SuperLinkUnreachable
from fedlearn.lab import rundir
from fedlearn.lab.superlink import marks
from fedlearn.lab.superlink.order import Order, read_order
from fedlearn_server.flower import lost_superlink
from fedlearn_server.logs import log_json

if TYPE_CHECKING:
    from fedlearn.lab.study import Arm, Study
    from fedlearn.lab.training import Training
    from fedlearn.report.rounds import RoundRecord

logger = logging.getLogger(__name__)

LOG_FILE = "serverapp.log"
"""In the training's directory: JSON lines of every ServerApp that was at work on it."""
LOCK_WAIT_S = 20.0
"""Seconds for a ServerApp whose SuperLink was killed to notice and end."""


def serve(grid: Grid, order_json: str) -> None:
    """Do one training over Flower's deployment engine.

    Raises:
        MalformedMessage, CodeMismatch, ConfigError: the order cannot be followed here.
        ResumeRefused: this machine does not see the run directory, or not the run's data.
        RunDirectoryInUse: another ServerApp is at work on it and does not end.
        FedlearnError: what a training raises.
    """
    order = read_order(order_json)
    directory = order.training_directory
    _require_run(order)
    # until here Flower keeps what is logged; a file costs no calls and outlives the process
    log_json("serverapp", (directory / LOG_FILE).open("a", encoding="utf-8", buffering=1))
    with marks.held(directory, LOCK_WAIT_S) as presence:
        presence.say(marks.AtWork(os.getpid(), grid.run.run_id, order.submission))
        if _is_superseded(order):
            logger.warning("given up on by its submitter: ends", extra={"run_id": order.run_id})
            return
        with _failure_kept(order):
            _train(order, grid, presence)


def _train(order: Order, grid: Grid, presence: marks.Presence) -> None:
    import torch

    from fedlearn.lab.study import make_recorder
    from fedlearn.lab.training import make_job
    from fedlearn_server.checkpoint import MODEL_FILE
    from fedlearn_server.observed import observed_server
    from fedlearn_server.training import run_training

    if (order.training_directory / MODEL_FILE).exists():
        return
    torch.set_num_threads(order.config.runtime.threads)
    study, arm, training = _find(order)
    logger.info("begins", extra={"run_id": training.run_id})
    job = make_job(training)
    longest = job.asking.deadline_s * (job.asking.attempts + 1)
    with observed_server(silent_s=longest) as observed:
        presence.say(marks.AtWork(os.getpid(), grid.run.run_id, order.submission, observed.port))
        recorder = make_recorder(study, arm, training, _log_round(training.run_id))
        run_training(job, observed.grid(grid), observed.rounds(recorder))
    logger.info("ends", extra={"run_id": training.run_id})


def _find(order: Order) -> tuple[Study, Arm, Training]:
    """Return the training that an order names, with its data prepared on this machine."""
    from fedlearn.lab.study import prepare_study

    identity = rundir.read_identity(order.directory)
    study = prepare_study(order.config, order.directory, order.run_id)
    if study.prepared.dataset.digest != identity.data_digest:
        raise ResumeRefused(
            f"{order.directory}: the data on the ServerApp's machine is not the run's (digest "
            f"{study.prepared.dataset.digest[:12]}, expected {identity.data_digest[:12]}); put the same data there."
        )
    for arm, training in study.trainings():
        wanted = (arm.headline, training.split.fold, training.seed) == (order.headline, order.fold, order.seed)
        if wanted and training.directory == order.training_directory:
            return study, arm, training
    raise MalformedMessage(f"{order.training_directory}: the order names a training that its config does not have.")


def _require_run(order: Order) -> None:
    """Refuse a run directory that this machine does not see, or sees another run in."""
    path = order.directory / rundir.IDENTITY_FILE
    if not path.exists() or not order.training_directory.is_dir():
        raise ResumeRefused(
            f"{order.directory}: the ServerApp's machine does not see this run directory: set run.dir to a place that "
            "it shares with the submitter's, under the same path, or submit where SuperLink runs."
        )
    identity = rundir.read_identity(order.directory)
    if (identity.run_id, identity.config_digest) != (order.run_id, order.config.digest):
        raise ResumeRefused(f"{order.directory}: holds run {identity.run_id}, not {order.run_id} as ordered.")


def _is_superseded(order: Order) -> bool:
    current = marks.read_submission(order.training_directory)
    return current is None or current.submission != order.submission


@contextmanager
def _failure_kept(order: Order) -> Iterator[None]:
    """Leave in the training's directory why it ended, for the submitter; where the disk is full, Flower keeps it."""
    directory = order.training_directory
    marks.forget_failure(directory)
    try:
        yield
    except Exception as problem:
        kept = problem
        if lost_superlink(problem):
            kept = SuperLinkUnreachable(f"the ServerApp lost its SuperLink ({type(problem).__name__}).")
        logger.exception("ends without a model", extra={"run_id": order.run_id})
        with suppress(OSError):
            marks.write_failure(directory, marks.Failure.of(kept, order.submission))
        raise


def _log_round(run_id: str) -> Callable[[RoundRecord], None]:
    """Return what logs a round: that it was, never what the phones did in it."""

    def log(record: RoundRecord) -> None:
        logger.info("round", extra={"run_id": run_id, "step": record.step})

    return log

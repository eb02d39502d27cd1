"""A training: opens what it needs, resumes what was there, and runs its rounds."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from flwr.serverapp import Grid

from fedlearn.engine.optimizers import IterateAverage, ServerOptimizer
from fedlearn.errors import ResumeRefused, RoundFailed
from fedlearn.ledger import LEDGER_FILE, RunAccount
from fedlearn.privacy.correlated import CorrelatedMechanism
from fedlearn.privacy.events import MatrixGaussian
from fedlearn.privacy.grid import grid_step
from fedlearn.privacy.mechanisms import GaussianMechanism, Mechanism
from fedlearn.privacy.noise_state import NoiseStateStore
from fedlearn.privacy.plan import PrivacyPlan
from fedlearn.privacy.sampling import SamplingKey
from fedlearn.privacy.secrets import SecretStore
from fedlearn_server.account import opened_account
from fedlearn_server.checkpoint import CHECKPOINT_FILE, Checkpoint, load_checkpoint, published_digest, write_model
from fedlearn_server.collect import Conversation
from fedlearn_server.job import TrainingJob
from fedlearn_server.publication import complete_publication, forget_publication
from fedlearn_server.round import Observer, TrainingState, run_round
from fedlearn_server.spend import LedgerSpend, NoSpend, Spend

logger = logging.getLogger(__name__)

LONGEST_PAUSE_S = 8.0


def run_training(job: TrainingJob, grid: Grid, observe: Observer) -> None:
    """Run every step that is left and write ``model.safetensors``.

    A run that lost charges to crashes ends with fewer steps: its ledger never holds more than was planned.
    """
    if job.plan is not None:
        complete_publication(job.directory, job.run_id)
    checkpoint = load_checkpoint(job.directory)
    with _opened_spend(job, checkpoint) as spend:
        state = _state(job, checkpoint)
        nodes = Conversation(grid, job.cohort, job.shards, job.asking)
        while state.step < job.rounds and spend.affordable != 0:
            _run_step(job, state, spend, nodes, observe)
        spend.finish()
        if job.plan is not None:
            # before the model, whose presence says that nothing is left to do
            forget_publication(job.run_id)
            NoiseStateStore(job.run_id, {}).destroy()
            SecretStore().destroy(job.run_id)
        write_model(job.directory, state.released, {"run_id": job.run_id, "steps": str(state.step)})


def _run_step(job: TrainingJob, state: TrainingState, spend: Spend, nodes: Conversation, observe: Observer) -> None:
    """Run one step, trying again where too few parts of the population answered: such an attempt released nothing."""
    for attempt in range(1, job.asking.attempts + 1):
        try:
            return run_round(job, state, spend, nodes, observe)
        except RoundFailed as error:
            if attempt == job.asking.attempts:
                raise
            # without the counts of phones: a log may leave this machine
            why = str(error).removeprefix(f"step {state.step}: ").split(" (")[0].split(";")[0]
            given_up = {"step": state.step, "attempt": attempt, "reason": why}
            logger.warning(
                "step %d, attempt %d given up, to be tried again: %s", state.step, attempt, error, extra=given_up
            )
            time.sleep(min(2.0 ** (attempt - 1), LONGEST_PAUSE_S))
    return None


def _state(job: TrainingJob, checkpoint: Checkpoint | None) -> TrainingState:
    settings = job.optimizer
    optimizer = ServerOptimizer(settings.name, settings.learning_rate, settings.options)
    average = IterateAverage(settings.average_last, job.rounds) if settings.average_last > 0.0 else None
    if checkpoint is None:
        return TrainingState(0, job.initial, optimizer, average)
    shapes = {name: array.shape for name, array in job.initial.items()}
    if {name: array.shape for name, array in checkpoint.parameters.items()} != shapes:
        raise ResumeRefused(f"{job.directory}: the checkpoint holds another model; start a new run.")
    optimizer.load_state_dict(checkpoint.optimizer)
    if average is not None:
        average.load_state_dict(checkpoint.average)
    return TrainingState(checkpoint.step, checkpoint.parameters, optimizer, average, checkpoint.clip)


@contextmanager
def _opened_spend(job: TrainingJob, checkpoint: Checkpoint | None) -> Iterator[Spend]:
    plan = job.plan
    if plan is None:
        yield NoSpend(job.seed, job.denominator)
        return
    path = job.directory / LEDGER_FILE
    store = SecretStore()
    with store.hold(job.run_id) as tally:
        if job.ledger is None and checkpoint is None and tally.digests and not path.exists():
            raise ResumeRefused(
                f"{path}: {len(tally.digests)} charges were made in run {job.run_id!r}, but its ledger is gone; "
                "start a new run."
            )
        with opened_account(job, plan, must_exist=checkpoint is not None or bool(tally.digests)) as account:
            tally.record(account.charged_digests())  # refuses an older copy
            _settle(account, checkpoint, job)
            ended = account.remaining() == 0 or (checkpoint is not None and checkpoint.step >= job.rounds)
            key = None if ended else _sampling_key(store, account)
            mechanism = None if ended else _mechanism(plan, job, 0 if checkpoint is None else checkpoint.step)
            yield LedgerSpend(account, mechanism, key, plan.l2_clip_norm, tally=tally)


def _mechanism(plan: PrivacyPlan, job: TrainingJob, next_step: int) -> Mechanism:
    """Return what adds the plan's noise, with the secret state it has at ``next_step``."""
    if not isinstance(plan.event, MatrixGaussian):
        return GaussianMechanism(plan.noise_multiplier, plan.denominator)
    return CorrelatedMechanism.open(
        job.run_id,
        plan.event,
        plan.denominator,
        l2_sensitivity=plan.l2_clip_norm,
        grid_step=grid_step(plan.l2_clip_norm),
        dimension=sum(array.size for array in job.initial.values()),
        next_step=next_step,
    )


def _sampling_key(store: SecretStore, account: RunAccount) -> SamplingKey:
    """Return the run's key. It is made before the first reservation; an account with one needs the key it had."""
    return store.load(account.run) if account.announced else store.load_or_create(account.run)


def _settle(account: RunAccount, checkpoint: Checkpoint | None, job: TrainingJob) -> None:
    """Bring the ledger in step with what was published before the process ended.

    A charge whose model is in the checkpoint is committed now; any other open charge paid for nothing and stays
    charged. An open reservation is taken up again by the round that reserves the same step.
    """
    published = None if checkpoint is None else checkpoint.charge_id
    for charge in account.uncommitted():
        if charge.sequence == published:
            account.commit(charge, published_digest(job.directory))
    commits = account.committed()
    expected = commits[-1].published_digest if commits else None
    if expected != (None if checkpoint is None else published_digest(job.directory)):
        raise ResumeRefused(
            f"{job.directory}: {CHECKPOINT_FILE} is not what its ledger says was published last; start a new run."
        )

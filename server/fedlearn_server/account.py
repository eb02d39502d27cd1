"""Which account a training pays from: a run in the ledger of its own directory, or in one that trainings share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import numpy as np

from fedlearn.errors import LedgerError
from fedlearn.ledger import LEDGER_FILE, GateKind, Ledger, Planned, RunAccount, new_scope
from fedlearn.ledger.entries import canonical
from fedlearn.ledger.signing import operator_key
from fedlearn.models.base import Parameters
from fedlearn.privacy.plan import PrivacyPlan
from fedlearn_server.job import SharedLedger, TrainingJob

PURPOSE = "training"
EPOCH = "once"


@contextmanager
def opened_account(job: TrainingJob, plan: PrivacyPlan, *, must_exist: bool) -> Iterator[RunAccount]:
    """Open the ledger of a training, or make its own, and yield the training's account; closes the ledger.

    Args:
        job: the training.
        plan: its own; all of it is reserved when the account is made.
        must_exist: for a training that goes on: an account that was removed is not silently begun anew.

    Raises:
        BudgetExceeded: the plan does not fit the budget; the message has the largest number of rounds that does.
        LedgerLocked, LedgerDamaged: as ``Ledger.open``.
        LedgerError: it is another training's, is absent though it must exist, or cannot be written.
    """
    if job.ledger is not None:
        with Ledger.open(job.ledger.where) as ledger:
            yield _shared(ledger, job.ledger, job, plan, must_exist=must_exist)
        return
    path = job.directory / LEDGER_FILE
    if not path.exists():
        if must_exist:
            raise LedgerError(f"{path}: the ledger of this run is gone; what it spent is unknown. Start a new run.")
        _make(job, plan)
    with Ledger.open(path) as ledger:
        if not ledger.book.runs:
            ledger.open_run(job.run_id, PURPOSE, EPOCH, planned(plan), job_digest(job))
        yield _own(ledger, job, plan)


def planned(plan: PrivacyPlan) -> tuple[Planned, ...]:
    """Return the plan as a ledger reserves it."""
    return (Planned(plan.event, plan.count),)


def job_digest(job: TrainingJob) -> str:
    """Return SHA-256 (hex) of everything that decides what the training computes; public."""
    body = {
        "run_id": job.run_id,
        "rounds": job.rounds,
        "population": job.population,
        "sampling_probability": job.sampling_probability,
        "l2_clip_norm": job.l2_clip_norm,
        "seed": job.seed,
        "training": asdict(job.training),
        "initial": _digest(job.initial),
        "optimizer": repr(asdict(job.optimizer)),
        "participation": repr(job.participation),
        "adaptive_clip": repr(job.adaptive_clip),
        "plan": repr(job.plan),
    }
    if job.gateways:
        body["cohort"] = job.cohort  # the approved plan, and what phones are promised
    return hashlib.sha256(canonical(body).encode("ascii")).hexdigest()


def _make(job: TrainingJob, plan: PrivacyPlan) -> None:
    """Make the ledger, unless another process has just made it."""
    path = job.directory / LEDGER_FILE
    scope = new_scope(
        f"{job.population} {'devices behind gateways' if job.gateways else 'simulated devices'}",
        plan.epsilon,
        plan.delta,
        operator_key().public,
        neighboring_relation=plan.neighboring_relation,
        gate=GateKind.PLAN,
    )
    Ledger.create(path, scope).close()


def _own(ledger: Ledger, job: TrainingJob, plan: PrivacyPlan) -> RunAccount:
    """Return the account of this training; raise LedgerError if the ledger is another's."""
    (name,) = ledger.book.runs
    account, scope = ledger.run(name), ledger.scope
    terms = (scope.epsilon, scope.delta, scope.neighboring_relation)
    if (name, account.plan, account.config_digest) != (job.run_id, planned(plan), job_digest(job)) or terms != (
        plan.epsilon,
        plan.delta,
        plan.neighboring_relation,
    ):
        raise LedgerError(f"{ledger.name}: belongs to another run or plan (run {name!r}); use a new run directory.")
    return account


def _shared(
    ledger: Ledger, place: SharedLedger, job: TrainingJob, plan: PrivacyPlan, *, must_exist: bool
) -> RunAccount:
    """Return the training's account in a shared ledger; the gate decides whether a new one fits."""
    relation = ledger.scope.neighboring_relation
    if relation is not plan.neighboring_relation:
        raise LedgerError(
            f"{ledger.name}: its adjacency is {relation}, the plan's is {plan.neighboring_relation}; a budget has one, "
            "and none is converted to another. Use a ledger made for this mechanism."
        )
    if job.run_id not in ledger.book.runs:
        if must_exist:
            raise LedgerError(f"{ledger.name}: does not hold run {job.run_id!r}, which has spent; start a new run.")
        return ledger.open_run(job.run_id, place.purpose, place.epoch, planned(plan), job_digest(job))
    account = ledger.run(job.run_id)
    if (account.plan, account.config_digest) != (planned(plan), job_digest(job)):
        raise LedgerError(f"{ledger.name}: run {job.run_id!r} has another plan or config; use a new run directory.")
    return account


def _digest(parameters: Parameters) -> str:
    digest = hashlib.sha256()
    for name in sorted(parameters):
        array = np.ascontiguousarray(parameters[name])
        digest.update(f"{name}\n{array.dtype.str}\n{array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()

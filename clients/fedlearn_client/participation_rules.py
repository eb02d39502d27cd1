"""Whether a phone may take part once more, from what is known of its history alone: no store, no clock."""

from __future__ import annotations

from dataclasses import dataclass

from fedlearn.device.task import DeviceTask
from fedlearn.errors import InvalidSpend, Refusal, TaskRefused
from fedlearn_client import zcdp
from fedlearn_client.anchor import NO_STEP, History
from fedlearn_client.participation_rows import Figures, agreed, run_key, terms_digest


@dataclass(frozen=True, slots=True)
class Cost:
    """What a participation costs: participations in the run with it, zCDP of the run and of all runs with it."""

    count: int
    rho_run: float
    rho_total: float


def first_sight(history: History, task: DeviceTask) -> Figures | None:
    """Return what to note of a run that is new, or was not seen since history was lost; None for any other.

    Steps only rise, so a phone that meets a run in step s may have taken part in steps of [0, s], b apart: in at most
    s // b + 1 of them, step s included. A phone that lost nothing and meets a run in step 0 has nothing to assume.

    A run that is in the history has its count; but one that was only in an older copy of the store may have gone on
    after the copy was made, and gets the larger figure.

    A sight costs nothing: what was spent for the run stays, 0 for a new one. What is assumed is charged with the first
    participation (``next_cost``), so a server that names many runs uses up no budget that nothing was given for.

    Raises:
        TaskRefused: PLAN: no step of the run, other terms than before, or terms that contradict themselves.
    """
    terms = task.mechanism
    if not 0 <= task.step < terms.steps:
        raise TaskRefused(Refusal.PLAN, f"task.step={task.step}: the run has {terms.steps} steps, counted from 0.")
    run = history.runs.get(run_key(task.recipient, task.run_id))
    if run is not None and run.terms != terms_digest(agreed(task)):
        raise TaskRefused(
            Refusal.PLAN,
            "task.mechanism, population, purpose: not what earlier tasks of this run said; name a new run.",
        )
    if run is not None and run.epoch == history.epoch:
        return None
    possible = min(task.step // terms.min_separation + 1, terms.max_participations)
    if run is None:
        began_here = task.step == 0 and not history.waiting and not history.incomplete
        count, barrier = (0, NO_STEP) if began_here else (possible, task.step)
    else:
        count, barrier = run.count if run.sure else max(run.count, possible), max(run.barrier, task.step)
    _rho(task, count)  # terms that contradict themselves are refused here, before anything is noted
    return Figures(barrier, count, 0.0 if run is None else run.rho)


def next_cost(history: History, task: DeviceTask) -> Cost:
    """Return the cost of a participation in a run that is in the history.

    Raises:
        TaskRefused: PARTICIPATIONS, SEPARATION, HISTORY; PLAN: terms that contradict themselves.
    """
    terms = task.mechanism
    key = run_key(task.recipient, task.run_id)
    run = history.runs[key]
    if run.count >= terms.max_participations:
        raise TaskRefused(
            Refusal.PARTICIPATIONS, f"{run.count} are charged; max_participations={terms.max_participations}."
        )
    following = run.barrier + terms.min_separation
    if run.barrier != NO_STEP and task.step < following:
        if run.assumed:
            detail = "its history has a gap before here"
            raise TaskRefused(Refusal.HISTORY, f"task.step={task.step}: {detail}; it waits until step {following}.")
        detail = f"it took part in step {run.barrier}"
        raise TaskRefused(Refusal.SEPARATION, f"task.step={task.step}: {detail}; the next may be step {following}.")
    rho_run = _rho(task, run.count + 1)
    return Cost(run.count + 1, rho_run, history.rho((key, rho_run)))


def _rho(task: DeviceTask, participations: int) -> float:
    try:
        return zcdp.rho(task.mechanism, participations)
    except InvalidSpend as error:
        raise TaskRefused(Refusal.PLAN, f"task.mechanism: {error}") from error

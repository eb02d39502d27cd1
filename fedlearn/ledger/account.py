"""What one run does with a ledger: reserve, charge, commit, close."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedlearn.ledger import gates
from fedlearn.ledger.entries import Charged, Committed, Planned, Reserved, Rule, RunClosed, Voided
from fedlearn.ledger.runs import RunState, total
from fedlearn.privacy import accountants
from fedlearn.privacy.events import Event, RepeatAndSelect
from fedlearn.types import Charge

if TYPE_CHECKING:
    from fedlearn.ledger.checkpoint import LedgerCheckpoint
    from fedlearn.ledger.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Reservation:
    """Leave to attempt one step; turns into a charge or is voided.

    Args:
        id: ledger id of the reservation.
        part: index into the run's plan.
        step: mechanism step.
        attempt: charges made for the step before this one.
    """

    id: int
    part: int
    step: int
    attempt: int


class RunAccount:
    """One run in a ledger. ``Ledger.open_run`` makes it, ``Ledger.run`` finds it again.

    Args:
        ledger: open.
        state: of the run.
    """

    def __init__(self, ledger: Ledger, state: RunState) -> None:
        self._ledger = ledger
        self._state = state

    @property
    def run(self) -> str:
        """The run's name."""
        return self._state.opened.run

    @property
    def plan(self) -> tuple[Planned, ...]:
        """What was reserved."""
        return self._state.opened.plan

    @property
    def config_digest(self) -> str:
        """SHA-256 (hex) of the configuration it was opened with."""
        return self._state.opened.config_digest

    @property
    def closed(self) -> bool:
        """Whether nothing can be charged any more."""
        return self._state.closed is not None

    @property
    def announced(self) -> bool:
        """Whether a step was ever reserved."""
        return self._state.reserved_before

    def checkpoint(self) -> LedgerCheckpoint:
        """Return a signed statement of the ledger's length, to be kept elsewhere."""
        return self._ledger.checkpoint()

    def reserve(self, step: int, attempt: int, part: int = 0) -> Reservation:
        """Announce one attempt at a step, durably, before its cohort is drawn.

        Asking again for the reservation that is open returns it: a run that was killed before its charge goes on with
        the same cohort.

        Args:
            step: mechanism step, >= 0, not released yet.
            attempt: ``next_attempt(step, part)``.
            part: index into the plan.

        Raises:
            BudgetExceeded: the plan does not pay for it.
            ChargeMismatch: another reservation is open, the step was released, the attempt is not the next, or the run
                is closed.
            LedgerError: nothing can be written, or the ledger is an older copy.
        """
        self._ledger.require_anchor()
        held = self.open_reservation()
        if held is not None and (held.part, held.step, held.attempt) == (part, step, attempt):
            return held
        entry = self._ledger.append(lambda sequence, time: Reserved(sequence, time, self.run, part, step, attempt))
        return Reservation(entry.sequence, part, step, attempt)

    def void(self, reservation: Reservation, reason: str) -> None:
        """End a reservation with the statement that no noise was drawn for it.

        Raises:
            ChargeMismatch: it was charged (a charge is final) or is not open.
        """
        self._ledger.append(lambda sequence, time: Voided(sequence, time, reservation.id, reason), spends=False)

    def charge(self, reservation: Reservation, task_digest: str, sum_digest: str) -> Charge:
        """Spend the planned event on one sum, durably, and note it outside the ledger. Only after this returns may
        noise be drawn, once.

        Args:
            reservation: the open one.
            task_digest: SHA-256 (hex) of the task that was answered.
            sum_digest: ``BoundedSum.digest``.

        Raises:
            BudgetExceeded: the plan does not pay for it; nothing is recorded.
            ChargeMismatch: the reservation is not open, or a digest is malformed.
            LedgerRestored: the ledger lacks a charge that was made from here; no noise may be drawn.
        """
        held, run = reservation, self.run
        entry = self._ledger.append(
            lambda sequence, time: Charged(sequence, time, held.id, run, held.part, held.step, task_digest, sum_digest)
        )
        noise_multiplier = _noise_multiplier(self.plan[held.part].event)
        return Charge(entry.sequence, entry.step, noise_multiplier, sum_digest)

    def commit(self, charge: Charge | Charged, published_digest: str) -> None:
        """Record that a charge's release was published.

        Args:
            charge: as returned by ``charge``; after a crash between publication and commit, the entry from
                ``uncommitted``, which can be committed but can pay for no further release.
            published_digest: SHA-256 (hex) of what was published.

        Raises:
            ChargeMismatch: no such charge, committed before, or its step was released under another charge.
        """
        identity = charge.id if isinstance(charge, Charge) else charge.sequence
        self._ledger.append(lambda sequence, time: Committed(sequence, time, identity, published_digest), spends=False)

    def close(self, rule: Rule, reason: str) -> None:
        """End the run. Its unused part returns to the budget unless the rule is judgement.

        Args:
            rule: why; ``Rule.DATA_INDEPENDENT`` only if no released or private figure had a say in it.
            reason: in words, for the record.

        Raises:
            ChargeMismatch: a reservation is open, or the run was closed before.
        """
        self._ledger.append(lambda sequence, time: RunClosed(sequence, time, self.run, Rule(rule), reason))

    def next_attempt(self, step: int, part: int = 0) -> int:
        """Return the attempt number a reservation of ``step`` must carry: the charges made for it so far."""
        return self._state.parts[part].charges_of_step[step]

    def open_reservation(self) -> Reservation | None:
        """Return the reservation that is neither charged nor voided, if any."""
        held = self._state.open_reservation
        return None if held is None else Reservation(held.sequence, held.part, held.step, held.attempt)

    def uncommitted(self) -> tuple[Charged, ...]:
        """Return the charges without a commit: spent, and after a crash perhaps wasted."""
        return tuple(entry for sequence, entry in self._state.charges.items() if sequence not in self._state.commits)

    def committed(self) -> tuple[Committed, ...]:
        """Return the commits, in order."""
        return tuple(self._state.commits.values())

    def charged_digests(self) -> tuple[str, ...]:
        """Return the sum digest of every charge, in order."""
        return tuple(entry.sum_digest for entry in self._state.charges.values())

    def remaining(self, part: int = 0) -> int:
        """Return how many releases of a part can still be paid for; of a matrix mechanism: how many steps are left.

        A charge that a crash wasted counts, so with independent releases this can be less than the steps that are left;
        the run then ends early rather than overspend. It is 0 for a closed run.
        """
        return 0 if self.closed else self._state.parts[part].remaining

    def spent_events(self) -> tuple[tuple[Event, int], ...]:
        """Return what counts as spent: each event and how often."""
        return tuple((part.event, part.count) for part in total(self._state.spent))

    def spent(self, delta: float | None = None) -> float:
        """Return epsilon of what counts as spent, at ``delta`` (the scope's by default)."""
        scope = self._ledger.scope
        if delta is None:
            return gates.plan_epsilon(scope, total(self._state.spent))
        relation = scope.neighboring_relation
        return accountants.epsilon(self.spent_events(), delta, neighboring_relation=relation)


def _noise_multiplier(event: Event) -> float:
    return event.event.noise_multiplier if isinstance(event, RepeatAndSelect) else event.noise_multiplier

"""The rules of the ledger as a pure state machine: one set, used to write a new entry and to check an old file."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from fedlearn.errors import BudgetExceeded, ChargeMismatch, InvalidSpend
from fedlearn.ledger import gates
from fedlearn.ledger.entries import (
    Charged,
    Committed,
    Entry,
    Granted,
    Opened,
    Planned,
    Recovered,
    Reserved,
    RunClosed,
    RunOpened,
    Voided,
    grant_bytes,
    recovery_message,
)
from fedlearn.ledger.runs import RunState, check_digest, total
from fedlearn.ledger.scope import GateKind, Scope, require_text
from fedlearn.ledger.signing import verified

Quota = tuple[str, str]
"""(purpose, epoch)."""


@dataclass(slots=True)
class Book:
    """Everything that follows from the entries so far."""

    scope: Scope | None = None
    length: int = 0
    runs: dict[str, RunState] = field(default_factory=dict)
    grants: dict[Quota, Granted] = field(default_factory=dict)
    run_of_reservation: dict[int, RunState] = field(default_factory=dict)
    """Of the open reservations."""
    run_of_charge: dict[int, RunState] = field(default_factory=dict)

    def apply(self, entry: Entry, *, certify: bool = False) -> None:
        """Take the next entry into account; leaves the book unchanged if the entry may not follow.

        Args:
            entry: the next one.
            certify: also let the accountant of record certify the plan of the run of a gate ``plan``. It takes seconds
                and was done when the entry was written, so reading an old, signed entry does without.

        Raises:
            BudgetExceeded: it does not fit the budget.
            ChargeMismatch: it may not follow; the message says why.
        """
        self.check(entry, certify=certify)
        self.apply_checked(entry)

    def apply_checked(self, entry: Entry) -> None:
        """Take an entry into account that ``check`` let pass."""
        match entry:
            case Opened():
                self.scope = entry.scope
            case Granted():
                self.grants[entry.purpose, entry.epoch] = entry
            case RunOpened():
                self.runs[entry.run] = RunState.of(entry)
            case Reserved():
                state = self.runs[entry.run]
                state.apply(entry)
                self.run_of_reservation[entry.sequence] = state
            case Voided():
                self.run_of_reservation.pop(entry.reservation).apply(entry)
            case Charged():
                state = self.run_of_reservation.pop(entry.reservation)
                state.apply(entry)
                self.run_of_charge[entry.sequence] = state
            case Committed():
                self.run_of_charge[entry.charge].apply(entry)
            case RunClosed():
                self.runs[entry.run].apply(entry)
            case Recovered():
                for state in self.runs.values():
                    if state.closed is None:
                        state.apply(entry)
                self.run_of_reservation.clear()
        self.length += 1

    def check(self, entry: Entry, *, certify: bool = True) -> None:  # noqa: C901, PLR0912 - a case for each kind
        """Raise BudgetExceeded, InvalidSpend or ChargeMismatch if ``entry`` may not be the next one."""
        if entry.sequence != self.length:
            raise ChargeMismatch(f"entry {entry.sequence}: number {self.length} is next.")
        if not math.isfinite(entry.time):
            raise ChargeMismatch(f"entry {entry.sequence}: time {entry.time} is not finite.")
        if isinstance(entry, Opened) != (self.length == 0):
            raise ChargeMismatch(f"entry {entry.sequence}: a ledger begins with its scope and has one.")
        match entry:
            case Opened():
                pass
            case Granted():
                self._check_granted(entry)
            case RunOpened():
                self._check_run_opened(entry, certify=certify)
            case Reserved():
                self.run(entry.run).check_reserved(entry)
            case Voided():
                require_text("reason", entry.reason)
                self._run_of_reservation(entry.reservation, "voided").check_reservation(entry.reservation, "voided")
            case Charged():
                self._check_charged(entry)
            case Committed():
                if entry.charge not in self.run_of_charge:
                    raise ChargeMismatch(f"commit of {entry.charge}: there is no such charge.")
                self.run_of_charge[entry.charge].check_committed(entry)
            case RunClosed():
                require_text("reason", entry.reason)
                self.run(entry.run).check_closed()
            case Recovered():
                self._check_recovered(entry)

    def run(self, name: str) -> RunState:
        """Return a run's state; raise ChargeMismatch if there is no such run."""
        state = self.runs.get(name)
        if state is None:
            raise ChargeMismatch(f"run {name!r} is not in this ledger; open it first.")
        return state

    @property
    def required_scope(self) -> Scope:
        """The scope; raises ChargeMismatch before entry 0."""
        if self.scope is None:
            raise ChargeMismatch("the ledger has no scope yet.")
        return self.scope

    def held_cost(self, quota: Quota | None = None) -> float:
        """Return the filter cost of what all runs hold of the cap, or those of one quota; 0.0 without a filter."""
        scope = self.required_scope
        if scope.gate is GateKind.PLAN:
            return 0.0
        return gates.cost(scope, [part for state in self.under(quota) for part in state.held])

    def held(self, quota: Quota | None = None) -> tuple[Planned, ...]:
        """Return what runs hold: plans that are reserved, and what was spent where the rest was returned."""
        return total(part for state in self.under(quota) for part in state.held)

    def spent(self, quota: Quota | None = None) -> tuple[Planned, ...]:
        """Return what counts as spent, over all runs or those of one quota."""
        return total(part for state in self.under(quota) for part in state.spent)

    def under(self, quota: Quota | None) -> list[RunState]:
        """Return the runs of one quota, or all."""
        return [s for s in self.runs.values() if quota is None or quota == (s.opened.purpose, s.opened.epoch)]

    def _check_granted(self, entry: Granted) -> None:
        scope = self.required_scope
        require_text("purpose", entry.purpose)
        require_text("epoch", entry.epoch)
        if not (math.isfinite(entry.epsilon) and 0 < entry.epsilon <= scope.epsilon):
            raise ChargeMismatch(f"epsilon={entry.epsilon}: a quota must be > 0 and at most the cap {scope.epsilon:g}.")
        if not verified(scope.authority_key, entry.authority_signature, grant_bytes(scope.ledger_id, entry)):
            raise ChargeMismatch("the grant is not signed by the ledger's authority.")
        gates.require_meaning(scope, entry.epsilon)
        quota = (entry.purpose, entry.epoch)
        if self.under(quota) and not gates.fits(scope, entry.epsilon, self.held_cost(quota), self._plan_of(quota)):
            raise BudgetExceeded(
                f"quota {quota}: epsilon {entry.epsilon:g} is below what its runs hold already; grant at least that."
            )

    def _plan_of(self, quota: Quota) -> tuple[Planned, ...]:
        return self.held(quota) if self.required_scope.gate is GateKind.PLAN else ()

    def _check_run_opened(self, entry: RunOpened, *, certify: bool) -> None:
        scope = self.required_scope
        for name in ("run", "purpose", "epoch"):
            require_text(name, getattr(entry, name))
        check_digest("config_digest", entry.config_digest)
        if not entry.plan:
            raise ChargeMismatch(f"run {entry.run!r}: its plan is empty; plan at least one release.")
        if entry.run in self.runs:
            raise ChargeMismatch(f"run {entry.run!r} was opened before; choose another name.")
        if scope.gate is GateKind.PLAN and self.runs:
            raise BudgetExceeded("gate plan: the ledger has had its one run; make a ledger with gate zcdp or rdp.")
        quota = (entry.purpose, entry.epoch)
        if scope.authority_key is not None and quota not in self.grants:
            raise BudgetExceeded(
                f"purpose {entry.purpose!r}, epoch {entry.epoch!r} has no quota; `fedlearn ledger grant` makes one."
            )
        if scope.gate is GateKind.PLAN and not certify:
            return
        limits: list[tuple[Quota | None, float]] = [(None, scope.epsilon)]
        if quota in self.grants:
            limits.append((quota, self.grants[quota].epsilon))
        self._require_fits(entry.plan, limits)

    def _require_fits(self, plan: tuple[Planned, ...], limits: list[tuple[Quota | None, float]]) -> None:
        scope = self.required_scope
        held = {quota: self.held_cost(quota) for quota, _ in limits}
        over = [(quota, epsilon) for quota, epsilon in limits if not gates.fits(scope, epsilon, held[quota], plan)]
        if not over:
            return
        quota, epsilon = over[-1]
        name = "the ledger's cap" if quota is None else f"the quota of {quota}"
        most = min(gates.most_that_fits(scope, epsilon, held[quota], plan) for quota, epsilon in over)
        raise BudgetExceeded(
            f"the plan does not fit {name}, epsilon {epsilon:g} at delta {scope.delta:g}, beside what is held; "
            f"at most {most} releases of its first event fit. Use fewer rounds, more noise or a larger budget."
        )

    def _run_of_reservation(self, reservation: int, verb: str) -> RunState:
        state = self.run_of_reservation.get(reservation)
        if state is None:
            raise ChargeMismatch(
                f"reservation {reservation} cannot be {verb}: it is not open; a charge is final and never voided."
            )
        return state

    def _check_charged(self, entry: Charged) -> None:
        state = self._run_of_reservation(entry.reservation, "charged")
        if state.opened.run != entry.run:
            raise ChargeMismatch(f"reservation {entry.reservation} is of run {state.opened.run!r}, not {entry.run!r}.")
        state.check_charged(entry)

    def _check_recovered(self, entry: Recovered) -> None:
        scope = self.required_scope
        require_text("reason", entry.reason)
        message = recovery_message(scope.ledger_id, entry.sequence, entry.reason)
        if not verified(scope.authority_key, entry.authority_signature, message):
            raise ChargeMismatch("the recovery is not signed by the ledger's authority.")


def book_of(entries: Iterable[Entry]) -> Book:
    """Return the book of entries that were checked before.

    Raises:
        ChargeMismatch, BudgetExceeded, InvalidSpend: an entry may not follow.
    """
    book = Book()
    for entry in entries:
        book.apply(entry)
    return book


REFUSALS = (BudgetExceeded, ChargeMismatch, InvalidSpend)
"""What ``Book.check`` raises, besides OutOfRange."""

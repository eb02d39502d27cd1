"""What follows from the entries of one run: what it may still do, and what it has spent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from fedlearn.errors import BudgetExceeded, ChargeMismatch
from fedlearn.ledger.entries import (
    Charged,
    Committed,
    Planned,
    Recovered,
    Reserved,
    Rule,
    RunClosed,
    RunOpened,
    Voided,
    is_hex,
)
from fedlearn.privacy.events import Event, MatrixGaussian, RepeatAndSelect
from fedlearn.privacy.factorization import Toeplitz


def cut(event: MatrixGaussian, steps: int) -> MatrixGaussian:
    """Return the event of the first ``steps`` releases of a matrix mechanism: the same C without its later rows.

    Args:
        event: the whole sequence.
        steps: in [1, event.steps].
    """
    factorization = event.factorization
    if isinstance(factorization, Toeplitz):
        factorization = Toeplitz(factorization.coefficients[:steps])
    most = -(-steps // event.min_separation)
    return replace(
        event, factorization=factorization, steps=steps, max_participations=min(event.max_participations, most)
    )


def total(parts: Iterable[Planned]) -> tuple[Planned, ...]:
    """Return the parts with equal events added up, in the order in which each event first occurs."""
    counts: dict[Event, int] = {}
    for part in parts:
        counts[part.event] = counts.get(part.event, 0) + part.count
    return tuple(Planned(event, count) for event, count in counts.items())


@dataclass(slots=True)
class Part:
    """One part of a run's plan and what was charged to it."""

    planned: Planned
    charges: int = 0
    charges_of_step: Counter[int] = field(default_factory=Counter)
    committed: set[int] = field(default_factory=set)
    highest: int = -1
    """Highest charged step."""

    @property
    def remaining(self) -> int:
        """Charges that are left; of a matrix mechanism: steps after the last committed one."""
        event = self.planned.event
        if isinstance(event, MatrixGaussian):
            return event.steps - 1 - max(self.committed, default=-1)
        return self.planned.count - self.charges

    @property
    def spent(self) -> Planned | None:
        """What the charges so far spend; None for nothing."""
        if self.charges == 0:
            return None
        event = self.planned.event
        if isinstance(event, MatrixGaussian):
            return Planned(cut(event, self.highest + 1), 1)
        if isinstance(event, RepeatAndSelect):
            return self.planned  # which repetition is the best one is known only after all: spent as a whole
        return Planned(event, self.charges)

    def check_room(self, step: int) -> None:
        """Raise BudgetExceeded if the plan does not pay for ``step``."""
        event = self.planned.event
        if isinstance(event, MatrixGaussian):
            if step >= event.steps:
                raise BudgetExceeded(
                    f"step {step}: the mechanism was analysed for {event.steps} steps; none may follow. "
                    "The run ends here."
                )
        elif self.charges >= self.planned.count:
            raise BudgetExceeded(
                f"step {step}: one more release after {self.charges} charges would exceed the plan of "
                f"{self.planned.count}; {len(self.committed)} were published. The run ends here."
            )


@dataclass(slots=True)
class RunState:
    """One run and everything that was entered about it."""

    opened: RunOpened
    parts: tuple[Part, ...]
    closed: RunClosed | Recovered | None = None
    open_reservation: Reserved | None = None
    charges: dict[int, Charged] = field(default_factory=dict)
    commits: dict[int, Committed] = field(default_factory=dict)
    reserved_before: bool = False
    """Whether a step was ever announced."""

    @classmethod
    def of(cls, entry: RunOpened) -> RunState:
        """Return the state of a run that was just admitted."""
        return cls(entry, tuple(Part(planned) for planned in entry.plan))

    @property
    def held(self) -> tuple[Planned, ...]:
        """What the run holds of the budget: its plan, or what it spent if it returned the rest."""
        returned = isinstance(self.closed, RunClosed) and self.closed.rule is not Rule.JUDGEMENT
        return self.charged if returned else self.opened.plan

    @property
    def spent(self) -> tuple[Planned, ...]:
        """What counts as spent: the charges, or the whole plan if it was closed by judgement or in a recovery."""
        return self.charged if self.closed is None else self.held

    @property
    def charged(self) -> tuple[Planned, ...]:
        """What the charges spend, committed or not."""
        return tuple(spent for part in self.parts if (spent := part.spent) is not None)

    def check_reserved(self, entry: Reserved) -> None:
        """Raise ChargeMismatch or BudgetExceeded if the step may not be announced now."""
        self._check_open()
        if self.open_reservation is not None:
            held = self.open_reservation
            raise ChargeMismatch(f"step {held.step} attempt {held.attempt} is still reserved: charge or void it first.")
        if not 0 <= entry.part < len(self.parts):
            raise ChargeMismatch(f"part={entry.part}: the plan of run {entry.run!r} has {len(self.parts)} parts.")
        if entry.step < 0:
            raise ChargeMismatch(f"step={entry.step}: must be >= 0.")
        part = self.parts[entry.part]
        if entry.step in part.committed:
            raise ChargeMismatch(f"step {entry.step} was released and committed; a step is released once.")
        if entry.attempt != part.charges_of_step[entry.step]:
            raise ChargeMismatch(
                f"step {entry.step} attempt {entry.attempt}: the attempt must be {part.charges_of_step[entry.step]}, "
                "the charges made for the step; it advances after a charge and only then."
            )
        part.check_room(entry.step)

    def check_reservation(self, reservation: int, verb: str) -> Reserved:
        """Return the open reservation; raise ChargeMismatch if ``reservation`` is not it."""
        self._check_open()
        held = self.open_reservation
        if held is None or held.sequence != reservation:
            raise ChargeMismatch(
                f"reservation {reservation} cannot be {verb}: it is not open; a charge is final and never voided."
            )
        return held

    def check_charged(self, entry: Charged) -> None:
        """Raise ChargeMismatch or BudgetExceeded if the charge may not be made."""
        held = self.check_reservation(entry.reservation, "charged")
        if (held.part, held.step) != (entry.part, entry.step):
            raise ChargeMismatch(
                f"reservation {entry.reservation} is for step {held.step} of part {held.part}, "
                f"not {entry.step} of {entry.part}."
            )
        check_digest("task_digest", entry.task_digest)
        check_digest("sum_digest", entry.sum_digest)
        self.parts[entry.part].check_room(entry.step)

    def check_committed(self, entry: Committed) -> None:
        """Raise ChargeMismatch if the commit may not be made."""
        self._check_open()
        charge = self.charges[entry.charge]
        if entry.charge in self.commits:
            raise ChargeMismatch(f"commit of {entry.charge}: it was committed before.")
        if charge.step in self.parts[charge.part].committed:
            raise ChargeMismatch(f"commit of {entry.charge}: step {charge.step} was committed under another charge.")
        check_digest("published_digest", entry.published_digest)

    def check_closed(self) -> None:
        """Raise ChargeMismatch if the run may not be closed now."""
        self._check_open()
        if self.open_reservation is not None:
            raise ChargeMismatch(
                f"run {self.opened.run!r}: step {self.open_reservation.step} is reserved; charge or void it first."
            )

    def apply(self, entry: Reserved | Voided | Charged | Committed | RunClosed | Recovered) -> None:
        """Take an entry that was checked into account."""
        match entry:
            case Reserved():
                self.open_reservation = entry
                self.reserved_before = True
            case Voided():
                self.open_reservation = None
            case Charged():
                self.open_reservation = None
                self.charges[entry.sequence] = entry
                part = self.parts[entry.part]
                part.charges += 1
                part.charges_of_step[entry.step] += 1
                part.highest = max(part.highest, entry.step)
            case Committed():
                self.commits[entry.charge] = entry
                charge = self.charges[entry.charge]
                self.parts[charge.part].committed.add(charge.step)
            case RunClosed() | Recovered():
                self.closed = entry
                self.open_reservation = None

    def _check_open(self) -> None:
        if self.closed is not None:
            why = self.closed.rule if isinstance(self.closed, RunClosed) else "recovered"
            raise ChargeMismatch(f"run {self.opened.run!r} was closed ({why}: {self.closed.reason}); start a new run.")


def check_digest(name: str, value: str) -> None:
    """Raise ChargeMismatch unless ``value`` is a SHA-256 in hexadecimal."""
    if not is_hex(value, 64):
        raise ChargeMismatch(f"{name}: must be 64 lower-case hexadecimal digits.")

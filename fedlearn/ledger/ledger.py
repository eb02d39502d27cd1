"""The record of what was spent: reserve, charge durably before the first noise draw, commit after publication. ::

    reservation = ledger.reserve(step, attempt)
    ...                                            # draw the cohort, collect, sum
    charge = ledger.charge(reservation, event, bounded.digest)
    mean = mechanism.release(bounded, charge)
    ...                                            # server step, publish
    ledger.commit(charge, published_digest)

A crash anywhere in between over-counts and never under-counts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from fedlearn.clock import Clock, system_clock
from fedlearn.errors import BudgetExceeded, ChargeMismatch, LedgerDamaged, LedgerError
from fedlearn.ledger.book import Book
from fedlearn.ledger.entries import (
    GENESIS,
    Budget,
    Charged,
    Committed,
    Entry,
    Opened,
    Reserved,
    Voided,
    from_row,
    to_row,
)
from fedlearn.ledger.store import UNUSABLE, RowStore, create
from fedlearn.privacy.accountants import Spend, epsilon, largest_count
from fedlearn.privacy.events import PoissonGaussian
from fedlearn.types import Charge

LEDGER_FILE = "ledger.sqlite"

E = TypeVar("E", Reserved, Voided, Charged, Committed)


@dataclass(frozen=True, slots=True)
class Reservation:
    """Leave to attempt one step; turns into a charge or is voided.

    Args:
        id: ledger id of the reservation.
        step: mechanism step.
        attempt: charges made for the step before this one.
    """

    id: int
    step: int
    attempt: int


class Ledger:
    """One run's spend, on disk, with one writer. Make it with ``Ledger.open``; it may be used from several threads.

    Entries are chained by SHA-256, so an entry altered, dropped or swapped in the middle is found at open. That entries
    were cut off at the end, or the file is an older copy, only something outside it can tell: ``privacy.tally``.
    """

    def __init__(self, path: Path, store: RowStore, clock: Clock) -> None:
        self._path = path
        self._store = store
        self._clock = clock
        self._lock = threading.RLock()
        self._entries, self._book, self._hash = _replay(path, store)
        self._failed = False
        self._extra_fits: dict[Spend, bool] = {}

    @classmethod
    def open(cls, path: Path, budget: Budget, clock: Clock = system_clock, *, must_exist: bool = False) -> Ledger:
        """Open the ledger of a run, or make it, with the whole plan checked against the budget first.

        Args:
            path: the file, ``RUN/ledger.sqlite``.
            budget: the run's; must equal the stored one where the file exists.
            clock: times of the entries.
            must_exist: for a run that goes on: a ledger that was removed is not silently begun anew.

        Raises:
            BudgetExceeded: the planned steps spend more than the budget; the message has the largest number that fits.
            LedgerLocked: another process holds the file.
            LedgerDamaged: its content contradicts itself.
            LedgerError: it is another run's, is absent though it must exist, or cannot be written.
        """
        if not path.exists():
            if must_exist:
                raise LedgerError(f"{path}: the ledger of this run is gone; what it spent is unknown. Start a new run.")
            _require_plan_fits(budget)
            # If another process makes it at the same moment, its content is checked below like any other's.
            with suppress(FileExistsError):
                create(path, to_row(Opened(0, float(clock()), budget), GENESIS))
        store = RowStore(path)
        try:
            ledger = cls(path, store, clock)
            ledger._require_budget(budget)
        except BaseException:
            store.close()
            raise
        return ledger

    @classmethod
    def read(cls, path: Path) -> tuple[Entry, ...]:
        """Return the checked entries of a ledger that no process holds, and let go of it.

        Raises:
            LedgerError: it does not exist.
            LedgerLocked: a process holds it.
            LedgerDamaged: its content contradicts itself.
        """
        if not path.exists():
            raise LedgerError(f"{path}: no ledger here.")
        store = RowStore(path)
        try:
            return tuple(_replay(path, store)[0])
        finally:
            store.close()

    def close(self) -> None:
        """Give the file back. An open reservation stays open and can be taken up again."""
        with self._lock:
            self._store.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def budget(self) -> Budget:
        """What the run may spend."""
        if self._book.budget is None:
            raise LedgerDamaged(f"{self._path}: has no budget.")
        return self._book.budget

    def reserve(self, step: int, attempt: int) -> Reservation:
        """Announce one attempt at a step, durably, before its cohort is drawn.

        Asking again for the reservation that is open returns it: a run that was killed before its charge goes on with
        the same cohort.

        Args:
            step: mechanism step, >= 0, not released yet.
            attempt: ``next_attempt(step)``.

        Raises:
            BudgetExceeded: no further charge fits.
            ChargeMismatch: another reservation is open, the step was released, or the attempt is not the next.
        """
        with self._lock:
            held = self._book.open_reservation
            if held is not None and (held.step, held.attempt) == (step, attempt):
                return Reservation(held.sequence, step, attempt)
            self._require_fits(self.budget.event)
            entry = self._append(lambda sequence, time: Reserved(sequence, time, step, attempt))
            return Reservation(entry.sequence, step, attempt)

    def void(self, reservation: Reservation, reason: str) -> None:
        """End a reservation with the statement that no noise was drawn for it.

        Raises:
            ChargeMismatch: it was charged (a charge is final) or is not open.
        """
        with self._lock:
            self._append(lambda sequence, time: Voided(sequence, time, reservation.id, reason))

    def charge(self, reservation: Reservation, event: PoissonGaussian, sum_digest: str) -> Charge:
        """Spend one event on one sum, durably. Only after this returns may noise be drawn, once.

        Args:
            reservation: the open one.
            event: what the release spends.
            sum_digest: ``BoundedSum.digest``.

        Raises:
            BudgetExceeded: the event does not fit; nothing is recorded.
            ChargeMismatch: the reservation is not open, or the digest is malformed.
        """
        with self._lock:
            self._require_fits(event)
            entry = self._append(
                lambda sequence, time: Charged(sequence, time, reservation.id, reservation.step, event, sum_digest)
            )
            return Charge(
                id=entry.sequence, step=entry.step, noise_multiplier=event.noise_multiplier, sum_digest=sum_digest
            )

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
        with self._lock:
            self._append(lambda sequence, time: Committed(sequence, time, identity, published_digest))

    def fits(self, event: PoissonGaussian, count: int = 1) -> bool:
        """Return whether ``count`` >= 0 more charges of ``event`` stay within the budget.

        Charges of the plan's own event are counted against its steps, which were certified when the ledger was made;
        anything else is composed by the accountant.
        """
        with self._lock:
            budget = self.budget
            held = dict(self._book.events)
            if set(held) | {event} == {budget.event} and held.get(event, 0) + count <= budget.steps:
                return True
            spend = tuple(sorted((held | {event: held.get(event, 0) + count}).items(), key=str))
            if spend not in self._extra_fits:
                self._extra_fits[spend] = epsilon(spend, budget.delta) <= budget.epsilon
            return self._extra_fits[spend]

    def remaining_charges(self) -> int:
        """Return how many more of the plan's charges fit: the releases that are still possible.

        A run that was killed between charge and commit has wasted a charge, so this can be less than the steps that are
        left; the run then ends early rather than overspend.
        """
        with self._lock:
            budget, held = self.budget, self._book.events
            spent = held[budget.event]
            certified = max(budget.steps - spent, 0) if set(held) <= {budget.event} else 0
            if not self.fits(budget.event, certified + 1):
                return certified
            return largest_count(budget.event, budget.epsilon, budget.delta, spent=tuple(held.items()))

    def next_attempt(self, step: int) -> int:
        """Return the attempt number a reservation of ``step`` must carry: the charges made for it so far."""
        return self._book.charges_of_step[step]

    def open_reservation(self) -> Reservation | None:
        """Return the reservation that is neither charged nor voided, if any."""
        held = self._book.open_reservation
        return None if held is None else Reservation(held.sequence, held.step, held.attempt)

    def uncommitted(self) -> tuple[Charged, ...]:
        """Return the charges without a commit: spent, and after a crash perhaps wasted."""
        return tuple(entry for sequence, entry in self._book.charges.items() if sequence not in self._book.commits)

    def charged_digests(self) -> tuple[str, ...]:
        """Return the sum digest of every charge, in order."""
        return tuple(entry.sum_digest for entry in self._book.charges.values())

    def committed(self) -> tuple[Committed, ...]:
        """Return the commits, in order."""
        return tuple(self._book.commits.values())

    def events(self) -> tuple[Entry, ...]:
        """Return every entry, in order."""
        return tuple(self._entries)

    def spent_events(self) -> tuple[tuple[PoissonGaussian, int], ...]:
        """Return what was charged, committed or not: each event and how often."""
        return tuple(self._book.events.items())

    def spent(self, delta: float | None = None) -> float:
        """Return epsilon of every charge, committed or not, at ``delta`` (the budget's by default)."""
        return epsilon(self.spent_events(), self.budget.delta if delta is None else delta)

    def _require_budget(self, budget: Budget) -> None:
        if self.budget != budget:
            raise LedgerError(f"{self._path}: belongs to another run or plan ({self.budget}); use a new run directory.")

    def _require_fits(self, event: PoissonGaussian) -> None:
        if not self.fits(event):
            budget = self.budget
            raise BudgetExceeded(
                f"{self._path}: one more release after {len(self._book.charges)} charges would exceed epsilon "
                f"{budget.epsilon:g} at delta {budget.delta:g}; {len(self._book.commits)} were published. "
                "The run ends here."
            )

    def _append(self, make: Callable[[int, float], E]) -> E:
        """Check the entry against the book, make it durable, and only then believe it."""
        if self._failed:
            raise LedgerError(f"{self._path}: an earlier write failed; open the ledger again to see what it holds.")
        entry = make(self._book.length, float(self._clock()))
        self._book.check(entry)
        row = to_row(entry, self._hash)
        try:
            self._store.append(row)
        except BaseException:
            self._failed = True
            raise
        self._book.apply(entry)
        self._entries.append(entry)
        self._hash = row.hash
        return entry


def _replay(path: Path, store: RowStore) -> tuple[list[Entry], Book, str]:
    """Read, chain-check and re-enact every entry."""
    entries: list[Entry] = []
    book, previous = Book(), GENESIS
    for expected, row in enumerate(store.rows()):
        try:
            entry = from_row(row, previous)
            book.apply(entry)
        except (LedgerDamaged, ChargeMismatch) as error:
            raise LedgerDamaged(f"{path}: entry {expected} is bad: {error} {UNUSABLE}") from error
        entries.append(entry)
        previous = row.hash
    if not entries:
        raise LedgerDamaged(f"{path}: entry 0 is bad: there is none. {UNUSABLE}")
    return entries, book, previous


def _require_plan_fits(budget: Budget) -> None:
    spent = epsilon([(budget.event, budget.steps)], budget.delta, neighboring_relation=budget.neighboring_relation)
    if spent <= budget.epsilon:
        return
    largest = largest_count(budget.event, budget.epsilon, budget.delta, at_most=budget.steps)
    raise BudgetExceeded(
        f"{budget.steps} releases spend epsilon {spent:.4f} at delta {budget.delta:g}, the budget is "
        f"{budget.epsilon:g}; at most {largest} fit. Use fewer rounds, more noise or a larger budget."
    )

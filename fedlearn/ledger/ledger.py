"""The record of what was spent, for one scope: grants, runs, and each run's reserve, charge and commit. ::

    ledger = Ledger.open(where)
    account = ledger.open_run(run, purpose, epoch, plan, config_digest)
    reservation = account.reserve(step, attempt)
    ...                                            # draw the cohort, collect, sum
    charge = account.charge(reservation, task_digest, bounded.digest)
    mean = mechanism.release(bounded, charge)
    ...                                            # server step, publish
    account.commit(charge, published_digest)

A crash anywhere in between over-counts and never under-counts.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from fedlearn.clock import Clock, system_clock
from fedlearn.errors import LedgerDamaged, LedgerError, OutOfRange
from fedlearn.ledger.anchor import Anchor, AnchorFile, Mark, restored
from fedlearn.ledger.authority import require_authority, signed_grant, signed_recovery
from fedlearn.ledger.book import Book
from fedlearn.ledger.chain import Chain
from fedlearn.ledger.checkpoint import LedgerCheckpoint
from fedlearn.ledger.entries import (
    GENESIS,
    Charged,
    Committed,
    Entry,
    Granted,
    Opened,
    Planned,
    Recovered,
    Reserved,
    Row,
    RunClosed,
    RunOpened,
    Voided,
    to_row,
)
from fedlearn.ledger.scope import Scope, require_text
from fedlearn.ledger.signing import SigningKey, held_operator_key, require_key
from fedlearn.ledger.store import UNUSABLE, RowStore
from fedlearn.ledger.where import Where, create_store, open_store
from fedlearn.privacy.events import MatrixGaussian

if TYPE_CHECKING:
    from fedlearn.ledger.account import RunAccount

E = TypeVar("E", Granted, RunOpened, Reserved, Voided, Charged, Committed, RunClosed, Recovered)


class Ledger:
    """One scope's spend, shared by the processes that are given its place; a process may use it from several threads.

    Entries are chained by SHA-256 and signed, so an entry altered, dropped, swapped or forged is found when it is read.
    That entries were cut off at the end, or that the ledger is an older copy, its anchor tells, or a checkpoint.

    Args:
        store: holds the rows, the first among them.
        anchor_of: returns the anchor of a ledger id.
        key_of: returns this machine's key for an operator's public key, or None.
        clock: times of the entries.

    Raises:
        LedgerDamaged: the content contradicts itself.
    """

    def __init__(
        self,
        store: RowStore,
        anchor_of: Callable[[str], Anchor] = AnchorFile,
        key_of: Callable[[str], SigningKey | None] = held_operator_key,
        clock: Clock = system_clock,
    ) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.RLock()
        self._chain = Chain(store.name)
        self._failed = False
        self._chain.take(store.rows())
        if not self._chain.entries:
            raise LedgerDamaged(f"{self.name}: entry 0 is bad: there is none. {UNUSABLE}")
        self._anchor = anchor_of(self.scope.ledger_id)
        self._key = key_of(self.scope.operator_key)
        mark = self._anchor.mark()
        self._missing = mark if mark is not None and not self._chain.contains(mark) else None

    @classmethod
    def create(cls, where: Where, scope: Scope, clock: Clock = system_clock) -> Ledger:
        """Make a ledger and open it.

        Args:
            where: a path, or the URL of a PostgreSQL database that holds no ledger yet.
            scope: with this machine's operator key.
            clock: times of the entries.

        Raises:
            LedgerError: there is a ledger already, it cannot be made, or the operator key is another machine's.
        """
        key = require_key(held_operator_key(scope.operator_key), scope.operator_key, str(where))
        create_store(where, to_row(Opened(0, float(clock()), scope), GENESIS, key.sign))
        return cls.open(where, clock)

    @classmethod
    def open(cls, where: Where, clock: Clock = system_clock, *, writable: bool = True) -> Ledger:
        """Open a ledger and check all of it.

        Args:
            where: its path, or the URL of its PostgreSQL database.
            clock: times of the entries.
            writable: False to read it, also where nothing can be written.

        Raises:
            LedgerLocked: another process holds it.
            LedgerDamaged: its content contradicts itself.
            LedgerError: there is none, or it cannot be opened.
        """
        store = open_store(where, writable=writable)
        try:
            return cls(store, clock=clock)
        except BaseException:
            store.close()
            raise

    @classmethod
    def read(cls, where: Where) -> tuple[Entry, ...]:
        """Return the checked entries of a ledger, and let go of it; raises what ``open`` raises."""
        with cls.open(where, writable=False) as ledger:
            return ledger.entries()

    def close(self) -> None:
        """Let go. Open reservations stay open and can be taken up again."""
        with self._lock:
            self._store.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def name(self) -> str:
        """The path, or the URL without its password."""
        return self._store.name

    @property
    def scope(self) -> Scope:
        """Whose budget this is."""
        return self._chain.scope

    @property
    def book(self) -> Book:
        """What follows from the entries; to be read only."""
        return self._chain.book

    @property
    def restored(self) -> bool:
        """Whether an entry is missing under which this machine made a charge: nothing can be spent."""
        return self._missing is not None

    def entries(self) -> tuple[Entry, ...]:
        """Return every entry that this process has seen, in order."""
        return tuple(self._chain.entries)

    def rows(self) -> list[Row]:
        """Return every entry as it is stored."""
        with self._lock:
            return self._store.rows()

    def refresh(self) -> None:
        """Take up what other processes appended."""
        with self._lock:
            self._chain.take(self._store.rows(self._chain.head.length))

    def open_run(self, run: str, purpose: str, epoch: str, plan: Sequence[Planned], config_digest: str) -> RunAccount:
        """Reserve a run's whole plan, durably, and return the account that pays for its steps.

        Args:
            run: a name that the ledger does not have yet.
            purpose: what the model is for; with ``epoch`` it names the quota.
            epoch: the budget period.
            plan: what the run will release at most, at least one part.
            config_digest: SHA-256 (hex) of the run's configuration.

        Raises:
            BudgetExceeded: the plan does not fit the cap or the quota; the message has the largest count that does.
            ChargeMismatch: there is such a run.
            InvalidSpend: an event has no accountant under the scope's relation.
            LedgerRestored: the ledger lacks charges that were made from here.
        """
        self.append(lambda sequence, time: RunOpened(sequence, time, run, purpose, epoch, tuple(plan), config_digest))
        return self.run(run)

    def run(self, name: str) -> RunAccount:
        """Return the account of a run that was opened before, by any process.

        Raises:
            ChargeMismatch: there is no such run.
        """
        from fedlearn.ledger.account import RunAccount  # noqa: PLC0415 - needs this class

        with self._lock:
            if name not in self.book.runs:
                self.refresh()
            return RunAccount(self, self.book.run(name))

    def grant(self, purpose: str, epoch: str, epsilon: float, authority: SigningKey) -> None:
        """Give (purpose, epoch) a quota, or another one: a renewal.

        Args:
            purpose: of the runs it is for.
            epoch: likewise.
            epsilon: quota at the scope's delta, in (0, the cap].
            authority: the key whose public half the scope names.

        Raises:
            BudgetExceeded: runs of (purpose, epoch) hold more already.
            OutOfRange: the key is not the authority's, or a figure or a name is outside its range.
        """
        require_text("purpose", purpose)
        require_text("epoch", epoch)
        if not (math.isfinite(epsilon) and 0 < epsilon <= self.scope.epsilon):
            raise OutOfRange(f"epsilon={epsilon}: a quota must be > 0 and at most the cap {self.scope.epsilon:g}.")
        self.append(signed_grant(self.scope, authority, purpose, epoch, float(epsilon)), spends=False)

    def recover(self, authority: SigningKey, reason: str) -> None:
        """Make a restored ledger usable again by charging all that any open or lost run planned.

        Runs that were charged from this machine and are not in the ledger any more are entered again first.

        Args:
            authority: the key whose public half the scope names.
            reason: what happened, for the record.

        Raises:
            BudgetExceeded: the lost runs do not fit any more; start a new ledger.
            LedgerError: nothing is missing.
            OutOfRange: the key is not the authority's, or the scope has none.
        """
        require_authority(self.scope, authority)
        if not self.restored:
            raise LedgerError(f"{self.name}: no charge of this machine is missing; there is nothing to recover.")
        with self._lock:
            for lost in self._anchor.runs():
                self._enter_again(lost)
            self.append(signed_recovery(self.scope, authority, reason), spends=False)
            self._anchor.reset(self._chain.head)
            self._missing = None

    def checkpoint(self) -> LedgerCheckpoint:
        """Return a signed statement of the ledger's length, to be kept elsewhere."""
        key = require_key(self._key, self.scope.operator_key, self.name)
        with self._lock:
            self.refresh()
            head = self._chain.head
            return LedgerCheckpoint.signed(key, self.scope.ledger_id, head.length, head.hash, float(self._clock()))

    def require(self, checkpoint: LedgerCheckpoint) -> None:
        """Raise LedgerRestored if the ledger does not contain what the checkpoint states.

        Raises:
            LedgerRestored: it is shorter, or another.
            LedgerDamaged: the checkpoint is not this ledger's, or not signed by its operator.
        """
        if checkpoint.ledger_id != self.scope.ledger_id:
            raise LedgerDamaged(f"checkpoint: is of ledger {checkpoint.ledger_id}, not {self.scope.ledger_id}.")
        if not checkpoint.is_signed_by(self.scope.operator_key):
            raise LedgerDamaged("checkpoint: its signature is not the ledger's operator's.")
        mark = Mark(checkpoint.length, checkpoint.hash)
        if not self._chain.contains(mark):
            raise restored(self.name, mark)

    def require_anchor(self) -> None:
        """Raise LedgerRestored if a charge that was made from this machine is missing."""
        if self._missing is not None:
            raise restored(self.name, self._missing)

    def append(self, make: Callable[[int, float], E], *, spends: bool = True) -> E:
        """Append the entry that ``make(sequence, time)`` returns: check, make durable, and only then believe it.

        Args:
            make: called once, after everything that other processes appended is known.
            spends: refuse in a restored ledger.

        Raises:
            BudgetExceeded, ChargeMismatch, InvalidSpend: it may not follow; nothing is recorded.
            LedgerRestored: the ledger lacks a charge that was made from here.
            LedgerLocked: another process kept it too long; nothing is recorded, and it may be tried again.
            LedgerError: the write failed; the ledger must be opened again.
        """
        with self._lock:
            key = require_key(self._key, self.scope.operator_key, self.name)
            if self._failed:
                raise LedgerError(f"{self.name}: an earlier write failed; open the ledger again to see what it holds.")
            if spends:
                self.require_anchor()
            head = self._chain.head
            unseen = self._store.begin(head.length, head.hash)
            try:
                if unseen:
                    self._chain.take(unseen)
                    head = self._chain.head
                entry = make(head.length, float(self._clock()))
                self.book.check(entry)
                row = to_row(entry, head.hash, key.sign)
            except BaseException:
                self._store.cancel()
                raise
            self._failed = True  # until it is known to be durable
            self._store.append(row)
            self._failed = False
            self._chain.believe(entry, row.hash)
            self._fasten(entry)
            return entry

    def _fasten(self, entry: Entry) -> None:
        """Note the head outside the ledger where a copy without this entry would allow more than it may.

        Without a charge, what it paid for would be free; without the commit of a matrix mechanism's step, the step
        could be released again at no cost; without a closing, the run could spend what it has given back.
        """
        match entry:
            case Charged():
                self._anchor.keep(self.book.run(entry.run).opened)
            case Committed():
                state = self.book.run_of_charge[entry.charge]
                part = state.charges[entry.charge].part
                if not isinstance(state.opened.plan[part].event, MatrixGaussian):
                    return
            case RunClosed():
                pass
            case _:
                return
        self._anchor.raise_to(self._chain.head, self._contains_now)

    def _contains_now(self, mark: Mark) -> bool:
        if mark.length > self._chain.head.length:
            self.refresh()
        return self._chain.contains(mark)

    def _enter_again(self, lost: RunOpened) -> None:
        known = self.book.runs.get(lost.run)
        if known is not None and known.opened.plan == lost.plan:
            return
        name = lost.run if known is None else f"{lost.run} (lost {lost.sequence})"
        if name in self.book.runs:
            return
        self.append(
            lambda sequence, time: RunOpened(
                sequence, time, name, lost.purpose, lost.epoch, lost.plan, lost.config_digest
            ),
            spends=False,
        )

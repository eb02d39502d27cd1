"""The phone's own ledger: in which steps it took part, what that cost, and whether it may do so again.

An append-only, chained table in the store, and an anchor in the ``KeyStore`` that a wiped or restored store does not
take back. ``docs/device-budget.md`` says what each case costs and why.

The order of one participation: ``admit`` -> in one transaction ``record``, the token and the run -> ``seal`` -> read
examples, train -> upload, zeros where training failed. So what the examples are decides neither what is charged nor
whether something leaves. A crash on the way leaves a participation that is counted though nothing left; never the other
way.

Guarantee, for what was uploaded, whatever the server says and whatever becomes of the store, while the anchor stays the
newest one: any two steps of one run are at least b apart; a run has at most k; the zCDP of all of them, as this phone
computes it, converts to at most the cap. If store and anchor are both lost the phone is a new one. Then b and k of each
run still hold, provided that the server's steps do not go back and that it was not in step 0; the cap begins anew.
"""

from __future__ import annotations

import math
import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from fedlearn.device.task import DeviceTask
from fedlearn.errors import Refusal, TaskRefused
from fedlearn.policy.document import DeviceCaps
from fedlearn_client import zcdp
from fedlearn_client.anchor import DIGEST_BYTES, MAX_BYTES, History, beginning, from_json, merged, to_anchor, to_json
from fedlearn_client.hooks import ClockAndRng
from fedlearn_client.participation_rows import (
    NO_FIGURES,
    Connection,
    Figures,
    Kind,
    added_up,
    contains,
    extended,
    insert,
    next_row,
    read_rows,
    rows_after,
)
from fedlearn_client.participation_rules import first_sight, next_cost
from fedlearn_client.shared_anchor import Anchor

CLOCK_TOLERANCE_S: Final = 600.0
SIGNED_TIME_HOLDS_S: Final = 86_400.0
SIGHTS_PER_S: Final = 86_400.0
_RESEAL_TIME_AFTER_S: Final = 3_600.0
_TIME_FACT: Final = "latest_time"
_DESTROY_PREPARED: Final = "UPDATE egress SET state = 'destroyed', body = NULL WHERE state = 'prepared'"


class Store(Protocol):
    """What is used of ``store.database.Database``."""

    def transaction(self) -> AbstractContextManager[Any]:
        """Return a context that commits durably, or not at all."""
        ...

    def rows(self, sql: str, args: Any = ..., /) -> list[Any]:
        """Return the rows of a query."""
        ...


@dataclass(frozen=True, slots=True)
class Admission:
    """A task that may be trained for, and what its participation will cost.

    Args:
        count: participations in the run with this one, assumed ones included.
        rho_run: zCDP of the run with this one.
        rho_total: zCDP of all runs with this one.
        epsilon: ``rho_total`` at the policy's delta, rounded up.
    """

    count: int
    rho_run: float
    rho_total: float
    epsilon: float


@dataclass(frozen=True, slots=True)
class Spent:
    """What was spent over all purposes.

    Args:
        rho: zCDP of all runs.
        participations: recorded ones.
        history_lost: a wiped or restored store, or a clock that went back, was noticed, and the phone has not taken
            part since.
        assumed: participations charged because they may have been, before this phone's history begins.
    """

    rho: float
    participations: int
    history_lost: bool
    assumed: int


class Participations:
    """The phone's participations. Safe to use from several threads.

    Args:
        database: the encrypted store.
        anchor: the KeyStore, or its part for this.
        clock_rng: times of rows; the random value a history begins with.

    Raises:
        StoreFailed: store or KeyStore cannot be read or written, or a newer runtime wrote them.
    """

    def __init__(self, database: Store, anchor: Anchor, clock_rng: ClockAndRng) -> None:
        self._database = database
        self._anchor = anchor
        self._clock_rng = clock_rng
        self._lock = threading.RLock()
        self._sealed = False
        self._sealed_time = 0.0
        self._history = self._open()
        self._catch_up()

    def notice_time(self, now: float, signed: float) -> None:
        """Refuse a clock that went back; otherwise remember how late it is.

        Args:
            now: seconds since the Unix epoch, by this phone's clock.
            signed: the latest issue time of a signed task or status at hand. A clock more than 24 hours past it is not
                believed: then only ``signed`` itself is remembered, so that a wrong date far ahead locks nobody out.

        Raises:
            TaskRefused: CLOCK: more than 10 minutes behind the latest time. Noted durably: when the clock has caught
                up, at least b steps are waited in each run.
            StoreFailed: it could not be noted.
        """
        with self._lock:
            self._catch_up()
            latest = self._history.time
            if not now >= latest - CLOCK_TOLERANCE_S:
                self._note_clock()
                behind = (latest - now) / 60
                raise TaskRefused(
                    Refusal.CLOCK, f"the clock is {behind:.0f} minutes behind a time that was seen; wait, or set it."
                )
            believed = now if now <= signed + SIGNED_TIME_HOLDS_S else signed
            if believed > latest:
                self._remember_time(believed)

    def admit(self, task: DeviceTask, *, caps: DeviceCaps) -> Admission:
        """Say whether the phone may take part, and what it would cost. Charges nothing for the task.

        A run that is met for the first time, or for the first time after history was lost, is noted durably with the
        participations that must be assumed, and the phone waits b steps from there. Those are charged with the first
        participation in the run, and not before: a run that is never joined costs nothing.

        Args:
            task: whose signature is good.
            caps: of the policy in force.

        Raises:
            TaskRefused: PLAN: no step of the run, terms that contradict themselves, or other terms than before.
                HISTORY, SEPARATION: too soon; or ``caps.max_rounds_per_day`` runs of this recipient were met in 24
                hours, and this one is not noted. PARTICIPATIONS: k are used up. BUDGET: the cap would be passed.
            StoreFailed: the first sight could not be noted, or what was recorded before could not be sealed.
        """
        with self._lock:
            self._catch_up()
            if first_sight(self._history, task) is not None:
                self._require_sights_left(task.recipient, caps.max_rounds_per_day)
                self._note_sight(task)
            cost = next_cost(self._history, task)
        epsilon = zcdp.epsilon(cost.rho_total, caps.delta)
        if not epsilon <= caps.epsilon:
            raise TaskRefused(
                Refusal.BUDGET,
                f"it would take this phone to epsilon {epsilon:.4g} at delta {caps.delta:g}; "
                f"device.epsilon={caps.epsilon:g} is its cap.",
            )
        return Admission(cost.count, cost.rho_run, cost.rho_total, epsilon)

    def record(self, admission: Admission, task: DeviceTask, connection: Connection) -> None:
        """Write the participation in the caller's transaction. It holds once that commits; then ``seal``.

        Raises:
            TaskRefused: HISTORY: something was recorded since ``admission``; check the task again. Or as ``admit``.
            StoreFailed: it cannot be written.
        """
        history = self._newest(connection)
        if first_sight(history, task) is None:
            cost = next_cost(history, task)
            if (cost.count, cost.rho_run, cost.rho_total) == (admission.count, admission.rho_run, admission.rho_total):
                figures = Figures(task.step, cost.count, cost.rho_run)
                insert(connection, next_row(history, Kind.PARTICIPATION, task, figures, clock_rng=self._clock_rng))
                return
        raise TaskRefused(Refusal.HISTORY, "something was recorded since the task was checked; check it again.")

    def seal(self) -> None:
        """Write the anchor for everything that was committed. Nothing may be uploaded before this returns.

        Not inside a transaction.

        Raises:
            StoreFailed: it could not be written; the upload must wait until a later call succeeds.
        """
        with self._lock:
            self._catch_up()

    def spent(self) -> Spent:
        """Return what was spent over all runs, recorded participations that are not sealed yet included."""
        with self._lock:
            self._take_in()
            history = self._history
        return Spent(history.rho(), history.participations(), history.waiting, history.assumed())

    def since(self, time: float) -> int:
        """Return the participations recorded after ``time``, those of a clock that was ahead included."""
        found = self._database.rows(
            "SELECT COUNT(*) FROM participations WHERE kind = ? AND time > ?", (Kind.PARTICIPATION.value, time)
        )
        return int(found[0][0])

    def _open(self) -> History:
        """Return the history that the store holds if it contains the anchor's row; else note the loss."""
        rows = read_rows(self._database.rows(*rows_after(0)))
        stored, whole = added_up(rows)
        stored = replace(stored, time=max(stored.time, self._remembered_time()))
        data = self._anchor.read_anchor()
        if data is None and not rows:
            return replace(beginning(self._clock_rng.random_bytes(DIGEST_BYTES)), time=stored.time)
        anchor = None if data is None else from_json(data)
        if anchor is not None and whole and contains(rows, anchor):
            fits = len(data or b"") <= MAX_BYTES  # an earlier runtime's could be longer
            self._sealed, self._sealed_time = fits and anchor.counter == stored.counter, anchor.time
            return replace(stored if rows else anchor, time=max(anchor.time, stored.time))
        known = replace(merged(anchor, stored), counter=rows[-1].id if rows else 0)
        row = next_row(known, Kind.LOST, None, NO_FIGURES, clock_rng=self._clock_rng, known=to_json(known))
        with self._database.transaction() as connection:
            insert(connection, row)
            # One that was never sealed, of an older copy, would be counted by nobody. Those that left were sealed.
            connection.execute(_DESTROY_PREPARED)
        return extended(known, row)

    def _catch_up(self) -> None:
        """Take in what was committed, and write the anchor if it is behind."""
        self._take_in()
        if not self._sealed:
            self._anchor.write_anchor(to_anchor(self._history))
            self._sealed, self._sealed_time = True, self._history.time

    def _take_in(self) -> None:
        for row in read_rows(self._database.rows(*rows_after(self._history.counter))):
            self._sealed = False
            self._history = extended(self._history, row)

    def _newest(self, connection: Connection) -> History:
        """Return the history as a transaction sees it: with what others committed meanwhile."""
        history = self._history
        for row in read_rows(connection.execute(*rows_after(history.counter)).fetchall()):
            history = extended(history, row)
        return history

    def _require_sights_left(self, recipient: str, most: int) -> None:
        """Keep a server from filling the store with runs, and from pushing others out of the anchor, in a day."""
        found = self._database.rows(
            "SELECT COUNT(*) FROM participations WHERE kind = ? AND recipient = ? AND time > ?",
            (Kind.SEEN.value, recipient, self._clock_rng.now() - SIGHTS_PER_S),
        )
        if found[0][0] >= most:
            raise TaskRefused(
                Refusal.SEPARATION,
                f"{found[0][0]} runs of this recipient were met in 24 hours; device.max_rounds_per_day={most}; "
                "come back later.",
            )

    def _note_sight(self, task: DeviceTask) -> None:
        with self._database.transaction() as connection:
            history = self._newest(connection)
            sight = first_sight(history, task)
            if sight is not None:
                insert(connection, next_row(history, Kind.SEEN, task, sight, clock_rng=self._clock_rng))
        self._catch_up()

    def _note_clock(self) -> None:
        """Note that the clock went back, unless nothing happened since that was noted last."""
        with self._database.transaction() as connection:
            newest = connection.execute("SELECT kind FROM participations ORDER BY id DESC LIMIT 1").fetchone()
            if newest is None or newest[0] != Kind.CLOCK:
                row = next_row(self._newest(connection), Kind.CLOCK, None, NO_FIGURES, clock_rng=self._clock_rng)
                insert(connection, row)
        self._catch_up()

    def _remembered_time(self) -> float:
        found = self._database.rows("SELECT value FROM facts WHERE name = ?", (_TIME_FACT,))
        try:
            seconds = float(bytes(found[0][0])) if found else 0.0
        except ValueError:
            return 0.0  # the anchor has it too
        return seconds if math.isfinite(seconds) and seconds > 0 else 0.0

    def _remember_time(self, seconds: float) -> None:
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO facts (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                (_TIME_FACT, repr(seconds).encode()),
            )
        self._history = replace(self._history, time=seconds)
        if seconds >= self._sealed_time + _RESEAL_TIME_AFTER_S:  # spares the KeyStore
            self._sealed = False
            self._catch_up()

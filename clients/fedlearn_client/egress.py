"""Everything that leaves the phone, written down before it does.

A request is *prepared* (durable, with its exact bytes), then *sent* (durable before the first byte is handed to the
``Transport``), then *acknowledged* (a reply arrived) or *failed*. So ``prepared`` has surely not left, ``sent`` may
have left, and nothing leaves without an entry. What was prepared and may no longer leave is *destroyed*.

Bodies are kept for 30 days, those of uploads only as long as the consent they came under; sizes and digests stay.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Protocol

from fedlearn_client.hooks import ClockAndRng, Method

if TYPE_CHECKING:
    from fedlearn_client.store.database import Database

KEEP_BODIES_S: Final = 30 * 86_400.0
_COLUMNS: Final = "id, time, method, purpose, recipient, run_id, step, size, sha256, state, expires, basis"


class State(StrEnum):
    """What became of a request."""

    PREPARED = "prepared"
    SENT = "sent"
    ACKNOWLEDGED = "acknowledged"
    FAILED = "failed"
    DESTROYED = "destroyed"


class Connection(Protocol):
    """What a transaction of the store yields."""

    def execute(self, sql: str, parameters: Any = ..., /) -> Any:
        """Run one statement."""
        ...


@dataclass(frozen=True, slots=True)
class Entry:
    """One request that left, or was about to.

    Args:
        id: rises with time.
        time: when it was prepared, seconds since the Unix epoch.
        method: of the gateway protocol.
        purpose: it served.
        recipient: the operator.
        run_id: "" where there is none yet.
        step: 0 where there is none yet.
        size: bytes.
        sha256: of the bytes.
        state: what became of it.
        expires: it is not sent after this.
        basis: of an upload: digest of the streams it was made from (``uplink``).
        body: the exact bytes; None when they were not asked for, or are no longer kept.
    """

    id: int
    time: float
    method: Method
    purpose: str
    recipient: str
    run_id: str
    step: int
    size: int
    sha256: bytes
    state: State
    expires: float
    basis: str
    body: bytes | None = field(repr=False)


class EgressLog:
    """The log of requests, in the phone's encrypted store."""

    def __init__(self, database: Database, clock_rng: ClockAndRng) -> None:
        self._database = database
        self._clock_rng = clock_rng

    def prepare(
        self,
        method: Method,
        purpose: str,
        recipient: str,
        *,
        run_id: str,
        step: int,
        body: bytes,
        expires: float,
        connection: Connection | None = None,
        basis: str = "",
    ) -> int:
        """Write the entry of a request and return its id.

        Args:
            method: of the gateway protocol.
            purpose: it serves.
            recipient: the operator.
            run_id: of the task, "" where there is none yet.
            step: of the task.
            body: the exact bytes that will leave.
            expires: seconds since the Unix epoch after which they must not.
            connection: of the transaction to write in; durable when that commits. Without one, durable on return.
            basis: see ``Entry``.

        Raises:
            StoreFailed: it could not be written; then nothing may leave.
        """
        if connection is None:
            with self._database.transaction() as own:
                return self.prepare(
                    method,
                    purpose,
                    recipient,
                    run_id=run_id,
                    step=step,
                    body=body,
                    expires=expires,
                    connection=own,
                    basis=basis,
                )
        digest = hashlib.sha256(body).digest()
        values = (self._clock_rng.now(), method.value, purpose, recipient, run_id, step, len(body), digest)
        cursor = connection.execute(
            "INSERT INTO egress"
            " (time, method, purpose, recipient, run_id, step, size, sha256, state, body, expires, basis)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*values, State.PREPARED.value, body, expires, basis),
        )
        return int(cursor.lastrowid)

    def depart(self, entry: int, connection: Connection | None = None) -> bool:
        """Write that a request leaves now, and return True; False where it may not, because it was destroyed.

        Only after True may the first byte be handed to the ``Transport``.

        Raises:
            StoreFailed: it could not be written; nothing may leave then.
        """
        if connection is None:
            with self._database.transaction() as own:
                return self.depart(entry, own)
        cursor = connection.execute(
            "UPDATE egress SET state = ? WHERE id = ? AND state IN (?, ?) AND body IS NOT NULL",
            (State.SENT.value, entry, State.PREPARED.value, State.SENT.value),
        )
        return bool(cursor.rowcount == 1)

    def mark(self, entry: int, state: State, connection: Connection | None = None) -> None:
        """Write what became of a request: acknowledged or failed after it was sent, destroyed where it never was.

        An entry in a state that this one may not follow stays as it is. ``sent`` is ``depart``'s to write.

        Raises:
            StoreFailed: it could not be written.
        """
        if connection is None:
            with self._database.transaction() as own:
                self.mark(entry, state, own)
            return
        gone = ", body = NULL" if state is State.DESTROYED else ""
        before = State.PREPARED if state is State.DESTROYED else State.SENT
        connection.execute(
            f"UPDATE egress SET state = ?{gone} WHERE id = ? AND state = ?",  # noqa: S608  # own words only
            (state.value, entry, before.value),
        )

    def pending(self) -> list[Entry]:
        """Return uploads that were prepared, or sent and never answered, with their bytes, oldest first."""
        rows = self._database.rows(
            f"SELECT {_COLUMNS}, body FROM egress WHERE method = ? AND state IN (?, ?) AND body IS NOT NULL"  # noqa: S608
            " ORDER BY id",
            (Method.UPLOAD.value, State.PREPARED.value, State.SENT.value),
        )
        return [_entry(row) for row in rows]

    def entries(self, limit: int, with_bytes: bool) -> list[Entry]:
        """Return the newest ``limit`` entries, newest first."""
        body = "body" if with_bytes else "NULL"
        rows = self._database.rows(
            f"SELECT {_COLUMNS}, {body} FROM egress ORDER BY id DESC LIMIT ?",  # noqa: S608  # own words only
            (limit,),
        )
        return [_entry(row) for row in rows]

    def destroy(self, purpose: str, recipient: str, connection: Connection | None = None) -> int:
        """Forget the bytes of all uploads for this pair and return how many had not left.

        Those become ``destroyed``. Those that left keep their state, size and digest, and are not sent again.

        Raises:
            StoreFailed: it could not be written.
        """
        if connection is None:
            with self._database.transaction() as own:
                return self.destroy(purpose, recipient, own)
        of_pair = "method = ? AND purpose = ? AND recipient = ?"
        pair = (Method.UPLOAD.value, purpose, recipient)
        stopped = connection.execute(
            f"UPDATE egress SET state = ? WHERE {of_pair} AND state = ?",  # noqa: S608  # own words only
            (State.DESTROYED.value, *pair, State.PREPARED.value),
        )
        connection.execute(f"UPDATE egress SET body = NULL WHERE {of_pair}", pair)  # noqa: S608
        return int(stopped.rowcount)

    def forget(self, entry: int, connection: Connection | None = None) -> None:
        """Forget one upload's bytes; it is ``destroyed`` if it had not left, and never sent again either way.

        Raises:
            StoreFailed: it could not be written.
        """
        if connection is None:
            with self._database.transaction() as own:
                self.forget(entry, own)
            return
        self.mark(entry, State.DESTROYED, connection)
        connection.execute("UPDATE egress SET body = NULL WHERE id = ?", (entry,))

    def expire(self, now: float) -> None:
        """Forget bodies older than 30 days, and those that can not leave any more; give up uploads never answered."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE egress SET state = ?, body = NULL WHERE state = ? AND expires <= ?",
                (State.DESTROYED.value, State.PREPARED.value, now),
            )
            connection.execute(
                "UPDATE egress SET state = ? WHERE method = ? AND state = ? AND expires <= ?",
                (State.FAILED.value, Method.UPLOAD.value, State.SENT.value, now),
            )
            connection.execute(
                "UPDATE egress SET body = NULL WHERE body IS NOT NULL AND time <= ?", (now - KEEP_BODIES_S,)
            )

    def settle(self) -> None:
        """After a start: check-ins and fetches that a crash cut short have failed; nobody sends them again."""
        with self._database.transaction() as connection:
            for before, after in ((State.PREPARED, State.DESTROYED), (State.SENT, State.FAILED)):
                connection.execute(
                    "UPDATE egress SET state = ? WHERE method <> ? AND state = ?",
                    (after.value, Method.UPLOAD.value, before.value),
                )


def _entry(row: Any) -> Entry:
    number, time, method, purpose, recipient, run_id, step, size, sha256, state, expires, basis, body = row
    return Entry(
        id=number,
        time=time,
        method=Method(method),
        purpose=purpose,
        recipient=recipient,
        run_id=run_id,
        step=step,
        size=size,
        sha256=bytes(sha256),
        state=State(state),
        expires=expires,
        basis=basis,
        body=None if body is None else bytes(body),
    )

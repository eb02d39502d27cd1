"""Everything that leaves the phone, written down before it does.

A request is *prepared* (durable, with its exact bytes), then *sent* (durable before the first byte is handed to the
``Transport``), then *acknowledged* (a reply arrived) or *failed*. So ``prepared`` has surely not left, ``sent`` may
have left, and nothing leaves without an entry. What was prepared and may no longer leave is *destroyed*.

Bodies are kept as long as the policy lets its shortest-lived source be kept, at most 30 days; those of uploads only as
long as the consent they came under. Sizes and digests stay.

An upload is made from the owner's data, so its body is sealed under a key of its purpose and recipient, which the
KeyStore wraps (``egress_keys``). Check-ins and fetches hold nothing of the owner.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Protocol

from fedlearn_client.egress_keys import UploadKeys, opened
from fedlearn_client.hooks import ClockAndRng, KeyStore, Method

if TYPE_CHECKING:
    from fedlearn.policy.document import Policy
    from fedlearn_client.store.database import Database
    from fedlearn_client.store.sealing import Sealer

DAY_S: Final = 86_400.0
KEEP_BODIES_S: Final = 30 * DAY_S
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


def keep_s_of(policy: Policy | None) -> float:
    """Return how long bodies are kept, in seconds: as the policy's shortest-lived source, at most 30 days."""
    sources = () if policy is None else policy.sources
    return min((source.retention_days * DAY_S for source in sources), default=KEEP_BODIES_S)


class EgressLog:
    """The log of requests, in the phone's encrypted store.

    Args:
        database: the open store.
        keystore: wraps the keys that seal uploads.
        clock_rng: says when, and draws keys.
        keep_s: returns how long bodies are kept, in seconds; more than 30 days counts as 30 days.
    """

    def __init__(
        self,
        database: Database,
        keystore: KeyStore,
        clock_rng: ClockAndRng,
        *,
        keep_s: Callable[[], float] = lambda: KEEP_BODIES_S,
    ) -> None:
        self._database = database
        self._keys = UploadKeys(database, keystore, clock_rng)
        self._clock_rng = clock_rng
        self._keep_s = keep_s

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
        if method is Method.UPLOAD:
            body = self._keys.to_write(purpose, recipient, connection).seal(body, digest)
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
        """Return uploads that were prepared, or sent and never answered, with their bytes, oldest first.

        One whose key is gone is not among them.
        """
        found = self._read(
            f"SELECT {_COLUMNS}, body FROM egress WHERE method = ? AND state IN (?, ?) AND body IS NOT NULL"  # noqa: S608
            " ORDER BY id",
            (Method.UPLOAD.value, State.PREPARED.value, State.SENT.value),
        )
        return [entry for entry in found if entry.body is not None]

    def entries(self, limit: int, with_bytes: bool) -> list[Entry]:
        """Return the newest ``limit`` entries, newest first."""
        body = "body" if with_bytes else "NULL"
        return self._read(
            f"SELECT {_COLUMNS}, {body} FROM egress ORDER BY id DESC LIMIT ?",  # noqa: S608  # own words only
            (limit,),
        )

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

    def renew_key(self, purpose: str, recipient: str, connection: Connection) -> list[str]:
        """See ``UploadKeys.renew``."""
        return self._keys.renew(purpose, recipient, connection)

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
        """Forget bodies past their time, and those that can not leave any more; give up uploads never answered."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE egress SET state = ?, body = NULL WHERE state = ? AND expires <= ?",
                (State.DESTROYED.value, State.PREPARED.value, now),
            )
            connection.execute(
                "UPDATE egress SET state = ? WHERE method = ? AND state = ? AND expires <= ?",
                (State.FAILED.value, Method.UPLOAD.value, State.SENT.value, now),
            )
            self.forget_old(now, connection)

    def forget_old(self, now: float, connection: Connection | None = None) -> None:
        """Forget bodies that were kept long enough; a prepared upload may not leave then, as it has no bytes.

        Raises:
            StoreFailed: it could not be written.
        """
        if connection is None:
            with self._database.transaction() as own:
                self.forget_old(now, own)
            return
        before = now - min(self._keep_s(), KEEP_BODIES_S)
        connection.execute("UPDATE egress SET body = NULL WHERE body IS NOT NULL AND time <= ?", (before,))

    def settle(self) -> None:
        """After a start: check-ins and fetches that a crash cut short have failed; nobody sends them again."""
        with self._database.transaction() as connection:
            for before, after in ((State.PREPARED, State.DESTROYED), (State.SENT, State.FAILED)):
                connection.execute(
                    "UPDATE egress SET state = ? WHERE method <> ? AND state = ?",
                    (after.value, Method.UPLOAD.value, before.value),
                )

    def _read(self, sql: str, values: tuple[Any, ...]) -> list[Entry]:
        """Return entries with their bodies opened; bodies whose key is gone are None."""
        with self._database.still():  # rows and keys of one moment
            rows = self._database.rows(sql, values)
            sealers = {} if all(row[-1] is None for row in rows) else self._keys.sealers()
        return [_entry(row, _body(row, sealers)) for row in rows]


def _body(row: Any, sealers: Mapping[tuple[str, str], Sealer]) -> bytes | None:
    """Return the exact bytes of a request, or None where they are no longer kept."""
    _, _, method, purpose, recipient, *_, body = row
    if body is None or method != Method.UPLOAD.value:
        return None if body is None else bytes(body)
    return opened(sealers.get((purpose, recipient)), bytes(body), digest=bytes(row[8]))


def _entry(row: Any, body: bytes | None) -> Entry:
    number, time, method, purpose, recipient, run_id, step, size, sha256, state, expires, basis, _ = row
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
        body=body,
    )

"""What is kept of signals: sealed bodies, each under its stream's key, for a limited time and up to a quota."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from heapq import merge
from typing import TYPE_CHECKING, Any, Final

from fedlearn.errors import SignalRefused
from fedlearn.policy.document import LONGEST_RETENTION_DAYS, DataType
from fedlearn_client.hooks import ClockAndRng
from fedlearn_client.store.database import Database
from fedlearn_client.store.facts import Facts
from fedlearn_client.store.group_commit import GroupCommit
from fedlearn_client.store.sealing import signal_context
from fedlearn_client.store.streams import Stream, Streams

if TYPE_CHECKING:
    from fedlearn_client.store.opening import Connection

DAY_S: Final = 86_400.0
STREAM_QUOTA: Final = 50_000
TOTAL_QUOTA: Final = 200_000
MAX_BODY_BYTES: Final = 64 * 1024
GROUP_ROWS: Final = 100
LINGER_S: Final = 0.005  # a lone caller gains nothing by waiting
_MARK_BYTES: Final = 16
_CHUNK: Final = 5_000
# A clock that was set forward and back again gives rows a far end. They go as soon as it lies past any honest one.
_LATEST_END_S: Final = (LONGEST_RETENTION_DAYS + 1) * DAY_S


@dataclass(frozen=True, slots=True)
class NewSignal:
    """What is to be kept of one signal.

    Args:
        id: the app's own; kept as a keyed hash only, and counts once in its stream.
        time: seconds since the Unix epoch, by the app.
        retention_days: of its source in the policy, >= 1; cut to 30.
        catalogue: digest of the index that the body was made with; not kept for choices.
        body: a Said or a catalogue key.
    """

    id: str = field(repr=False)
    time: float
    retention_days: int
    catalogue: str
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class StoredSignal:
    """One kept signal.

    Args:
        row: number in the store; orders signals of the same time.
        stream: id of its stream.
        app: who pushed it.
        time: seconds since the Unix epoch, by the app.
        body: a Said or a catalogue key.
    """

    row: int
    stream: int
    app: str
    time: float
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Batch:
    stream: Stream
    rows: list[tuple[int, bytes, float, float, str, bytes]] = field(repr=False)


class SignalStore:
    """Keeps and reads signals. Safe to use from several threads.

    Args:
        database: the open store.
        streams: opens their keys.
        clock_rng: decides what has expired.
        admits: asked once more in the transaction that would keep a stream's rows; false leaves them out.
        stream_quota: most rows of one stream; its oldest go first.
        total_quota: most rows of all; then the largest stream's oldest go first, so no app displaces another's.
    """

    def __init__(
        self,
        database: Database,
        streams: Streams,
        clock_rng: ClockAndRng,
        *,
        admits: Callable[[Stream], bool] | None = None,
        stream_quota: int = STREAM_QUOTA,
        total_quota: int = TOTAL_QUOTA,
    ) -> None:
        self._database = database
        self._streams = streams
        self._clock_rng = clock_rng
        self._admits = admits
        self._stream_quota = stream_quota
        self._total_quota = total_quota
        self._hash_key = Facts(database).get_or_make("hash_key", lambda: clock_rng.random_bytes(32))
        self._writer: GroupCommit[_Batch] = GroupCommit(self._commit, GROUP_ROWS, LINGER_S)
        # stream -> at least so many rows; only ever too high, because others only delete
        self._at_most: dict[int, int] | None = None

    def add(self, stream: Stream, rows: Sequence[NewSignal]) -> None:
        """Keep ``rows``; durable on return, all or none of them. A signal that is there already counts once.

        Rows are left out, without a word, where ``stream`` was read before its data was destroyed, or where
        ``admits`` says no. So read the stream first, then ask for consent, then derive, then add: whatever is
        withdrawn in between is not brought back.

        Raises:
            SignalRefused: a time that is not finite, a retention below a day, or a body over 64 KiB.
            StoreFailed: nothing was kept.
        """
        for row in rows:
            _require_sound(row)
        sealer = self._streams.sealer_to_write(stream) if rows else None
        if sealer is None:
            return
        now = self._clock_rng.now()
        sealed = []
        for row in rows:
            mark = self._mark(stream.id, row.id)
            expires = now + min(row.retention_days, LONGEST_RETENTION_DAYS) * DAY_S
            catalogue = "" if stream.data_type is DataType.CHOICE else row.catalogue
            body = sealer.seal(row.body, signal_context(stream.id, mark, row.time))
            sealed.append((stream.id, mark, row.time, expires, catalogue, body))
        self._writer.submit(_Batch(stream, sealed), len(sealed))

    def read(
        self,
        stream_ids: Collection[int],
        after: float,
        before: float,
        catalogue: str,
        newest: int | None = None,
    ) -> list[StoredSignal]:
        """Return what is kept of the streams with ``after`` < time < ``before``, by time and then by row.

        Args:
            stream_ids: ids of granted streams; the caller asked for consent.
            after: seconds since the Unix epoch, exclusive.
            before: likewise.
            catalogue: digest of the present index; what was made with another is not returned, choices always are.
            newest: only the newest this many.

        Raises:
            StoreFailed: the store cannot be read, or a row does not fit its key.
        """
        found: list[list[StoredSignal]] = []
        with self._database.still():
            streams = [stream for stream in self._streams.all() if stream.id in stream_ids]
            kept = [
                (stream, sealer, self._rows(stream, after, before, catalogue, newest))
                for stream in streams
                if (sealer := self._streams.sealer(stream)) is not None
            ]
        for stream, sealer, rows in kept:
            found.append(
                [
                    StoredSignal(
                        row, stream.id, stream.app, time, sealer.open(body, signal_context(stream.id, mark, time))
                    )
                    for row, mark, time, body in rows
                ]
            )
        merged = list(merge(*found, key=lambda signal: (signal.time, signal.row)))
        return merged if newest is None else merged[max(0, len(merged) - newest) :]

    def expire(self, now: float) -> int:
        """Delete what has expired at ``now``, from the log too; return how many rows."""
        deleted = 0
        while True:
            with self._database.transaction() as connection:
                cursor = connection.execute(
                    "DELETE FROM signals WHERE id IN"
                    " (SELECT id FROM signals WHERE expires <= ? OR expires > ? LIMIT ?)",
                    (now, now + _LATEST_END_S, _CHUNK),
                )
            deleted += cursor.rowcount
            if cursor.rowcount < _CHUNK:
                break
        if deleted:
            self._database.erase_free_space()
        return deleted

    def count(self) -> int:
        """Return how many signals are kept and not expired."""
        now = self._clock_rng.now()
        return int(
            self._database.rows(
                "SELECT count(*) FROM signals s JOIN streams t ON t.id = s.stream"
                " WHERE s.id >= t.first_row AND s.expires > ? AND s.expires <= ?",
                (now, now + _LATEST_END_S),
            )[0][0]
        )

    def close(self) -> None:
        """Commit what waits and take in no more."""
        self._writer.close()

    def _rows(
        self, stream: Stream, after: float, before: float, catalogue: str, newest: int | None
    ) -> list[tuple[Any, ...]]:
        """Return row, mark, time and sealed body of one stream, by time and row; the index serves the order."""
        now = self._clock_rng.now()
        order, limit = ("ASC", -1) if newest is None else ("DESC", newest)
        rows = self._database.rows(
            "SELECT s.id, s.mark, s.time, s.body FROM signals s JOIN streams t ON t.id = s.stream"  # noqa: S608 - constants
            " WHERE s.stream = ? AND s.time > ? AND s.time < ? AND s.expires > ? AND s.expires <= ?"
            " AND s.catalogue IN ('', ?) AND s.id >= t.first_row"
            f" ORDER BY s.time {order}, s.id {order} LIMIT ?",
            (stream.id, after, before, now, now + _LATEST_END_S, catalogue, limit),
        )
        return rows if newest is None else rows[::-1]

    def _commit(self, batches: Sequence[_Batch]) -> None:
        counts = None
        try:
            with self._database.transaction() as connection:
                counts = _counts(connection) if self._at_most is None else dict(self._at_most)
                for batch in batches:
                    if not self._may_keep(batch.stream, connection):
                        continue
                    connection.executemany(
                        "INSERT OR IGNORE INTO signals (stream, mark, time, expires, catalogue, body)"
                        " VALUES (?, ?, ?, ?, ?, ?)",
                        batch.rows,
                    )
                    counts[batch.stream.id] = counts.get(batch.stream.id, 0) + len(batch.rows)
                counts = self._trimmed(counts, connection)
        except BaseException:
            self._at_most = None
            raise
        self._at_most = counts

    def _may_keep(self, stream: Stream, connection: Connection) -> bool:
        """Whether no destruction came after ``stream`` was read, and consent still stands."""
        row = connection.execute("SELECT key_alias FROM streams WHERE id = ?", (stream.id,)).fetchone()
        return row is not None and row[0] == stream.key_alias and (self._admits is None or self._admits(stream))

    def _trimmed(self, counts: dict[int, int], connection: Connection) -> dict[int, int]:
        """Delete what is over a quota, and a hundredth of the quota with it so that counting stays rare."""
        if max(counts.values(), default=0) <= self._stream_quota and sum(counts.values()) <= self._total_quota:
            return counts
        counts = _counts(connection)
        for stream, count in counts.items():
            if count > self._stream_quota:
                counts[stream] -= _delete_oldest(connection, stream, count - _roomy(self._stream_quota))
        if sum(counts.values()) <= self._total_quota:
            return counts
        while (over := sum(counts.values()) - _roomy(self._total_quota)) > 0:
            largest = max(counts, key=lambda stream: counts[stream])
            level = max((count for stream, count in counts.items() if stream != largest), default=0)
            counts[largest] -= _delete_oldest(connection, largest, min(over, max(1, counts[largest] - level)))
        return counts

    def _mark(self, stream: int, signal_id: str) -> bytes:
        text = stream.to_bytes(8, "big") + signal_id.encode()
        return hashlib.blake2b(text, digest_size=_MARK_BYTES, key=self._hash_key).digest()


def _require_sound(row: NewSignal) -> None:
    if not math.isfinite(row.time):
        raise SignalRefused("time: not finite; give seconds since the Unix epoch.")
    if row.retention_days < 1:
        raise SignalRefused(f"retention_days={row.retention_days}: must be >= 1.")
    if len(row.body) > MAX_BODY_BYTES:
        raise SignalRefused(f"body: {len(row.body)} bytes; at most {MAX_BODY_BYTES} are kept of one signal.")


def _roomy(quota: int) -> int:
    return quota - quota // 100


def _counts(connection: Connection) -> dict[int, int]:
    return dict(connection.execute("SELECT stream, count(*) FROM signals GROUP BY stream").fetchall())


def _delete_oldest(connection: Connection, stream: int, count: int) -> int:
    if count > 0:
        connection.execute(
            "DELETE FROM signals WHERE id IN (SELECT id FROM signals WHERE stream = ? ORDER BY time, id LIMIT ?)",
            (stream, count),
        )
    return count

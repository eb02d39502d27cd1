"""The store's one connection: durable transactions, one at a time, and every fault as ``StoreFailed``."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlcipher3 import dbapi2

from fedlearn.errors import StoreFailed
from fedlearn_client.hooks import ClockAndRng, KeyStore
from fedlearn_client.store import opening

if TYPE_CHECKING:
    from fedlearn_client.store.opening import Connection

DEFAULT_MAX_BYTES: Final = 256 * 1024 * 1024
_RUNNING: Final = "running"


class Database:
    """An open store. Made by ``open``; safe to use from several threads."""

    def __init__(self, connection: Connection, lock_handle: int) -> None:
        self._connection = connection
        self._lock_handle = lock_handle
        self._lock = threading.RLock()
        self._in_transaction = False
        self._broken = False

    @classmethod
    def open(
        cls,
        directory: Path,
        keystore: KeyStore,
        clock_rng: ClockAndRng,
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> Database:
        """Open the store in ``directory``, made if there is none; after a crash, check every page first.

        Args:
            directory: of the daemon's own user, mode 0700; one daemon at a time.
            keystore: wraps the store's key.
            clock_rng: draws the store's key.
            max_bytes: the database file grows no larger; what would is refused as on a full disk.

        Raises:
            StoreFailed: wrong key, damage, another program's file, read-only or full disk, another daemon, a newer
                schema; the message says what to do.
        """
        lock_handle = opening.lock(directory)
        connection: Connection | None = None
        try:
            key = opening.store_key(directory, keystore, clock_rng)
            connection = opening.connect(directory / opening.DATABASE_FILE, key, max_bytes)
            _begin_use(connection)
        except dbapi2.Error as error:
            _close(connection, lock_handle)
            raise opening.failed(error) from error
        except BaseException:
            _close(connection, lock_handle)
            raise
        return cls(connection, lock_handle)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Yield a connection; everything done with it is durable when the block ends, or undone if it raises.

        Keep it short: all others wait. Transactions do not nest.

        Raises:
            StoreFailed: nothing of the block was kept.
        """
        with self._lock:
            if self._in_transaction:
                raise StoreFailed("store: a transaction is open in this thread; hand its connection on instead.")
            self._require_usable()
            self._in_transaction = True
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection
                self._connection.execute("COMMIT")
            except dbapi2.Error as error:
                self._roll_back()
                raise opening.failed(error) from error
            except BaseException:
                self._roll_back()
                raise
            finally:
                self._in_transaction = False

    def rows(self, sql: str, args: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Return the rows that ``sql`` selects; inside a transaction of the same thread, with what it changed."""
        with self._lock:
            self._require_usable()
            try:
                return self._connection.execute(sql, tuple(args)).fetchall()
            except dbapi2.Error as error:
                raise opening.failed(error) from error

    @contextmanager
    def still(self) -> Iterator[None]:
        """Keep all others from changing anything, so that several ``rows`` are of one moment."""
        with self._lock:
            yield

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open; to be asked inside ``still`` or a transaction, where no other thread's is."""
        return self._in_transaction

    def erase_free_space(self) -> None:
        """Bring the write-ahead log into the database and cut it to nothing.

        Deleted rows are then gone from both files as the file system shows them: ``secure_delete`` has overwritten
        them in the database. What flash keeps of old blocks is unreadable once the stream's key is destroyed.
        """
        busy = self.rows("PRAGMA wal_checkpoint(TRUNCATE)")[0][0]
        if busy:
            raise StoreFailed(
                "store: deleted rows are still in the write-ahead log; stop whoever else reads the store."
            )

    def close(self) -> None:
        """Close the store as one that needs no check at the next start. Does nothing the second time."""
        with self._lock:
            if self._lock_handle < 0:
                return
            try:
                if not self._broken:
                    self._connection.execute("DELETE FROM facts WHERE name = ?", (_RUNNING,))
            except dbapi2.Error as error:
                raise opening.failed(error) from error
            finally:
                _close(self._connection, self._lock_handle)
                self._lock_handle = -1
                self._broken = True

    def _require_usable(self) -> None:
        if self._broken:
            raise StoreFailed("store: closed, or left half-done by a fault; restart the daemon.")

    def _roll_back(self) -> None:
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except dbapi2.Error:
            self._broken = True  # what the connection holds is unknown; the file itself is as after a crash


def _begin_use(connection: Connection) -> None:
    """Check the store if the last daemon did not close it, and note that this one is at work."""
    if connection.execute("SELECT count(*) FROM facts WHERE name = ?", (_RUNNING,)).fetchone()[0]:
        opening.require_whole(connection)
    connection.execute("INSERT OR REPLACE INTO facts (name, value) VALUES (?, ?)", (_RUNNING, b"1"))


def _close(connection: Connection | None, lock_handle: int) -> None:
    if connection is not None:
        connection.close()
    os.close(lock_handle)

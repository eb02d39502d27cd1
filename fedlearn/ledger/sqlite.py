"""A ledger in one SQLite file."""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fedlearn.errors import LedgerDamaged, LedgerError, LedgerLocked
from fedlearn.files import sync_directory
from fedlearn.ledger import store
from fedlearn.ledger.entries import Row
from fedlearn.ledger.store import COLUMNS, UNUSABLE, after, connect, database_error, row_of

if TYPE_CHECKING:
    from fedlearn.ledger.store import Connection

_SCHEMA: Final = (
    "CREATE TABLE entries (sequence INTEGER PRIMARY KEY, kind TEXT NOT NULL, body TEXT NOT NULL, hash TEXT NOT NULL, "
    "signature TEXT NOT NULL)",
    "CREATE TRIGGER no_update BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'append-only'); END",
    "CREATE TRIGGER no_delete BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'append-only'); END",
)
_INSERT: Final = f"INSERT INTO entries ({COLUMNS}) VALUES (?, ?, ?, ?, ?)"  # noqa: S608 - constants
_SELECT: Final = f"SELECT {COLUMNS} FROM entries WHERE sequence >= ? ORDER BY sequence"  # noqa: S608
_LOCKED: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_UNWRITABLE: Final = frozenset(
    {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_NOMEM,
    }
)


class SqliteStore:
    """A ledger file in WAL mode, shared by any number of processes of one machine.

    Every ``append`` is one transaction under ``synchronous=FULL``: when it returns, the row has survived a power cut as
    far as the disk keeps its promises; if the process is killed inside, the row is there whole or not at all.

    Args:
        path: an existing ledger file on a local disk.
        writable: False opens it to be read, also from where nothing can be written.

    Raises:
        LedgerLocked: another process holds it.
        LedgerDamaged: it is empty or not SQLite.
        LedgerError: it cannot be opened.
    """

    def __init__(self, path: Path, *, writable: bool = True) -> None:
        self._path = path
        self.name = str(path)
        if path.stat().st_size == 0:
            raise LedgerDamaged(f"{path}: empty file; a ledger is never empty. {UNUSABLE}")
        self._connection = _connect(path, _uri(path, writable=writable))
        raw: Any = self._connection.connection.driver_connection
        self._cursor: sqlite3.Cursor = raw.cursor()
        self._version: int | None = None
        try:
            with _translated(path, reading=True):
                self._check_file(writable=writable)
        except BaseException:
            self.close()
            raise

    def rows(self, start: int = 0) -> list[Row]:
        """See ``RowStore``; raises LedgerDamaged if the file cannot be read."""
        with _translated(self._path, reading=True):
            found = self._cursor.execute(_SELECT, (start,)).fetchall()
        return [row_of(self.name, values) for values in found]

    def begin(self, known: int, head: str) -> list[Row]:
        """See ``RowStore``."""
        try:
            self._cursor.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            raise _as_ledger_error(self._path, error) from error
        try:
            version = self._cursor.execute("PRAGMA data_version").fetchone()[0]
            if version == self._version:  # nobody else has written since the last look
                return []
            unseen = after(self.name, self.rows(known - 1), head)
        except BaseException:
            self.cancel()
            raise
        self._version = version
        return unseen

    def append(self, row: Row) -> None:
        """See ``RowStore``; raises LedgerError if the disk is full or failing."""
        try:
            self._cursor.execute(_INSERT, (row.sequence, row.kind, row.body, row.hash, row.signature))
            self._cursor.execute("COMMIT")
        except sqlite3.Error as error:
            self.cancel()
            raise _as_ledger_error(self._path, error) from error
        except BaseException:
            self.cancel()
            raise

    def cancel(self) -> None:
        """See ``RowStore``."""
        with suppress(sqlite3.Error):  # SQLite may have rolled back by itself
            self._cursor.execute("ROLLBACK")

    def close(self) -> None:
        """See ``RowStore``; the last process to do so folds the log into the file."""
        self._connection.close()
        self._connection.engine.dispose()

    def _check_file(self, *, writable: bool) -> None:
        check = self._cursor.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if check != "ok":
            raise LedgerDamaged(f"{self._path}: {' '.join(str(check).split())}. {UNUSABLE}")
        if not writable:
            return
        mode = self._cursor.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":
            raise LedgerError(f"{self._path}: no write-ahead log here (journal_mode={mode}); use a local disk.")
        self._cursor.execute("PRAGMA synchronous=FULL")


def create_sqlite(path: Path, first: Row) -> None:
    """Make a ledger file with its first row, atomically: it is absent or complete, never in between.

    Raises:
        FileExistsError: the file exists.
        LedgerError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = _connect(path, f"{temporary.absolute().as_uri()}?mode=rwc")
        try:
            cursor = connection.connection.cursor()
            with _translated(path):
                cursor.execute("PRAGMA journal_mode=WAL")
                cursor.execute("PRAGMA synchronous=FULL")
                cursor.execute("BEGIN EXCLUSIVE")
                for statement in _SCHEMA:
                    cursor.execute(statement)
                cursor.execute(_INSERT, (first.sequence, first.kind, first.body, first.hash, first.signature))
                cursor.execute("COMMIT")
        finally:
            connection.close()  # folds the log into the file and removes it
            connection.engine.dispose()
        if temporary.with_name(f"{temporary.name}-wal").exists():
            raise LedgerError(f"{path}: its log could not be folded in; use a local disk.")
        path.hardlink_to(temporary)  # unlike a rename, fails if another process made the file first
        sync_directory(path.parent)
    except FileExistsError:
        raise
    except OSError as error:
        raise LedgerError(
            f"{path}: cannot be made ({error}); use a directory on a local disk with hard links."
        ) from error
    finally:
        for suffix in ("", "-wal", "-shm", "-journal"):
            temporary.with_name(f"{temporary.name}{suffix}").unlink(missing_ok=True)


def _uri(path: Path, *, writable: bool) -> str:
    uri = path.absolute().as_uri()
    if writable or (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
        return f"{uri}?mode=rw"
    # where nothing can be written, a file without a log is complete and does not change
    sealed = not path.with_name(f"{path.name}-wal").exists()
    return f"{uri}?mode=ro{'&immutable=1' if sealed else ''}"


def _connect(path: Path, uri: str) -> Connection:
    with _translated(path):
        return connect(
            "sqlite://", lambda: sqlite3.connect(uri, uri=True, timeout=store.BUSY_SECONDS, check_same_thread=False)
        )


@contextmanager
def _translated(path: Path, *, reading: bool = False) -> Iterator[None]:
    """Turn SQLite's errors into the ledger's; what fails while reading is damage."""
    try:
        yield
    except (sqlite3.Error, database_error()) as error:
        raise _as_ledger_error(path, error, reading=reading) from error
    except (UnicodeDecodeError, OverflowError) as error:  # the driver's own, on flipped bytes
        raise LedgerDamaged(f"{path}: {error}. {UNUSABLE}") from error


def _as_ledger_error(path: Path, error: Exception, *, reading: bool = False) -> LedgerError:
    original = getattr(error, "orig", error)
    code = getattr(original, "sqlite_errorcode", 0) & 0xFF  # the primary one of an extended code
    if code in _LOCKED:
        return LedgerLocked(f"{path}: another process is writing; wait for it to end or stop it.")
    if code in _UNWRITABLE:
        return LedgerError(f"{path}: {original}. Free space or fix permissions; nothing was recorded.")
    if reading or code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
        return LedgerDamaged(f"{path}: {original}. {UNUSABLE}")
    return LedgerError(f"{path}: {original}; nothing was recorded.")

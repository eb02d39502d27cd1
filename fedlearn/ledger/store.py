"""Durable rows in one SQLite file, held by one process. The only module that imports SQLAlchemy."""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fedlearn.errors import LedgerDamaged, LedgerError, LedgerLocked, MissingDependency
from fedlearn.files import sync_directory
from fedlearn.ledger.entries import Row

if TYPE_CHECKING:
    from sqlalchemy import Connection

BUSY_SECONDS: Final = 2.0

UNUSABLE: Final = "Treat its whole budget as spent and start a new run."
"""What to do about a damaged ledger. Not a backup: an older ledger does not know what was spent since."""

_SCHEMA: Final = (
    "CREATE TABLE entries (sequence INTEGER PRIMARY KEY, kind TEXT NOT NULL, body TEXT NOT NULL, hash TEXT NOT NULL)",
    "CREATE TRIGGER no_update BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'append-only'); END",
    "CREATE TRIGGER no_delete BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'append-only'); END",
)


class RowStore:
    """An exclusive hold on a ledger file, from construction to ``close``.

    Every ``append`` is one transaction under ``synchronous=EXTRA`` with a rollback journal: when it returns, the row
    has survived a power cut as far as the disk keeps its promises; if the process is killed inside, the row is absent.

    Args:
        path: an existing ledger file.

    Raises:
        LedgerLocked: another process holds it.
        LedgerDamaged: it is empty or not SQLite.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        if path.stat().st_size == 0:
            raise LedgerDamaged(f"{path}: empty file; a ledger is never empty. {UNUSABLE}")
        self._connection = _connect(path)
        try:
            with _translated(path, reading=True):
                self._connection.exec_driver_sql("PRAGMA locking_mode=EXCLUSIVE")
                self._connection.exec_driver_sql("PRAGMA journal_mode=TRUNCATE")
                self._connection.exec_driver_sql("PRAGMA synchronous=EXTRA")
                self._connection.exec_driver_sql("BEGIN EXCLUSIVE")  # kept after COMMIT by the locking mode
                self._connection.exec_driver_sql("COMMIT")
        except BaseException:
            self._release()
            raise
        with suppress(OSError):  # it only names the holder to others; the lock is SQLite's
            _holder_file(path).write_text(
                json.dumps({"pid": os.getpid(), "host": socket.gethostname()}), encoding="utf-8"
            )

    def rows(self) -> list[Row]:
        """Return every row in order.

        Raises:
            LedgerDamaged: the file cannot be read.
        """
        with _translated(self._path, reading=True):
            check = self._connection.exec_driver_sql("PRAGMA integrity_check(1)").scalar_one()
            if check != "ok":
                raise LedgerDamaged(f"{self._path}: {check}. {UNUSABLE}")
            found = self._connection.exec_driver_sql(
                "SELECT sequence, kind, body, hash FROM entries ORDER BY sequence"
            ).all()
        rows = [Row(*values) for values in found]
        for row in rows:
            if not all(isinstance(value, str) for value in (row.kind, row.body, row.hash)):
                raise LedgerDamaged(f"{self._path}: entry {row.sequence}: a column is not text.")
        return rows

    def append(self, row: Row) -> None:
        """Make one more row durable.

        Raises:
            LedgerError: the disk is full or failing; the row is not in the ledger.
        """
        from sqlalchemy.exc import DatabaseError  # noqa: PLC0415  # optional

        with _translated(self._path):
            self._connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                _insert(self._connection, row)
                self._connection.exec_driver_sql("COMMIT")
            except BaseException:
                with suppress(DatabaseError):  # SQLite may have rolled back by itself
                    self._connection.exec_driver_sql("ROLLBACK")
                raise

    def close(self) -> None:
        """Give the file back."""
        _holder_file(self._path).unlink(missing_ok=True)
        self._release()

    def _release(self) -> None:
        self._connection.close()
        self._connection.engine.dispose()


def create(path: Path, first: Row) -> None:
    """Make a ledger file with its first row, atomically: it is absent or complete, never in between.

    Raises:
        FileExistsError: the file exists.
        LedgerError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        connection = _connect(temporary)
        try:
            with _translated(path):
                connection.exec_driver_sql("PRAGMA journal_mode=TRUNCATE")
                connection.exec_driver_sql("PRAGMA synchronous=EXTRA")
                connection.exec_driver_sql("BEGIN EXCLUSIVE")
                for statement in _SCHEMA:
                    connection.exec_driver_sql(statement)
                _insert(connection, first)
                connection.exec_driver_sql("COMMIT")
        finally:
            connection.close()
            connection.engine.dispose()
        path.hardlink_to(temporary)  # unlike a rename, fails if another process made the file first
        sync_directory(path.parent)
    except FileExistsError:
        raise
    except OSError as error:
        raise LedgerError(
            f"{path}: cannot be made ({error}); use a directory on a local disk with hard links."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
        temporary.with_name(f"{temporary.name}-journal").unlink(missing_ok=True)


def _insert(connection: Connection, row: Row) -> None:
    connection.exec_driver_sql(
        "INSERT INTO entries (sequence, kind, body, hash) VALUES (?, ?, ?, ?)",
        (row.sequence, row.kind, row.body, row.hash),
    )


def _connect(path: Path) -> Connection:
    try:
        from sqlalchemy import create_engine  # noqa: PLC0415  # optional
        from sqlalchemy.pool import NullPool  # noqa: PLC0415
    except ImportError as error:
        raise MissingDependency("The ledger needs SQLAlchemy: pip install 'fedlearn[ledger]'") from error
    engine = create_engine(
        f"sqlite:///{path}",
        isolation_level="AUTOCOMMIT",
        poolclass=NullPool,
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
    )
    with _translated(path):
        return engine.connect()


@contextmanager
def _translated(path: Path, *, reading: bool = False) -> Iterator[None]:
    """Turn the database's errors into the ledger's; what fails while reading is damage."""
    from sqlalchemy.exc import DatabaseError, OperationalError  # noqa: PLC0415  # optional

    try:
        yield
    except OperationalError as error:
        if "locked" in str(error.orig):
            raise LedgerLocked(f"{path}: held by {_holder(path)}; wait for it to end or stop it.") from error
        if reading and "unable to open" not in str(error.orig) and "readonly" not in str(error.orig):
            raise LedgerDamaged(f"{path}: {error.orig}. {UNUSABLE}") from error
        raise LedgerError(f"{path}: {error.orig}. Free space or fix permissions; nothing was recorded.") from error
    except DatabaseError as error:
        raise LedgerDamaged(f"{path}: {error.orig}. {UNUSABLE}") from error
    except (UnicodeDecodeError, OverflowError) as error:  # the driver's own, on flipped bytes
        raise LedgerDamaged(f"{path}: {error}. {UNUSABLE}") from error


def _holder_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.holder")


def _holder(path: Path) -> str:
    """Name the process that wrote the holder file; the lock itself is SQLite's and ends with its process."""
    try:
        body = json.loads(_holder_file(path).read_text(encoding="utf-8"))
        return f"process {int(body['pid'])} on {body['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"

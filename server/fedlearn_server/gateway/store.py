"""Where a gateway's state is kept: one SQLite file, or one PostgreSQL database that several machines share.

Writers never overlap, in either: SQLite has one by nature, in PostgreSQL all of them hold one advisory lock. So what a
transaction reads stays true until it is durable, and every rule that counts (room, participations, a token's single
use) is kept by reading before writing.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, Engine, create_engine, event, insert, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from fedlearn.errors import GatewayStoreFailed, MissingDependency
from fedlearn_server.gateway.tables import SCHEMA, about, metadata

BUSY_SECONDS: Final = 10.0
"""How long a write waits for another gateway's."""
_LOCK: Final = 0x66656467  # "fedg": the advisory lock of all writers of a database
_LOG_BUSY_MS: Final = 500
_BRIEFLY_S: Final = 0.01
_POSTGRES: Final = ("postgresql://", "postgres://")


class Store:
    """Transactions on a gateway's tables, for any number of threads, processes and, in PostgreSQL, machines.

    Guarantee: when ``writing`` ends without an exception, what was written survives a crash and a power cut as far as
    the disk keeps its promises; if it raises, or the process dies inside, nothing was written. The one doubt is a
    PostgreSQL that goes away during the commit: it raises, and the rows may be there.

    Args:
        where: path of a SQLite file on a local disk, made if it is absent, or a ``postgresql://`` URL.

    Raises:
        GatewayStoreFailed: it cannot be opened, or was made by another version.
        MissingDependency: psycopg is not installed.
    """

    def __init__(self, where: str | Path) -> None:
        self.name = _without_password(str(where))
        self._postgres = str(where).startswith(_POSTGRES)
        self._turn = threading.Lock()  # fair enough among threads, where SQLite's own waiting is not
        try:
            with self._translated():
                self._engine = _postgres_engine(str(where)) if self._postgres else _sqlite_engine(Path(where))
        except OSError as error:
            raise GatewayStoreFailed(f"{self.name}: cannot be made or opened ({error}).") from error
        try:
            self._make_tables()
        except BaseException:
            self.close()
            raise

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Return a transaction that keeps all other writers out.

        Raises:
            GatewayStoreFailed: the disk is full, the database is gone or held too long; nothing was written.
        """
        if not self._turn.acquire(timeout=BUSY_SECONDS):
            raise GatewayStoreFailed(f"{self.name}: other requests hold it for more than {BUSY_SECONDS:g} s.")
        try:
            with self._translated(), self._engine.connect() as connection:
                connection.exec_driver_sql("BEGIN" if self._postgres else "BEGIN IMMEDIATE")
                try:
                    if self._postgres:
                        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
                    yield connection
                    connection.exec_driver_sql("COMMIT")
                except BaseException:
                    with suppress(SQLAlchemyError):  # rolled back by itself, or the connection is gone
                        connection.exec_driver_sql("ROLLBACK")
                    raise
        finally:
            self._turn.release()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Return a connection whose statements see what is durable, each by itself.

        Raises:
            GatewayStoreFailed: the database cannot be read.
        """
        with self._translated(), self._engine.connect() as connection:
            yield connection

    def forget_log(self) -> None:
        """Wipe what was deleted from SQLite's log too, unless a reader is in the way: then the next call does it."""
        if self._postgres or not self._turn.acquire(timeout=BUSY_SECONDS):
            return
        try:
            with suppress(GatewayStoreFailed), self.reading() as connection:
                connection.exec_driver_sql(f"PRAGMA busy_timeout={_LOG_BUSY_MS}")
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
                connection.exec_driver_sql(f"PRAGMA busy_timeout={int(BUSY_SECONDS * 1000)}")
        finally:
            self._turn.release()

    def close(self) -> None:
        """Let go."""
        with suppress(SQLAlchemyError):
            self._engine.dispose()

    def _make_tables(self) -> None:
        with self.writing() as connection:
            metadata.create_all(connection)
            found = connection.execute(select(about.c.version)).scalars().all()
            if not found:
                connection.execute(insert(about), {"version": SCHEMA})
            elif found != [SCHEMA]:
                raise GatewayStoreFailed(
                    f"{self.name}: made by another version of the gateway (schema {found}, this one has {SCHEMA})."
                )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            said = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
            raise GatewayStoreFailed(f"{self.name}: {said}; nothing was acknowledged.") from error


def _sqlite_engine(path: Path) -> Engine:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)  # SQLite gives its log the mode of the file
    os.fchmod(handle, 0o600)
    os.close(handle)
    engine = create_engine(
        URL.create("sqlite", database=str(path.absolute())),
        isolation_level="AUTOCOMMIT",
        max_overflow=-1,
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, record: object) -> None:
        del record
        for setting in ("synchronous=FULL", "secure_delete=ON", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {setting}").close()
        _use_log(connection)

    return engine


def _use_log(connection: sqlite3.Connection) -> None:
    """Switch a new file to a write-ahead log; SQLite does not wait by itself where two processes do it at once."""
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        except sqlite3.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(_BRIEFLY_S)
        else:
            break
    if mode != "wal":
        raise OSError(f"no write-ahead log here (journal_mode={mode}); use a local disk")


def _postgres_engine(url: str) -> Engine:
    try:
        import psycopg  # noqa: F401, PLC0415  # optional
    except ImportError as error:
        raise MissingDependency("A gateway on PostgreSQL needs psycopg: pip install 'fedlearn[postgres]'") from error
    settings = f"-c synchronous_commit=on -c lock_timeout={int(BUSY_SECONDS * 1000)}"
    engine = create_engine(
        make_url(url).set(drivername="postgresql+psycopg"),
        isolation_level="AUTOCOMMIT",
        max_overflow=-1,
        pool_pre_ping=True,  # a server that was away and is back is used again
        connect_args={"options": settings, "connect_timeout": int(BUSY_SECONDS)},
    )
    with engine.connect() as connection:
        if connection.execute(text("SHOW fsync")).scalar_one() != "on":
            engine.dispose()
            raise GatewayStoreFailed("PostgreSQL runs with fsync=off and would lose contributions; turn it on.")
    return engine


def _without_password(where: str) -> str:
    if not where.startswith(_POSTGRES):
        return where
    try:
        return make_url(where).render_as_string(hide_password=True)
    except ArgumentError:
        return "PostgreSQL"

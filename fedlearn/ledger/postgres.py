"""A ledger in a PostgreSQL database, for several servers of one population."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from fedlearn.errors import LedgerError, LedgerLocked, MissingDependency
from fedlearn.ledger import store
from fedlearn.ledger.entries import Row
from fedlearn.ledger.store import COLUMNS, after, connect, database_error, row_of, without_password

if TYPE_CHECKING:
    from fedlearn.ledger.store import Connection

TABLE: Final = "fedlearn_ledger"

_SCHEMA: Final = (
    f"CREATE TABLE {TABLE} (sequence BIGINT PRIMARY KEY CHECK (sequence >= 0), kind TEXT NOT NULL, body TEXT NOT NULL, "
    "hash TEXT NOT NULL UNIQUE, signature TEXT NOT NULL)",
    f"CREATE FUNCTION {TABLE}_append_only() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN RAISE EXCEPTION 'append-only'; END $$",
    f"CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {TABLE} "
    f"FOR EACH STATEMENT EXECUTE FUNCTION {TABLE}_append_only()",
)
_INSERT: Final = f"INSERT INTO {TABLE} ({COLUMNS}) VALUES (%s, %s, %s, %s, %s)"  # noqa: S608 - constants
_SELECT: Final = f"SELECT {COLUMNS} FROM {TABLE} WHERE sequence >= %s ORDER BY sequence"  # noqa: S608
_LOCK_NOT_AVAILABLE: Final = "55P03"
_NO_TABLE: Final = "42P01"
_EXISTS: Final = frozenset({"42P07", "42723", "23505"})


class PostgresStore:
    """The one ledger of a database, shared by processes of any machine.

    An append locks the table against other writers, not against readers, and is durable when it returns
    (``synchronous_commit=on``).

    Args:
        url: ``postgresql://USER:PASSWORD@HOST/DATABASE``, with options as SQLAlchemy takes them.

    Raises:
        LedgerError: it cannot be reached, holds no ledger, or is run without fsync.
        MissingDependency: psycopg is not installed.
    """

    def __init__(self, url: str) -> None:
        self._name = without_password(url)
        self._connection = _connect(url, self._name)
        try:
            self.rows(1 << 62)  # whether there is a ledger
        except BaseException:
            self.close()
            raise

    @property
    def name(self) -> str:
        """The URL without its password."""
        return self._name

    def rows(self, start: int = 0) -> list[Row]:
        """See ``RowStore``."""
        with _translated(self._name):
            found = self._connection.exec_driver_sql(_SELECT, (start,)).all()
        return [row_of(self._name, values) for values in found]

    def begin(self, known: int, head: str) -> list[Row]:
        """See ``RowStore``."""
        try:
            with _translated(self._name):
                self._connection.exec_driver_sql("BEGIN ISOLATION LEVEL READ COMMITTED")
                self._connection.exec_driver_sql(f"LOCK TABLE {TABLE} IN SHARE ROW EXCLUSIVE MODE")
            return after(self._name, self.rows(known - 1), head)
        except BaseException:
            self.cancel()
            raise

    def append(self, row: Row) -> None:
        """See ``RowStore``."""
        try:
            with _translated(self._name):
                values = (row.sequence, row.kind, row.body, row.hash, row.signature)
                self._connection.exec_driver_sql(_INSERT, values)
                self._connection.exec_driver_sql("COMMIT")
        except BaseException:
            self.cancel()
            raise

    def cancel(self) -> None:
        """See ``RowStore``."""
        with suppress(database_error()):  # the connection may be gone
            self._connection.exec_driver_sql("ROLLBACK")

    def close(self) -> None:
        """See ``RowStore``."""
        with suppress(database_error()):
            self._connection.close()
        self._connection.engine.dispose()


def create_postgres(url: str, first: Row) -> None:
    """Make the ledger's table with its first row, in one transaction.

    Raises:
        LedgerError: the database holds a ledger, or cannot be written.
    """
    name = without_password(url)
    connection = _connect(url, name)
    try:
        with _translated(name):
            connection.exec_driver_sql("BEGIN")
            for statement in _SCHEMA:
                connection.exec_driver_sql(statement)
            connection.exec_driver_sql(_INSERT, (first.sequence, first.kind, first.body, first.hash, first.signature))
            connection.exec_driver_sql("COMMIT")
    finally:
        with suppress(database_error()):
            connection.close()
        connection.engine.dispose()


def _connect(url: str, name: str) -> Connection:
    try:
        import psycopg  # noqa: F401, PLC0415  # optional
    except ImportError as error:
        raise MissingDependency("A ledger in PostgreSQL needs psycopg: pip install 'fedlearn[postgres]'") from error
    driver = url.replace("postgresql://", "postgresql+psycopg://", 1)
    with _translated(name):
        connection = connect(driver)
        connection.exec_driver_sql("SET synchronous_commit = on")
        connection.exec_driver_sql(f"SET lock_timeout = {int(store.BUSY_SECONDS * 1000)}")
        if connection.exec_driver_sql("SHOW fsync").scalar_one() != "on":
            connection.close()
            raise LedgerError(f"{name}: the server runs with fsync=off and would lose charges; turn it on.")
    return connection


@contextmanager
def _translated(name: str) -> Iterator[None]:
    """Turn the database's errors into the ledger's."""
    try:
        yield
    except database_error() as error:
        original = getattr(error, "orig", error)
        state = getattr(original, "sqlstate", None)
        said = str(original).strip().partition("\n")[0]
        if state == _LOCK_NOT_AVAILABLE:
            raise LedgerLocked(f"{name}: another process is writing; wait for it to end or stop it.") from error
        if state == _NO_TABLE:
            raise LedgerError(f"{name}: no ledger here; make one with `fedlearn ledger create`.") from error
        if state in _EXISTS:
            raise LedgerError(f"{name}: a ledger is there already; open it, or choose another database.") from error
        raise LedgerError(f"{name}: {said}. Mend the server or the connection, then open the ledger again.") from error

"""A ledger by its place: a path is a SQLite file, a URL a PostgreSQL database."""

from __future__ import annotations

from pathlib import Path

from fedlearn.errors import LedgerError, OutOfRange
from fedlearn.ledger.entries import Row
from fedlearn.ledger.postgres import PostgresStore, create_postgres
from fedlearn.ledger.sqlite import SqliteStore, create_sqlite
from fedlearn.ledger.store import RowStore

Where = Path | str


def open_store(where: Where, *, writable: bool = True) -> RowStore:
    """Open the rows of the ledger at ``where``.

    Raises:
        LedgerError: there is none, or it cannot be opened.
        OutOfRange: a URL of another database.
    """
    url = _url(where)
    if url is not None:
        return PostgresStore(url)
    path = Path(where)
    if not path.is_file():
        raise LedgerError(f"{path}: no ledger here; name the file, or make one with `fedlearn ledger create`.")
    return SqliteStore(path, writable=writable)


def create_store(where: Where, first: Row) -> None:
    """Make a ledger with its first row.

    Raises:
        LedgerError: there is one, or it cannot be made.
        OutOfRange: a URL of another database.
    """
    url = _url(where)
    if url is not None:
        create_postgres(url, first)
        return
    try:
        create_sqlite(Path(where), first)
    except FileExistsError as error:
        raise LedgerError(f"{where}: a ledger is there already; open it, or choose another place.") from error


def _url(where: Where) -> str | None:
    if isinstance(where, Path) or "://" not in where:
        return None
    if not where.startswith(("postgresql://", "postgresql+psycopg://")):
        raise OutOfRange(
            f"{where.partition('://')[0]}://...: a ledger is a file path or postgresql://USER@HOST/DATABASE."
        )
    return where

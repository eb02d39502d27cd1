"""Where a ledger's rows are kept: what SQLite and PostgreSQL have in common. The only importer of SQLAlchemy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

from fedlearn.errors import LedgerDamaged, LedgerRestored, MissingDependency
from fedlearn.ledger.entries import Row

if TYPE_CHECKING:
    from sqlalchemy import Connection as Connection  # noqa: PLC0414 - the stores take the name from here

BUSY_SECONDS: Final = 10.0
"""How long an append waits for another process's."""

UNUSABLE: Final = "Treat its whole budget as spent and start a new run."
"""What to do about a damaged ledger. Not a backup: an older ledger does not know what was spent since."""

COLUMNS: Final = "sequence, kind, body, hash, signature"


class RowStore(Protocol):
    """Where rows are kept. One transaction appends one row; transactions of several processes never overlap."""

    @property
    def name(self) -> str:
        """How messages call it."""
        ...

    def rows(self, start: int = 0) -> list[Row]:
        """Return the rows from number ``start`` on, in order."""
        ...

    def begin(self, known: int, head: str) -> list[Row]:
        """Keep other writers out and return the rows they appended after the first ``known``.

        Args:
            known: rows the caller has, >= 1.
            head: hash of the last of them.

        Raises:
            LedgerLocked: another process keeps it too long; nothing began.
            LedgerRestored: row ``known - 1`` is another one, or gone; nothing began.
        """
        ...

    def append(self, row: Row) -> None:
        """Make the row durable and let others write again. If it raises, whether the row is there is not known."""
        ...

    def cancel(self) -> None:
        """Let others write again without a row."""
        ...

    def close(self) -> None:
        """Let go."""
        ...


def connect(url: str, creator: Callable[[], Any] | None = None) -> Connection:
    """Return a connection in which every statement is its own transaction unless BEGIN says otherwise.

    Args:
        url: SQLAlchemy's.
        creator: makes the driver's connection, or None to make it from the URL.

    Raises:
        MissingDependency: SQLAlchemy is not installed.
    """
    try:
        from sqlalchemy import create_engine  # noqa: PLC0415  # optional
        from sqlalchemy.pool import NullPool  # noqa: PLC0415
    except ImportError as error:
        raise MissingDependency("The ledger needs SQLAlchemy: pip install 'fedlearn[ledger]'") from error
    made = {} if creator is None else {"creator": creator}
    return create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool, **made).connect()


def database_error() -> type[Exception]:
    """Return the class of SQLAlchemy's wrapped errors; the driver's own is its ``orig``."""
    from sqlalchemy.exc import DBAPIError  # noqa: PLC0415  # optional

    return DBAPIError


def without_password(url: str) -> str:
    """Return a URL that may be shown."""
    from sqlalchemy.engine import make_url  # noqa: PLC0415  # optional

    return make_url(url).render_as_string(hide_password=True)


def row_of(name: str, values: Any) -> Row:
    """Return a row as read; raises LedgerDamaged if a column is not of its type."""
    row = Row(*values)
    if type(row.sequence) is not int or not all(type(v) is str for v in (row.kind, row.body, row.hash, row.signature)):
        raise LedgerDamaged(f"{name}: entry {row.sequence}: a column is not text. {UNUSABLE}")
    return row


def after(name: str, found: list[Row], head: str) -> list[Row]:
    """Return the rows after the one with hash ``head``, which must be the first of ``found``."""
    if not found or found[0].hash != head:
        raise LedgerRestored(f"{name}: entries that this process read are not there any more. {UNUSABLE}")
    return found[1:]

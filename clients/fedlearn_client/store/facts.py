"""Small facts by name: the owner's age class, versions seen, secret keys of the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedlearn_client.store.database import Database

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedlearn_client.store.opening import Connection


class Facts:
    """Bytes by name, durable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, name: str) -> bytes | None:
        """Return the value of ``name``, or None."""
        found = self._database.rows("SELECT value FROM facts WHERE name = ?", (name,))
        return bytes(found[0][0]) if found else None

    def set(self, name: str, value: bytes, connection: Connection | None = None) -> None:
        """Set ``name``; inside the transaction of ``connection`` if one is given, else in one of its own."""
        if connection is None:
            with self._database.transaction() as own:
                self.set(name, value, own)
            return
        connection.execute("INSERT OR REPLACE INTO facts (name, value) VALUES (?, ?)", (name, value))

    def get_or_make(self, name: str, make: Callable[[], bytes]) -> bytes:
        """Return the value of ``name``, set to what ``make`` returns if there is none."""
        with self._database.transaction() as connection:
            value = self.get(name)
            if value is None:
                value = make()
                self.set(name, value, connection)
        return value

"""Keys of uploads in the egress log: one for each purpose and recipient, wrapped by the KeyStore.

An upload carries what was learned from the owner's data, before any noise is added. The store's own key is destroyed by
no withdrawal; these are. So an older copy of the disk opens no upload once consent for its pair was taken back. What is
sealed under a key that is gone counts as no longer kept.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from fedlearn.errors import StoreFailed
from fedlearn_client.hooks import ClockAndRng, KeyStore
from fedlearn_client.store.sealing import KEY_BYTES, Sealer

if TYPE_CHECKING:
    from fedlearn_client.egress import Connection
    from fedlearn_client.store.database import Database


class UploadKeys:
    """The table ``egress_keys``. Nothing is kept in memory, so nothing is to be forgotten there."""

    def __init__(self, database: Database, keystore: KeyStore, clock_rng: ClockAndRng) -> None:
        self._database = database
        self._keystore = keystore
        self._clock_rng = clock_rng

    def to_write(self, purpose: str, recipient: str, connection: Connection) -> Sealer:
        """Return the pair's key, made if there is none. One that no longer opens (a restored store) is replaced.

        Raises:
            StoreFailed: the KeyStore fails; nothing may be written.
        """
        found = connection.execute(
            "SELECT key_alias, wrapped_key FROM egress_keys WHERE purpose = ? AND recipient = ?", (purpose, recipient)
        ).fetchone()
        if found is not None:
            try:
                return self._opened(found[0], bytes(found[1]))
            except StoreFailed:
                self._keystore.destroy(found[0])  # what is sealed under it is never opened again, by nobody
        alias, key = f"egress-{self._clock_rng.random_bytes(12).hex()}", self._clock_rng.random_bytes(KEY_BYTES)
        connection.execute(
            "INSERT OR REPLACE INTO egress_keys (purpose, recipient, key_alias, wrapped_key) VALUES (?, ?, ?, ?)",
            (purpose, recipient, alias, self._keystore.wrap(alias, key)),
        )
        return Sealer(key, self._clock_rng.random_bytes)

    def renew(self, purpose: str, recipient: str, connection: Connection) -> list[str]:
        """Have the next upload for this pair sealed under another key, and return the alias of the present one, if any.

        Part of a destruction: whoever calls this destroys the alias in the KeyStore once the transaction is durable.
        """
        pair = (purpose, recipient)
        found = connection.execute(
            "SELECT key_alias FROM egress_keys WHERE purpose = ? AND recipient = ?", pair
        ).fetchall()
        connection.execute("DELETE FROM egress_keys WHERE purpose = ? AND recipient = ?", pair)
        return [alias for (alias,) in found]

    def sealers(self) -> dict[tuple[str, str], Sealer]:
        """Return the keys that there are, by purpose and recipient; to be called inside ``Database.still``."""
        found = {}
        for purpose, recipient, alias, wrapped in self._database.rows(
            "SELECT purpose, recipient, key_alias, wrapped_key FROM egress_keys"
        ):
            with contextlib.suppress(StoreFailed):
                found[purpose, recipient] = self._opened(alias, bytes(wrapped))
        return found

    def _opened(self, alias: str, wrapped: bytes) -> Sealer:
        return Sealer(self._keystore.unwrap(alias, wrapped), self._clock_rng.random_bytes)


def opened(sealer: Sealer | None, body: bytes, *, digest: bytes) -> bytes | None:
    """Return what ``body`` was before it was sealed and bound to ``digest``; None where that key is gone."""
    if sealer is not None:
        with contextlib.suppress(StoreFailed):  # sealed under a key before this one
            return sealer.open(body, digest)
    return None

"""This phone's own parameters of a model: trained here, kept here, sealed under a key of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedlearn_client.hooks import ClockAndRng, KeyStore
from fedlearn_client.store.database import Database
from fedlearn_client.store.sealing import KEY_BYTES, Sealer

if TYPE_CHECKING:
    from fedlearn_client.store.opening import Connection


class PrivateParameters:
    """Private parameters by plan digest; a withdrawal from the plan's purpose and recipient destroys them."""

    def __init__(self, database: Database, keystore: KeyStore, clock_rng: ClockAndRng) -> None:
        self._database = database
        self._keystore = keystore
        self._clock_rng = clock_rng

    def load(self, plan: str) -> bytes:
        """Return the parameters kept for the plan of digest ``plan``; empty where there are none."""
        found = self._database.rows(
            "SELECT key_alias, wrapped_key, body FROM private_parameters WHERE plan = ?", (plan,)
        )
        if not found:
            return b""
        alias, wrapped, body = found[0]
        sealer = Sealer(self._keystore.unwrap(alias, bytes(wrapped)), self._clock_rng.random_bytes)
        return sealer.open(bytes(body), plan.encode())

    def save(self, plan: str, purpose: str, recipient: str, data: bytes, connection: Connection) -> None:
        """Replace the parameters of ``plan``, in the transaction of ``connection``.

        Args:
            plan: digest of the plan.
            purpose: of the plan.
            recipient: of the plan.
            data: what the trainer returned.
            connection: the caller checks there that the grants it trained under still stand.
        """
        found = connection.execute(
            "SELECT key_alias, wrapped_key FROM private_parameters WHERE plan = ?", (plan,)
        ).fetchone()
        if found is None:
            alias = f"private-{self._clock_rng.random_bytes(12).hex()}"
            key = self._clock_rng.random_bytes(KEY_BYTES)
            wrapped = self._keystore.wrap(alias, key)
        else:
            alias, wrapped = found[0], bytes(found[1])
            key = self._keystore.unwrap(alias, wrapped)
        body = Sealer(key, self._clock_rng.random_bytes).seal(data, plan.encode())
        connection.execute(
            "INSERT OR REPLACE INTO private_parameters (plan, purpose, recipient, key_alias, wrapped_key, body)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (plan, purpose, recipient, alias, wrapped, body),
        )

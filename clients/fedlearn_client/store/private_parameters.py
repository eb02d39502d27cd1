"""This phone's own parameters of a model: trained here, kept here, sealed under a key of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fedlearn.policy.document import LONGEST_RETENTION_DAYS
from fedlearn_client.hooks import ClockAndRng, KeyStore
from fedlearn_client.store.database import Database
from fedlearn_client.store.sealing import KEY_BYTES, Sealer

if TYPE_CHECKING:
    from fedlearn_client.store.opening import Connection

_DAY_S: Final = 86_400.0


class PrivateParameters:
    """Private parameters by plan digest.

    They are destroyed by a withdrawal from the plan's purpose and recipient, by any other change of the streams they
    were trained on, and after the shortest retention of those streams.
    """

    def __init__(self, database: Database, keystore: KeyStore, clock_rng: ClockAndRng) -> None:
        self._database = database
        self._keystore = keystore
        self._clock_rng = clock_rng

    def load(self, plan: str, basis: str) -> bytes:
        """Return the parameters kept for the plan of digest ``plan``; empty where there are none that may be used.

        Those that were trained on other streams than ``basis`` names, or have expired, are destroyed.

        Raises:
            StoreFailed: they cannot be read, or not be destroyed; none may be used then.
        """
        found = self._database.rows(
            "SELECT key_alias, wrapped_key, body, basis, expires FROM private_parameters WHERE plan = ?", (plan,)
        )
        if not found:
            return b""
        alias, wrapped, body, kept, expires = found[0]
        if kept != basis or not self._clock_rng.now() < expires:
            self._destroy(alias)
            return b""
        sealer = Sealer(self._keystore.unwrap(alias, bytes(wrapped)), self._clock_rng.random_bytes)
        return sealer.open(bytes(body), plan.encode())

    def save(
        self,
        plan: str,
        purpose: str,
        recipient: str,
        data: bytes,
        connection: Connection,
        *,
        basis: str,
        expires: float,
    ) -> None:
        """Replace the parameters of ``plan``, in the transaction of ``connection``.

        Args:
            plan: digest of the plan.
            purpose: of the plan.
            recipient: of the plan.
            data: what the trainer returned.
            connection: the caller checks there that the grants it trained under still stand.
            basis: digest of the streams that it was trained on (``handover.private_basis_of``); not empty.
            expires: seconds since the Unix epoch; at most 30 days from now count. Parameters that go on from earlier
                ones keep the earlier end: what they learned first is in them still.
        """
        expires = min(expires, self._clock_rng.now() + LONGEST_RETENTION_DAYS * _DAY_S)
        found = connection.execute(
            "SELECT key_alias, wrapped_key, basis, expires FROM private_parameters WHERE plan = ?", (plan,)
        ).fetchone()
        if found is None:
            alias = f"private-{self._clock_rng.random_bytes(12).hex()}"
            key = self._clock_rng.random_bytes(KEY_BYTES)
            wrapped = self._keystore.wrap(alias, key)
        else:
            alias, wrapped = found[0], bytes(found[1])
            key = self._keystore.unwrap(alias, wrapped)
            expires = min(expires, found[3]) if found[2] == basis else expires
        body = Sealer(key, self._clock_rng.random_bytes).seal(data, plan.encode())
        connection.execute(
            "INSERT OR REPLACE INTO private_parameters"
            " (plan, purpose, recipient, key_alias, wrapped_key, body, basis, expires) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (plan, purpose, recipient, alias, wrapped, body, basis, expires),
        )

    def expire(self) -> None:
        """Destroy what has expired.

        Raises:
            StoreFailed: something could not be destroyed; it is not used all the same.
        """
        now = self._clock_rng.now()
        for (alias,) in self._database.rows("SELECT key_alias FROM private_parameters WHERE expires <= ?", (now,)):
            self._destroy(alias)

    def _destroy(self, alias: str) -> None:
        """Destroy the key, then the row. A row that a fault left between the two has a basis that none equals."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE private_parameters SET basis = '', expires = 0, body = x'' WHERE key_alias = ?", (alias,)
            )
        self._keystore.destroy(alias)
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM private_parameters WHERE key_alias = ?", (alias,))

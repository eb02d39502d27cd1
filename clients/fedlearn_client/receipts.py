"""Receipts: statements about what was destroyed, signed by the phone's own key, kept with the store.

A statement is canonical JSON (``fedlearn.policy.canonical``) with these keys:

======================  =========================================================================================
``kind``                withdrawn, purged, owner (no longer known to be an adult) or disputed
``time``                milliseconds since the Unix epoch, by the phone: when the destruction was complete
``app`` ``data_type``   whose data; "" for all
``purpose``             for which use; "" for all
``recipient``           likewise
``text_version``        of the words that the owner had agreed to; 0 where that is no single grant
``rows_destroyed``      rows of signals that existed
``uploads_destroyed``   uploads that were ready and had not left
``keys``                SHA-256 (hex) of the aliases of the keys that were destroyed, sorted
``participations_head``  digest (hex) of the newest entry of the participation history, "" if there is none: the
                        history that no withdrawal erases
======================  =========================================================================================

A receipt proves what this phone stated, to whom trusts its key; not what its flash memory still holds
(docs/consent.md).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedlearn.errors import SignatureRefused
from fedlearn.policy.canonical import canonical_bytes
from fedlearn_client.hooks import ClockAndRng, KeyStore

if TYPE_CHECKING:
    from fedlearn_client.store.database import Database
    from fedlearn_client.store.opening import Connection

CONTEXT: Final = b"fedlearn.receipt.v1\x00"


@dataclass(frozen=True, slots=True)
class Receipt:
    """One signed statement.

    Args:
        statement: canonical JSON.
        signature: Ed25519 over ``CONTEXT`` and the statement, 64 bytes.
        public_key: of the phone, 32 bytes.
    """

    statement: bytes = field(repr=False)
    signature: bytes
    public_key: bytes


class Receipts:
    """Issues and keeps receipts."""

    def __init__(self, database: Database, keystore: KeyStore, clock_rng: ClockAndRng) -> None:
        self._database = database
        self._keystore = keystore
        self._clock_rng = clock_rng

    def issue(self, kind: str, statement: dict[str, Any], connection: Connection) -> Receipt:
        """Sign ``statement`` with its kind and the time, and keep it in the transaction of ``connection``."""
        now = self._clock_rng.now()
        text = canonical_bytes({**statement, "kind": kind, "time": round(now * 1000.0)})
        receipt = Receipt(text, self._keystore.sign(CONTEXT + text), self._keystore.public_key())
        connection.execute(
            "INSERT INTO receipts (time, statement, signature) VALUES (?, ?, ?)", (now, text, receipt.signature)
        )
        return receipt

    def all(self, limit: int | None = None) -> list[Receipt]:
        """Return the newest ``limit`` receipts, or every one, newest first."""
        rows = self._database.rows(
            "SELECT statement, signature FROM receipts ORDER BY id DESC LIMIT ?", (-1 if limit is None else limit,)
        )
        public = self._keystore.public_key() if rows else b""
        return [Receipt(bytes(statement), bytes(signature), public) for statement, signature in rows]


def verify_receipt(receipt: Receipt, public_key: bytes | None = None) -> dict[str, Any]:
    """Return the statement of a receipt.

    Args:
        receipt: as a phone returned it.
        public_key: of the phone that is meant to have signed; None takes the key that the receipt names.

    Raises:
        SignatureRefused: the signature does not hold, or the receipt is of another phone.
    """
    if public_key is not None and public_key != receipt.public_key:
        raise SignatureRefused("receipt: signed by another phone than the one named.")
    try:
        Ed25519PublicKey.from_public_bytes(receipt.public_key).verify(receipt.signature, CONTEXT + receipt.statement)
    except (InvalidSignature, ValueError) as error:
        raise SignatureRefused("receipt: the signature does not fit the statement.") from error
    statement: dict[str, Any] = json.loads(receipt.statement)
    return statement

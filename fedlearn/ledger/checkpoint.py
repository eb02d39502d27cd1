"""A signed statement of how long a ledger was: whoever keeps one can tell later that nothing was cut off."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from fedlearn.errors import LedgerDamaged
from fedlearn.ledger.entries import canonical, is_hex
from fedlearn.ledger.signing import SigningKey, verified

_FORMAT: Final = "fedlearn-ledger-checkpoint"
_MESSAGE: Final = b"fedlearn ledger checkpoint v1\n"


@dataclass(frozen=True, slots=True)
class LedgerCheckpoint:
    """A head of a ledger, signed by its operator.

    Args:
        ledger_id: of the scope.
        length: entries, >= 1.
        hash: of entry ``length - 1``.
        time: when it was made.
        signature: by the operator's key.
    """

    ledger_id: str
    length: int
    hash: str
    time: float
    signature: str

    @classmethod
    def signed(cls, key: SigningKey, ledger_id: str, length: int, head: str, time: float) -> LedgerCheckpoint:
        """Return a checkpoint signed with ``key``."""
        return cls(ledger_id, length, head, time, key.sign(_message(ledger_id, length, head, time)))

    @classmethod
    def from_json(cls, text: str) -> LedgerCheckpoint:
        """Read a checkpoint; its signature is checked by ``is_signed_by``.

        Raises:
            LedgerDamaged: it is none.
        """
        try:
            body = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise LedgerDamaged(f"checkpoint: not JSON ({error}); export it again.") from error
        if not isinstance(body, dict) or (body.pop("format", None), body.pop("version", None)) != (_FORMAT, 1):
            raise LedgerDamaged(f"checkpoint: not a {_FORMAT} of version 1; export it again.")
        kinds = {"ledger_id": str, "length": int, "hash": str, "time": float, "signature": str}
        if set(body) != set(kinds) or any(type(body[name]) is not kind for name, kind in kinds.items()):
            raise LedgerDamaged(f"checkpoint: its fields must be {', '.join(kinds)}; export it again.")
        if body["length"] < 1 or not is_hex(body["hash"], 64):
            raise LedgerDamaged("checkpoint: its length or hash is none; export it again.")
        return cls(**body)

    def to_json(self) -> str:
        """Return the checkpoint as one JSON object."""
        body = {name: getattr(self, name) for name in self.__slots__}
        return canonical({"format": _FORMAT, "version": 1, **body})

    def is_signed_by(self, public: str) -> bool:
        """Return whether the operator with this public key signed it."""
        return verified(public, self.signature, _message(self.ledger_id, self.length, self.hash, self.time))


def _message(ledger_id: str, length: int, head: str, time: float) -> bytes:
    body = {"ledger_id": ledger_id, "length": length, "hash": head, "time": time}
    return _MESSAGE + canonical(body).encode("ascii")

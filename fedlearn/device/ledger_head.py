"""How long the operator's ledger was, as the operator signed it: what a phone reads of ``fedlearn.ledger.checkpoint``.

The ledger's own module needs a database; a phone needs five fields and a signature. ``tests/unit/test_ledger_head.py``
compares the two.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from fedlearn.errors import PolicyInvalid, Refusal, TaskRefused
from fedlearn.policy.canonical import canonical_bytes, parse_strict
from fedlearn.policy.keys import is_key, is_weak

MOST_BYTES: Final = 4096
_FORMAT: Final = "fedlearn-ledger-checkpoint"
_VERSION: Final = 1
_MESSAGE: Final = b"fedlearn ledger checkpoint v1\n"
_ID: Final = re.compile(r"[0-9a-f]{32}")
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_SIGNATURE: Final = re.compile(r"[0-9a-f]{128}")
_LONGEST: Final = 2**53


@dataclass(frozen=True, slots=True)
class LedgerHead:
    """The newest entry of a ledger.

    Args:
        ledger_id: 32 hexadecimal digits, drawn when the ledger was made.
        length: entries, >= 1.
        hash: of the newest entry, 64 hexadecimal digits. It covers all entries before.
        time: when it was signed, seconds since the Unix epoch, as the operator says.
    """

    ledger_id: str
    length: int
    hash: str
    time: float


def open_ledger_head(data: bytes, operator_key: str) -> LedgerHead:
    """Return what a checkpoint says.

    Args:
        data: JSON, as the gateway hands it out.
        operator_key: ``task_key`` of the recipient in the policy, 64 hexadecimal digits.

    Raises:
        TaskRefused: LEDGER: no checkpoint of this version, or not signed by ``operator_key``.
    """
    try:
        body: Any = parse_strict(data, MOST_BYTES, "ledger_checkpoint")
    except PolicyInvalid as error:
        raise TaskRefused(Refusal.LEDGER, str(error)) from error
    kinds = {"format": str, "version": int, "ledger_id": str, "length": int, "hash": str, "time": float}
    kinds["signature"] = str
    if not isinstance(body, dict) or set(body) != set(kinds):
        _refuse("its fields are not those of a checkpoint")
    wrong = next((name for name, kind in kinds.items() if type(body[name]) is not kind), None)
    if wrong is not None or (body["format"], body["version"]) != (_FORMAT, _VERSION):
        _refuse(f"{wrong or 'format or version'} is not a checkpoint's of version {_VERSION}")
    shaped = _ID.fullmatch(body["ledger_id"]) and _HASH.fullmatch(body["hash"]) and 1 <= body["length"] <= _LONGEST
    if not shaped or not math.isfinite(body["time"]):
        _refuse("a field is out of its range")
    head = LedgerHead(body["ledger_id"], body["length"], body["hash"], body["time"])
    if not _is_signed(head, body["signature"], operator_key):
        _refuse("not signed by the recipient's task_key")
    return head


def _is_signed(head: LedgerHead, signature: str, operator_key: str) -> bool:
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415  # optional
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415

    if not is_key(operator_key) or is_weak(operator_key) or not _SIGNATURE.fullmatch(signature):
        return False
    body = {"ledger_id": head.ledger_id, "length": head.length, "hash": head.hash, "time": head.time}
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(operator_key))
    try:
        key.verify(bytes.fromhex(signature), _MESSAGE + canonical_bytes(body))
    except InvalidSignature:
        return False
    return True


def _refuse(what: str) -> NoReturn:
    raise TaskRefused(Refusal.LEDGER, f"ledger_checkpoint: {what}.")

"""What the phone maker gives a phone so that it can enrol: a signed, single-use credential. ::

    {"expires": 1893456000.0, "format": "fedlearn-credential", "population": "city", "serial": "<32 hex>", "version": 1}

It travels as canonical JSON with its signature beside it. One credential makes one device key known: the first that
shows it, so it is handed to its phone as a secret. Whoever issued it can tell which key it became, if they keep a list
of serials: it is not blind, and the report says so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from fedlearn.errors import OutOfRange, PolicyInvalid, SignatureRefused
from fedlearn.policy.canonical import canonical_bytes, parse_strict
from fedlearn.policy.keys import is_key, is_weak

FORMAT: Final = "fedlearn-credential"
VERSION: Final = 1
SIGNING_CONTEXT: Final = b"fedlearn.credential.v1\x00"
SERIAL_BYTES: Final = 16
MOST_BYTES: Final = 2048
MOST_POPULATION: Final = 128
_SIGNATURE: Final = re.compile(r"[0-9a-f]{128}")


class Signer(Protocol):
    """Who signs: ``fedlearn.ledger.signing.SigningKey`` fits."""

    def sign(self, message: bytes) -> str:
        """Return the Ed25519 signature in 128 hexadecimal digits."""
        ...


@dataclass(frozen=True, slots=True)
class Credential:
    """One phone's right to enrol.

    Args:
        population: id in the policy, 1..128 characters.
        serial: 16 bytes, different for each credential.
        expires: seconds since the Unix epoch, finite.

    Raises:
        OutOfRange: names the field.
    """

    population: str
    serial: bytes = field(repr=False)
    expires: float

    def __post_init__(self) -> None:
        if not 1 <= len(self.population) <= MOST_POPULATION:
            raise OutOfRange(f"credential.population: must have 1 to {MOST_POPULATION} characters.")
        if len(self.serial) != SERIAL_BYTES:
            raise OutOfRange(f"credential.serial: must have {SERIAL_BYTES} bytes.")
        if not math.isfinite(self.expires):
            raise OutOfRange("credential.expires: must be a finite number of seconds.")


def issue_credential(credential: Credential, signer: Signer) -> bytes:
    """Return the bytes of a credential: canonical JSON of its content and ``signer``'s signature, 64 bytes in hex."""
    content = _content(credential)
    signature = signer.sign(SIGNING_CONTEXT + canonical_bytes(content))
    return canonical_bytes({"content": content, "signature": signature})


def open_credential(data: bytes, issuers: Sequence[str], now: float) -> Credential:
    """Return a credential whose signature and time are good.

    Args:
        data: as issued.
        issuers: public keys of the phone maker, 64 hexadecimal digits each.
        now: seconds since the Unix epoch.

    Raises:
        SignatureRefused: not a credential, not signed by one of ``issuers``, or expired.
    """
    try:
        body: Any = parse_strict(data, MOST_BYTES, "credential")
        content, signature = body["content"], body["signature"]
        credential = _read(content)
        digits = _SIGNATURE.fullmatch(signature) is not None
        one_encoding = digits and canonical_bytes({"content": _content(credential), "signature": signature}) == data
    except (PolicyInvalid, KeyError, TypeError, ValueError) as error:
        raise SignatureRefused("credential: not a credential of this version.") from error
    if not one_encoding:
        raise SignatureRefused("credential: not in its one encoding.")
    message = SIGNING_CONTEXT + canonical_bytes(content)
    if not any(_verified(issuer, bytes.fromhex(signature), message) for issuer in issuers):
        raise SignatureRefused("credential: not signed by a key of the phone maker that is known here.")
    if now >= credential.expires:
        raise SignatureRefused("credential: has expired; the phone maker issues another one.")
    return credential


def _content(credential: Credential) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "population": credential.population,
        "serial": credential.serial.hex(),
        "expires": float(credential.expires),
    }


def _read(content: Any) -> Credential:
    """Return the fields; what else ``content`` may hold shows when it is written again."""
    if content["format"] != FORMAT or content["version"] != VERSION:
        raise ValueError("format or version")
    population, serial, expires = content["population"], content["serial"], content["expires"]
    if not isinstance(population, str) or not isinstance(serial, str) or not isinstance(expires, float):
        raise TypeError("population, serial or expires")
    return Credential(population, bytes.fromhex(serial), expires)


def _verified(public_key_hex: str, signature: bytes, message: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415  # optional
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415

    if not is_key(public_key_hex) or is_weak(public_key_hex):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key_hex)).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True

"""Signed envelopes: DSSE (secure-systems-lab/dsse) with Ed25519, over ``securesystemslib``, behind a strict door.

The library encodes what is signed and checks signatures. What it leaves open is closed here: one form of base64, no
unknown field, no key id twice, a size cap, keys of small order, and which keys count. A key's id is its public key in
hexadecimal, so that no table of names can be confused.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from fedlearn.errors import MissingDependency, PolicyInvalid, SignatureRefused
from fedlearn.policy.canonical import canonical_bytes, parse_strict
from fedlearn.policy.keys import is_key, is_weak

if TYPE_CHECKING:
    from securesystemslib.dsse import Envelope

POLICY_TYPE: Final = "application/vnd.fedlearn.policy.v1+json"
ROSTER_TYPE: Final = "application/vnd.fedlearn.roster.v1+json"
STATUS_TYPE: Final = "application/vnd.fedlearn.status.v1+json"
BUNDLE_TYPE: Final = "application/vnd.fedlearn.bundle.v1+json"
CATALOGUE_TYPE: Final = "application/vnd.fedlearn.catalogue.v1+json"

MAX_BYTES: Final = 1 << 20
MOST_SIGNATURES: Final = 64
_SIGNATURE_BYTES: Final = 64
_LONGEST_ID: Final = 256
_HEX_SIGNATURE: Final = re.compile(r"[0-9a-f]{128}")


class Signer(Protocol):
    """Holds a private Ed25519 key; ``fedlearn.ledger.signing.SigningKey`` is one."""

    @property
    def public(self) -> str:
        """The public key, 64 hexadecimal digits."""
        ...

    def sign(self, message: bytes) -> str:
        """Return the signature of ``message``, 128 hexadecimal digits."""
        ...


def sign_envelope(payload_type: str, payload: bytes, signers: Sequence[Signer]) -> bytes:
    """Return an envelope signed by each of ``signers``; the same ones make the same bytes.

    Raises:
        SignatureRefused: no signer, one twice, too many, or the envelope would exceed ``MAX_BYTES``.
    """
    if not signers or len({signer.public for signer in signers}) != len(signers):
        raise SignatureRefused("signers: name at least one, and none twice.")
    envelope = _envelope(payload_type, payload, {})
    for signer in signers:
        _sign(envelope, signer)
    return _encoded(envelope)


def add_signature(envelope: bytes, signer: Signer) -> bytes:
    """Return the envelope with one more signature; the present ones are kept as they are, unchecked.

    Raises:
        SignatureRefused: malformed, or already signed by this key.
    """
    opened = _decoded(envelope, "envelope")
    if signer.public in opened.signatures:
        raise SignatureRefused(f"envelope: key {signer.public[:16]}... has signed it already; sign with another one.")
    _sign(opened, signer)
    return _encoded(opened)


def open_envelope(data: bytes, payload_type: str, keys: Collection[str], threshold: int, what: str) -> bytes:
    """Return the payload if at least ``threshold`` different keys of ``keys`` signed it.

    Signatures by other keys do not count and do no harm. One that claims a key of ``keys`` and is not by it is refused,
    however many good ones there are.

    Args:
        data: the envelope.
        payload_type: the only one that is accepted.
        keys: public keys that count, in hexadecimal; one that is listed twice counts once.
        threshold: >= 1.
        what: names the document in messages.

    Raises:
        SignatureRefused: anything else.
    """
    trusted = frozenset(keys)
    if threshold < 1 or threshold > len(trusted):
        raise SignatureRefused(f"{what}: needs {threshold} signatures, and {len(trusted)} keys may sign.")
    for key in trusted:
        if not is_key(key) or is_weak(key):
            raise SignatureRefused(f"{what}: {key[:16]!r}... may sign, but is no sound Ed25519 public key.")
    envelope = _decoded(data, what)
    if envelope.payload_type != payload_type:
        raise SignatureRefused(f"{what}: holds {str(envelope.payload_type)[:60]!r}; expected {payload_type}.")
    signed = {key for key in envelope.signatures if key in trusted and _holds(envelope, key, what)}
    if len(signed) < threshold:
        raise SignatureRefused(
            f"{what}: signed by {len(signed)} of the {len(trusted)} keys that count; {threshold} are needed."
        )
    payload: bytes = envelope.payload
    return payload


def signed_by(data: bytes) -> tuple[str, ...]:
    """Return the key ids that an envelope carries, sorted and UNCHECKED: to be shown, never to be trusted."""
    return tuple(sorted(_decoded(data, "envelope").signatures))


def unverified_payload(data: bytes) -> tuple[str, bytes]:
    """Return (payload type, payload) without looking at signatures: to be shown, never to be trusted."""
    envelope = _decoded(data, "envelope")
    return envelope.payload_type, envelope.payload


def _holds(envelope: Envelope, key: str, what: str) -> bool:
    """Whether the envelope's signature under ``key`` is by that key; a false one is refused."""
    from securesystemslib.exceptions import UnverifiedSignatureError  # noqa: PLC0415  # 3 MB, needed late
    from securesystemslib.signer import SSlibKey  # type: ignore[attr-defined]  # noqa: PLC0415

    try:
        SSlibKey(key, "ed25519", "ed25519", {"public": key}).verify_signature(envelope.signatures[key], envelope.pae())
    except UnverifiedSignatureError as error:
        raise SignatureRefused(f"{what}: the signature under key {key[:16]}... is not by it, or not over this.") from (
            error
        )
    return True


def _sign(envelope: Envelope, signer: Signer) -> None:
    from securesystemslib.signer import Signature  # type: ignore[attr-defined]  # noqa: PLC0415  # 3 MB, needed late

    signature = signer.sign(envelope.pae())
    if not is_key(signer.public) or not _HEX_SIGNATURE.fullmatch(signature):
        raise SignatureRefused("signer: must give a public key of 64 and a signature of 128 hexadecimal digits.")
    envelope.signatures[signer.public] = Signature(signer.public, signature)


def _encoded(envelope: Envelope) -> bytes:
    body = envelope.to_dict()
    body["signatures"] = sorted(body["signatures"], key=lambda signature: str(signature["keyid"]))
    data = canonical_bytes(body)
    _decoded(data, "envelope")  # what would not be read back is not handed out
    return data


def _decoded(data: bytes, what: str) -> Envelope:
    try:
        body = parse_strict(data, MAX_BYTES, what)
    except PolicyInvalid as error:
        raise SignatureRefused(f"{error} An envelope is what `fedlearn policy sign` writes.") from error
    if not isinstance(body, dict) or set(body) != {"payload", "payloadType", "signatures"}:
        raise SignatureRefused(f"{what}: not an envelope: exactly payload, payloadType and signatures.")
    kind, entries = body["payloadType"], body["signatures"]
    if not isinstance(kind, str) or not isinstance(entries, list) or len(entries) > MOST_SIGNATURES:
        raise SignatureRefused(f"{what}: payloadType must be text, signatures a list of {MOST_SIGNATURES} at most.")
    payload = _base64(body["payload"], f"{what}: payload")
    signatures: dict[str, bytes] = {}
    for entry in entries:
        if not isinstance(entry, dict) or set(entry) != {"keyid", "sig"}:
            raise SignatureRefused(f"{what}: a signature has exactly keyid and sig.")
        key = entry["keyid"]
        if not isinstance(key, str) or len(key) > _LONGEST_ID or key in signatures:
            raise SignatureRefused(f"{what}: a keyid is no text, too long, or given twice; keep one signature a key.")
        signatures[key] = _base64(entry["sig"], f"{what}: sig")
        if is_key(key) and len(signatures[key]) != _SIGNATURE_BYTES:
            raise SignatureRefused(f"{what}: an Ed25519 signature has {_SIGNATURE_BYTES} bytes.")
    envelope: Envelope = _envelope(kind, payload, signatures)
    return envelope


def _base64(value: object, what: str) -> bytes:
    """Decode standard base64; any other spelling of the same bytes is refused."""
    if not isinstance(value, str):
        raise SignatureRefused(f"{what}: not base64.")
    try:
        data = base64.b64decode(value.encode("ascii"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise SignatureRefused(f"{what}: not base64.") from error
    if base64.b64encode(data).decode("ascii") != value:
        raise SignatureRefused(f"{what}: not the one way to write it in base64.")
    return data


def _envelope(payload_type: str, payload: bytes, signatures: dict[str, bytes]) -> Any:
    try:
        from securesystemslib.dsse import Envelope  # noqa: PLC0415  # 3 MB, needed late
        from securesystemslib.signer import Signature  # type: ignore[attr-defined]  # noqa: PLC0415
    except ImportError as error:
        raise MissingDependency("Signed documents need securesystemslib: pip install 'fedlearn[policy]'") from error
    return Envelope(payload, payload_type, {key: Signature(key, sig.hex()) for key, sig in signatures.items()})

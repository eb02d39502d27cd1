"""How a phone signs what it asks of a gateway: once for both sides.

The signature covers every field but ``signature`` and ``padding``, under a context of the message's own, so that no
signed message can be taken for another, for a task or for a receipt.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, TypeVar

from fedlearn.policy.keys import is_weak
from fedlearn.proto import gateway_pb2 as pb

CONTEXTS: Final = {
    pb.EnrolRequest.DESCRIPTOR.name: b"fedlearn.enrol.v1\x00",
    pb.CheckInRequest.DESCRIPTOR.name: b"fedlearn.check-in.v1\x00",
}
CLOCK_TOLERANCE_S: Final = 300.0
"""A request whose time is further from the gateway's than this is refused: nonces are kept twice as long."""
NONCE_BYTES: Final = 16
KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64

Signed = TypeVar("Signed", pb.EnrolRequest, pb.CheckInRequest)


class Denial(StrEnum):
    """Why a gateway gives a phone no task, or does not enrol it; the strings are stable, and logged on both sides.

    None of them depends on what is on the phone.
    """

    MALFORMED = "malformed"
    VERSION = "version"  # of the protocol: update the runtime
    SIGNATURE = "bad_signature"
    CLOCK = "clock"  # further than CLOCK_TOLERANCE_S from the gateway's
    REPLAYED = "replayed"  # this nonce was seen before
    RATE = "too_often"
    CREDENTIAL = "credential"  # not one of the phone maker's, expired, or used by another key
    ATTESTATION = "attestation"
    UNKNOWN = "not_enrolled"
    REVOKED = "revoked"
    POPULATION = "population"  # not one that this gateway serves, or not this phone's
    BUNDLE = "bundle"  # another bundle is trained now: fetch and install it
    SEPARATION = "too_soon"
    PARTICIPATIONS = "participations_used_up"
    NO_TASK = "no_task"  # nothing to do now, or enough phones are at work
    BUSY = "busy"  # draining, or its store cannot be written


def signed_bytes(request: Signed) -> bytes:
    """Return what the phone signs: context, then the message without ``signature`` and ``padding``."""
    return CONTEXTS[request.DESCRIPTOR.name] + _without(request, "signature", "padding")


def challenge_bytes(request: Signed) -> bytes:
    """Return what attestation evidence is bound to, before hashing: context, and the message without its evidence.

    The context keeps evidence that was made for one kind of request from fitting the other.
    """
    return CONTEXTS[request.DESCRIPTOR.name] + _without(request, "attestation", "signature", "padding")


def is_signed(request: Signed) -> bool:
    """Return whether the key that the request names signed it.

    A key of small order signs nothing here: anybody could sign for it, and two phones could be one.
    """
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415  # optional
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415

    if len(request.device_key) != KEY_BYTES or len(request.signature) != SIGNATURE_BYTES:
        return False
    if is_weak(request.device_key.hex()):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(request.device_key).verify(request.signature, signed_bytes(request))
    except (InvalidSignature, ValueError):
        return False
    return True


def _without(request: Signed, *fields: str) -> bytes:
    bare = type(request)()
    bare.CopyFrom(request)
    for name in fields:
        bare.ClearField(name)
    return bare.SerializeToString(deterministic=True)

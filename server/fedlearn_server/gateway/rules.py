"""Whom a gateway believes, how much it takes, and how it says no."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from fedlearn.device.padding import SIZE_CLASSES, size_class
from fedlearn.device.requests import Denial
from fedlearn.device.task_codec import Signer
from fedlearn_server.gateway.limits import Buckets

MOST_SIGNED_BYTES: Final = 64 * 1024
"""Of an enrolment or a check-in: room for a chain of certificates as attestation."""
MOST_FETCH_BYTES: Final = SIZE_CLASSES[0]
FETCHED_BYTES: Final = 1024 * 1024
"""Most of an object in one reply."""

Request = TypeVar("Request", bound=Message)


class Denied(Exception):
    """A call that ends with a gRPC status; its details are the denial's word.

    Args:
        denial: why.
        status: of the call.
    """

    def __init__(self, denial: Denial, status: grpc.StatusCode) -> None:
        super().__init__(denial.value)
        self.denial = denial
        self.status = status


class AttestationVerifier(Protocol):
    """The phone maker's hook: judges evidence that a device runs what it should."""

    def verify(self, challenge: bytes, evidence: bytes, device: bytes) -> bool:
        """Return whether ``evidence`` is good for this very request.

        Args:
            challenge: SHA-256 of ``fedlearn.device.requests.challenge_bytes``.
            evidence: as the phone's Attestation hook made it; up to 64 KiB of anything.
            device: the key that signed the request, 32 bytes.
        """
        ...


@dataclass(frozen=True, slots=True)
class Rules:
    """Whom to believe and how much to take.

    Args:
        populations: that are served.
        issuers: keys that sign credentials, in hex.
        signer: the operator's key for tasks.
        device_limit: check-ins and enrolments of one device.
        peer_limit: calls from one address.
        verifier: of attestation; None: none is asked for.
        max_upload_bytes: of a contribution's message.
        max_cache_bytes: of objects in memory.
        retry_after_s: when to come again.
    """

    populations: frozenset[str]
    issuers: tuple[str, ...]
    signer: Signer = field(repr=False)
    device_limit: Buckets
    peer_limit: Buckets
    verifier: AttestationVerifier | None = None
    max_upload_bytes: int = 16 * 2**20
    max_cache_bytes: int = 256 * 2**20
    retry_after_s: int = 900


def parsed(kind: type[Request], data: bytes, most: int) -> Request:
    """Return the message, if its length is one that a phone sends."""
    require(len(data) <= most and size_class(len(data)) == len(data))
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise Denied(Denial.MALFORMED, grpc.StatusCode.INVALID_ARGUMENT) from error


def require(holds: bool) -> None:
    if not holds:
        raise Denied(Denial.MALFORMED, grpc.StatusCode.INVALID_ARGUMENT)


def upload_bytes(contribution_bytes: int) -> int:
    """Length of the request around a contribution that is as long as it may be."""
    return size_class(contribution_bytes + SIZE_CLASSES[0])

"""One phone of a swarm: its key, and the bytes of everything it says."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedlearn import __version__
from fedlearn.device.padding import padded
from fedlearn.device.requests import NONCE_BYTES, signed_bytes
from fedlearn.device.task import DeviceTask
from fedlearn.device.task_codec import open_task
from fedlearn.proto import gateway_pb2 as pb
from fedlearn.rng import os_bytes
from fedlearn.types import I64, Contribution, Level
from fedlearn.wire import encode_contribution

PROTOCOL_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Fleet:
    """What all phones of a swarm know.

    Args:
        population, purpose: ids in the policy.
        bundle_digest: SHA-256 of the bundle that they have.
        task_key: the operator's public key, hexadecimal.
        now: seconds since the Unix epoch.
    """

    population: str
    purpose: str
    bundle_digest: bytes
    task_key: str
    now: Callable[[], float]


@dataclass(frozen=True, slots=True)
class SwarmPhone:
    """One phone.

    Args:
        position: in the swarm.
        credential: as the phone maker issued it.
        fleet: what all know.
        key: its own.
    """

    position: int
    credential: bytes = field(repr=False)
    fleet: Fleet = field(repr=False)
    key: Ed25519PrivateKey = field(repr=False, default_factory=Ed25519PrivateKey.generate)

    @property
    def public(self) -> bytes:
        """Its public key, 32 bytes."""
        return self.key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def enrol(self) -> bytes:
        """Return a request to be made known."""
        request = pb.EnrolRequest(
            version=PROTOCOL_VERSION,
            credential=self.credential,
            device_key=self.public,
            nonce=os_bytes(NONCE_BYTES),
            time_ms=self._time_ms(),
        )
        request.signature = self.key.sign(signed_bytes(request))
        return padded(request)

    def check_in(self, release: int = 0) -> bytes:
        """Return a request for work."""
        fleet = self.fleet
        request = pb.CheckInRequest(
            version=PROTOCOL_VERSION,
            population=fleet.population,
            purpose=fleet.purpose,
            bundle_digest=fleet.bundle_digest,
            runtime=__version__,
            nonce=os_bytes(NONCE_BYTES),
            device_key=self.public,
            time_ms=self._time_ms(),
            release=release,
        )
        request.signature = self.key.sign(signed_bytes(request))
        return padded(request)

    def open(self, reply: pb.CheckInReply) -> DeviceTask | None:
        """Return the task of a reply, its signature checked; None where there is none."""
        if not reply.HasField("task"):
            return None
        return open_task(reply.task.SerializeToString(deterministic=True), self.fleet.task_key)

    def contribution(self, task: DeviceTask, values: I64) -> bytes:
        """Return the envelope of an honest contribution; ``values`` i64[d] are on the task's grid."""
        made = Contribution(
            codec="grid64",
            scale=task.mechanism.grid_step,
            level=Level.PHONE,
            count=1,
            l2_bound=task.mechanism.l2_clip_norm,
            task_digest=task.digest,
            nonce=os_bytes(NONCE_BYTES),
            values=values.astype("<i8"),
        )
        return encode_contribution(made)

    def _time_ms(self) -> int:
        return int(self.fleet.now() * 1000)


def fetch(digest: str, offset: int, max_bytes: int) -> bytes:
    """Return a request for a piece of some weights; it names nobody."""
    return padded(pb.FetchRequest(digest=bytes.fromhex(digest), offset=offset, max_bytes=max_bytes))


def upload(token: bytes, contribution: bytes) -> bytes:
    """Return a request to take a contribution in."""
    return padded(pb.UploadRequest(token=token, contribution=contribution))


def is_weights(data: bytes, digest: str) -> bool:
    """Return whether fetched bytes are those that a task named."""
    return hashlib.sha256(data).hexdigest() == digest

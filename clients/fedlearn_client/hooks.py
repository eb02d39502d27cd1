"""The porting kit: eight hooks that a phone maker implements, each a Protocol.

===================  ==============================================  ====================================
hook                 what the phone must answer                      Linux default
===================  ==============================================  ====================================
``Conditions``       charging, idle, unmetered, battery, thermal     ``linux.conditions`` (sysfs)
``KeyStore``         keys that leave no copy when destroyed          ``linux.keystore`` (files, 0600)
``Attestation``      proof of the runtime for the gateway            ``linux.attestation`` (none)
``CallerIdentity``   who is behind a transport's peer                ``linux.callers`` (uid table)
``ExampleIterator``  occasions to train on, from granted streams     ``examples.StoredExamples``
``Transport``        one request to the gateway                      ``network`` (gRPC, TLS), or none
``ClockAndRng``      time, and randomness that protects              ``linux.clock``
``AuditSink``        the phone maker's own log; no payloads          ``linux.audit`` (JSON lines)
===================  ==============================================  ====================================

``fakes`` has one of each for tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


class Thermal(StrEnum):
    """Thermal status, as Android names it."""

    NONE = "none"
    LIGHT = "light"
    MODERATE = "moderate"
    SEVERE = "severe"


@dataclass(frozen=True, slots=True)
class ConditionsNow:
    """What the phone reports; what it cannot tell counts as not fit for training.

    Args:
        charging: on external power.
        idle: nobody is using it.
        unmetered: the network costs nothing.
        battery: charge, 0..1.
        thermal: thermal status.
    """

    charging: bool
    idle: bool
    unmetered: bool
    battery: float
    thermal: Thermal


class Conditions(Protocol):
    """Reports the phone's state."""

    def now(self) -> ConditionsNow:
        """Return the present state; called each second while training."""
        ...


class KeyStore(Protocol):
    """Keys by alias, best in hardware. What a destroyed alias wrapped is lost for ever, in every copy of the disk."""

    def wrap(self, alias: str, secret: bytes) -> bytes:
        """Return ``secret`` encrypted and authenticated under the key ``alias``, made if there is none. Durable."""
        ...

    def unwrap(self, alias: str, wrapped: bytes) -> bytes:
        """Undo ``wrap``; raise StoreFailed if the key is gone or the bytes are not its own."""
        ...

    def destroy(self, alias: str) -> None:
        """Destroy the key, durably; nothing happens if there is none."""
        ...

    def sign(self, message: bytes) -> bytes:
        """Return the Ed25519 signature of this phone over ``message``, 64 bytes."""
        ...

    def public_key(self) -> bytes:
        """Return this phone's Ed25519 public key, 32 bytes; the same for the life of the KeyStore."""
        ...

    def read_anchor(self) -> bytes | None:
        """Return what ``write_anchor`` stored last, or None: at most 16 KiB that outlive a wiped or restored store."""
        ...

    def write_anchor(self, data: bytes) -> None:
        """Replace the anchor, durably and as a whole.

        It must never come back as it was: a KeyStore that is set back, or copied, together with the store lets a phone
        take part too often, and nothing above it can notice. The Linux default cannot promise that.
        """
        ...


class Attestation(Protocol):
    """Proves to the gateway what runtime this is."""

    def evidence(self, challenge: bytes) -> bytes:
        """Return evidence bound to ``challenge`` (a digest of the request); empty where there is none."""
        ...


class Role(StrEnum):
    """What a caller may do. A caller has exactly one."""

    APP = "app"  # Signals and Recommend
    SETTINGS = "settings"  # Consent and Audit
    SURFACE = "surface"  # Recommend, with the explanation
    SYSTEM = "system"  # Runtime


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is calling: an app id and its role."""

    app: str
    role: Role


class CallerIdentity(Protocol):
    """Says who is behind a transport's peer."""

    def caller(self, peer: str) -> Caller:
        """Return the caller behind ``peer`` (on Linux a backend socket path with the uid); raise CallerRefused."""
        ...


@dataclass(frozen=True, slots=True)
class EarlierChoice:
    """An item that the owner chose before: catalogue key and reporting app."""

    item: str
    app: str


@dataclass(frozen=True, slots=True)
class Occasion:
    """What is known on one occasion, oldest first: one training example, or, without ``chosen``, a present wish.

    Args:
        said: bodies of the owner's messages (``fedlearn.features.said``).
        earlier: what the owner chose before.
        chosen: catalogue key of the chosen item, "" when ranking.
    """

    said: tuple[bytes, ...] = field(repr=False)
    earlier: tuple[EarlierChoice, ...] = field(repr=False)
    chosen: str = field(repr=False)


class ExampleIterator(Protocol):
    """Makes occasions from what is stored, for exactly one purpose and one recipient."""

    def occasions(self, purpose: str, recipient: str, limit: int) -> Iterator[Occasion]:
        """Yield the newest ``limit`` training examples, oldest first, from streams granted for just this."""
        ...

    def present(self, purpose: str, recipient: str) -> Occasion:
        """Return what is known now, from streams granted for just this; empty where none is."""
        ...

    def sources(self, purpose: str, recipient: str) -> frozenset[str]:
        """Return the granted sources by their names in ``fedlearn.features``; ``catalogue`` always."""
        ...


class Method(StrEnum):
    """Methods of the gateway protocol (``gateway.proto``)."""

    ENROL = "Enrol"
    CHECK_IN = "CheckIn"
    FETCH = "Fetch"
    UPLOAD = "Upload"


class Transport(Protocol):
    """Carries one request to the gateway: the only way bytes leave the phone."""

    def call(self, method: Method, request: bytes) -> bytes:
        """Return the reply's bytes; raise TransportFailed where none arrives, with ``denial`` where that is told."""
        ...

    def hang_up(self) -> None:
        """Close what is open, and end the call under way, if any; must not raise.

        Called from any thread, before a training, at the end of a round and at the daemon's: no connection is kept
        while nothing is asked. The next ``call`` begins anew.
        """
        ...


class ClockAndRng(Protocol):
    """Time, and randomness that protects."""

    def now(self) -> float:
        """Return seconds since the Unix epoch, as the phone believes."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never go back while the phone is on."""
        ...

    def random_bytes(self, count: int) -> bytes:
        """Return ``count`` bytes from the operating system's generator."""
        ...


class AuditSink(Protocol):
    """The phone maker's own log. It gets kinds, sizes and codes; never a payload."""

    def record(self, kind: str, fields: dict[str, str | int | float | bool]) -> None:
        """Take in one event; must not raise."""
        ...

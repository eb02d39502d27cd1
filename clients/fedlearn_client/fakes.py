"""One fake of each hook, for tests of the runtime and for porters who replace the hooks one at a time.

Each behaves as ``hooks`` asks (``tests/conformance/hook_conformance.py`` is run on them) and can be set by hand. None
touches the disk, the network or the machine's clock. The fake ``Transport`` is ``FakeGateway`` (in ``fake_gateway``).
"""

from __future__ import annotations

import copy
import hashlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedlearn.errors import CallerRefused, StoreFailed
from fedlearn_client.fake_gateway import FakeGateway, Fault
from fedlearn_client.hooks import Caller, ConditionsNow, Occasion, Thermal

__all__ = [
    "FIT",
    "AuditEvent",
    "FakeAttestation",
    "FakeAuditSink",
    "FakeCallers",
    "FakeClock",
    "FakeConditions",
    "FakeExamples",
    "FakeGateway",
    "FakeKeyStore",
    "Fault",
    "KeyStoreImage",
]

FIT: Final = ConditionsNow(charging=True, idle=True, unmetered=True, battery=1.0, thermal=Thermal.NONE)
"""A phone that may train."""

NOTHING_KNOWN: Final = Occasion((), (), "")
MAX_ANCHOR_BYTES: Final = 16 * 1024
_NONCE_BYTES: Final = 12


class FakeClock:
    """A ``ClockAndRng`` whose time stands still until it is moved. Its randomness is real: there is no seed to leak.

    Args:
        now: seconds since the Unix epoch; may be set to anything, as an owner may set the clock.
        monotonic: seconds since the phone was switched on.
    """

    def __init__(self, now: float = 1_700_000_000.0, monotonic: float = 1_000.0) -> None:
        self.time = now
        self.uptime = monotonic

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.uptime

    def random_bytes(self, count: int) -> bytes:
        return os.urandom(count)

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` >= 0 pass, on both clocks."""
        self.time += seconds
        self.uptime += seconds


@dataclass(frozen=True, slots=True)
class KeyStoreImage:
    """Everything a ``FakeKeyStore`` holds at one moment: what a thief of the key chip would have."""

    keys: Mapping[str, bytes] = field(repr=False)
    device: bytes = field(repr=False)
    anchor: bytes | None = field(repr=False)


class FakeKeyStore:
    """A ``KeyStore`` in memory: AES-256-GCM under a random key an alias."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys: dict[str, bytes] = {}
        self._device = os.urandom(32)
        self._anchor: bytes | None = None

    def wrap(self, alias: str, secret: bytes) -> bytes:
        with self._lock:
            key = self._keys.setdefault(alias, os.urandom(32))
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + AESGCM(key).encrypt(nonce, secret, alias.encode())

    def unwrap(self, alias: str, wrapped: bytes) -> bytes:
        with self._lock:
            key = self._keys.get(alias)
        if key is None:
            raise StoreFailed("The KeyStore has no key of this alias: what it wrapped is lost.")
        try:
            return AESGCM(key).decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], alias.encode())
        except (InvalidTag, ValueError) as error:
            raise StoreFailed("The KeyStore did not wrap these bytes under this alias.") from error

    def destroy(self, alias: str) -> None:
        with self._lock:
            self._keys.pop(alias, None)

    def sign(self, message: bytes) -> bytes:
        return Ed25519PrivateKey.from_private_bytes(self._device).sign(message)

    def public_key(self) -> bytes:
        return Ed25519PrivateKey.from_private_bytes(self._device).public_key().public_bytes_raw()

    def read_anchor(self) -> bytes | None:
        with self._lock:
            return self._anchor

    def write_anchor(self, data: bytes) -> None:
        if len(data) > MAX_ANCHOR_BYTES:
            raise StoreFailed(f"An anchor of {len(data)} bytes: the KeyStore holds at most {MAX_ANCHOR_BYTES}.")
        with self._lock:
            self._anchor = bytes(data)

    def aliases(self) -> frozenset[str]:
        """Return the aliases that have a key."""
        with self._lock:
            return frozenset(self._keys)

    def snapshot(self) -> KeyStoreImage:
        """Return a copy of everything it holds."""
        with self._lock:
            return KeyStoreImage(dict(self._keys), self._device, self._anchor)

    def restore(self, image: KeyStoreImage) -> None:
        """Go back to ``image``, destroyed keys and the anchor included. A real KeyStore must make this impossible."""
        with self._lock:
            self._keys, self._device, self._anchor = dict(image.keys), image.device, image.anchor


class FakeConditions:
    """``Conditions`` that are what ``state`` says."""

    def __init__(self, state: ConditionsNow = FIT) -> None:
        self.state = state

    def now(self) -> ConditionsNow:
        return self.state


class FakeAttestation:
    """An ``Attestation`` whose evidence is a keyed hash of the challenge; only this object can check it."""

    def __init__(self) -> None:
        self._key = os.urandom(32)

    def evidence(self, challenge: bytes) -> bytes:
        return hashlib.blake2b(challenge, key=self._key).digest()

    def verify(self, challenge: bytes, evidence: bytes) -> bool:
        """Return whether ``evidence`` is this object's for ``challenge``."""
        return evidence == self.evidence(challenge)


class FakeCallers:
    """A ``CallerIdentity`` from a table, peer -> caller."""

    def __init__(self, callers: Mapping[str, Caller]) -> None:
        self.callers = dict(callers)

    def caller(self, peer: str) -> Caller:
        found = self.callers.get(peer)
        if found is None:
            raise CallerRefused("The caller is not registered: add it to the table of callers.")
        return found


class FakeExamples:
    """An ``ExampleIterator`` over given occasions, for one pair of purpose and recipient; nothing for any other.

    Args:
        purpose: the granted purpose.
        recipient: the granted recipient.
        examples: with ``chosen``, oldest first.
        wish: the present occasion.
        granted: names of the granted sources beside ``catalogue``.
    """

    def __init__(
        self,
        purpose: str,
        recipient: str,
        examples: Sequence[Occasion] = (),
        wish: Occasion = NOTHING_KNOWN,
        granted: frozenset[str] = frozenset({"chat", "choices"}),
    ) -> None:
        self.pair = (purpose, recipient)
        self.examples = list(examples)
        self.wish = wish
        self.granted = granted

    def occasions(self, purpose: str, recipient: str, limit: int) -> Iterator[Occasion]:
        if (purpose, recipient) == self.pair and limit > 0:
            yield from copy.copy(self.examples[-limit:])

    def present(self, purpose: str, recipient: str) -> Occasion:
        return self.wish if (purpose, recipient) == self.pair else NOTHING_KNOWN

    def sources(self, purpose: str, recipient: str) -> frozenset[str]:
        return frozenset({"catalogue"}) | (self.granted if (purpose, recipient) == self.pair else frozenset())


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One event as an ``AuditSink`` got it."""

    kind: str
    fields: Mapping[str, str | int | float | bool]


class FakeAuditSink:
    """An ``AuditSink`` that keeps every event in ``events``."""

    def __init__(self) -> None:
        self.events: list[AuditEvent] = []

    def record(self, kind: str, fields: dict[str, str | int | float | bool]) -> None:
        self.events.append(AuditEvent(kind, dict(fields)))

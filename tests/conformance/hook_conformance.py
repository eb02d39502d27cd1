"""What every implementation of a hook must do, one class a hook.

A porter subclasses a class, says how to make the hook, and runs it with pytest. No numpy and no store is needed::

    class TestMyKeyStore(KeyStoreConformance):
        def make(self, tmp_path):
            return MyKeyStore(tmp_path)

        def reopened(self, keystore, tmp_path):
            return MyKeyStore(tmp_path)     # as after a restart of the phone
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedlearn.errors import CallerRefused, StoreFailed, TransportFailed
from fedlearn_client.hooks import (
    Attestation,
    AuditSink,
    Caller,
    CallerIdentity,
    ClockAndRng,
    Conditions,
    ConditionsNow,
    ExampleIterator,
    KeyStore,
    Method,
    Role,
    Thermal,
    Transport,
)

SECRET = bytes(range(32))


class KeyStoreConformance:
    """``make`` and ``reopened`` are the porter's."""

    def make(self, tmp_path: Path) -> KeyStore:
        """Return an empty KeyStore."""
        raise NotImplementedError

    def reopened(self, keystore: KeyStore, tmp_path: Path) -> KeyStore:
        """Return the same KeyStore as after a restart."""
        raise NotImplementedError

    @pytest.fixture
    def keystore(self, tmp_path: Path) -> KeyStore:
        return self.make(tmp_path)

    def test_what_was_wrapped_comes_back(self, keystore: KeyStore, tmp_path: Path) -> None:
        for secret in (SECRET, b"", b"\x00", bytes(4096)):
            wrapped = keystore.wrap("stream-1", secret)
            assert keystore.unwrap("stream-1", wrapped) == secret
            assert self.reopened(keystore, tmp_path).unwrap("stream-1", wrapped) == secret

    def test_wrapping_hides_the_secret_and_its_repetition(self, keystore: KeyStore) -> None:
        first, second = keystore.wrap("a", SECRET), keystore.wrap("a", SECRET)
        assert first != second
        assert SECRET[:8] not in first

    def test_an_alias_opens_its_own_only(self, keystore: KeyStore) -> None:
        wrapped = keystore.wrap("a", SECRET)
        keystore.wrap("b", SECRET)
        for alias in ("b", "never-seen"):
            with pytest.raises(StoreFailed):
                keystore.unwrap(alias, wrapped)

    def test_changed_bytes_are_refused(self, keystore: KeyStore) -> None:
        wrapped = keystore.wrap("a", SECRET)
        changed = [bytes([*wrapped[:i], wrapped[i] ^ 1, *wrapped[i + 1 :]]) for i in range(len(wrapped))]
        for data in (*changed, b"", wrapped[:-1], wrapped + b"\x00", bytes(100)):
            with pytest.raises(StoreFailed):
                keystore.unwrap("a", data)

    def test_what_is_destroyed_stays_lost(self, keystore: KeyStore, tmp_path: Path) -> None:
        wrapped, other = keystore.wrap("a", SECRET), keystore.wrap("b", SECRET)
        keystore.destroy("a")
        keystore.destroy("a")
        keystore.destroy("never-seen")
        keystore.wrap("a", SECRET)  # a new key of the old name
        for one in (keystore, self.reopened(keystore, tmp_path)):
            with pytest.raises(StoreFailed):
                one.unwrap("a", wrapped)
            assert one.unwrap("b", other) == SECRET

    def test_the_phone_signs(self, keystore: KeyStore, tmp_path: Path) -> None:
        public = keystore.public_key()
        assert len(public) == 32
        for one in (keystore, self.reopened(keystore, tmp_path)):
            signature = one.sign(b"a receipt")
            assert len(signature) == 64
            assert one.public_key() == public
            Ed25519PublicKey.from_public_bytes(public).verify(signature, b"a receipt")

    def test_the_anchor(self, keystore: KeyStore, tmp_path: Path) -> None:
        assert keystore.read_anchor() is None
        for data in (b"first", b"", bytes(16 * 1024), b"last"):
            keystore.write_anchor(data)
            assert keystore.read_anchor() == data
            assert self.reopened(keystore, tmp_path).read_anchor() == data

    def test_destroying_keys_leaves_anchor_and_signing_key(self, keystore: KeyStore) -> None:
        keystore.write_anchor(b"history")
        public = keystore.public_key()
        keystore.wrap("a", SECRET)
        keystore.destroy("a")
        assert (keystore.read_anchor(), keystore.public_key()) == (b"history", public)

    def test_threads_get_one_key(self, keystore: KeyStore) -> None:
        with ThreadPoolExecutor(8) as pool:
            wrapped = list(pool.map(lambda _: keystore.wrap("shared", SECRET), range(16)))
        assert all(keystore.unwrap("shared", data) == SECRET for data in wrapped)


class ConditionsConformance:
    """``make`` is the porter's."""

    def make(self, tmp_path: Path) -> Conditions:
        """Return the hook."""
        raise NotImplementedError

    def test_what_is_reported_is_in_range(self, tmp_path: Path) -> None:
        conditions = self.make(tmp_path)
        for _ in range(3):
            now = conditions.now()
            assert isinstance(now, ConditionsNow)
            assert all(isinstance(value, bool) for value in (now.charging, now.idle, now.unmetered))
            assert 0.0 <= now.battery <= 1.0
            assert isinstance(now.thermal, Thermal)


class AttestationConformance:
    """``make`` is the porter's."""

    def make(self) -> Attestation:
        """Return the hook."""
        raise NotImplementedError

    def test_evidence_is_bound_to_the_challenge(self) -> None:
        attestation = self.make()
        first, second = attestation.evidence(bytes(32)), attestation.evidence(b"\x01" * 32)
        assert isinstance(first, bytes)
        assert not first or first != second
        assert len(first) <= 16 * 1024


class CallerIdentityConformance:
    """``make`` and ``known`` are the porter's."""

    def make(self, tmp_path: Path) -> CallerIdentity:
        """Return the hook."""
        raise NotImplementedError

    def known(self, tmp_path: Path) -> dict[str, Caller]:
        """Return peers that must be known, and as whom."""
        raise NotImplementedError

    def unknown(self, tmp_path: Path) -> list[str]:
        """Return further peers that must be refused."""
        return []

    def test_known_peers(self, tmp_path: Path) -> None:
        callers = self.make(tmp_path)
        known = self.known(tmp_path)
        assert known
        for peer, caller in known.items():
            assert callers.caller(peer) == caller
            assert isinstance(callers.caller(peer).role, Role)

    def test_everybody_else_is_refused(self, tmp_path: Path) -> None:
        callers = self.make(tmp_path)
        peers = ["", "unix:", "ipv4:127.0.0.1:1", "ipv6:[::1]:1", "x" * 10_000, "\x00", *self.unknown(tmp_path)]
        for peer in (*peers, *(f"{peer}0" for peer in self.known(tmp_path))):
            with pytest.raises(CallerRefused):
                callers.caller(peer)


class ExampleIteratorConformance:
    """``make`` is the porter's: an iterator with at least three examples granted for ``pair``, and for no other."""

    pair = ("train", "lab")

    def make(self, tmp_path: Path) -> ExampleIterator:
        """Return the hook."""
        raise NotImplementedError

    def test_the_newest_examples_oldest_first(self, tmp_path: Path) -> None:
        examples = self.make(tmp_path)
        every = list(examples.occasions(*self.pair, 1000))
        assert len(every) >= 3
        assert all(one.chosen for one in every)
        for limit in (1, 2, len(every)):
            assert list(examples.occasions(*self.pair, limit)) == every[-limit:]
        assert list(examples.occasions(*self.pair, 0)) == []

    def test_the_same_twice(self, tmp_path: Path) -> None:
        examples = self.make(tmp_path)
        assert list(examples.occasions(*self.pair, 3)) == list(examples.occasions(*self.pair, 3))

    def test_nothing_of_the_choice_is_in_its_own_occasion(self, tmp_path: Path) -> None:
        every = list(self.make(tmp_path).occasions(*self.pair, 1000))
        assert all(len(one.earlier) <= len(two.earlier) for one, two in pairwise(every))

    def test_the_present_has_no_choice(self, tmp_path: Path) -> None:
        assert self.make(tmp_path).present(*self.pair).chosen == ""

    def test_another_purpose_or_recipient_gets_nothing(self, tmp_path: Path) -> None:
        examples = self.make(tmp_path)
        purpose, recipient = self.pair
        for pair in (("other", recipient), (purpose, "other"), (recipient, purpose), ("", "")):
            assert list(examples.occasions(*pair, 10)) == []
            present = examples.present(*pair)
            assert (present.said, present.earlier, present.chosen) == ((), (), "")
            assert examples.sources(*pair) == frozenset({"catalogue"})

    def test_sources(self, tmp_path: Path) -> None:
        assert self.make(tmp_path).sources(*self.pair) > {"catalogue"}


class TransportConformance:
    """``alive`` and ``dead`` are the porter's; one that has no gateway has only ``dead``."""

    def alive(self) -> Transport | None:
        """Return a transport to a gateway that answers CheckIn with any reply, or None."""
        return None

    def dead(self) -> Transport:
        """Return a transport whose gateway cannot be reached."""
        raise NotImplementedError

    @pytest.mark.parametrize("method", list(Method))
    def test_no_reply_is_a_transport_failure(self, method: Method) -> None:
        with pytest.raises(TransportFailed):
            self.dead().call(method, b"")

    def test_hanging_up_is_always_possible(self) -> None:
        for transport in (self.dead(), self.alive()):
            if transport is not None:
                transport.hang_up()
                transport.hang_up()

    def test_a_call_after_hanging_up_begins_anew(self) -> None:
        transport = self.alive()
        if transport is None:
            pytest.skip("this transport has no gateway")
        first = transport.call(Method.CHECK_IN, b"")
        transport.hang_up()
        assert isinstance(transport.call(Method.CHECK_IN, b""), type(first))

    @pytest.mark.parametrize("size", [0, 256, 2**21])
    def test_bytes_go_there_and_back(self, size: int) -> None:
        transport = self.alive()
        if transport is None:
            pytest.skip("this transport has no gateway")
        try:
            reply = transport.call(Method.CHECK_IN, bytes(size))
        except TransportFailed:
            assert size  # zeros are no message: a gateway may say so, and that is an answer too
        else:
            assert isinstance(reply, bytes)


class ClockAndRngConformance:
    """``make`` is the porter's."""

    def make(self) -> ClockAndRng:
        """Return the hook."""
        raise NotImplementedError

    def test_time(self) -> None:
        clock = self.make()
        assert math.isfinite(clock.now())
        assert clock.now() > 1_577_836_800.0  # 2020
        seen = [clock.monotonic() for _ in range(1000)]
        assert all(first <= second for first, second in pairwise(seen))

    def test_randomness(self) -> None:
        clock = self.make()
        assert clock.random_bytes(0) == b""
        drawn = [clock.random_bytes(16) for _ in range(1000)]
        assert all(len(one) == 16 for one in drawn)
        assert len(set(drawn)) == 1000
        # 128,000 bits: the share of ones is within 6 standard deviations of a half
        ones = sum(byte.bit_count() for one in drawn for byte in one)
        assert abs(ones - 64_000) < 6 * math.sqrt(128_000) / 2
        assert self.make().random_bytes(16) != self.make().random_bytes(16)


class AuditSinkConformance:
    """``make`` is the porter's."""

    def make(self, tmp_path: Path) -> AuditSink:
        """Return the hook."""
        raise NotImplementedError

    def test_nothing_makes_it_raise(self, tmp_path: Path) -> None:
        sink = self.make(tmp_path)
        sink.record("round", {"outcome": "acknowledged", "size": 2**70, "share": float("nan"), "fresh": True})
        sink.record("", {})
        sink.record("long " * 10_000, {"long": "x" * 100_000, "odd": "\x00\ud800\n"})
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: sink.record("call", {"number": number}), range(64)))

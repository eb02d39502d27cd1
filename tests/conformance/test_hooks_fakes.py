"""The fakes do what the hooks ask."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from fedlearn.errors import StoreFailed
from fedlearn_client.fakes import (
    FakeAttestation,
    FakeAuditSink,
    FakeCallers,
    FakeClock,
    FakeConditions,
    FakeExamples,
    FakeGateway,
    FakeKeyStore,
    Fault,
)
from fedlearn_client.hooks import Caller, EarlierChoice, KeyStore, Method, Occasion, Role


def _load(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hooks = _load("hook_conformance", Path(__file__).with_name("hook_conformance.py"))
town = _load("device_town", Path(__file__).parents[1] / "unit" / "device_town.py")


class TestFakeKeyStore(hooks.KeyStoreConformance):
    def make(self, tmp_path: Path) -> FakeKeyStore:
        return FakeKeyStore()

    def reopened(self, keystore: KeyStore, tmp_path: Path) -> KeyStore:
        return keystore

    def test_an_image_brings_back_what_was_destroyed(self) -> None:
        keystore = FakeKeyStore()
        wrapped = keystore.wrap("a", b"secret")
        keystore.write_anchor(b"old")
        image = keystore.snapshot()
        keystore.destroy("a")
        keystore.write_anchor(b"new")
        thief = FakeKeyStore()
        thief.restore(image)
        assert thief.unwrap("a", wrapped) == b"secret"
        assert (thief.read_anchor(), keystore.read_anchor()) == (b"old", b"new")
        assert thief.public_key() == keystore.public_key()
        with pytest.raises(StoreFailed):
            keystore.unwrap("a", wrapped)
        assert "secret" not in repr(image)

    def test_an_anchor_that_is_too_long(self) -> None:
        with pytest.raises(StoreFailed, match="16384"):
            FakeKeyStore().write_anchor(bytes(16 * 1024 + 1))


class TestFakeConditions(hooks.ConditionsConformance):
    def make(self, tmp_path: Path) -> FakeConditions:
        return FakeConditions()


class TestFakeAttestation(hooks.AttestationConformance):
    def make(self) -> FakeAttestation:
        return FakeAttestation()

    def test_it_is_checked(self) -> None:
        attestation = FakeAttestation()
        evidence = attestation.evidence(b"challenge")
        assert attestation.verify(b"challenge", evidence)
        assert not attestation.verify(b"another", evidence)
        assert not FakeAttestation().verify(b"challenge", evidence)


class TestFakeCallers(hooks.CallerIdentityConformance):
    def known(self, tmp_path: Path) -> dict[str, Caller]:
        return {"unix:chat": Caller("org.city.chat", Role.APP), "unix:settings": Caller("settings", Role.SETTINGS)}

    def make(self, tmp_path: Path) -> FakeCallers:
        return FakeCallers(self.known(tmp_path))


class TestFakeExamples(hooks.ExampleIteratorConformance):
    def make(self, tmp_path: Path) -> FakeExamples:
        earlier = tuple(EarlierChoice(f"book:{i}", "org.city.reading") for i in range(3))
        examples = [Occasion((b"said",), earlier[:i], f"restaurant:{i}") for i in range(4)]
        return FakeExamples("train", "lab", examples, Occasion((b"said",), earlier, ""))


class TestFakeGatewayAsTransport(hooks.TransportConformance):
    def alive(self) -> FakeGateway:
        return FakeGateway(town.small_plan(), town.weights(), town.operator_key(), clock_rng=FakeClock(town.NOW))

    def dead(self) -> FakeGateway:
        gateway = self.alive()
        for method in Method:
            gateway.fail_next(method, Fault.UNREACHABLE)
        return gateway


class TestFakeClock(hooks.ClockAndRngConformance):
    def make(self) -> FakeClock:
        return FakeClock()

    def test_it_is_moved_by_hand(self) -> None:
        clock = FakeClock()
        now, uptime = clock.now(), clock.monotonic()
        clock.advance(5.0)
        assert (clock.now(), clock.monotonic()) == (now + 5.0, uptime + 5.0)
        clock.time -= 3600.0
        assert (clock.now(), clock.monotonic()) == (now + 5.0 - 3600.0, uptime + 5.0)


class TestFakeAuditSink(hooks.AuditSinkConformance):
    def make(self, tmp_path: Path) -> FakeAuditSink:
        return FakeAuditSink()

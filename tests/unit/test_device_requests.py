"""What a phone signs: every field that means something, under one context, with a key that is somebody's."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedlearn.device.requests import CONTEXTS, Denial, Signed, challenge_bytes, is_signed, signed_bytes
from fedlearn.device.task import SIGNING_CONTEXT
from fedlearn.proto import gateway_pb2 as pb

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
WEAK = ["00" * 32, "01" + "00" * 31, "ec" + "ff" * 30 + "7f", "00" * 31 + "80", "ee" + "ff" * 31]


def enrolment() -> pb.EnrolRequest:
    return pb.EnrolRequest(version=1, credential=b"{}", attestation=b"it is me", nonce=bytes(16), time_ms=1)


def check_in() -> pb.CheckInRequest:
    return pb.CheckInRequest(
        version=1,
        population="city",
        purpose="train",
        bundle_digest=bytes(32),
        runtime="1.0",
        status_version=3,
        attestation=b"it is me",
        nonce=bytes(16),
        time_ms=1,
        release=2,
    )


def sign(request: Signed) -> Signed:
    request.device_key = KEY.public_key().public_bytes_raw()
    request.signature = KEY.sign(signed_bytes(request))
    return request


@pytest.mark.parametrize("make", [enrolment, check_in], ids=["enrol", "check-in"])
class TestBoth:
    def test_signed(self, make) -> None:
        request = sign(make())
        assert is_signed(request)
        assert is_signed(type(request).FromString(request.SerializeToString()))

    def test_every_field_but_padding_is_covered(self, make) -> None:
        for field in make().DESCRIPTOR.fields:
            request = sign(make())
            if field.name == "padding":
                request.padding = bytes(100)
                assert is_signed(request)
                continue
            old = getattr(request, field.name)
            setattr(request, field.name, old + ("x" if isinstance(old, str) else b"x" if isinstance(old, bytes) else 1))
            assert not is_signed(request), field.name

    def test_a_field_of_a_later_version_is_covered(self, make) -> None:
        added = b"\xfa\x01\x01x"  # field 31, one byte
        whole = make().SerializeToString() + added
        request = sign(make().FromString(whole))
        assert is_signed(request)
        stripped = make().FromString(request.SerializeToString())
        stripped.DiscardUnknownFields()
        assert not is_signed(stripped)

    def test_a_weak_key_signs_nothing(self, make) -> None:
        for key in WEAK:
            request = make()
            request.device_key = bytes.fromhex(key)
            for signature in (bytes(64), b"\x01" + bytes(63), bytes.fromhex(key) + bytes(32)):
                request.signature = signature
                assert not is_signed(request), (key, signature.hex())

    @pytest.mark.parametrize("size", [0, 31, 33])
    def test_a_key_of_another_size_signs_nothing(self, make, size: int) -> None:
        request = sign(make())
        request.device_key = bytes(range(1, size + 1))
        assert not is_signed(request)

    @pytest.mark.parametrize("signature", [b"", bytes(63), bytes(64), bytes(65)], ids=len)
    def test_no_signature(self, make, signature: bytes) -> None:
        request = sign(make())
        request.signature = signature
        assert not is_signed(request)

    def test_evidence_is_bound_to_all_but_itself(self, make) -> None:
        request = sign(make())
        bound = challenge_bytes(request)
        request.attestation, request.signature, request.padding = b"other", b"other", b"other"
        assert challenge_bytes(request) == bound
        request.nonce = bytes(15) + b"\x01"
        assert challenge_bytes(request) != bound


def test_no_context_begins_another() -> None:
    every = [*CONTEXTS.values(), SIGNING_CONTEXT, b"fedlearn.credential.v1\x00"]
    assert not [(a, b) for a in every for b in every if a is not b and a.startswith(b)]
    assert {bytes(challenge_bytes(enrolment()))[:18], bytes(challenge_bytes(check_in()))[:18]} == {
        context[:18] for context in CONTEXTS.values()
    }


def test_signing_leaves_the_request_as_it_was() -> None:
    request = sign(check_in())
    before = request.SerializeToString()
    signed_bytes(request)
    challenge_bytes(request)
    assert request.SerializeToString() == before


def test_denials_are_frozen() -> None:
    """Phones compare them: a renamed one is another one."""
    assert [denial.value for denial in Denial] == [
        "malformed",
        "version",
        "bad_signature",
        "clock",
        "replayed",
        "too_often",
        "credential",
        "attestation",
        "not_enrolled",
        "revoked",
        "population",
        "bundle",
        "too_soon",
        "participations_used_up",
        "no_task",
        "busy",
    ]

"""What a phone hears from a gateway: every refusal and its reason, in order; and a gateway that nothing can break."""

from __future__ import annotations

import base64
import json
import logging
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import gateway_door as doors
import gateway_fleet as fleets

from fedlearn.device.credential import Credential
from fedlearn.device.padding import padded
from fedlearn.device.requests import CLOCK_TOLERANCE_S, Denial
from fedlearn.errors import GatewayStoreFailed, Reason
from fedlearn.ledger.checkpoint import LedgerCheckpoint
from fedlearn.ledger.signing import SigningKey
from fedlearn.policy.canonical import canonical_bytes
from fedlearn.policy.dsse import STATUS_TYPE, sign_envelope
from fedlearn.policy.keys import PLACEHOLDER_KEY
from fedlearn.policy.status import Status, status_bytes
from fedlearn.proto import gateway_pb2 as pb
from fedlearn_server.gateway import handlers, objects
from fedlearn_server.gateway.documents import Documents, Numbered
from fedlearn_server.gateway.figures import GATEWAY_METRICS, GatewayMetrics
from fedlearn_server.gateway.limits import Buckets
from fedlearn_server.gateway.objects import ObjectCache
from fedlearn_server.gateway.rules import Denied
from fedlearn_server.logs import log_json

ENROLLED = pb.EnrolReply.OUTCOME_ENROLLED
REFUSED = pb.EnrolReply.OUTCOME_REFUSED
ACCEPTED = pb.UploadReply.OUTCOME_ACCEPTED
LATE = pb.UploadReply.OUTCOME_LATE
REJECTED = pb.UploadReply.OUTCOME_REJECTED


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., doors.Desk]]:
    made: list[doors.Desk] = []

    def desk(**given: Any) -> doors.Desk:
        made.append(doors.Desk(tmp_path, **given))
        return made[-1]

    yield desk
    for one in made:
        one.close()


@pytest.fixture
def desk(make: Callable[..., doors.Desk]) -> doors.Desk:
    return make()


class Untouchable:
    """A state that must not be asked."""

    object = None  # Fetch's, kept for later

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


class Verifier:
    def __init__(self, answer: Callable[[bytes, bytes, bytes], Any]) -> None:
        self.verify = answer


def never(*_: object) -> bool:
    return False


def fails(*_: object) -> Any:
    raise RuntimeError("canary-9d2e")


# --- every denial, by what brings it about ---


def denied_by_status(desk: doors.Desk, request: Any) -> str:
    with pytest.raises(Denied) as refused:
        desk.ask(request)
    return refused.value.denial.value


def malformed(make: Callable[..., doors.Desk]) -> tuple[doors.Desk, str]:
    desk = make()
    return desk, denied_by_status(desk, desk.phone().check_in(nonce=bytes(15)))


def version(make: Callable[..., doors.Desk]) -> tuple[doors.Desk, str]:
    desk = make()
    return desk, desk.ask(desk.phone().check_in(version=2)).reason


def signature(make: Callable[..., doors.Desk]) -> tuple[doors.Desk, str]:
    desk = make()
    request = desk.phone().check_in()
    request.status_version += 1
    return desk, desk.ask(request).reason


def clock(make: Callable[..., doors.Desk]) -> tuple[doors.Desk, str]:
    desk = make()
    return desk, desk.ask(desk.phone().check_in(time_ms=0)).reason


def replayed(make: Callable[..., doors.Desk]) -> tuple[doors.Desk, str]:
    desk = make()
    request = desk.phone().check_in()
    desk.ask(request)
    return desk, desk.ask(request).reason


def rate(make: Callable[..., doors.Desk]) -> tuple[doors.Desk, str]:
    desk = make(device_limit=Buckets(1e-6, 2))
    phone = desk.phone()
    desk.ask(phone.check_in())
    return desk, desk.ask(phone.check_in()).reason


def credential(make: Callable[..., doors.Desk]) -> tuple[doors.Desk, str]:
    desk = make()
    return desk, desk.ask(desk.phone(enrolled=False).enrolment(credential=b"{}")).reason


def attestation(make: Callable[..., doors.Desk]) -> tuple[doors.Desk, str]:
    desk = make(verifier=Verifier(never))
    return desk, desk.ask(desk.phone(enrolled=False).enrolment()).reason


def unknown(make: Callable[..., doors.Desk]) -> tuple[doors.Desk, str]:
    desk = make()
    return desk, desk.ask(desk.phone(enrolled=False).check_in()).reason


def revoked(make: Callable[..., doors.Desk]) -> tuple[doors.Desk, str]:
    desk = make()
    phone = desk.phone()
    desk.state.revoke(phone.device, desk.clock())
    return desk, desk.ask(phone.check_in()).reason


def population(make: Callable[..., doors.Desk]) -> tuple[doors.Desk, str]:
    desk = make()
    return desk, desk.ask(desk.phone().check_in(population="village")).reason


def bundle(make: Callable[..., doors.Desk]) -> tuple[doors.Desk, str]:
    desk = make()
    desk.fleet.open()
    return desk, desk.ask(desk.phone().check_in(bundle_digest=bytes(32))).reason


def taken_part(make: Callable[..., doors.Desk], step: int, **terms: Any) -> tuple[doors.Desk, str]:
    """A phone that sent for step 0 asks again in ``step``."""
    desk = make()
    desk.fleet.terms = fleets.terms(**terms)
    desk.fleet.open()
    phone = desk.phone()
    task = doors.task_in(desk.ask(phone.check_in()))
    assert desk.ask(phone.upload(task)).outcome == ACCEPTED
    desk.fleet.open(step)
    return desk, desk.ask(phone.check_in()).reason


DENIALS: dict[Denial, Callable[[Callable[..., doors.Desk]], tuple[doors.Desk, str]]] = {
    Denial.MALFORMED: malformed,
    Denial.VERSION: version,
    Denial.SIGNATURE: signature,
    Denial.CLOCK: clock,
    Denial.REPLAYED: replayed,
    Denial.RATE: rate,
    Denial.CREDENTIAL: credential,
    Denial.ATTESTATION: attestation,
    Denial.UNKNOWN: unknown,
    Denial.REVOKED: revoked,
    Denial.POPULATION: population,
    Denial.BUNDLE: bundle,
    Denial.SEPARATION: lambda make: taken_part(make, 2, separation=3, participations=2),
    Denial.PARTICIPATIONS: lambda make: taken_part(make, 30, participations=1),
    Denial.NO_TASK: lambda make: (desk := make(), desk.ask(desk.phone().check_in()).reason),
    Denial.BUSY: lambda make: (
        desk := make(draining=lambda: True),
        desk.ask(doors.Phone(1, desk.clock).check_in()).reason,
    ),
}


@pytest.mark.parametrize("denial", Denial)
def test_each_denial_has_its_reason_its_count_and_its_line(
    denial: Denial, make: Callable[..., doors.Desk], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    desk, reason = DENIALS[denial](make)
    assert reason == denial.value
    assert desk.counted("fedlearn_gateway_denials_total", reason=denial.value) >= 1
    assert denial.value in [record.__dict__.get("reason") for record in caplog.records]
    assert desk.counted("fedlearn_gateway_faults_total") == 0


# --- what comes before what ---


def test_nothing_touches_the_state_before_signature_clock_and_rate(desk: doors.Desk) -> None:
    phone = desk.phone()
    guarded = handlers.Handlers(
        Untouchable(), Untouchable(), replace(desk.rules, device_limit=Buckets(1e-6, 1)), desk.figures, clock=desk.clock
    )
    forged = phone.check_in()
    forged.runtime = "2.0"
    weak = phone.check_in(device_key=bytes.fromhex(PLACEHOLDER_KEY))
    for request in (forged, weak, phone.check_in(time_ms=1), phone.check_in(version=9)):
        assert doors.REPLIES["CheckIn"].FromString(guarded.call("CheckIn", padded(request), doors.PEER)).reason
    for request in (phone.enrolment(credential=b""), phone.enrolment(time_ms=1), phone.enrolment(version=0)):
        assert doors.REPLIES["Enrol"].FromString(guarded.call("Enrol", padded(request), doors.PEER)).reason
    reply = pb.CheckInReply.FromString(guarded.call("CheckIn", padded(phone.check_in()), doors.PEER))
    assert reply.reason == Denial.RATE, "the enrolment without a credential took the one token"


def test_a_forger_cannot_use_up_what_a_device_is_granted(make: Callable[..., doors.Desk]) -> None:
    desk = make(device_limit=Buckets(1e-6, 2))
    phone = desk.phone()
    for _ in range(50):
        forged = phone.check_in()
        forged.signature = bytes(64)
        assert desk.ask(forged).reason == Denial.SIGNATURE
    assert desk.ask(phone.check_in()).reason == Denial.NO_TASK


def test_one_address_cannot_drown_the_others(make: Callable[..., doors.Desk]) -> None:
    desk = make(peer_limit=Buckets(1e-6, 3))
    for port in range(3):
        with pytest.raises(Denied, match="malformed"):
            desk.frame("CheckIn", b"", f"ipv4:192.0.2.9:{port}")
    with pytest.raises(Denied) as refused:
        desk.frame("Fetch", bytes(256), "ipv4:192.0.2.9:77")
    assert (refused.value.denial, refused.value.status) == (Denial.RATE, grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert desk.phone(), "another address"


@pytest.mark.parametrize(
    ("skew", "good"), [(0.0, True), (300.0, True), (-300.0, True), (300.001, False), (-300.001, False)]
)
def test_the_clock_may_differ_by_five_minutes(desk: doors.Desk, skew: float, good: bool) -> None:
    assert CLOCK_TOLERANCE_S == 300.0
    phone = desk.phone()
    reply = desk.ask(phone.check_in(time_ms=round((desk.clock() + skew) * 1000)))
    assert (reply.reason == Denial.CLOCK) is not good
    assert reply.time_ms == (0 if good else round(desk.clock() * 1000)), "a refused phone hears the gateway's time"


@pytest.mark.parametrize("time_ms", [-(2**63), 2**63 - 1, -1], ids=["least", "most", "before 1970"])
def test_absurd_times(desk: doors.Desk, time_ms: int) -> None:
    assert desk.ask(desk.phone().check_in(time_ms=time_ms)).reason == Denial.CLOCK


def test_a_replay_is_refused_after_a_restart_and_by_another_gateway(make: Callable[..., doors.Desk]) -> None:
    first = make()
    request = first.phone().check_in()
    assert first.ask(request).reason == Denial.NO_TASK
    second = make(clock=first.clock)
    assert second.ask(request).reason == Denial.REPLAYED
    first.clock.now += 2 * CLOCK_TOLERANCE_S + 1
    second.state.tidy(first.clock())
    assert second.ask(request).reason == Denial.CLOCK, "once its nonce is forgotten its time is over"


# --- enrolment ---


def test_one_credential_makes_one_key_known(desk: doors.Desk) -> None:
    phone, thief = desk.phone(1), desk.phone(2, enrolled=False)
    assert desk.ask(phone.enrolment()).outcome == ENROLLED, "again, with the same key"
    stolen = doors.credential(1, desk.clock())
    reply = desk.ask(thief.enrolment(credential=stolen))
    assert (reply.outcome, reply.reason) == (REFUSED, Denial.CREDENTIAL)
    assert [one.key for one in desk.state.devices()] == [phone.device]


CREDENTIALS: dict[str, tuple[Callable[[float], bytes], Denial]] = {
    "another issuer's": (lambda now: doors.credential(1, now, SigningKey.fresh()), Denial.CREDENTIAL),
    "expired": (lambda now: doors.credential(1, now, expires=now), Denial.CREDENTIAL),
    "of another population": (lambda now: doors.credential(1, now, population="village"), Denial.POPULATION),
    "absent": (lambda now: b"", Denial.CREDENTIAL),
    "an unbounded number": (lambda now: b'{"content":{"expires":1' + b"0" * 400 + b"}}", Denial.CREDENTIAL),
}


@pytest.mark.parametrize(("made", "denial"), CREDENTIALS.values(), ids=CREDENTIALS)
def test_credentials_that_are_none(desk: doors.Desk, made: Callable[[float], bytes], denial: Denial) -> None:
    phone = desk.phone(enrolled=False)
    assert desk.ask(phone.enrolment(credential=made(desk.clock()))).reason == denial
    assert not desk.state.devices()


@pytest.mark.parametrize("answer", [never, fails, lambda *_: None, lambda *_: 1, lambda *_: "yes"], ids=range(5))
def test_attestation_fails_closed(make: Callable[..., doors.Desk], answer: Callable[..., Any]) -> None:
    desk = make(verifier=Verifier(answer))
    assert desk.ask(desk.phone(enrolled=False).enrolment()).reason == Denial.ATTESTATION
    assert not desk.state.devices()


def test_attestation_is_asked_for_each_request(make: Callable[..., doors.Desk]) -> None:
    seen: list[tuple[bytes, bytes, bytes]] = []
    desk = make(verifier=Verifier(lambda *asked: not seen.append(asked)))
    phone = desk.phone()
    desk.ask(phone.check_in(attestation=b"evidence"))
    desk.ask(phone.check_in(attestation=b"evidence"))
    assert len({challenge for challenge, _, _ in seen}) == 3, "bound to one request each"
    assert [evidence for _, evidence, _ in seen] == [b"", b"evidence", b"evidence"]
    assert {device for _, _, device in seen} == {phone.device}


# --- check-in ---


def test_a_task_is_signed_by_the_operator_and_durable(desk: doors.Desk) -> None:
    desk.fleet.open()
    phone = desk.phone()
    reply = desk.ask(phone.check_in())
    task = doors.task_in(reply)
    assert (reply.reason, reply.retry_after_s) == ("", 0)
    assert (task.step, task.population, len(task.token)) == (0, fleets.POPULATION, 16)
    assert doors.task_in(desk.ask(phone.check_in())) == task, "one task in hand, not two"


SHAPES: dict[str, dict[str, Any]] = {
    "nonce": {"nonce": bytes(17)},
    "no nonce": {"nonce": b""},
    "bundle": {"bundle_digest": bytes(31)},
    "a long population": {"population": "c" * 129},
    "a long purpose": {"purpose": "c" * 129},
    "a long runtime": {"runtime": "1" * 65},
    "a line end": {"population": "city\n"},
    "a nul": {"purpose": "\0"},
    "over the cap": {"attestation": bytes(70_000)},
}


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_shapes(desk: doors.Desk, changes: dict[str, Any]) -> None:
    assert denied_by_status(desk, desk.phone().check_in(**changes)) == Denial.MALFORMED


def test_a_device_of_a_population_that_is_served_elsewhere(desk: doors.Desk) -> None:
    phone = desk.phone(enrolled=False)
    elsewhere = Credential("village", bytes(16), desk.clock() + 1.0)
    assert desk.state.enrol(elsewhere, phone.device, desk.clock()) is None
    assert desk.ask(phone.check_in(population="village")).reason == Denial.POPULATION


@pytest.mark.parametrize("size", [0, 1, 255, 257, 300, 65_537, 262_144, 2**20])
def test_requests_have_the_sizes_that_phones_send(desk: doors.Desk, size: int) -> None:
    for method in doors.REPLIES:
        if (method, size) == ("Upload", 262_144) or (method, size) == ("Upload", 2**20):
            continue
        with pytest.raises(Denied) as refused:
            desk.frame(method, bytes(size))
        assert (refused.value.denial, refused.value.status) == (Denial.MALFORMED, grpc.StatusCode.INVALID_ARGUMENT)


# --- fetch ---


def test_ranges(desk: doors.Desk) -> None:
    data = bytes(np.random.default_rng(1).integers(0, 256, 2_500_000, np.uint8))
    digest = desk.state.put_object(data)
    got = bytearray()
    while len(got) < len(data):
        reply = desk.ask(pb.FetchRequest(digest=digest, offset=len(got), max_bytes=2**32 - 1))
        assert reply.total == len(data)
        assert 1 <= len(reply.data) <= 2**20
        got += reply.data
    assert bytes(got) == data
    assert desk.ask(pb.FetchRequest(digest=digest, offset=7, max_bytes=3)).data == data[7:10]
    for offset in (len(data), 2**64 - 1):
        assert desk.ask(pb.FetchRequest(digest=digest, offset=offset, max_bytes=3)) == pb.FetchReply(total=len(data))
    assert desk.ask(pb.FetchRequest(digest=bytes(32), max_bytes=3)) == pb.FetchReply()
    assert denied_by_status(desk, pb.FetchRequest(digest=digest[:-1])) == Denial.MALFORMED


class TestObjectCache:
    @pytest.fixture
    def loaded(self) -> Counter[bytes]:
        return Counter()

    @pytest.fixture
    def time(self) -> doors.Clock:
        return doors.Clock(0.0)

    @pytest.fixture
    def cache(self, loaded: Counter[bytes], time: doors.Clock) -> ObjectCache:
        def load(digest: bytes) -> bytes | None:
            loaded[digest] += 1
            return None if digest == b"none" else digest * 10

        return ObjectCache(load, 100, time)

    def test_read_once(self, cache: ObjectCache, loaded: Counter[bytes]) -> None:
        assert [cache.get(b"12345") for _ in range(3)] == [b"12345" * 10] * 3
        assert loaded == {b"12345": 1}

    def test_what_is_withdrawn_goes(self, cache: ObjectCache, loaded: Counter[bytes], time: doors.Clock) -> None:
        cache.get(b"12345")
        time.now += objects.KEPT_S + 0.001
        cache.get(b"12345")
        assert loaded == {b"12345": 2}

    def test_bounded(self, cache: ObjectCache, loaded: Counter[bytes]) -> None:
        for digest in (b"11111", b"22222", b"11111", b"33333", b"11111", b"22222"):
            assert cache.get(digest) == digest * 10
        assert loaded == {b"11111": 1, b"22222": 2, b"33333": 1}, "what was used last stays"

    def test_what_is_too_large_and_what_is_not_there(self, cache: ObjectCache, loaded: Counter[bytes]) -> None:
        for digest in (b"01234567890", b"none"):
            cache.get(digest)
            cache.get(digest)
            assert loaded[digest] == 2


# --- upload ---


def test_an_upload_is_told_what_became_of_it(desk: doors.Desk) -> None:
    collection = desk.fleet.open()
    phones = [desk.phone(number) for number in (1, 2, 3)]
    uploads = [phone.upload(doors.task_in(desk.ask(phone.check_in()))) for phone in phones]
    assert [desk.ask(one).outcome for one in uploads] == [ACCEPTED] * 3
    again = desk.ask(uploads[0])
    assert (again.outcome, again.reason) == (ACCEPTED, "")
    other = pb.UploadRequest(token=uploads[0].token, contribution=uploads[1].contribution)
    assert desk.ask(other).reason == "token_used"
    unknown = desk.ask(pb.UploadRequest(token=bytes(16), contribution=b"x"))
    assert (unknown.outcome, unknown.reason) == (REJECTED, "unknown_token")
    count, total = desk.state.close(collection, desk.clock())
    assert count == 3
    assert (total == sum(fleets.canary(number) for number in (1, 2, 3))).all()
    assert desk.counted("fedlearn_gateway_uploads_total", outcome="accepted") == 4
    assert desk.counted("fedlearn_gateway_rejected_total", reason="token_used") == 1
    assert desk.counted("fedlearn_gateway_rejected_total", reason="unknown_token") == 1


def test_late_and_revoked_and_wrong(desk: doors.Desk) -> None:
    desk.fleet.open()
    late, gone, liar = (desk.phone(number) for number in (1, 2, 3))
    tasks = {phone.number: doors.task_in(desk.ask(phone.check_in())) for phone in (late, gone, liar)}
    desk.state.revoke(gone.device, desk.clock())
    assert desk.ask(gone.upload(tasks[2])).outcome == REJECTED
    heavy = desk.ask(liar.upload(tasks[3], values=np.full(fleets.WIDTH, 2**40, "<i8")))
    assert (heavy.outcome, heavy.reason) == (REJECTED, Reason.OVER_NORM.value)
    desk.clock.now += 1e4
    assert desk.ask(late.upload(tasks[1])).outcome == LATE
    assert desk.counted("fedlearn_gateway_uploads_total", outcome="late") == 1


@pytest.mark.parametrize("changes", [{"token": bytes(15)}, {"token": b""}, {"contribution": b""}], ids=range(3))
def test_an_upload_without_a_form(desk: doors.Desk, changes: dict[str, bytes]) -> None:
    values = {"token": bytes(16), "contribution": b"x", **changes}
    assert denied_by_status(desk, pb.UploadRequest(**values)) == Denial.MALFORMED


def test_an_upload_over_the_cap_is_refused_by_its_length(make: Callable[..., doors.Desk]) -> None:
    desk = make(max_upload_bytes=4096)
    assert desk.handlers.max_bytes == 65_536
    assert desk.ask(pb.UploadRequest(token=bytes(16), contribution=bytes(4096))).reason == "unknown_token"
    for size in (4097, 20_000):
        assert denied_by_status(desk, pb.UploadRequest(token=bytes(16), contribution=bytes(size))) == Denial.MALFORMED


# --- faults ---


@pytest.mark.parametrize("method", ["Enrol", "CheckIn", "Fetch", "Upload"])
@pytest.mark.parametrize(
    ("problem", "status"),
    [(GatewayStoreFailed("canary-9d2e"), "UNAVAILABLE"), (RuntimeError("canary-9d2e"), "INTERNAL")],
    ids=["store", "bug"],
)
def test_a_store_that_fails_and_a_bug(
    desk: doors.Desk, method: str, problem: Exception, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone = desk.phone()

    def broken(*_: object, **__: object) -> Any:
        raise problem

    for name in ("enrol", "is_enrolled", "object", "accept"):
        monkeypatch.setattr(type(desk.state), name, broken)
    monkeypatch.setattr(desk.handlers._objects, "_load", broken)
    requests = {
        "Enrol": phone.enrolment(),
        "CheckIn": phone.check_in(),
        "Fetch": pb.FetchRequest(digest=bytes(32)),
        "Upload": pb.UploadRequest(token=bytes(16), contribution=b"x"),
    }
    with pytest.raises(Denied) as refused:
        desk.ask(requests[method])
    assert (refused.value.denial, refused.value.status.name) == (Denial.BUSY, status)
    assert desk.counted("fedlearn_gateway_store_failures_total") == (status == "UNAVAILABLE")
    assert desk.counted("fedlearn_gateway_faults_total") == (status == "INTERNAL")
    monkeypatch.undo()
    assert desk.ask(phone.check_in()).reason == Denial.NO_TASK, "and it goes on"


def test_an_upload_that_does_not_become_durable_in_time(desk: doors.Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "ANSWER_S", 0.0)
    with pytest.raises(Denied) as refused:
        desk.ask(pb.UploadRequest(token=bytes(16), contribution=b"x"))
    assert refused.value.status is grpc.StatusCode.UNAVAILABLE


def test_draining_gives_no_work_and_takes_uploads(make: Callable[..., doors.Desk]) -> None:
    leaving = [False]
    desk = make(draining=lambda: leaving[0])
    desk.fleet.open()
    phone = desk.phone()
    task = doors.task_in(desk.ask(phone.check_in()))
    leaving[0] = True
    assert desk.ask(phone.check_in()).reason == Denial.BUSY
    assert desk.ask(desk.phone(2, enrolled=False).enrolment()).reason == Denial.BUSY
    assert desk.ask(phone.upload(task)).outcome == ACCEPTED


# --- documents ---


def status_of(version: int) -> bytes:
    made = Status(version, "2027-01-15T08:00:00Z", (), ())
    return sign_envelope(STATUS_TYPE, status_bytes(made), [doors.OPERATOR])


def release_of(number: int) -> bytes:
    return sign_envelope("application/json", canonical_bytes({"number": number}), [doors.OPERATOR])


def checkpoint_of(length: int) -> bytes:
    made = LedgerCheckpoint.signed(doors.OPERATOR, "ab" * 16, length, "cd" * 32, fleets.NOW)
    return made.to_json().encode()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    found = {name: tmp_path / name for name in ("status", "checkpoint", "release")}
    found["status"].write_bytes(status_of(3))
    found["checkpoint"].write_bytes(checkpoint_of(7) + b"\n")
    found["release"].write_bytes(release_of(5))
    return found


def test_what_is_newer_is_handed_out(make: Callable[..., doors.Desk], files: dict[str, Path]) -> None:
    desk = make(documents=Documents.in_files(**files))
    phone = desk.phone()
    old = desk.ask(phone.check_in(status_version=2, release=4))
    assert (old.status, old.release, old.ledger_checkpoint) == (status_of(3), release_of(5), checkpoint_of(7))
    new = desk.ask(phone.check_in(status_version=3, release=5))
    assert (new.status, new.release, new.ledger_checkpoint) == (b"", b"", checkpoint_of(7))
    upload = desk.ask(pb.UploadRequest(token=bytes(16), contribution=b"x"))
    assert upload.ledger_checkpoint == checkpoint_of(7)
    stranger = desk.ask(desk.phone(2, enrolled=False).check_in())
    assert (stranger.status, stranger.release, stranger.ledger_checkpoint) == (b"", b"", b"")


def test_a_replaced_file_is_taken_up_and_a_damaged_one_is_not(
    files: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    documents = Documents.in_files(**files)
    assert (documents.status(0), documents.status_issued()) == (status_of(3), 1_800_000_000.0)
    files["status"].write_bytes(status_of(4))
    assert documents.status(3) == status_of(4)
    for damage in (b"{}", status_of(5)[:-9], b"", release_of(9), b"x" * 50_000):
        files["status"].write_bytes(damage)
        assert documents.status(0) == status_of(4)
    assert len(caplog.records) == 5
    documents.status(0)
    files["status"].unlink()
    assert documents.status(0) == status_of(4)
    assert len(caplog.records) == 6, "told once, not at each check-in"
    files["status"].write_bytes(status_of(6))
    assert documents.status(0) == status_of(6)


@pytest.mark.parametrize("number", [0, -1, True, 1.0, 2**63, "1", None], ids=range(7))
def test_a_release_has_a_number(tmp_path: Path, number: object) -> None:
    path = tmp_path / "release"
    path.write_bytes(sign_envelope("application/json", canonical_bytes({"number": number}), [doors.OPERATOR]))
    assert Documents.in_files(None, None, path).release(0) == b""


def test_the_longest_reply_is_one_that_phones_read() -> None:
    from fedlearn.device.task_codec import MOST_TASK_BYTES
    from fedlearn_client.transport import MAX_CHECK_IN_REPLY_BYTES
    from fedlearn_server.gateway import documents

    most = documents.MOST_STATUS_BYTES + documents.MOST_RELEASE_BYTES + documents.MOST_CHECKPOINT_BYTES
    assert MOST_TASK_BYTES + 256 + most + 256 <= MAX_CHECK_IN_REPLY_BYTES


def test_documents_of_a_running_ledger(make: Callable[..., doors.Desk]) -> None:
    desk = make(documents=Documents(checkpoint=lambda: b"c", status=lambda: Numbered(1, b"s"), release=lambda: None))
    reply = desk.ask(desk.phone().check_in())
    assert (reply.ledger_checkpoint, reply.status, reply.release) == (b"c", b"s", b"")


# --- what an operator sees ---


def test_the_metrics_page_lists_them(repository: Path) -> None:
    page = (repository / "docs/gateway.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(fedlearn_gateway_\w+)` \| (\w+) \| (.*?) \| (yes|no) \|$", page, re.MULTILINE)
    told = {
        metric.name: (metric.kind.name.lower(), metric.help, "yes" if metric.unprotected else "no")
        for metric in GATEWAY_METRICS
    }
    assert {name: tuple(row) for name, *row in rows} == told


def test_a_deployment_exports_no_count_of_who_took_part() -> None:
    page = {family.name for family in GatewayMetrics().registry.collect()}
    assert not page & {"fedlearn_gateway_uploads", "fedlearn_gateway_accepted", "fedlearn_gateway_call_seconds"}
    assert {"fedlearn_gateway_denials", "fedlearn_node_online", "fedlearn_gateway_slowest_seconds"} <= page


def test_the_slowest_of_the_last_minute() -> None:
    time = doors.Clock(0.0)
    figures = GatewayMetrics(clock=time)
    for at, seconds in ((0.0, 5.0), (10.0, 1.0), (20.0, 2.0), (30.0, 0.5)):
        time.now = at
        figures.call_took(seconds)
    found = []
    for now in (60.0, 60.1, 80.1, 90.1):
        time.now = now
        found.append(figures.slowest())
    assert found == [5.0, 2.0, 0.5, 0.0]


def test_a_flood_fills_no_disk_with_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    time = doors.Clock(0.0)
    figures = GatewayMetrics(clock=time)
    for _ in range(10_000):
        figures.denied("CheckIn", Denial.SIGNATURE)
    assert len(caplog.records) == 200
    time.now += 1.0
    figures.denied("CheckIn", Denial.SIGNATURE)
    assert "9800 lines were left out" in caplog.records[-1].getMessage()
    assert figures.registry.get_sample_value("fedlearn_gateway_denials_total", {"reason": "bad_signature"}) == 10_001


def test_no_key_no_address_no_payload_in_log_or_metric(make: Callable[..., doors.Desk], tmp_path: Path) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    with (tmp_path / "log").open("w+", encoding="utf-8") as log:
        log_json("gateway", log)
        try:
            desk = make()
            desk.fleet.open()
            phone = desk.phone()
            task = doors.task_in(desk.ask(phone.check_in()))
            upload = phone.upload(task, values=np.full(fleets.WIDTH, 2**40, "<i8"))
            desk.ask(upload)
            desk.ask(phone.check_in(population="canary-9d2e"))
            desk.ask(desk.phone(2, enrolled=False).enrolment(credential=b"canary-9d2e"))
        finally:
            root.handlers[:], root.level = before
        log.seek(0)
        lines = log.read()
    assert [json.loads(line)["reason"] for line in lines.splitlines()] == ["over_norm", "population", "credential"]
    from prometheus_client import generate_latest

    seen = lines + generate_latest(desk.figures.registry).decode()
    for secret in (phone.device, task.token, upload.contribution[:16]):
        assert secret.hex() not in seen
        assert base64.b64encode(secret).decode() not in seen
    for word in ("canary-9d2e", "192.0.2.7", "51000"):
        assert word not in seen


def test_check_ins_are_noted_for_devices_that_are_known(desk: doors.Desk) -> None:
    noted: list[tuple[bytes, str, str, float]] = []
    desk.state.note_check_in = lambda *note: noted.append(note)  # type: ignore[method-assign]
    phone, stranger = desk.phone(), desk.phone(2, enrolled=False)
    desk.ask(phone.check_in())
    desk.fleet.open()
    desk.ask(phone.check_in())
    for request in (stranger.check_in(), phone.check_in(time_ms=1)):
        desk.ask(request)
    assert noted == [(phone.device, "192.0.2.7", outcome, desk.clock()) for outcome in ("no_task", "task")]


def test_a_thousand_frames(desk: doors.Desk) -> None:
    fuzzer = doors.Fuzzer(desk, seed=6)
    outcomes: Counter[str] = Counter()
    for _ in range(1_000):
        outcomes[doors.is_answered(desk, *fuzzer.frame())] += 1
    assert desk.counted("fedlearn_gateway_faults_total") == 0
    assert desk.counted("fedlearn_gateway_store_failures_total") == 0
    wanted = {"INVALID_ARGUMENT/malformed", "bad_signature", "clock", "version", "credential", "token_used", "OK"}
    assert wanted <= set(outcomes), "the frames reach every part"
    assert desk.ask(doors.Phone(1, desk.clock).check_in()).reason in {"", Denial.NO_TASK, Denial.SEPARATION}

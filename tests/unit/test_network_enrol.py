"""Becoming known to a gateway, and being denied by one: once, logged, named, and not again and again."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedlearn.device.requests import Denial, challenge_bytes, is_signed
from fedlearn.errors import ConfigError
from fedlearn.proto import gateway_pb2 as pb
from fedlearn_client.fakes import Fault
from fedlearn_client.hooks import Method
from fedlearn_client.settings import Settings
from fedlearn_client.standing import uplink_of

_spec = importlib.util.spec_from_file_location("uplink_town", Path(__file__).with_name("uplink_town.py"))
assert _spec is not None
assert _spec.loader is not None
uplink_town: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(uplink_town)
town = uplink_town.town

CREDENTIAL = b'{"content":{},"signature":""}'
HOUR, DAY = 3600.0, 86_400.0


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    made: list[Any] = []

    def phone(**options: Any) -> Any:
        made.append(uplink_town.Phone(tmp_path / str(len(made)), **options))
        return made[-1]

    yield phone
    for one in made:
        one.scheduler.stop()
        one.store.close()


@pytest.fixture
def phone(make: Callable[..., Any]) -> Any:
    """A phone that has a credential, at a gateway that does not know it yet."""
    return make(credential=CREDENTIAL, credentials=[CREDENTIAL])


def words(phone: Any) -> list[tuple[str, str]]:
    """Kind and reason of what the phone maker's log got."""
    return [(event.kind, str(event.fields.get("reason", ""))) for event in phone.audit.events]


# -- signed ------------------------------------------------------------------------------------------------------------


def test_a_check_in_is_signed_by_the_keystore(make: Callable[..., Any]) -> None:
    phone = make()
    phone.run()
    asked = pb.CheckInRequest.FromString(phone.gateway.requests[0].body)
    assert asked.device_key == phone.keystore.public_key()
    assert is_signed(asked)
    assert asked.time_ms == round(phone.clock.now() * 1000)
    assert len(asked.nonce) == 16
    again = pb.CheckInRequest.FromString(asked.SerializeToString())
    again.time_ms += 1
    assert not is_signed(again)


def test_attestation_covers_key_time_and_nonce(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    challenges: list[bytes] = []

    def evidence(_: Any, challenge: bytes) -> bytes:
        challenges.append(challenge)
        return b"evidence"

    monkeypatch.setattr("fedlearn_client.fakes.FakeAttestation.evidence", evidence)
    phone = make(credential=CREDENTIAL, credentials=[CREDENTIAL])
    phone.run()
    kinds = {Method.ENROL: pb.EnrolRequest, Method.CHECK_IN: pb.CheckInRequest}
    signed = [kinds[seen.method].FromString(seen.body) for seen in phone.gateway.requests if seen.method in kinds]
    assert [hashlib.sha256(challenge_bytes(request)).digest() for request in signed] == challenges
    assert len(challenges) == 3
    assert len({request.nonce for request in signed}) == 3


# -- enrolment ---------------------------------------------------------------------------------------------------------


def test_a_stranger_enrols_once_and_goes_on(phone: Any) -> None:
    assert phone.run() == "acknowledged"
    assert phone.methods() == ["CheckIn", "Enrol", "CheckIn", "Fetch", "Upload"]
    assert phone.states() == [(method, "acknowledged") for method in phone.methods()]
    assert phone.gateway.known == {phone.keystore.public_key(): CREDENTIAL}
    assert ("enrolled", "") in words(phone)
    phone.gateway.advance(10)
    phone.restart()
    assert phone.run() == "acknowledged"
    assert phone.methods()[5:] == ["CheckIn", "Fetch", "Upload"]
    enrolled = pb.EnrolRequest.FromString(phone.gateway.requests[1].body)
    assert (enrolled.version, enrolled.credential) == (1, CREDENTIAL)
    assert is_signed(enrolled)
    assert len(phone.gateway.requests[1].body) == len(phone.gateway.requests[0].body) == 1024


def test_an_enrolment_is_in_the_log_before_it_leaves(phone: Any) -> None:
    states: list[list[tuple[str, str]]] = []
    phone.gateway.on_call = lambda _: states.append(phone.states())
    phone.run()
    assert [seen[-1] for seen in states[:3]] == [("CheckIn", "sent"), ("Enrol", "sent"), ("CheckIn", "sent")]
    logged = list(reversed(phone.egress.entries(10, with_bytes=True)))
    assert [entry.body for entry in logged] == [seen.body for seen in phone.gateway.requests]


def test_a_phone_without_a_grant_does_not_enrol(make: Callable[..., Any]) -> None:
    phone = make(credential=CREDENTIAL, credentials=[CREDENTIAL], grant=False)
    for _ in range(3):
        assert phone.run() == "refused: no_grant"
        phone.scheduler.tick()
        phone.clock.advance(DAY)
    assert phone.gateway.requests == []
    assert phone.states() == []
    phone.installed.update_status(town.signed_status(2, now=phone.clock.now()))
    phone.grant()
    assert phone.run() == "acknowledged"


def test_a_lost_reply_to_an_enrolment_is_asked_for_again(phone: Any) -> None:
    phone.gateway.fail_next(Method.ENROL, Fault.REPLY_LOST)
    assert phone.run() == "abandoned: transport"
    assert phone.states()[-1] == ("Enrol", "failed")
    assert phone.run() == "acknowledged"  # the gateway knew it by then
    assert phone.methods().count("Enrol") == 1


def test_a_gateway_that_never_knows_a_phone_is_asked_twice_and_not_more(phone: Any) -> None:
    def forget(method: Method) -> None:
        phone.gateway.denial = Denial.UNKNOWN if method is Method.CHECK_IN else None

    phone.gateway.on_call = forget
    for _ in range(3):
        assert phone.run() == "refused: not_enrolled"
    assert phone.methods() == ["CheckIn", "Enrol", "CheckIn"]


def test_without_a_credential_a_stranger_stays_away_for_a_day(make: Callable[..., Any]) -> None:
    phone = make(credentials=[CREDENTIAL])
    assert phone.run() == "refused: not_enrolled"
    assert phone.methods() == ["CheckIn"]
    assert phone.run() == "refused: not_enrolled"
    assert phone.methods() == ["CheckIn"]


# -- denials -----------------------------------------------------------------------------------------------------------

BARRING = [
    (Denial.REVOKED, "refused: revoked"),
    (Denial.VERSION, "refused: old_runtime"),
]


@pytest.mark.parametrize(("denial", "outcome"), BARRING)
@pytest.mark.parametrize("as_error", [False, True])
def test_a_phone_that_was_denied_for_good_asks_once_a_day(
    make: Callable[..., Any], denial: Denial, outcome: str, as_error: bool
) -> None:
    phone = make()
    phone.gateway.denial = denial
    if as_error:
        phone.gateway.fail_next(Method.CHECK_IN, Fault.DENIED, times=100)
    hours: list[int] = []
    for hour in range(0, 24 * 4, 4):
        before = len(phone.gateway.requests)
        phone.scheduler.tick()
        assert phone.scheduler.train_now(town.TRAIN).startswith("refused: ")  # impatience is no reason either
        hours += [hour] * (len(phone.gateway.requests) - before)
        if hour == 40:
            phone.restart()
        phone.clock.advance(4 * HOUR)
        phone.installed.update_status(town.signed_status(2 + hour, now=phone.clock.now()))
    assert hours[0] == 0
    assert 3 <= len(hours) <= 4
    assert all(later - earlier >= 24 for earlier, later in itertools.pairwise(hours))
    assert ("check_in_denied", denial.value) in words(phone)
    assert all(state == "acknowledged" for _, state in phone.states()), "a denial is an answer"
    assert phone.participated() == []


def test_a_refused_credential_is_offered_once_a_day(make: Callable[..., Any]) -> None:
    phone = make(credential=b"another", credentials=[CREDENTIAL])
    assert phone.run() == "refused: credential"
    assert ("enrolment_denied", "credential") in words(phone)
    for _ in range(5):
        assert phone.run() == "refused: credential"
    assert phone.methods() == ["CheckIn", "Enrol"]
    assert phone.scheduler.why_not() == "the gateway refused this phone's credential"
    phone.clock.advance(1.2 * DAY)
    phone.installed.update_status(town.signed_status(2, now=phone.clock.now()))
    assert phone.run() == "refused: credential"
    assert phone.methods().count("Enrol") == 2


def test_changed_settings_are_reason_enough_to_ask_again(make: Callable[..., Any]) -> None:
    phone = make(credential=b"another", credentials=[CREDENTIAL])
    assert phone.run() == "refused: credential"
    phone.credential, phone.mark = CREDENTIAL, "other settings"
    phone.restart()
    assert phone.run() == "acknowledged"


def test_a_credential_that_another_key_used(make: Callable[..., Any]) -> None:
    one = make(credential=CREDENTIAL, credentials=[CREDENTIAL])
    assert one.run() == "acknowledged"
    thief = make(credential=CREDENTIAL, credentials=[CREDENTIAL])
    thief.gateway.known = one.gateway.known
    assert thief.run() == "refused: credential"
    assert len(one.gateway.known) == 1


def test_the_owners_withdrawal_hides_a_denial_from_others(make: Callable[..., Any]) -> None:
    phone = make()
    phone.gateway.denial = Denial.REVOKED
    phone.scheduler.tick()
    assert phone.scheduler.why_not() == "the gateway has revoked this phone"
    phone.withdraw()
    assert phone.scheduler.why_not() == "not ready: the owner's settings or data"


def test_a_clock_that_differs_is_logged_with_by_how_much(make: Callable[..., Any]) -> None:
    phone = make()
    phone.gateway.denial = Denial.CLOCK
    phone.gateway._clock_rng = SimpleNamespace(now=lambda: phone.clock.now() - 1234.5, random_bytes=None)
    assert phone.run() == "refused: clock"
    event = next(one for one in phone.audit.events if one.kind == "check_in_denied")
    assert event.fields == {"reason": "clock", "ahead_s": 1234.5}
    assert phone.run() == "refused: clock"  # it may have been set meanwhile: nothing bars it


def test_another_bundle_is_named_and_asked_about_again(make: Callable[..., Any]) -> None:
    phone = make()
    phone.gateway.denial = Denial.BUNDLE
    phone.scheduler.tick()
    assert phone.scheduler.why_not() == "another task bundle is trained now; install it"
    assert phone.run() == "refused: old_bundle"
    phone.gateway.denial = None
    assert phone.run() == "acknowledged"
    assert phone.scheduler.why_not() == "waits before it asks again"


@pytest.mark.parametrize(
    ("denial", "least", "most"),
    [
        (Denial.BUSY, 12 * 60, 18 * 60),
        (Denial.RATE, 12 * 60, 18 * 60),
        (Denial.CLOCK, 12 * 60, 18 * 60),
        (Denial.REPLAYED, 12 * 60, 18 * 60),
        (Denial.POPULATION, 3.2 * HOUR, 4.8 * HOUR),
        (Denial.ATTESTATION, 3.2 * HOUR, 4.8 * HOUR),
        (Denial.PARTICIPATIONS, 3.2 * HOUR, 4.8 * HOUR),
        (Denial.BUNDLE, 3.2 * HOUR, 4.8 * HOUR),
    ],
)
def test_waits_after_denials(make: Callable[..., Any], denial: Denial, least: float, most: float) -> None:
    phone = make()
    phone.gateway.denial, phone.gateway.retry_after_s = denial, 0
    phone.scheduler.tick()
    left = float(phone.facts.get(f"not_before:{town.TRAIN}")) - phone.clock.now()
    assert least <= left <= most


@pytest.mark.parametrize("reason", ["", "no_task", "a reason of next year", "x" * 1000])
def test_any_other_reason_says_that_there_is_no_task(
    make: Callable[..., Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone = make()
    reply = pb.CheckInReply(reason=reason, retry_after_s=900).SerializeToString()
    monkeypatch.setattr(phone.gateway, "call", lambda *_: reply)
    assert phone.run() == "no_task"
    assert "next year" not in str(phone.audit.events)


def test_a_damaged_standing_bars_nobody(make: Callable[..., Any]) -> None:
    phone = make()
    for value in (b"", b"{", b"[]", b'{"denial":"revoked","mark":"settings","until":1e99}', b'{"denial":"x"}'):
        phone.facts.set(f"standing:{town.TRAIN}", value)
        assert phone.rooms.standing.bars(town.TRAIN) is None, value
    assert phone.run() == "acknowledged"


def test_an_upload_of_a_revoked_phone_is_not_sent_again(make: Callable[..., Any]) -> None:
    phone = make()
    phone.gateway.denial = Denial.REVOKED
    phone.gateway.on_call = lambda method: setattr(phone.gateway, "denial", None) if method is Method.CHECK_IN else None
    phone.workers.on_done = lambda: setattr(phone.gateway, "denial", Denial.REVOKED)
    phone.gateway.fail_next(Method.UPLOAD, Fault.DENIED)
    assert phone.run() == "rejected"
    assert phone.round.resume() == []
    assert phone.participated() == [0]


def test_an_upload_at_a_busy_gateway_is_sent_again(make: Callable[..., Any]) -> None:
    phone = make()
    phone.gateway.fail_next(Method.UPLOAD, Fault.DENIED)
    assert phone.run() == "sent"
    assert [outcome.words for outcome in phone.round.resume()] == ["acknowledged"]


# -- connections -------------------------------------------------------------------------------------------------------


def test_no_connection_while_it_trains_or_afterwards(make: Callable[..., Any]) -> None:
    phone = make()
    seen: list[int] = []
    phone.workers.on_train = lambda: seen.append(phone.gateway.hangups)
    phone.run()
    assert seen == [1]
    assert phone.gateway.hangups == 2
    phone.gateway.fail_next(Method.CHECK_IN, Fault.UNREACHABLE)
    phone.run()
    assert phone.gateway.hangups == 3
    phone.round.resume()
    assert phone.gateway.hangups == 4


# -- settings ----------------------------------------------------------------------------------------------------------


def _settings(tmp_path: Path, **changes: Any) -> Settings:
    return Settings(tmp_path, tmp_path / "s", tmp_path / "callers.toml", ("8a" * 32,), **changes)


def test_the_mark_changes_with_each_part_of_the_uplink(tmp_path: Path) -> None:
    ca, credential = tmp_path / "ca.pem", tmp_path / "credential"
    ca.write_bytes(b"ca")
    credential.write_bytes(CREDENTIAL)
    with_gateway = {"gateway": ("a:1",), "gateway_ca": ca}
    marks = [
        uplink_of(_settings(tmp_path)).mark,
        uplink_of(_settings(tmp_path, **with_gateway)).mark,
        uplink_of(_settings(tmp_path, gateway=("a:2",), gateway_ca=ca)).mark,
        uplink_of(_settings(tmp_path, **with_gateway, credential=credential)).mark,
    ]
    credential.write_bytes(b"another")
    marks.append(uplink_of(_settings(tmp_path, **with_gateway, credential=credential)).mark)
    ca.write_bytes(b"another")
    marks.append(uplink_of(_settings(tmp_path, **with_gateway, credential=credential)).mark)
    assert len(set(marks)) == 6
    assert uplink_of(_settings(tmp_path, train=False)).mark == marks[0]
    assert uplink_of(_settings(tmp_path, credential=credential)).credential == b"another"


@pytest.mark.parametrize("content", [None, b"", bytes(3000)])
def test_a_credential_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "credential"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="credential"):
        uplink_of(_settings(tmp_path, credential=path))

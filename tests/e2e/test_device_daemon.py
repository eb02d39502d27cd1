"""The daemon as a phone runs it: its own process, apps of other users, a signed bundle, the real worker and store."""

from __future__ import annotations

import importlib
import importlib.util
import json
import struct
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

from fedlearn.device.bundle import build_bundle
from fedlearn.proto import device_pb2 as pb
from fedlearn_client.receipts import Receipt, verify_receipt


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


TESTS = Path(__file__).parents[1]
town = load("device_town_of_daemon", TESTS / "unit" / "device_town.py")
phones = load("device_phone_of_daemon", TESTS / "e2e" / "device_phone.py")

pytestmark = pytest.mark.skipif(not phones.is_root(), reason="apps are other users: only root can start them")

CHAT, READING, MAPS, SURFACE = town.CHAT, town.READING, town.MAPS, town.SURFACE
SETTINGS, SYSTEM = "org.city.settings", "org.city.system"
NOW = float(int(time.time()))
"""When every document was issued: equal arguments then give equal bytes."""

CANARY = "quokka-marmalade-7153"


def bundle() -> bytes:
    """The town's bundle with weights that prefer what was wished for, and cheap places without a wish."""
    files = town.bundle_files(now=NOW)
    weights = dict.fromkeys(town.FEATURE_NEEDS, 1.0) | {"price_level": -0.5, "rejected": -2.0}
    files["weights.bin"] = struct.pack(f"<{len(weights)}f", *weights.values())
    return build_bundle(files, expires=NOW + 30 * town.DAY, signers=town.approvers()[:2])


def installed(phone: object) -> object:
    """Start a phone and install everything."""
    phone.start()
    system = phone.app(SYSTEM)
    system.call("Runtime/Install", pb.InstallRequest(task_bundle=bundle()))
    system.call("Runtime/Install", pb.InstallRequest(catalogue_bundle=town.signed_catalogue(now=NOW)))
    system.call("Runtime/UpdateStatus", pb.UpdateStatusRequest(envelope=town.signed_status(now=NOW)))
    return phone


@pytest.fixture(scope="module")
def prepared() -> Iterator[Path]:
    """The state of a phone on which everything is installed."""
    with phones.phone([town.root_key().public]) as made:
        installed(made)
        made.stop()
        yield made.state


@pytest.fixture
def phone(prepared: Path) -> Iterator[object]:
    with phones.phone([town.root_key().public], state=prepared) as made:
        made.start()
        yield made


def grant(app: str, recipient: str, on: bool = True, purpose: str = town.RECOMMEND) -> pb.SetRequest:
    kind = pb.DATA_TYPE_MESSAGE_CONTENT if app == CHAT else pb.DATA_TYPE_CHOICE
    return pb.SetRequest(app=app, data_type=kind, purpose=purpose, recipient=recipient, on=on, text_version=1)


def said(text: str, name: str, incoming: bool = False) -> pb.Signal:
    direction = pb.DIRECTION_INCOMING if incoming else pb.DIRECTION_OUTGOING
    message = pb.MessageSignal(text=text, direction=direction)
    return pb.Signal(id=name, time_ms=round(time.time() * 1000) - 1000, message=message)


def push(phone: object, *signals: pb.Signal) -> pb.PushReply:
    return phone.app(CHAT).call("Signals/Push", pb.PushRequest(stream="messages", signals=signals))


def ranking(phone: object, app: str) -> pb.GetReply:
    return phone.app(app).call("Recommend/Get", pb.GetRequest(purpose=town.RECOMMEND, count=20))


def without_id(reply: pb.GetReply) -> bytes:
    copy = pb.GetReply.FromString(reply.SerializeToString())
    copy.ClearField("ranking_id")
    return copy.SerializeToString(deterministic=True)


def register(phone: object) -> None:
    phone.app(CHAT).call(
        "Signals/Register", pb.RegisterRequest(stream="messages", data_type=pb.DATA_TYPE_MESSAGE_CONTENT)
    )


def adult(phone: object) -> None:
    phone.app(SETTINGS).call("Consent/SetOwner", pb.SetOwnerRequest(age=pb.AGE_CLASS_ADULT))


WISH = said("今晚想吃川菜的麻辣火锅, with parking please", "wish")


def test_the_story_from_registration_to_the_receipt(phone: object) -> None:
    settings = phone.app(SETTINGS)
    register(phone)
    plain = {app: without_id(ranking(phone, app)) for app in (SURFACE, MAPS)}
    assert plain[SURFACE] == plain[MAPS]
    assert push(phone, WISH).received == 1  # nobody agreed to anything yet: left out, and the app cannot tell
    assert phone.app(SYSTEM).call("Runtime/Status").signals == 0
    adult(phone)
    assert settings.call("Consent/Set", grant(CHAT, SURFACE)).HasField("receipt") is False
    assert push(phone, WISH, said("我也想吃烤鸭", "theirs", incoming=True)).received == 2
    assert push(phone, WISH).received == 1  # again: counts once
    assert phone.app(SYSTEM).call("Runtime/Status").signals == 1

    personal = ranking(phone, SURFACE)
    assert without_id(personal) != plain[SURFACE]
    assert [(one.app, one.data_type) for one in personal.used] == [(CHAT, pb.DATA_TYPE_MESSAGE_CONTENT)]
    other = ranking(phone, MAPS)  # a caller without a grant
    assert without_id(other) == plain[MAPS]
    assert not other.used

    receipt = settings.call("Consent/Set", grant(CHAT, SURFACE, on=False)).receipt
    statement = verify_receipt(Receipt(receipt.statement, receipt.signature, receipt.public_key))
    assert statement["kind"] == "withdrawn"
    assert statement["rows_destroyed"] == 1
    assert phone.app(SYSTEM).call("Runtime/Status").signals == 0
    assert without_id(ranking(phone, SURFACE)) == plain[SURFACE]
    assert [one.statement for one in settings.call("Audit/Receipts").receipts] == [receipt.statement]


def test_without_a_grant_the_ranking_is_bit_equal_whether_or_not_the_stream_exists(prepared: Path) -> None:
    replies = []
    for with_chat in (False, True):
        with phones.phone([town.root_key().public], state=prepared) as phone:
            phone.start()
            adult(phone)
            if with_chat:
                register(phone)
                phone.app(SETTINGS).call("Consent/Set", grant(CHAT, SURFACE))
                push(phone, WISH)
                assert ranking(phone, SURFACE).used
            replies.append(without_id(ranking(phone, MAPS)))
    assert replies[0] == replies[1]
    assert len(pb.GetReply.FromString(replies[0]).items) == 20


def test_the_off_switch_gives_everyone_the_same_ranking(phone: object) -> None:
    register(phone)
    adult(phone)
    settings = phone.app(SETTINGS)
    settings.call("Consent/Set", grant(CHAT, SURFACE))
    push(phone, WISH)
    personal = without_id(ranking(phone, SURFACE))
    settings.call("Consent/SetOwner", pb.SetOwnerRequest(age=pb.AGE_CLASS_ADULT, personal_off=True))
    assert without_id(ranking(phone, SURFACE)) == without_id(ranking(phone, MAPS))
    settings.call("Consent/SetOwner", pb.SetOwnerRequest(age=pb.AGE_CLASS_ADULT))
    assert without_id(ranking(phone, SURFACE)) == personal


def test_feedback_becomes_a_choice_of_the_calling_app_where_it_is_wanted(phone: object) -> None:
    adult(phone)
    maps, system = phone.app(MAPS), phone.app(SYSTEM)
    first = ranking(phone, MAPS)
    answer = pb.FeedbackRequest(ranking_id=first.ranking_id, item=first.items[3].item)
    maps.call("Recommend/Feedback", answer)
    assert system.call("Runtime/Status").signals == 0
    phone.app(SETTINGS).call("Consent/Set", grant(MAPS, MAPS))
    maps.call("Recommend/Feedback", answer)
    maps.call("Recommend/Feedback", answer)
    assert system.call("Runtime/Status").signals == 1
    assert without_id(ranking(phone, MAPS)) != without_id(first)
    for request, code in (
        (pb.FeedbackRequest(ranking_id=first.ranking_id, item="restaurant:nowhere"), "INVALID_ARGUMENT"),
        (pb.FeedbackRequest(ranking_id=bytes(16), item=first.items[0].item), "NOT_FOUND"),
        (pb.FeedbackRequest(ranking_id=b"short", item=first.items[0].item), "INVALID_ARGUMENT"),
    ):
        with pytest.raises(phones.Refused) as refused:
            maps.call("Recommend/Feedback", request)
        assert refused.value.code == code
    with pytest.raises(phones.Refused, match="NOT_FOUND"):
        phone.app(SURFACE).call("Recommend/Feedback", answer)  # another app's ranking


def test_every_method_is_open_to_its_role_alone(phone: object) -> None:
    methods = importlib.import_module("fedlearn_client.services.methods")
    for app, (uid, role) in phones.UIDS.items():
        if app in {READING, "org.city.shopping"}:
            continue
        assert uid
        for path, method in methods.METHODS.items():
            if role in method.roles:
                continue
            with pytest.raises(phones.Refused, match="FL901") as refused:
                phone.app(app).call(path.removeprefix("/fedlearn.device.v1."))
            assert refused.value.code == "PERMISSION_DENIED"
    stranger = phone.app("stranger", phones.STRANGER)
    for path in methods.METHODS:
        with pytest.raises(phones.Refused, match="uid 21999 is not a known caller"):
            stranger.call(path.removeprefix("/fedlearn.device.v1."))
    with pytest.raises(phones.Refused, match="UNIMPLEMENTED"):
        stranger.call("Signals/Steal", reply=pb.PushReply)


def test_a_watcher_sees_the_present_state_and_each_change(phone: object) -> None:
    settings = phone.app(SETTINGS)
    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(settings.send, "watch", "Consent/Watch", b"2")
        time.sleep(0.5)
        other = phones.App(phones.UIDS[SETTINGS][0], f"unix:{phone.socket}")
        other.call("Consent/SetOwner", pb.SetOwnerRequest(age=pb.AGE_CLASS_ADULT))
        other.close()
        answer = json.loads(watching.result(30))
    states = [pb.ListReply.FromString(bytes.fromhex(one)) for one in answer["replies"]]
    assert [one.age for one in states] == [pb.AGE_CLASS_UNKNOWN, pb.AGE_CLASS_ADULT]
    assert {one.blocked for one in states[0].grants} == {"minor"}


def test_what_is_installed_and_granted_outlives_the_daemon(phone: object) -> None:
    register(phone)
    adult(phone)
    phone.app(SETTINGS).call("Consent/Set", grant(CHAT, SURFACE))
    push(phone, WISH)
    before = phone.app(SYSTEM).call("Runtime/Status")
    personal = without_id(ranking(phone, SURFACE))
    phone.kill()
    phone.start()
    after = phone.app(SYSTEM).call("Runtime/Status")
    assert (after.bundles, after.catalogue, after.signals, after.status_version) == (
        before.bundles,
        before.catalogue,
        1,
        1,
    )
    assert without_id(ranking(phone, SURFACE)) == personal


def test_a_revoked_bundle_ranks_no_more_and_a_lower_status_is_refused(phone: object) -> None:
    system = phone.app(SYSTEM)
    digest = system.call("Runtime/Status").bundles[0].digest
    system.call("Runtime/UpdateStatus", pb.UpdateStatusRequest(envelope=town.signed_status(3, NOW, revoked=[digest])))
    with pytest.raises(phones.Refused, match="FL803") as refused:
        ranking(phone, MAPS)
    assert refused.value.code == "FAILED_PRECONDITION"
    for envelope in (town.signed_status(2, NOW), town.signed_status(3, NOW), b"{}", b""):
        with pytest.raises(phones.Refused, match="FL80") as refused:
            system.call("Runtime/UpdateStatus", pb.UpdateStatusRequest(envelope=envelope))
        assert refused.value.code == "FAILED_PRECONDITION"
    phone.kill()
    phone.start()
    with pytest.raises(phones.Refused, match="FL803"):
        ranking(phone, MAPS)
    with pytest.raises(phones.Refused, match="FL803"):
        system.call("Runtime/Install", pb.InstallRequest(task_bundle=bundle()))


def test_bad_installations_change_nothing(phone: object) -> None:
    system = phone.app(SYSTEM)
    before = system.call("Runtime/Status")
    good = town.signed_bundle(now=NOW)
    changed = bytearray(good)
    changed[len(changed) // 2] ^= 1
    stranger = town.Key()
    for request in (
        pb.InstallRequest(task_bundle=bytes(changed)),
        pb.InstallRequest(task_bundle=good[:-1]),
        pb.InstallRequest(task_bundle=b""),
        pb.InstallRequest(task_bundle=town.signed_bundle(now=NOW, signers=town.approvers()[:1])),
        pb.InstallRequest(task_bundle=town.signed_bundle(now=NOW, days=-1)),
        pb.InstallRequest(catalogue_bundle=town.signed_catalogue(now=NOW, signers=[stranger])),
        pb.InstallRequest(catalogue_bundle=good),
    ):
        with pytest.raises(phones.Refused, match="FL80") as refused:
            system.call("Runtime/Install", request)
        assert refused.value.code == "FAILED_PRECONDITION"
    with pytest.raises(phones.Refused, match="INVALID_ARGUMENT"):
        system.call("Runtime/Install", pb.InstallRequest())
    assert system.call("Runtime/Status") == before


def test_nothing_that_was_said_reaches_logs_or_the_disk(phone: object) -> None:
    register(phone)
    adult(phone)
    phone.app(SETTINGS).call("Consent/Set", grant(CHAT, SURFACE))
    push(phone, said(f"{CANARY} 麻辣火锅", "canary"))
    with pytest.raises(phones.Refused) as refused:  # a refused one, too
        push(phone, said(f"{CANARY} 烤鸭", "x" * 65))
    assert CANARY not in str(refused.value)
    with pytest.raises(phones.Refused) as refused:
        phone.app(CHAT).call("Signals/Push", b"\xff" + CANARY.encode())
    assert refused.value.code == "INVALID_ARGUMENT"
    assert CANARY not in str(refused.value)
    phone.stop()
    files = [one for one in phone.folder.rglob("*") if one.is_file()]
    assert len(files) > 3
    for path in files:
        assert CANARY.encode() not in path.read_bytes(), path


def test_what_is_loaded_and_how_much_memory_it_takes(phone: object, capsys: pytest.CaptureFixture[str]) -> None:
    """Serves every method once; prints what it takes, and asserts what may never be loaded."""
    register(phone)
    adult(phone)
    settings, system = phone.app(SETTINGS), phone.app(SYSTEM)
    settings.call("Consent/Set", grant(CHAT, SURFACE))
    settings.call("Consent/Set", grant(CHAT, town.OPERATOR, purpose=town.TRAIN))
    push(phone, WISH)
    got = ranking(phone, SURFACE)
    phone.app(SURFACE).call("Recommend/Feedback", pb.FeedbackRequest(ranking_id=got.ranking_id, item=got.items[0].item))
    phone.app(CHAT).call("Signals/Restrict", pb.RestrictRequest(stream="messages", purposes=[town.TRAIN]))
    for method in ("Consent/List", "Audit/Runs", "Audit/Budget", "Audit/Egress", "Audit/Receipts"):
        settings.call(method)
    json.loads(settings.send("watch", "Consent/Watch", b"1"))
    for method in ("Runtime/Status", "Runtime/Conditions", "Runtime/Pause"):
        system.call(method)
    outcome = system.call("Runtime/TrainNow", pb.TrainNowRequest(purpose=town.TRAIN)).outcome
    assert outcome.startswith("refused")
    phone.app(CHAT).call("Signals/Purge", pb.PurgeRequest(stream="messages"))
    said_at_the_end = phone.stop()
    assert said_at_the_end["forbidden"] == []
    with capsys.disabled():
        sys.stdout.write(f"\ndaemon after every method: {said_at_the_end['kib']} KiB\n")

"""Three keys: every one of them alone keeps the data out of exactly the use it is missing for."""

from __future__ import annotations

import importlib.util
import sys
import threading
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import ModuleType

import pytest

from fedlearn.errors import ConsentRefused
from fedlearn.policy.document import PurposeKind, RecipientKind
from fedlearn_client.consent import Age, Consent


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


world = _load("store_world")
NOW, CHAT, CHOICE, SOURCES, USES = world.NOW, world.CHAT, world.CHOICE, world.SOURCES, world.USES
RANK, MAPS, TRAIN = USES


@pytest.fixture
def phone(tmp_path: Path):
    phone = world.open_phone(tmp_path)
    for app, _ in SOURCES:
        phone.stream(app)
    yield phone
    phone.close()


def _apps(phone, use: tuple[str, str]) -> list[str]:
    return [stream.app for stream in phone.consent.effective(*use)]


def _switch(phone, app: str, use: tuple[str, str]):
    return next(one for one in phone.consent.switches() if (one.app, one.purpose, one.recipient) == (app, *use))


def test_everything_is_off_at_first(phone) -> None:
    switches = phone.consent.switches()
    assert [(one.app, one.data_type, one.purpose, one.recipient) for one in switches] == [
        (app, kind, *use) for app, kind in SOURCES for use in USES
    ]
    assert {(one.on, one.text_version, one.time, one.blocked) for one in switches} == {(False, 0, 0.0, "")}
    assert {one.text for one in switches} == {"Suggest restaurants.", "Improve suggestions."}
    assert not any(phone.consent.has_any(*use) for use in USES)
    assert not any(phone.consent.wanted(*source) for source in SOURCES)


def test_a_grant_is_for_exactly_one_use(phone) -> None:
    phone.grant("chat", CHAT, *MAPS)
    assert _apps(phone, MAPS) == ["chat"]
    assert _apps(phone, RANK) == _apps(phone, TRAIN) == []
    assert phone.consent.effective("rank", "operator") == phone.consent.effective("nothing", "maps") == []
    assert phone.consent.wanted("chat", CHAT)
    assert not phone.consent.wanted("chat", CHOICE)
    assert not phone.consent.wanted("maps", CHOICE)
    one = _switch(phone, "chat", MAPS)
    assert (one.on, one.text_version, one.time, one.blocked) == (True, 1, NOW, "")


def test_message_content_is_a_grant_of_its_own(phone) -> None:
    """One app with two data types: neither grant gives the other."""
    phone.policy = world.replace(
        phone.policy, sources=(*phone.policy.sources, world.replace(phone.policy.sources[1], app="chat"))
    )
    phone.streams.register("chat", "choices", CHOICE)
    phone.grant("chat", CHOICE, *RANK)
    assert [(one.app, one.data_type) for one in phone.consent.effective(*RANK)] == [("chat", CHOICE)]
    assert not phone.consent.wanted("chat", CHAT)
    assert not phone.consent.admits(phone.stream("chat"))


def test_grants_survive_a_restart(phone, tmp_path: Path) -> None:
    phone.grant("chat", CHAT, *RANK)
    before = phone.consent.effective(*RANK)
    phone.close()
    again = world.open_phone(tmp_path, adult=False)
    assert again.consent.effective(*RANK) == before
    again.close()


@pytest.mark.parametrize(
    ("use", "version", "words"),
    [
        (("chat", CHOICE, "rank", "surface"), 1, "lists no such use"),
        (("nobody", CHAT, "rank", "surface"), 1, "lists no such use"),
        (("chat", CHAT, "rank", "operator"), 1, "lists no such use"),
        (("chat", CHAT, "train", "surface"), 1, "lists no such use"),
        (("chat", CHAT, "other", "surface"), 1, "lists no such use"),
        (("chat", CHAT, "rank", "surface"), 0, "text_version=0"),
        (("chat", CHAT, "rank", "surface"), 2, "text_version=2"),
    ],
)
def test_what_is_not_on_the_screen_cannot_be_granted(phone, use, version: int, words: str) -> None:
    with pytest.raises(ConsentRefused, match=words):
        phone.consent.set(*use, True, version)
    assert phone.database.rows("SELECT count(*) FROM grants") == [(0,)]


def test_no_policy_no_consent(phone) -> None:
    phone.grant_all()
    phone.policy = None
    assert not any(phone.consent.has_any(*use) for use in USES)
    assert phone.consent.switches() == []
    with pytest.raises(ConsentRefused, match="lists no such"):
        phone.consent.set("chat", CHAT, *RANK, True, 1)
    phone.policy = world.make_policy()
    assert _apps(phone, RANK) == ["chat", "dining", "maps"]


def test_nothing_is_granted_before_something_can_destroy(phone) -> None:
    bare = Consent(phone.database, phone.streams, lambda: phone.policy, phone.clock, stopped=lambda: False)
    for on in (True, False):
        with pytest.raises(ConsentRefused, match="destroy"):
            bare.set("chat", CHAT, *RANK, on, 1)


@pytest.mark.parametrize("age", [Age.UNKNOWN, Age.MINOR])
def test_only_adults(tmp_path: Path, age: Age) -> None:
    phone = world.open_phone(tmp_path, adult=False)
    phone.stream("chat")
    if age is Age.MINOR:
        phone.consent.set_owner(Age.MINOR, False)
    assert phone.consent.owner().age is age
    assert {one.blocked for one in phone.consent.switches()} == {"minor"}
    with pytest.raises(ConsentRefused, match="minor or of unknown age"):
        phone.grant("chat", CHAT, *RANK)
    phone.consent.set_owner(Age.ADULT, False)
    phone.grant("chat", CHAT, *RANK)
    assert _apps(phone, RANK) == ["chat"]
    phone.consent.set_owner(age, False)
    assert _apps(phone, RANK) == []
    assert not phone.consent.wanted("chat", CHAT)
    phone.consent.set_owner(Age.ADULT, False)
    assert _apps(phone, RANK) == [], "a grant came back that nobody gave again"
    phone.close()


def test_disputed_is_refused_and_ends_the_use(phone) -> None:
    phone.grant_all()
    phone.policy = world.make_policy(disputed=["chat"])
    assert _apps(phone, RANK) == ["dining", "maps"]
    assert not phone.consent.wanted("chat", CHAT)
    assert _switch(phone, "chat", RANK).blocked == "disputed"
    with pytest.raises(ConsentRefused, match="claims"):
        phone.grant("chat", CHAT, *RANK)


def test_changed_words_void_a_grant(phone) -> None:
    phone.grant_all()
    phone.policy = world.make_policy(version=2)
    assert _apps(phone, RANK) == []
    one = _switch(phone, "chat", RANK)
    assert (one.on, one.text_version, one.current_text_version, one.blocked) == (True, 1, 2, "text_changed")
    phone.grant("chat", CHAT, *RANK)
    assert _apps(phone, RANK) == ["chat"]
    phone.policy = world.make_policy(version=1)  # the old words again are not those agreed to last
    assert _apps(phone, RANK) == ["dining", "maps"]


@pytest.mark.parametrize(
    ("field", "position", "change"),
    [
        ("purposes", 0, {"text": "Sell everything to anybody."}),
        ("purposes", 0, {"kind": PurposeKind.TRAIN}),
        ("recipients", 0, {"name": "Somebody Else"}),
        ("recipients", 0, {"kind": RecipientKind.APP}),
        ("recipients", 0, {"task_key": "ab" * 32}),
        ("sources", 0, {"owner": "Somebody Else"}),
    ],
)
def test_a_grant_is_for_what_was_agreed_to_whatever_number_the_words_have(phone, field, position, change) -> None:
    phone.grant_all()
    entries = list(getattr(phone.policy, field))
    entries[position] = replace(entries[position], **change)
    asked = phone.policy
    phone.policy = replace(asked, version=2, **{field: tuple(entries)})
    assert "chat" not in _apps(phone, RANK)
    assert _switch(phone, "chat", RANK).blocked == "text_changed"
    phone.grant("chat", CHAT, *RANK)
    assert "chat" in _apps(phone, RANK)
    phone.policy = asked  # the last agreement was another
    assert "chat" not in _apps(phone, RANK)


def test_other_changes_of_a_policy_void_nothing(phone) -> None:
    phone.grant_all()
    device = replace(phone.policy.device, epsilon=1.0)
    phone.policy = replace(phone.policy, version=2, name="renamed", device=device, expires="2034-01-01T00:00:00Z")
    assert _apps(phone, RANK) == ["chat", "dining", "maps"]


def test_a_use_that_is_no_longer_listed_is_over_for_good(phone) -> None:
    phone.grant_all()
    phone.signals.add(phone.stream("chat"), [world.new_signal("a", phone.clock.now() - 1, b"said")])
    listed = phone.policy
    without = replace(listed, version=2, sources=tuple(one for one in listed.sources if one.app != "chat"))
    phone.policy = None  # nothing in force: nothing is known to be unlisted
    assert phone.consent.policy_changed() == []
    phone.policy = without
    receipts = phone.consent.policy_changed()
    assert len(receipts) == 3, "of each use of the source"
    assert phone.database.rows("SELECT count(*) FROM signals") == [(0,)]
    assert phone.consent.policy_changed() == []
    phone.policy = replace(listed, version=3)
    assert phone.consent.policy_changed() == []
    assert _apps(phone, RANK) == ["dining", "maps"]
    assert not _switch(phone, "chat", RANK).on


def test_under_a_stopped_policy_nothing_is_used_kept_or_granted_and_grants_stay(phone) -> None:
    phone.grant("chat", CHAT, *RANK)
    phone.stopped = True
    assert _apps(phone, RANK) == []
    assert not phone.consent.wanted("chat", CHAT)
    assert not phone.consent.admits(phone.stream("chat"))
    assert {one.blocked for one in phone.consent.switches()} == {"stopped"}
    for use in (RANK, TRAIN):
        with pytest.raises(ConsentRefused, match="status stopped or revoked"):
            phone.grant("chat", CHAT, *use)
    assert phone.consent.has_any(*RANK), "so that a newer status is asked for"
    assert not phone.consent.has_any(*TRAIN)
    assert phone.consent.needed(phone.stream("chat")), "it may be used again: nothing is destroyed"
    assert phone.consent.policy_changed() == []
    phone.stopped = False
    assert _apps(phone, RANK) == ["chat"]
    phone.stopped = True
    assert phone.consent.set("chat", CHAT, *RANK, False, 0) is not None, "what was granted can be taken back"


def test_saying_the_same_again_is_no_change(phone) -> None:
    phone.streams.restrict("chat", "main", ["train", "rank"])
    before = phone.consent.generation
    phone.streams.restrict("chat", "main", ["rank", "train"])
    phone.streams.register("chat", "main", CHAT)
    assert phone.consent.generation == before
    phone.streams.restrict("chat", "main", [])
    assert phone.consent.generation > before


def test_policy_expires(phone) -> None:
    phone.policy = world.make_policy(expires="2026-09-22T00:00:00Z")
    phone.grant_all()
    assert _apps(phone, RANK)
    phone.clock.advance(10 * 86_400)
    assert _apps(phone, RANK) == []
    assert {one.blocked for one in phone.consent.switches()} == {"expired"}
    assert not phone.consent.wanted("chat", CHAT)
    with pytest.raises(ConsentRefused, match="newer"):
        phone.grant("chat", CHAT, *RANK)


def test_registration_and_restriction_are_the_apps_key(tmp_path: Path) -> None:
    phone = world.open_phone(tmp_path)
    phone.grant("chat", CHAT, *RANK)
    phone.grant("chat", CHAT, *TRAIN)
    assert _switch(phone, "chat", RANK).blocked == "not_registered"
    assert not phone.consent.wanted("chat", CHAT)
    one, two = phone.stream("chat", name="one"), phone.stream("chat", name="two")
    assert phone.consent.effective(*RANK) == [one, two]
    phone.streams.restrict("chat", "one", ["train"])
    assert [each.name for each in phone.consent.effective(*RANK)] == ["one", "two"]
    assert [each.name for each in phone.consent.effective(*TRAIN)] == ["two"]
    assert _switch(phone, "chat", TRAIN).blocked == ""
    phone.streams.restrict("chat", "two", ["*"])
    assert [each.name for each in phone.consent.effective(*RANK)] == ["one"]
    assert _switch(phone, "chat", TRAIN).blocked == "restricted"
    assert phone.consent.admits(phone.streams.find("chat", "one"))
    assert not phone.consent.admits(phone.streams.find("chat", "two"))
    assert phone.consent.admits(one), "read before a restriction that leaves it something to serve"
    phone.withdrawals.purge(one)
    assert not phone.consent.admits(one), "read before its data was destroyed"
    phone.close()


def test_the_off_switch_ends_every_use_and_no_grant(phone) -> None:
    phone.grant_all()
    phone.consent.set_owner(Age.ADULT, True)
    assert not any(phone.consent.has_any(*use) for use in USES)
    assert not any(phone.consent.wanted(*source) for source in SOURCES)
    assert phone.consent.needed(phone.stream("chat"))
    phone.consent.set_owner(Age.ADULT, False)
    assert all(phone.consent.has_any(*use) for use in USES)


def test_every_change_moves_the_generation(phone) -> None:
    changes = [
        lambda: phone.grant("chat", CHAT, *RANK),
        lambda: phone.consent.set("chat", CHAT, *RANK, False, 0),
        lambda: phone.consent.set_owner(Age.ADULT, True),
        lambda: phone.stream("chat", name="another"),
        lambda: phone.streams.restrict("chat", "main", ["train"]),
        lambda: phone.withdrawals.purge(phone.stream("chat")),
        phone.consent.policy_changed,
    ]
    for number, change in enumerate(changes):
        before = phone.consent.generation
        change()
        assert phone.consent.generation > before, number
    before = phone.consent.generation
    phone.consent.switches(), phone.consent.effective(*RANK), phone.consent.wanted("chat", CHAT)
    assert phone.consent.generation == before
    phone.policy = world.make_policy(version=2)
    phone.consent.effective(*RANK)
    assert phone.consent.generation > before, "a policy that was exchanged without a word"


def test_watchers_wake(phone) -> None:
    seen = phone.consent.generation
    assert phone.consent.wait(seen, 0.0) == seen
    woken: list[int] = []
    thread = threading.Thread(target=lambda: woken.append(phone.consent.wait(seen, 30)))
    thread.start()
    phone.grant("chat", CHAT, *RANK)
    thread.join(30)
    assert woken
    assert woken[0] > seen


def test_a_change_that_was_undone_left_nothing_behind(phone) -> None:
    phone.grant("chat", CHAT, *RANK)

    def undone() -> None:
        with phone.database.transaction() as connection:
            connection.execute("UPDATE grants SET is_on = 0")
            phone.consent.changed()
            assert _apps(phone, RANK) == []
            raise KeyError

    with pytest.raises(KeyError):
        undone()
    assert _apps(phone, RANK) == ["chat"]


def test_grid_of_four_switches(tmp_path: Path) -> None:
    """All 2^4 sets of grants, reached in an order in which each is a change of the one before."""
    phone = world.open_phone(tmp_path)
    grid = [("chat", CHAT, *RANK), ("chat", CHAT, *TRAIN), ("dining", CHOICE, *RANK), ("maps", CHOICE, *MAPS)]
    for app, _ in SOURCES:
        phone.stream(app)
    for on in product([False, True], repeat=len(grid)):
        for use, wanted in zip(grid, on, strict=True):
            phone.consent.set(*use, wanted, 1)
        for pair in USES:
            expected = [use[0] for use, wanted in zip(grid, on, strict=True) if wanted and use[2:] == pair]
            assert _apps(phone, pair) == expected
            assert phone.consent.has_any(*pair) == bool(expected)
        for app, kind in SOURCES:
            assert phone.consent.wanted(app, kind) == any(
                wanted and use[:2] == (app, kind) for use, wanted in zip(grid, on, strict=True)
            )
    phone.close()

"""A phone notices when the operator's ledger became shorter, another, or silent, and trains for nobody on top of it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedlearn.errors import Refusal, StoreFailed, TaskRefused
from fedlearn.ledger.checkpoint import LedgerCheckpoint
from fedlearn.ledger.signing import SigningKey
from fedlearn_client.fakes import FakeAuditSink, FakeKeyStore
from fedlearn_client.hooks import Method
from fedlearn_client.pins import MOST_ANCHORED, LedgerPins
from fedlearn_client.shared_anchor import MAX_PINS_BYTES, SharedAnchor

_spec = importlib.util.spec_from_file_location("uplink_town", Path(__file__).with_name("uplink_town.py"))
assert _spec is not None
assert _spec.loader is not None
uplink_town: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(uplink_town)
town = uplink_town.town

LEDGER, OTHER = "ab" * 16, "cd" * 16
REFUSED = f"refused: {Refusal.LEDGER}"


def checkpoint(length: int, head: str = "", ledger_id: str = LEDGER, time: float = 5.5, key: Any = None) -> bytes:
    """The operator's; the hash is one of its own for each length unless given."""
    made = LedgerCheckpoint.signed(key or town.operator_key(), ledger_id, length, head or f"{length:064x}", time)
    return made.to_json().encode()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    made: list[Any] = []

    def phone(**options: Any) -> Any:
        made.append(uplink_town.Phone(tmp_path / str(len(made)), **options))
        return made[-1]

    yield phone
    for one in made:
        one.store.close()


@pytest.fixture
def phone(make: Callable[..., Any]) -> Any:
    """A phone that took part on top of a ledger of ten entries."""
    made = make()
    made.gateway.checkpoint = checkpoint(10)
    assert made.run() == "acknowledged"
    made.gateway.advance(10)
    return made


def kinds(phone: Any) -> list[str]:
    return [event.kind for event in phone.audit.events]


def wiped(phone: Any) -> None:
    """A store that is gone, beside a KeyStore that is not: install and grant again."""
    phone.store.close()
    for path in phone.directory.iterdir():
        path.unlink()
    phone._begin()
    phone.installed.install_bundle(uplink_town._bundle(phone.plan, None))
    with uplink_town._checked_once():
        phone.installed.install_catalogue(uplink_town._catalogue(), lambda _: None)
    phone.installed.update_status(town.signed_status())
    phone.streams.register(town.READING, "shelf", uplink_town.DataType.CHOICE)
    phone.consent.set_owner(uplink_town.Age.ADULT, personal_off=False)
    phone.grant()


# -- what is refused ---------------------------------------------------------------------------------------------------

STRANGER = SigningKey.fresh()
BAD = {
    "shorter": checkpoint(9),
    "same length, other hash": checkpoint(10, head="f" * 64),
    "another ledger": checkpoint(11, ledger_id=OTHER),
    "of somebody else": checkpoint(11, key=STRANGER),
    "none": b"",
    "no checkpoint": b"checkpoint",
    "altered": checkpoint(11).replace(b'"length":11', b'"length":12'),
    "too long": checkpoint(11) + b" " * 5000,
    "not text": b"\xff\xfe",
}


@pytest.mark.parametrize("kind", BAD)
def test_a_ledger_that_went_back_or_elsewhere_is_refused_before_training(phone: Any, kind: str) -> None:
    before, anchor = len(phone.gateway.requests), phone.keystore.read_anchor()
    phone.gateway.checkpoint = BAD[kind]
    assert phone.run() == REFUSED
    assert phone.methods()[before:] == ["CheckIn"], "no weights, no upload"
    assert phone.participated() == [0]
    assert len(phone.workers.requests) == 1
    assert phone.outcomes()[-1] == REFUSED
    assert phone.keystore.read_anchor() == anchor, "the pin stays"
    phone.restart()
    assert phone.run() == REFUSED
    phone.gateway.checkpoint = checkpoint(10)
    assert phone.run() == "acknowledged"  # the ledger itself is good as ever


@pytest.mark.parametrize("kind", BAD)
def test_both_checkpoints_are_kept_for_the_audit(phone: Any, kind: str) -> None:
    bundle = phone.installed.bundle_for(town.TRAIN)
    assert phone.pins.conflict(bundle) is None
    phone.gateway.checkpoint = BAD[kind]
    phone.run()
    event = next(one for one in phone.audit.events if one.kind == "ledger_refused")
    phone.gateway.checkpoint = checkpoint(3)
    phone.run()
    phone.restart()
    kept = phone.pins.conflict(bundle)
    assert kept == dict(event.fields), "the first one stays"
    assert kept["pinned"].encode() == checkpoint(10)
    if kind in {"shorter", "same length, other hash"}:
        pinned, offered = (LedgerCheckpoint.from_json(kept[name]) for name in ("pinned", "offered"))
        assert all(one.is_signed_by(town.operator_key().public) for one in (pinned, offered)), "a proof to anybody"


@pytest.mark.parametrize("kind", ["of somebody else", "altered", "no checkpoint"])
def test_the_first_checkpoint_must_be_the_operators_too(make: Callable[..., Any], kind: str) -> None:
    phone = make()
    phone.gateway.checkpoint = BAD[kind]
    assert phone.run() == REFUSED
    assert phone.participated() == []
    phone.gateway.checkpoint = b""
    assert phone.run() == "acknowledged", "nothing was pinned"


# -- what is pinned ----------------------------------------------------------------------------------------------------


def test_a_ledger_that_grows_is_followed(phone: Any) -> None:
    for length in (10, 11, 500):
        phone.gateway.checkpoint = checkpoint(length)
        assert phone.run() == "acknowledged"
        phone.gateway.advance(10)
    for length in (10, 499):
        phone.gateway.checkpoint = checkpoint(length)
        assert phone.run() == REFUSED
    assert kinds(phone).count("ledger_pinned") == 1


def test_it_is_pinned_before_anything_is_fetched(make: Callable[..., Any]) -> None:
    phone = make()
    phone.gateway.checkpoint = checkpoint(10)
    seen: list[bytes] = []
    phone.gateway.on_call = lambda method: seen.append(phone.keystore.read_anchor()) if method is Method.FETCH else None
    phone.run()
    assert f"{10:064x}" in seen[0].decode()


def test_a_pin_that_cannot_be_written_ends_the_round(make: Callable[..., Any]) -> None:
    phone = make()
    phone.gateway.checkpoint = checkpoint(10)
    write = phone.keystore.write_anchor

    def fail(_: bytes) -> None:
        raise StoreFailed("no power")

    phone.keystore.write_anchor = fail
    assert phone.run() == "abandoned: store"
    assert phone.methods() == ["CheckIn"]
    phone.keystore.write_anchor = write
    assert phone.run() == "acknowledged"
    assert f"{10:064x}" in phone.keystore.read_anchor().decode()


def test_the_acknowledgements_checkpoint_is_pinned_too(phone: Any) -> None:
    phone.gateway.checkpoint = checkpoint(20)
    phone.gateway.on_call = lambda method: (
        setattr(phone.gateway, "checkpoint", checkpoint(23)) if method is Method.UPLOAD else None
    )
    assert phone.run() == "acknowledged"
    phone.gateway.on_call = lambda _: None
    phone.gateway.advance(10)
    phone.gateway.checkpoint = checkpoint(22)
    assert phone.run() == REFUSED


def test_a_bad_checkpoint_with_an_acknowledgement_is_kept_and_changes_nothing(phone: Any) -> None:
    phone.gateway.on_call = lambda method: (
        setattr(phone.gateway, "checkpoint", checkpoint(4)) if method is Method.UPLOAD else None
    )
    assert phone.run() == "acknowledged"
    assert phone.outcomes()[-1] == "acknowledged"
    assert kinds(phone)[-3:] == ["ledger_refused", "ledger_not_pinned", "round"]
    assert phone.pins.conflict(phone.installed.bundle_for(town.TRAIN)) is not None


def test_another_ledger_may_begin_under_a_later_policy(phone: Any) -> None:
    bundle = phone.installed.bundle_for(town.TRAIN)
    policy = bundle.verified.policy
    later = dataclasses.replace(policy, version=policy.version + 1)
    newer = dataclasses.replace(bundle, verified=dataclasses.replace(bundle.verified, policy=later))
    phone.pins.require(checkpoint(1, ledger_id=OTHER), newer)
    with pytest.raises(TaskRefused, match="another ledger"):
        phone.pins.require(checkpoint(99), newer)


def test_seeing_the_ledger_under_a_later_policy_binds_it_there(phone: Any) -> None:
    bundle = phone.installed.bundle_for(town.TRAIN)
    policy = bundle.verified.policy
    later = dataclasses.replace(policy, version=policy.version + 1)
    newer = dataclasses.replace(bundle, verified=dataclasses.replace(bundle.verified, policy=later))
    phone.pins.require(checkpoint(10), newer)
    with pytest.raises(TaskRefused, match="another ledger"):
        phone.pins.require(checkpoint(1, ledger_id=OTHER), newer)


# -- a wiped store, a lost anchor --------------------------------------------------------------------------------------


def test_a_wiped_store_does_not_take_the_pin_back(phone: Any) -> None:
    wiped(phone)
    assert "ledger_pins_restored" in kinds(phone)
    phone.gateway.checkpoint = checkpoint(9)
    assert phone.run() == REFUSED
    kept = phone.pins.conflict(phone.installed.bundle_for(town.TRAIN))
    assert json.loads(kept["pinned"])["length"] == 10  # without its signature: the anchor has no room for it
    phone.gateway.checkpoint = checkpoint(10)
    phone.gateway.advance(100)
    assert phone.run() != REFUSED


def test_a_lost_anchor_does_not_take_the_pin_back(phone: Any) -> None:
    phone.keystore._anchor = None
    phone.restart()
    phone.gateway.checkpoint = checkpoint(9)
    assert phone.run() == REFUSED


def test_both_lost_is_a_new_phone(phone: Any) -> None:
    phone.keystore._anchor = None
    wiped(phone)
    phone.gateway.checkpoint = checkpoint(3)
    phone.run()
    assert kinds(phone).count("ledger_pinned") == 2  # it says so: pinned for the first time


@pytest.mark.parametrize("damaged", [b"{", b'{"pins":{"a":[1,2]},"version":1}', b'{"version":1}', b"[]"])
def test_damaged_pins_in_the_anchor_are_told_and_those_of_the_store_stand(phone: Any, damaged: bytes) -> None:
    history = phone.keystore.read_anchor().partition(b"\n")[0]
    phone.keystore.write_anchor(history + b"\n" + damaged)
    phone.restart()
    event = next(one for one in phone.audit.events if one.kind == "ledger_pins_damaged")
    assert dict(event.fields) == {"where": "keystore", "left": 1}
    assert not phone.participations.spent().history_lost, "the other half is whole"
    phone.gateway.checkpoint = checkpoint(9)
    assert phone.run() == REFUSED


def test_pins_of_a_newer_runtime_stop_this_one(phone: Any) -> None:
    history = phone.keystore.read_anchor().partition(b"\n")[0]
    phone.keystore.write_anchor(history + b'\n{"pins":{},"version":2}')
    with pytest.raises(StoreFailed, match="newer version"):
        LedgerPins(phone.facts, SharedAnchor(phone.keystore).pins, FakeAuditSink())


# -- the anchor's two tenants ------------------------------------------------------------------------------------------


def test_two_tenants_of_one_anchor() -> None:
    keystore = FakeKeyStore()
    anchor = SharedAnchor(keystore)
    assert anchor.history.read_anchor() is None
    assert anchor.pins.read_anchor() is None
    anchor.history.write_anchor(b"{history}")
    assert keystore.read_anchor() == b"{history}", "as it always was, while nothing is pinned"
    anchor.pins.write_anchor(b"{pins}")
    anchor.history.write_anchor(b"{later}")
    assert (anchor.history.read_anchor(), anchor.pins.read_anchor()) == (b"{later}", b"{pins}")
    assert keystore.read_anchor() == b"{later}\n{pins}"
    with pytest.raises(StoreFailed, match="pins"):
        anchor.pins.write_anchor(bytes(MAX_PINS_BYTES + 1))


def test_the_most_pins_fit_beside_the_longest_history(phone: Any) -> None:
    from fedlearn_client import anchor as anchors

    bundle = phone.installed.bundle_for(town.TRAIN)
    for number in range(2 * MOST_ANCHORED):
        plan = dataclasses.replace(bundle.plan, population=f"city-{number}")
        phone.pins.require(checkpoint(2**53 - 1, time=1.8e9 + number + 1 / 3), dataclasses.replace(bundle, plan=plan))
    line = SharedAnchor(phone.keystore).pins.read_anchor()
    assert line is not None
    assert len(json.loads(line)["pins"]) == MOST_ANCHORED
    assert len(line) <= MAX_PINS_BYTES
    assert anchors.MAX_BYTES + 1 + MAX_PINS_BYTES <= 16 * 1024 + 1

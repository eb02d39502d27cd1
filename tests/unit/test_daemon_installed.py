"""What is installed: versions never go back, one policy is in force, nothing survives a failed check."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedlearn.errors import BundleRefused, SignatureRefused, StatusRefused, StoreFailed, TrustError
from fedlearn_client.fakes import FakeAuditSink, FakeClock, FakeKeyStore
from fedlearn_client.installed import Installed
from fedlearn_client.store.database import Database
from fedlearn_client.store.facts import Facts

_spec = importlib.util.spec_from_file_location("device_town", Path(__file__).with_name("device_town.py"))
assert _spec is not None
assert _spec.loader is not None
town: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(town)


def unused(_catalogue: bytes) -> None:
    """Stands for the worker, which would load the catalogue."""


class World:
    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock(town.NOW)
        self.keystore = FakeKeyStore()
        self.folder = folder
        self.audit = FakeAuditSink()
        self.open()

    def open(self) -> None:
        self.database = Database.open(self.folder, self.keystore, self.clock)
        self.installed = Installed(
            self.database, Facts(self.database), self.clock, self.audit, root_keys=[town.root_key().public]
        )
        self.installed.load()

    def restart(self) -> Installed:
        self.database.close()
        self.open()
        return self.installed

    def install(self, **changes: Any) -> None:
        self.installed.install_bundle(town.signed_bundle(**changes))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    (tmp_path / "state").mkdir(mode=0o700)
    made = World(tmp_path / "state")
    yield made
    made.database.close()


def test_everything_comes_back_after_a_restart(world: World) -> None:
    world.install()
    world.installed.install_catalogue(town.signed_catalogue(), unused)
    world.installed.update_status(town.signed_status(4))
    before = world.installed.snapshot()
    after = world.restart().snapshot()
    assert after.bundles == before.bundles
    assert after.catalogue is not None
    assert before.catalogue is not None
    assert after.catalogue.checked == before.catalogue.checked
    assert after.status == before.status
    assert world.installed.catalogue().catalogue_bytes.startswith(b"{")
    assert world.installed.policy() is world.installed.policy()
    assert world.installed.domain() == town.DOMAIN
    assert world.audit.events == []


def test_what_expires_is_not_used(world: World) -> None:
    world.install(days=10.0)
    world.installed.install_catalogue(town.signed_catalogue(days=5.0), unused)
    world.clock.advance(6 * town.DAY)
    assert world.installed.bundle_for(town.TRAIN) is not None
    with pytest.raises(BundleRefused, match="expired"):
        world.installed.catalogue()
    world.clock.advance(5 * town.DAY)
    assert (world.installed.policy(), world.installed.bundle_for(town.TRAIN)) == (None, None)
    with pytest.raises(BundleRefused):
        world.installed.ranker_for(town.RECOMMEND)
    assert world.restart().snapshot().bundles == ()
    assert [event.kind for event in world.audit.events] == ["bundle_left_out"]


def test_a_policy_never_goes_back_and_one_version_has_one_content(world: World) -> None:
    world.install(policy=town.city_policy(version=2))
    for policy in (town.city_policy(version=1), town.city_policy(version=2, retention_days=3)):
        with pytest.raises(BundleRefused, match=r"policy\.version"):
            world.install(policy=policy)
    world.restart()
    with pytest.raises(BundleRefused, match=r"policy\.version"):
        world.install(policy=town.city_policy(version=1))
    assert world.installed.policy() == town.city_policy(version=2)
    world.install(policy=town.city_policy(version=3))
    assert world.installed.policy() == town.city_policy(version=3)


def test_a_roster_never_goes_back(world: World) -> None:
    world.install(roster_version=3)
    with pytest.raises(SignatureRefused, match=r"roster\.version"):
        world.install(roster_version=2)
    world.restart()
    with pytest.raises(SignatureRefused, match=r"roster\.version"):
        world.install(roster_version=2)
    assert len(world.installed.bundles()) == 1


def test_a_policy_under_another_name_is_no_way_back(world: World) -> None:
    world.install(policy=town.city_policy(version=2))
    for version in (1, 2):
        with pytest.raises(BundleRefused, match=r"policy\.version"):
            world.install(policy=town.city_policy(version=version, name="city-old"))
    world.install(policy=town.city_policy(version=3, name="city-new"))
    assert world.installed.policy().name == "city-new"


def with_roster(**changes: Any) -> bytes:
    files = town.bundle_files()
    files["roster.dsse.json"] = town.signed_roster(2, **changes)
    return town.build_bundle(files, expires=town.NOW + 9 * town.DAY, signers=town.approvers()[:2])


def test_a_roster_version_has_one_content(world: World) -> None:
    world.install()
    world.installed.install_bundle(with_roster())
    for other in (with_roster(threshold=1), with_roster(status_keys=(town.Key().public,))):
        with pytest.raises(BundleRefused, match=r"roster\.version=2"):
            world.installed.install_bundle(other)
        with pytest.raises(BundleRefused, match=r"roster\.version=2"):
            world.restart().install_bundle(other)
    world.installed.install_bundle(with_roster())
    assert len(world.installed.bundles()) == 1


def test_a_catalogue_version_has_one_content(world: World) -> None:
    world.install()
    first = town.signed_catalogue(signers=town.approvers()[:2])
    world.installed.install_catalogue(first, unused)
    longer = town.signed_catalogue(days=70.0)
    items = town.build_catalogue_bundle(
        town.catalogue(2), version=1, expires=town.NOW + town.DAY, signers=town.approvers()[:2]
    )
    for other in (longer, items):
        with pytest.raises(BundleRefused, match=r"manifest\.version=1"):
            world.installed.install_catalogue(other, unused)
    more = town.signed_catalogue(signers=town.approvers())  # one more signature is no other content
    world.installed.install_catalogue(more, unused)
    assert world.restart().catalogue().checked.contents == world.installed.catalogue().checked.contents


def test_a_policy_that_a_status_names_is_stopped(world: World) -> None:
    world.install()
    digest = world.installed.bundles()[0].verified.digest
    world.installed.update_status(town.signed_status(1))
    world.clock.advance(2 * town.DAY)
    assert not world.installed.stopped(), "a stale status stops trainings alone"
    for version, named in ((2, {"stopped": [digest]}), (3, {"stopped": ["*"]}), (4, {"revoked": [digest]})):
        world.installed.update_status(town.signed_status(version, world.clock.now(), **named))
        assert world.installed.stopped()
        assert world.restart().stopped()
    world.clock.advance(2 * town.DAY)
    assert world.installed.stopped(), "however old it is"
    contents = world.installed.bundles()[0].contents
    world.installed.update_status(town.signed_status(5, world.clock.now(), stopped=[contents]))
    assert not world.installed.stopped(), "a stopped bundle stops its training and its ranking alone"


def test_a_status_never_goes_back_and_one_version_has_one_content(world: World) -> None:
    with pytest.raises(StatusRefused, match="install a task bundle first"):
        world.installed.update_status(town.signed_status())
    world.install()
    world.installed.update_status(town.signed_status(3))
    digest = world.installed.bundles()[0].plan_digest
    for restarted in (False, True):
        if restarted:
            world.restart()
        for envelope in (town.signed_status(2), town.signed_status(3, stopped=[digest])):
            with pytest.raises(StatusRefused, match=r"status\.version"):
                world.installed.update_status(envelope)
    with pytest.raises(StatusRefused, match="24 hours"):
        world.installed.update_status(town.signed_status(4, town.NOW - 2 * town.DAY))
    assert world.installed.status().version == 3


def test_a_stale_status_stops_what_it_names_and_nothing_else(world: World) -> None:
    world.install()
    bundle = world.installed.ranker_for(town.RECOMMEND)
    assert not world.installed.status_is_fresh()
    world.installed.update_status(town.signed_status(1, stopped=[bundle.contents]))
    with pytest.raises(StatusRefused, match="stopped or revoked"):
        world.installed.ranker_for(town.RECOMMEND)
    world.clock.advance(3 * town.DAY)
    with pytest.raises(StatusRefused):
        world.restart().ranker_for(town.RECOMMEND)
    assert not world.installed.status_is_fresh()
    world.installed.update_status(town.signed_status(2, world.clock.now()))
    assert world.installed.ranker_for(town.RECOMMEND)
    assert world.installed.status_is_fresh()
    world.installed.update_status(town.signed_status(3, world.clock.now(), stopped=["*"]))
    with pytest.raises(StatusRefused, match="everything"):
        world.installed.ranker_for(town.RECOMMEND)
    world.clock.advance(3 * town.DAY)
    world.installed.update_status(town.signed_status(4, world.clock.now()))
    assert world.installed.ranker_for(town.RECOMMEND)  # a stale status that names nothing stops no ranking


def test_a_new_status_key_frees_nothing_that_was_revoked(world: World) -> None:
    world.install()
    bundle = world.installed.ranker_for(town.RECOMMEND)
    world.installed.update_status(town.signed_status(1, revoked=[bundle.plan_digest]))
    roster = town.roster(2, status_keys=(town.Key().public,))
    files = town.bundle_files()
    files["roster.dsse.json"] = town.sign_envelope(town.ROSTER_TYPE, town.roster_bytes(roster), [town.root_key()])
    data = town.build_bundle(files, expires=town.NOW + town.DAY, signers=town.approvers()[:2])
    with pytest.raises(StatusRefused):
        world.installed.install_bundle(data)  # the same plan
    other = town.small_plan(name="another-run")
    files["plan.json"] = town.plan_bytes(other)
    world.installed.install_bundle(town.build_bundle(files, expires=town.NOW + town.DAY, signers=town.approvers()[:2]))
    for again in (lambda: world.installed, world.restart):
        installed = again()
        assert installed.status().revoked == (bundle.plan_digest,)
        assert not installed.status_is_fresh()
        with pytest.raises(StatusRefused):
            installed.install_bundle(data)
        assert installed.ranker_for(town.RECOMMEND).plan == other


def test_bundles_of_another_policy_rest(world: World) -> None:
    plan = town.small_plan()
    second = replace(plan, purpose="train-second", serves="")
    both = town.city_policy()
    purposes = (*both.purposes, replace(both.purposes[1], id="train-second"))
    sources = tuple(replace(one, purposes=(*one.purposes, "train-second")) for one in both.sources)
    wide = replace(both, version=2, purposes=purposes, sources=sources)
    world.install()
    world.install(plan=second, policy=wide)
    assert [bundle.plan.purpose for bundle in world.installed.bundles()] == ["train-second"]
    world.install(policy=wide)
    assert {bundle.plan.purpose for bundle in world.restart().bundles()} == {"train-second", town.TRAIN}


def test_a_catalogue_needs_a_bundle_a_signature_and_a_version_that_rises(world: World) -> None:
    with pytest.raises(BundleRefused, match="install the task bundle"):
        world.installed.install_catalogue(town.signed_catalogue(), unused)
    world.install()
    world.installed.install_catalogue(town.signed_catalogue(2), unused)
    before = world.installed.catalogue()
    for data, kind in (
        (town.signed_catalogue(1), BundleRefused),
        (town.signed_catalogue(3, signers=[town.Key()]), SignatureRefused),
        (town.signed_catalogue(3)[:-1], BundleRefused),
        (b"", TrustError),
    ):
        with pytest.raises(kind):
            world.installed.install_catalogue(data, unused)

    def cannot(_catalogue: bytes) -> None:
        raise BundleRefused("the worker cannot load it")

    with pytest.raises(BundleRefused, match="cannot load"):
        world.installed.install_catalogue(town.signed_catalogue(3), cannot)
    assert world.installed.catalogue() == before
    assert world.restart().catalogue().checked == before.checked


def test_a_catalogue_is_checked_anew_when_the_roster_changes(world: World) -> None:
    world.install()
    world.installed.install_catalogue(town.signed_catalogue(), unused)
    fresh = [town.Key() for _ in range(3)]
    roster = town.roster(2, approvers=tuple(key.public for key in fresh))
    files = town.bundle_files()
    files["roster.dsse.json"] = town.sign_envelope(town.ROSTER_TYPE, town.roster_bytes(roster), [town.root_key()])
    files["policy.dsse.json"] = town.signed_policy(signers=fresh[:2])
    data = town.build_bundle(files, expires=town.NOW + town.DAY, signers=fresh[:2])
    world.installed.install_bundle(data)
    with pytest.raises(BundleRefused, match="none is installed"):  # nobody on the roster signed it any more
        world.installed.catalogue()
    assert "catalogue_left_out" in {event.kind for event in world.audit.events}


def test_a_full_store_changes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.install()
    before = world.installed.snapshot()

    def full(*_: object) -> None:
        raise StoreFailed("store: the disk is full")

    monkeypatch.setattr(Facts, "set", full)
    for change in (
        lambda: world.install(policy=town.city_policy(version=2)),
        lambda: world.installed.update_status(town.signed_status()),
        lambda: world.installed.install_catalogue(town.signed_catalogue(), unused),
    ):
        with pytest.raises(StoreFailed):
            change()
        assert world.installed.snapshot() == before
    monkeypatch.undo()
    assert world.restart().snapshot().policy_digest == before.policy_digest

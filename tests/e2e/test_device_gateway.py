"""This repository's phone and this repository's gateway, over TLS: enrol, check in, fetch, upload, be revoked."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
import uplink_town

from fedlearn.device.credential import Credential, issue_credential
from fedlearn.device.plan_codec import plan_digest
from fedlearn.ledger.checkpoint import LedgerCheckpoint
from fedlearn.ledger.signing import SigningKey
from fedlearn.task import RoundTask
from fedlearn.terms import TrainingTerms
from fedlearn_client.network import GatewayTransport, read_ca
from fedlearn_server.deployment.certificates import issue_server, make_authority, now_utc
from fedlearn_server.gateway.documents import Documents
from fedlearn_server.gateway.figures import GatewayMetrics
from fedlearn_server.gateway.handlers import Handlers
from fedlearn_server.gateway.intake import Intake
from fedlearn_server.gateway.limits import Buckets
from fedlearn_server.gateway.opening import weights_block
from fedlearn_server.gateway.rules import Rules
from fedlearn_server.gateway.server import Door
from fedlearn_server.gateway.state import GatewayState
from fedlearn_server.gateway.terms import FleetTerms
from fedlearn_server.gateway.tls import CertificateFiles

town = uplink_town.town
MAKER = SigningKey.fresh()
GRID_VALUES = [3, -2, 0, 5]


def credential(serial: int) -> bytes:
    return issue_credential(Credential(town.POPULATION, serial.to_bytes(16, "big"), town.NOW + 1e7), MAKER)


def checkpoint(length: int) -> bytes:
    signed = LedgerCheckpoint.signed(town.operator_key(), "ab" * 16, length, f"{length:064x}", town.NOW)
    return signed.to_json().encode()


class World:
    """Two gateways over one state, and phones; every clock is the first phone's."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        make_authority(directory, now_utc())
        issue_server(directory, now_utc())
        self.files = CertificateFiles(directory / "server.crt", directory / "server.key")
        self.now = SimpleNamespace(at=town.NOW)
        self.checkpoint = checkpoint(5)
        self.draining = [False, False]
        self.state = GatewayState.open(directory / "gateway.db")
        self.intake = Intake(self.state, lambda: self.now.at)
        self.doors = [self._door(number) for number in range(2)]
        self.phones: list[Any] = []

    def _door(self, number: int) -> Door:
        rules = Rules(
            populations=frozenset({town.POPULATION}),
            issuers=(MAKER.public,),
            signer=town.operator_key(),
            device_limit=Buckets(0.1, 20),
            peer_limit=Buckets(50.0, 500),
        )
        handlers = Handlers(
            self.state,
            self.intake,
            rules,
            GatewayMetrics(),
            documents=Documents(checkpoint=lambda: self.checkpoint),
            clock=lambda: self.now.at,
            draining=lambda: self.draining[number],
        )
        return Door(handlers, self.files, "127.0.0.1", 0, threads=4)

    def phone(self, own_credential: bytes) -> Any:
        """A phone whose first gateway is the first one."""
        addresses = [f"127.0.0.1:{door.port}" for door in self.doors]
        turns = itertools.count()  # the first gateway, the second, the first, ...
        transport = GatewayTransport(
            addresses, read_ca(self.directory / "ca.crt"), random_bytes=lambda size: next(turns).to_bytes(size, "big")
        )
        made = uplink_town.Phone(
            self.directory / f"phone-{len(self.phones)}", credential=own_credential, transport=lambda _: transport
        )
        made.workers.values = [*GRID_VALUES, *[0] * (town.WIDTH - len(GRID_VALUES))]
        self.phones.append(made)
        return made

    def open(self, phone: Any, step: int, phones: int) -> Any:
        """Ask for a step's sum, as a node does."""
        bundle = phone.installed.bundle_for(town.TRAIN)
        plan = bundle.plan
        terms = FleetTerms(
            run_id="run-1",
            population=plan.population,
            purpose=plan.purpose,
            recipient=plan.recipient,
            plan_digest=plan_digest(plan),
            bundle_digest=bundle.digest,
            mechanism=plan.mechanism,
            round_size=1000,  # the policy's least; a part of many may hold one phone
            target=1000,
            over_selection=1.0,
            attempt_s=3600.0,
            task_s=3000.0,
        )
        task = RoundTask(
            run_id="run-1",
            step=step,
            attempt=0,
            seed=7,
            parameters={one.name: np.zeros(one.shape, np.float32) for one in plan.shared},
            training=TrainingTerms(1, 8, 0.1, True, 8),
            l2_clip_norm=plan.mechanism.l2_clip_norm,
            grid_step=plan.mechanism.grid_step,
            sampling_probability=1.0,
            round_key=bytes(32),
        )
        return self.state.open_collection(terms, task, weights_block(task), 0, 1000 // phones, self.now.at)

    def close(self) -> None:
        for phone in self.phones:
            phone.store.close()
        for door in self.doors:
            door.close()
        self.intake.close()
        self.state.disconnect()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def log(phone: Any) -> list[str]:
    return [f"{event.kind}: {event.fields.get('reason', '')}" for event in phone.audit.events]


def test_a_phone_joins_and_its_contribution_is_in_the_sum(world: World) -> None:
    one, other = world.phone(credential(1)), world.phone(credential(2))
    collection = world.open(one, 0, phones=2)
    assert [one.run(), other.run()] == ["acknowledged", "acknowledged"]
    assert [method for method, _ in one.states()] == ["CheckIn", "Enrol", "CheckIn", "Fetch", "Upload"]
    closed = world.state.close(collection, world.now.at)
    assert closed is not None
    count, values = closed
    assert count == 2
    assert values[: len(GRID_VALUES)].tolist() == [2 * value for value in GRID_VALUES]
    assert len(world.state.devices()) == 2


def test_no_collection_no_task(world: World) -> None:
    phone = world.phone(credential(1))
    assert phone.run() == "no_task"
    assert phone.participated() == []


def test_a_credential_makes_one_phone_known(world: World) -> None:
    one, thief = world.phone(credential(1)), world.phone(credential(1))
    world.open(one, 0, phones=2)
    assert one.run() == "acknowledged"
    assert thief.run() == "refused: credential"
    assert thief.run() == "refused: credential"
    assert [method for method, _ in thief.states()] == ["CheckIn", "Enrol"]
    stranger = world.phone(issue_credential(Credential(town.POPULATION, bytes(16), town.NOW + 1e7), SigningKey.fresh()))
    assert stranger.run() == "refused: credential"


def test_a_revoked_phone_asks_no_more(world: World) -> None:
    phone = world.phone(credential(1))
    world.open(phone, 0, phones=2)
    assert phone.run() == "acknowledged"
    assert world.state.revoke(phone.keystore.public_key(), world.now.at)
    assert phone.run() == "refused: revoked"
    before = len(phone.states())
    assert phone.run() == "refused: revoked"
    assert len(phone.states()) == before


def test_a_phone_that_is_revoked_while_it_trains_contributes_nothing(world: World) -> None:
    phone = world.phone(credential(1))
    collection = world.open(phone, 0, phones=1000)
    phone.workers.on_done = lambda: world.state.revoke(phone.keystore.public_key(), world.now.at)
    assert phone.run() == "rejected"
    assert phone.round.resume() == []
    assert world.state.close(collection, world.now.at) is None


def test_a_wrong_clock_is_told(world: World) -> None:
    phone = world.phone(credential(1))
    world.now.at += 900.0
    assert phone.run() == "refused: clock"
    event = next(one for one in phone.audit.events if one.kind == "check_in_denied")
    assert event.fields["ahead_s"] == -900.0


def test_another_bundle_is_named(world: World) -> None:
    phone = world.phone(credential(1))
    bundle = phone.installed.bundle_for(town.TRAIN)
    phone.installed.bundle_for = lambda _: replace(bundle, digest="ab" * 32)
    world.open(world.phone(credential(2)), 0, phones=2)
    assert phone.run() == "refused: old_bundle"


def test_the_second_gateway_goes_on_where_the_first_drains(world: World) -> None:
    phone = world.phone(credential(1))
    world.open(phone, 0, phones=2)
    world.draining[0] = True
    assert phone.run() == "refused: busy"
    assert phone.run() == "acknowledged"


def test_a_ledger_that_became_shorter_is_refused(world: World) -> None:
    phone = world.phone(credential(1))
    world.open(phone, 0, phones=2)
    assert phone.run() == "acknowledged"
    world.checkpoint = checkpoint(4)
    world.open(phone, 10, phones=2)
    assert phone.run() == "refused: ledger"
    assert phone.participated() == [0]

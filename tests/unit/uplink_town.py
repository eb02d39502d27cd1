"""A whole phone without its daemon, for tests of the round: real store, consent, guard and ledger; a fake gateway.

The trainer is a stand-in that answers at once with a contribution the guard lets through; ``Phone(workers=...)`` takes
the real one.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

from fedlearn.device.task_codec import task_from_bytes
from fedlearn.policy.document import DataType
from fedlearn.proto import gateway_pb2 as gateway_pb
from fedlearn.proto import wire_pb2, worker_pb2
from fedlearn_client import catalogue_check
from fedlearn_client.calls import GatewayCalls
from fedlearn_client.consent import Age, Consent
from fedlearn_client.egress import EgressLog
from fedlearn_client.fakes import (
    FakeAttestation,
    FakeAuditSink,
    FakeClock,
    FakeConditions,
    FakeExamples,
    FakeGateway,
    FakeKeyStore,
)
from fedlearn_client.guard import Guard
from fedlearn_client.hooks import EarlierChoice, Method, Occasion
from fedlearn_client.installed import Installed
from fedlearn_client.participation import Participations
from fedlearn_client.pins import LedgerPins
from fedlearn_client.readiness import Readiness
from fedlearn_client.receipts import Receipts
from fedlearn_client.rooms import Rooms
from fedlearn_client.runs import RunLog
from fedlearn_client.scheduler import Scheduler
from fedlearn_client.shared_anchor import SharedAnchor
from fedlearn_client.standing import Standing
from fedlearn_client.store.database import Database
from fedlearn_client.store.facts import Facts
from fedlearn_client.store.private_parameters import PrivateParameters
from fedlearn_client.store.streams import Streams
from fedlearn_client.uplink import LocalRound
from fedlearn_client.withdrawal import Withdrawals


def _sibling(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


town: Any = _sibling("device_town")

WISH = Occasion((), (EarlierChoice("book:川菜入门", town.READING),), "restaurant:小馆 100")
GRANT = (town.READING, DataType.CHOICE, town.TRAIN, town.OPERATOR)


_bundle = lru_cache(lambda plan, policy: town.signed_bundle(plan, policy=policy))
_catalogue = lru_cache(town.signed_catalogue)
_check = lru_cache(catalogue_check.check_catalogue)


def _checked_once() -> Any:
    """A phone checks a catalogue in a process of its own; these tests have hundreds of phones with the same one."""
    return patch("fedlearn_client.installed.check_catalogue", _check)


class StandInWorkers:
    """Answers like a worker that trained nothing: ``on_train`` is called, ``stop`` asked, ``on_done`` called."""

    def __init__(self) -> None:
        self.on_train: Callable[[], None] = lambda: None
        self.on_done: Callable[[], None] = lambda: None
        self.requests: list[worker_pb2.TrainRequest] = []
        self.values: Sequence[int] | None = None
        self.private = b""
        self.deadlines: list[float] = []

    def train(
        self, request: worker_pb2.TrainRequest, deadline_s: float, stop: Callable[[], bool]
    ) -> worker_pb2.TrainReply:
        from fedlearn.errors import WorkerFailed

        assert 0 < deadline_s <= 585
        self.requests.append(request)
        self.deadlines.append(deadline_s)
        self.on_train()
        if stop():
            raise WorkerFailed("worker: was stopped.")
        self.on_done()
        task = task_from_bytes(request.task)
        dimension = town.WIDTH
        values = [0] * dimension if self.values is None else list(self.values)
        body = wire_pb2.Contribution(
            codec="grid64",
            scale=task.mechanism.grid_step,
            level=wire_pb2.Contribution.LEVEL_PHONE,
            count=1,
            l2_bound=task.mechanism.l2_clip_norm,
            task_digest=task.digest,
            nonce=bytes(16),
            dimension=dimension,
            values=b"".join(value.to_bytes(8, "little", signed=True) for value in values),
        )
        envelope = wire_pb2.Envelope(version=1, contribution=body)
        return worker_pb2.TrainReply(
            contribution=envelope.SerializeToString(deterministic=True),
            private_parameters=self.private,
            examples=len(request.occasions),
        )


class Phone:
    """One phone. ``restart`` closes the store and opens it again, as after a crash or an update."""

    def __init__(
        self,
        directory: Path,
        *,
        plan: Any = None,
        graphs: Any = None,
        workers: Any = None,
        grant: bool = True,
        policy: Any = None,
        egress_hold_s: float = 0.0,
        wait: Callable[[float], None] | None = None,
        examples: Callable[[Any], Any] | None = None,
        database: Callable[[Database], Any] = lambda database: database,
        transport: Callable[[FakeGateway], Any] = lambda gateway: gateway,
        keystore: Callable[[FakeKeyStore], Any] = lambda keystore: keystore,
        credential: bytes = b"",
        credentials: Sequence[bytes] | None = None,
        mark: str = "settings",
    ) -> None:
        self.directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.clock = FakeClock(town.NOW)
        self.keystore = FakeKeyStore()
        self.conditions = FakeConditions()
        self.audit = FakeAuditSink()
        self.workers = StandInWorkers() if workers is None else workers
        self.plan = town.small_plan() if plan is None else plan
        self.gateway = FakeGateway(
            self.plan, town.weights(self.plan), town.operator_key(), clock_rng=self.clock, credentials=credentials
        )
        self.credential, self.mark = credential, mark
        self.examples: Any = FakeExamples(town.TRAIN, town.OPERATOR, [WISH])
        self.make_examples = examples
        self.hold_s = egress_hold_s
        self.wait = self.clock.advance if wait is None else wait
        self.wrap_database, self.wrap_transport, self.wrap_keystore = database, transport, keystore
        self._begin()
        bundle = town.signed_bundle(self.plan, policy=policy, graphs=graphs) if graphs else _bundle(self.plan, policy)
        self.installed.install_bundle(bundle)
        with _checked_once():
            self.installed.install_catalogue(_catalogue(), lambda _: None)
        self.installed.update_status(town.signed_status())
        self.streams.register(town.READING, "shelf", DataType.CHOICE)
        self.consent.set_owner(Age.ADULT, personal_off=False)
        if grant:
            self.grant()

    def _begin(self) -> None:
        keystore = self.wrap_keystore(self.keystore)
        self.store = Database.open(self.directory, keystore, self.clock)
        database = self.wrap_database(self.store)
        self.facts = Facts(database)
        self.streams = Streams(database, keystore, self.clock)
        self.installed = Installed(
            database, self.facts, self.clock, self.audit, root_keys=[town.root_key().public], runtime=town.RUNTIME
        )
        with _checked_once():
            self.installed.load()
        self.consent = Consent(
            database, self.streams, self.installed.policy, self.clock, stopped=self.installed.stopped
        )
        self.egress = EgressLog(database, keystore, self.clock)
        self.receipts = Receipts(database, keystore, self.clock)
        self.withdrawals = Withdrawals(
            database,
            self.streams,
            keystore,
            self.consent,
            egress=self.egress,
            receipts=self.receipts,
            clock_rng=self.clock,
            forget=lambda: None,
        )
        self.withdrawals.finish_pending()
        if self.make_examples is not None:
            self.examples = self.make_examples(self)
        anchor = SharedAnchor(keystore)
        self.participations = Participations(database, anchor.history, self.clock)
        self.pins = LedgerPins(self.facts, anchor.pins, self.audit)
        self.runs = RunLog(database, self.clock)
        self.private = PrivateParameters(database, keystore, self.clock)
        readiness = Readiness(
            installed=self.installed,
            consent=self.consent,
            examples=self.examples,
            conditions=self.conditions,
            facts=self.facts,
            clock_rng=self.clock,
        )
        self.rooms = Rooms(
            database=database,
            consent=self.consent,
            installed=self.installed,
            readiness=readiness,
            examples=self.examples,
            guard=Guard(self.participations, database, self.clock),
            participations=self.participations,
            workers=self.workers,
            private=self.private,
            calls=GatewayCalls(
                self.wrap_transport(self.gateway),
                FakeAttestation(),
                self.egress,
                self.clock,
                keystore=keystore,
                credential=self.credential,
            ),
            standing=Standing(self.facts, self.clock, self.mark),
            pins=self.pins,
            egress=self.egress,
            runs=self.runs,
            clock_rng=self.clock,
            audit=self.audit,
        )
        self.round = LocalRound(self.rooms, egress_hold_s=self.hold_s, wait=self.wait)
        self.scheduler = Scheduler(self.rooms, self.round, self.facts, poll_s=0.01)

    def restart(self) -> None:
        self.store.close()
        self._begin()

    def grant(self) -> None:
        self.consent.set(*GRANT, True, 1)

    def withdraw(self) -> None:
        self.consent.set(*GRANT, False, 1)

    def run(self) -> str:
        return self.round.run(town.TRAIN)

    def participated(self) -> list[int]:
        rows = self.store.rows("SELECT step FROM participations WHERE kind = 'participation' ORDER BY id")
        return [step for (step,) in rows]

    def methods(self) -> list[str]:
        return [seen.method.value for seen in self.gateway.requests]

    def uploads(self) -> list[bytes]:
        return [seen.body for seen in self.gateway.requests if seen.method is Method.UPLOAD]

    def states(self) -> list[tuple[str, str]]:
        """Method and state of each egress entry, oldest first."""
        return [(entry.method.value, entry.state.value) for entry in reversed(self.egress.entries(1000, False))]

    def outcomes(self) -> list[str]:
        return [run.outcome for run in reversed(self.runs.newest(1000))]


def token_of(upload: bytes) -> bytes:
    return gateway_pb.UploadRequest.FromString(upload).token

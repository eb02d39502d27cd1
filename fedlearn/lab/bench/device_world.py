"""What the device benchmark measures with: the simulated city, its sentences, and bundles under throw-away keys."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np

from fedlearn.catalogue import Catalogue
from fedlearn.device.bundle import POLICY, PRIVATE_STEP, ROSTER, STEP, build_bundle
from fedlearn.device.catalogue_bundle import build_catalogue_bundle
from fedlearn.device.catalogue_file import catalogue_bytes
from fedlearn.device.mechanism import MechanismTerms
from fedlearn.device.plan import DevicePlan
from fedlearn.device.plan_codec import plan_bytes, plan_digest
from fedlearn.device.task import TOKEN_BYTES, DeviceTask
from fedlearn.device.task_codec import task_bytes, with_digest
from fedlearn.errors import OutOfRange
from fedlearn.export.dev_keys import STATUS_FILE, DevDocuments, make_dev_documents
from fedlearn.export.files import task_files
from fedlearn.export.plan import PlanOptions, Trained, columns_of, make_plan, weights_of
from fedlearn.export.step import step_onnx
from fedlearn.features import FEATURES
from fedlearn.features.index import CatalogueIndex
from fedlearn.features.ingest import read_message
from fedlearn.features.said import said_bytes
from fedlearn.lab.city import City, CityConfig
from fedlearn.lab.configs import packaged_configs
from fedlearn.models import MatchModel
from fedlearn.models.base import Model
from fedlearn.models.two_tower import TwoTowerModel
from fedlearn.policy.document import DataType, Policy
from fedlearn.policy.load import load_policy
from fedlearn.privacy.factorization import Blt
from fedlearn.privacy.grid import grid_step
from fedlearn.proto import worker_pb2 as pb
from fedlearn.signals import Direction, Message, Session
from fedlearn.terms import TrainingTerms

APP: Final = "maps"
"""Pushes messages and choices, and asks for rankings: one app, since a benchmark may have one user id only."""

PURPOSE: Final = "restaurants"
DAYS: Final = 86_400.0
TERMS: Final = TrainingTerms(epochs=1, batch_size=16, learning_rate=0.5, shuffle=True, candidates=64)
"""The lab's defaults (configs/client/default.yaml)."""

MECHANISM: Final = MechanismTerms("blt", Blt((0.9, 0.5), (0.1, 0.2)), 8.0, 0.1, grid_step(0.1), 40, 20, 2)
SOURCES: Final = ("catalogue", "chat", "choices")
LARGE: Final = TwoTowerModel(terms=3584, items=1000, width=32, hidden=64)
"""150,880 weights; its rows hold a catalogue of 1,000 items."""

_OPTION_TERMS: Final = 24
_SHUFFLE_SEED: Final = 7


@dataclass(frozen=True)
class World:
    """A city and everything signed for it.

    Args:
        folder: for the keys, this user's own.
        policy: the city's, in which ``APP`` is also a source of messages.
        restaurants: in the catalogue that is ranked, 500..5000.
        phones: whose sessions are there to be read, >= 1.
        now: seconds since the Unix epoch, when everything is signed.
    """

    folder: Path
    policy: Policy
    restaurants: int
    phones: int
    now: float

    @cached_property
    def city(self) -> City:
        """The simulated city, mixed Chinese and English, seed 0."""
        return City(CityConfig(devices=self.phones, restaurants=self.restaurants))

    @property
    def catalogue(self) -> Catalogue:
        """What is ranked, and the context."""
        return self.city.catalogue

    @cached_property
    def index(self) -> CatalogueIndex:
        """Of the catalogue."""
        return CatalogueIndex.build(self.catalogue)

    @cached_property
    def documents(self) -> DevDocuments:
        """Policy and roster, signed."""
        return make_dev_documents(self.folder, self.policy, self.now)

    def status(self) -> bytes:
        """Return a signed status."""
        return (self.folder / STATUS_FILE).read_bytes() if self.documents else b""

    def sessions(self, count: int) -> list[Session]:
        """Return the first sessions of the city.

        Raises:
            OutOfRange: it has fewer.
        """
        found = list(islice((s for phone in self.city.devices() for s in phone.sessions), count))
        if len(found) < count:
            raise OutOfRange(f"bench: the city has {len(found)} sessions, {count} are needed; raise phones.")
        return found

    def sentences(self, count: int) -> list[Message]:
        """Return outgoing messages of the city, in its order, from the start again where it has fewer."""
        found = [
            message
            for phone in islice(self.city.devices(), self.phones)
            for session in phone.sessions
            for message in session.messages
            if message.direction is Direction.OUTGOING
        ]
        return [found[position % len(found)] for position in range(count)]

    def occasions(self, count: int) -> list[pb.Occasion]:
        """Return training examples as the store keeps them: Saids, earlier choices, and the chosen item's key.

        They are of as many phones as it takes: one phone of the city has six at most.
        """
        return [self._occasion(session) for session in self.sessions(count)]

    def _occasion(self, session: Session) -> pb.Occasion:
        own = [one for one in session.messages if one.direction is Direction.OUTGOING]
        said = [read_message(one.text, one.foreign_spans, self.index) for one in own]
        return pb.Occasion(
            said=[said_bytes(one) for one in said if one is not None],
            earlier=[pb.EarlierChoice(item=choice.item, app=choice.app) for choice in session.earlier],
            chosen=self.catalogue.items[session.chosen].key,
        )

    def trained(self, model: Model, terms: TrainingTerms = TERMS) -> Trained:
        """Return a model as an export takes it; its weights are the initial ones, match's are drawn."""
        is_match = isinstance(model, MatchModel)
        rows = model.terms if isinstance(model, TwoTowerModel) else 0
        parameters = model.initial(3)
        if is_match:
            drawn = np.random.default_rng(3).standard_normal(parameters["weights"].shape)
            parameters = {"weights": drawn.astype(np.float32)}
        return Trained(
            name="bench",
            model=model,
            parameters=parameters,
            examples=model.name,
            example_options=() if is_match else (("rows", rows), ("terms", _OPTION_TERMS)),
            features=tuple(spec.name for spec in FEATURES) if is_match else (),
            terms=terms,
            mechanism=MECHANISM,
            catalogue=self.catalogue,
        )

    def files(self, trained: Trained) -> tuple[DevicePlan, dict[str, bytes]]:
        """Return the plan and the files of a task bundle, but for policy and roster."""
        return task_files(trained, self.documents.policy, PlanOptions())

    def task_bundle(self, files: dict[str, bytes]) -> bytes:
        """Return the signed bundle of ``files``."""
        made = self.documents
        whole = {**files, POLICY: made.policy_envelope, ROSTER: made.roster_envelope}
        return build_bundle(whole, expires=self.now + 30 * DAYS, signers=made.approvers)

    def catalogue_bundle(self) -> bytes:
        """Return the signed catalogue."""
        signers = self.documents.approvers
        return build_catalogue_bundle(self.catalogue, version=1, expires=self.now + 30 * DAYS, signers=signers)

    def round(self, model: Model, terms: TrainingTerms, examples: int) -> LocalRound:
        """Return one local round of a model with its initial weights on the city's first ``examples`` occasions."""
        trained = self.trained(model, terms)
        private = terms.example_privacy
        name = STEP if private is None else PRIVATE_STEP
        step = step_onnx(model, columns_of(trained), terms.batch_size, private)
        plan = make_plan(trained, self.documents.policy, PlanOptions(), {name: step})
        return LocalRound(trained, plan, self._task(plan), step, self.occasions(examples), self.catalogue)

    def _task(self, plan: DevicePlan) -> DeviceTask:
        return with_digest(
            DeviceTask(
                run_id="bench",
                population=plan.population,
                purpose=plan.purpose,
                recipient=plan.recipient,
                step=0,
                attempt=0,
                plan_digest=plan_digest(plan),
                weights_digest=hashlib.sha256(b"bench").hexdigest(),
                token=bytes(TOKEN_BYTES),
                issued=self.now,
                expires=self.now + 3600.0,
                round_size=1000,
                mechanism=plan.mechanism,
                shuffle_seed=_SHUFFLE_SEED,
                digest=b"",
            )
        )


@dataclass(frozen=True, slots=True)
class LocalRound:
    """What a phone is asked to train, on which examples."""

    trained: Trained
    plan: DevicePlan
    task: DeviceTask
    step: bytes = field(repr=False)
    occasions: list[pb.Occasion] = field(repr=False)
    catalogue: Catalogue = field(repr=False)

    @property
    def request(self) -> pb.TrainRequest:
        """What the daemon hands to a worker."""
        return pb.TrainRequest(
            plan=plan_bytes(self.plan),
            step=self.step,
            weights=weights_of(self.trained.parameters, self.plan.shared),
            occasions=self.occasions,
            sources=SOURCES,
            task=task_bytes(self.task),
            catalogue=catalogue_bytes(self.catalogue),
        )


def bench_policy() -> Policy:
    """Return the city's policy, in which ``APP`` is also a source of messages."""
    policy = load_policy(packaged_configs() / "policy" / "city.yaml")
    chat = next(one for one in policy.sources if one.data_type is DataType.MESSAGE_CONTENT)
    return replace(policy, sources=(*policy.sources, replace(chat, app=APP, owner="The maps app's maker")))

"""A small fleet for tests of a gateway's state: terms, round tasks, phones that check in and send; no network.

Phone ``i`` of ``n`` sends a canary: a one-hot vector whose ``i``-th coordinate is its own number of grid steps, so that
a sum tells who is in it, and how often.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fedlearn.device.credential import Credential
from fedlearn.device.mechanism import MechanismTerms
from fedlearn.device.requests import Denial
from fedlearn.device.task import DeviceTask
from fedlearn.device.task_codec import sign_task
from fedlearn.privacy.factorization import INDEPENDENT
from fedlearn.task import RoundTask
from fedlearn.terms import TrainingTerms
from fedlearn.types import Contribution, Level
from fedlearn.wire import encode_contribution
from fedlearn_server.gateway.opening import weights_block
from fedlearn_server.gateway.state import GatewayState, Offer, Upload, Verdict
from fedlearn_server.gateway.terms import FleetTerms

NOW = 1_800_000_000.0
POPULATION = "city"
PURPOSE = "train-restaurants"
BUNDLE = hashlib.sha256(b"bundle").digest()
GRID = 2.0**-30
CLIP = 1.0
WIDTH = 12
_COUNTER = itertools.count(1)


class NoSigner:
    """Signs nothing: 64 zero bytes. Who signs is not the state's business."""

    def sign(self, message: bytes) -> str:
        return "00" * 64


def sign(task: DeviceTask) -> bytes:
    return sign_task(task, NoSigner())


def nonce() -> bytes:
    return next(_COUNTER).to_bytes(16, "big")


def device(number: int) -> bytes:
    return hashlib.sha256(f"device {number}".encode()).digest()


def terms(**changes: Any) -> FleetTerms:
    """Terms of a run; ``separation`` and ``participations`` go to its mechanism."""
    mechanism = MechanismTerms(
        kind="independent",
        factorization=INDEPENDENT,
        noise_multiplier=1.0,
        l2_clip_norm=CLIP,
        grid_step=GRID,
        steps=changes.pop("steps", 40),
        min_separation=changes.pop("separation", 1),
        max_participations=changes.pop("participations", 40),
    )
    values: dict[str, Any] = {
        "run_id": "run-1",
        "population": POPULATION,
        "purpose": PURPOSE,
        "recipient": "city-lab",
        "plan_digest": hashlib.sha256(b"plan").hexdigest(),
        "bundle_digest": BUNDLE.hex(),
        "mechanism": mechanism,
        "round_size": 2,
        "target": 3,
        "over_selection": 1.5,
        "attempt_s": 600.0,
        "task_s": 300.0,
    }
    return FleetTerms(**{**values, **changes})


def round_task(step: int = 0, attempt: int = 0, width: int = WIDTH, run_id: str = "run-1", **changes: Any) -> RoundTask:
    values: dict[str, Any] = {
        "run_id": run_id,
        "step": step,
        "attempt": attempt,
        "seed": 7,
        "parameters": {"weights": np.full(width, step, np.float32)},
        "training": TrainingTerms(1, 8, 0.1, True, 8),
        "l2_clip_norm": CLIP,
        "grid_step": GRID,
        "sampling_probability": 1.0,
        "round_key": bytes(32),
    }
    return RoundTask(**{**values, **changes})


def contribution(task: DeviceTask, values: Any, **changes: Any) -> Contribution:
    made = Contribution(
        codec="grid64",
        scale=task.mechanism.grid_step,
        level=Level.PHONE,
        count=1,
        l2_bound=task.mechanism.l2_clip_norm,
        task_digest=task.digest,
        nonce=nonce(),
        values=np.asarray(values, "<i8"),
    )
    return replace(made, **changes)


def canary(number: int, width: int = WIDTH) -> np.ndarray:
    values = np.zeros(width, "<i8")
    values[number % width] = 1000 + number
    return values


@dataclass
class Fleet:
    """Phones of one state, and the clock they all go by."""

    state: GatewayState
    terms: FleetTerms = field(default_factory=terms)
    width: int = WIDTH
    now: float = NOW

    def enrol(self, *numbers: int) -> None:
        for number in numbers:
            serial = hashlib.sha256(device(number)).digest()[:16]
            credential = Credential(self.terms.population, serial, self.now + 1e6)
            assert self.state.enrol(credential, device(number), self.now) is None

    def open(self, step: int = 0, attempt: int = 0, part: int = 0, parts: int = 1) -> Any:
        task = round_task(step, attempt, self.width, self.terms.run_id)
        return self.state.open_collection(self.terms, task, weights_block(task), part, parts, self.now)

    def ask(self, number: int, **changes: Any) -> Offer | Denial:
        values = {
            "device": device(number),
            "population": self.terms.population,
            "purpose": self.terms.purpose,
            "bundle_digest": BUNDLE,
            "nonce": nonce(),
            "now": self.now,
            "sign": sign,
        }
        return self.state.reserve(**{**values, **changes})

    def task(self, number: int) -> DeviceTask:
        offer = self.ask(number)
        assert isinstance(offer, Offer), offer
        return offer.task

    def upload(self, number: int, task: DeviceTask | None = None, **changes: Any) -> Upload:
        """What phone ``number`` sends for its task: its canary, or what ``changes`` say."""
        task = self.task(number) if task is None else task
        values = changes.pop("values", canary(number, self.width))
        return Upload(task.token, encode_contribution(contribution(task, values, **changes)))

    def send(self, *uploads: Upload) -> list[Verdict]:
        return self.state.accept(uploads, self.now)

    def outcomes(self, *uploads: Upload) -> Iterator[tuple[int, str]]:
        return ((verdict.outcome, verdict.reason) for verdict in self.send(*uploads))

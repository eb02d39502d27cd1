"""How much faster the vmap engine is than the one-by-one loop, in one run on one thread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from fedlearn.engine.base import Engine, LocalUpdates
from fedlearn.engine.registry import make_engine
from fedlearn.engine.schedule import LocalTraining, schedule
from fedlearn.errors import OutOfRange
from fedlearn.models.base import ClientExamples
from fedlearn.models.two_tower import TwoTowerModel
from fedlearn.rng import simulation_rng

EXAMPLES = 40
TERMS = 4
CANDIDATES = 5
TRAINING = LocalTraining(epochs=1, batch_size=10, learning_rate=0.1)


@dataclass(frozen=True, slots=True)
class EngineBench:
    """Rates of the two engines on the 44k two-tower fixture.

    Args:
        clients: phones per call.
        loop_rate: phones per CPU-second, median over the repeats.
        vmap_rate: the same for vmap.
        ratio: median over the repeats of (vmap rate / loop rate) of one pair of neighbouring calls.
        relative_l2: largest relative L2 distance between a phone's two deltas.
    """

    clients: int
    loop_rate: float
    vmap_rate: float
    ratio: float
    relative_l2: float


def bench_engine(clients: int = 128, repeats: int = 7, seed: int = 0) -> EngineBench:
    """Time both engines on the same phones, alternating, in CPU-seconds of one thread.

    Each phone has 40 examples of 4 terms and 5 candidates (one positive, four negatives; He et al. 2017), one epoch,
    batch 10. The calling process's thread count is restored afterwards.

    Raises:
        OutOfRange: fewer than one client or repeat.
    """
    if clients < 1 or repeats < 1:
        raise OutOfRange(f"bench.clients={clients}, bench.repeats={repeats}: both must be >= 1.")
    model = TwoTowerModel()
    parameters = model.initial(seed)
    phones = [synthetic_client(model, seed, phone) for phone in range(clients)]
    orders = [schedule(EXAMPLES, TRAINING, simulation_rng(seed, 0, str(phone), "shuffle")) for phone in range(clients)]

    def call(name: str) -> Callable[[], LocalUpdates]:
        engine: Engine = make_engine(name, model, learning_rate=TRAINING.learning_rate)
        return lambda: engine.updates(parameters, phones, orders)

    loop, vmap = call("loop"), call("vmap")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        slow, fast = loop().deltas, vmap().deltas
        seconds = [(_cpu_seconds(loop), _cpu_seconds(vmap)) for _ in range(repeats)]
    finally:
        torch.set_num_threads(threads)
    distance = np.linalg.norm(slow - fast, axis=1) / np.linalg.norm(slow, axis=1)
    return EngineBench(
        clients=clients,
        loop_rate=clients / statistics.median(pair[0] for pair in seconds),
        vmap_rate=clients / statistics.median(pair[1] for pair in seconds),
        ratio=statistics.median(pair[0] / pair[1] for pair in seconds),
        relative_l2=float(distance.max()),
    )


def synthetic_client(model: TwoTowerModel, seed: int, phone: int) -> ClientExamples:
    """Return 40 examples with uniform ids: nothing to learn, the work of a real phone."""
    rng = simulation_rng(seed, -1, str(phone), "bench")
    return ClientExamples(
        {
            "terms": rng.integers(0, model.terms, (EXAMPLES, TERMS)),
            "term_weight": np.ones((EXAMPLES, TERMS), np.float32),
            "items": rng.integers(0, model.items, (EXAMPLES, CANDIDATES)),
            "label": np.zeros(EXAMPLES, np.int64),
            "logq": np.zeros((EXAMPLES, CANDIDATES), np.float32),
        }
    )


def _cpu_seconds(call: Callable[[], LocalUpdates]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start

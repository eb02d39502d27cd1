"""Any mix of phone sizes, batch sizes and epochs: vmap equals the loop, and order does not matter."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.engine import LocalTraining, make_engine, schedule
from fedlearn.engine.vmap import VmapEngine
from fedlearn.models import ClientExamples
from fedlearn.models.two_tower import TwoTowerModel
from fedlearn.rng import simulation_rng

MODEL = TwoTowerModel(terms=9, items=7, width=3, hidden=4)


def _client(count: int, rng: np.random.Generator) -> ClientExamples:
    return ClientExamples(
        {
            "terms": rng.integers(0, 9, (count, 2)),
            "term_weight": rng.random((count, 2)).astype(np.float32),
            "items": rng.integers(0, 7, (count, 3)),
            "label": rng.integers(0, 3, count),
            "logq": np.zeros((count, 3), np.float32),
        }
    )


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    epochs=st.integers(1, 3),
    batch_size=st.integers(1, 12),
    chunk_bytes=st.sampled_from([1, 3000, 2**20]),
    seed=st.integers(0, 2**32),
)
def test_vmap_equals_loop_in_any_order(
    sizes: list[int], epochs: int, batch_size: int, chunk_bytes: int, seed: int
) -> None:
    rng = simulation_rng(seed, 0, "", "test")
    clients = [_client(count, rng) for count in sizes]
    training = LocalTraining(epochs, batch_size, 0.2)
    orders = [schedule(client.count, training, rng) for client in clients]
    parameters = MODEL.initial(seed)
    loop = make_engine("loop", MODEL, learning_rate=0.2, dtype="float64").updates(parameters, clients, orders)
    fast = make_engine("vmap", MODEL, learning_rate=0.2, dtype="float64")
    assert isinstance(fast, VmapEngine)
    fast = VmapEngine(MODEL, 0.2, fast.dtype, chunk_bytes)
    backwards = fast.updates(parameters, clients[::-1], orders[::-1])
    scale = np.linalg.norm(loop.deltas, axis=1)
    error = np.linalg.norm(loop.deltas - backwards.deltas[::-1], axis=1)
    assert np.all(error <= 1e-12 * np.where(scale > 0, scale, 1.0))
    np.testing.assert_allclose(backwards.losses[::-1], loop.losses, rtol=1e-12)

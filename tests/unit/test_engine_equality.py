"""The vmap engine against the loop oracle, and the loop against a hand-written gradient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import embedding

from fedlearn.clip import clip_rows
from fedlearn.engine import LocalTraining, make_engine, schedule
from fedlearn.engine.vmap import VmapEngine
from fedlearn.errors import ConfigError, OutOfRange, UnknownSetting
from fedlearn.models import ClientExamples, MatchModel, Model, Parameters
from fedlearn.models.base import masked_mean
from fedlearn.models.two_tower import TwoTowerModel
from fedlearn.rng import simulation_rng

# f32: the bound the project promises. f64: 2^-53 grown by the few hundred operations of a step.
TOLERANCE = {"float32": 2e-6, "float64": 1e-12}
SIZES = {
    "fixed": [12] * 9,
    "ragged": [1, 30, 7, 0, 13, 1, 2, 21, 0, 5],
    "one_example": [1, 1, 1],
    "empty": [0, 0],
    "nobody": [],
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _rng(key: int) -> np.random.Generator:
    return simulation_rng(key, 0, "", "test")


def match_client(count: int, rng: np.random.Generator) -> ClientExamples:
    features = rng.standard_normal((count, 8, 5)).astype(np.float32)
    logq = rng.standard_normal((count, 8)).astype(np.float32)
    return ClientExamples({"features": features, "label": rng.integers(0, 8, count), "logq": logq})


def tower_client(count: int, rng: np.random.Generator) -> ClientExamples:
    return ClientExamples(
        {
            "terms": rng.integers(0, 40, (count, 4)),
            "term_weight": rng.integers(0, 2, (count, 4)).astype(np.float32),
            "items": rng.integers(0, 30, (count, 6)),
            "label": rng.integers(0, 6, count),
            "logq": np.zeros((count, 6), np.float32),
        }
    )


MODELS = {
    "match": (MatchModel(5), match_client),
    "match_ridge": (MatchModel(5, l2=0.1), match_client),
    "two_tower": (TwoTowerModel(terms=40, items=30, width=6, hidden=7), tower_client),
    # Each table is far larger than what a phone touches.
    "two_tower_wide": (TwoTowerModel(terms=500, items=400, width=6, hidden=7), tower_client),
}


def setting(
    model_name: str, sizes: list[int], training: LocalTraining
) -> tuple[Model, Parameters, list[ClientExamples], list[np.ndarray]]:
    model, make = MODELS[model_name]
    rng = _rng(1)
    parameters = {
        name: (array + 0.3 * rng.standard_normal(array.shape)).astype(np.float32)
        for name, array in model.initial(3).items()
    }
    clients = [make(count, rng) for count in sizes]
    orders = [
        schedule(client.count, training, simulation_rng(5, 0, str(phone), "shuffle"))
        for phone, client in enumerate(clients)
    ]
    return model, parameters, clients, orders


def distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    scale = np.linalg.norm(first, axis=1)
    return np.linalg.norm(first - second, axis=1) / np.where(scale > 0, scale, 1.0)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("learning_rate", [1e-4, 0.3])
def test_vmap_equals_loop(model_name: str, sizes: list[int], dtype: str, learning_rate: float) -> None:
    training = LocalTraining(epochs=2, batch_size=5, learning_rate=learning_rate)
    model, parameters, clients, orders = setting(model_name, sizes, training)
    loop, vmap = (
        make_engine(name, model, learning_rate=learning_rate, dtype=dtype).updates(parameters, clients, orders)
        for name in ("loop", "vmap")
    )
    assert loop.deltas.dtype == vmap.deltas.dtype == np.dtype(dtype)
    assert vmap.examples.tolist() == sizes
    for clip in (1e9, 0.01):
        first, second = clip_rows(loop.deltas, clip), clip_rows(vmap.deltas, clip)
        assert np.all(distances(first.values, second.values) <= TOLERANCE[dtype])
    np.testing.assert_allclose(vmap.losses, loop.losses, rtol=2e-6 if dtype == "float32" else 1e-12)
    empty = np.array(sizes) == 0
    assert not vmap.deltas[empty].any()
    assert not vmap.losses[empty].any()
    assert np.all(np.abs(vmap.deltas[~empty]).max(axis=1, initial=0.0) > 0) or not len(sizes)


@pytest.mark.parametrize("model_name", ["match", "two_tower"])
@pytest.mark.parametrize("chunk_bytes", [1, 20_000])
def test_chunks_do_not_change_results(model_name: str, chunk_bytes: int) -> None:
    training = LocalTraining(epochs=1, batch_size=4, learning_rate=0.2)
    model, parameters, clients, orders = setting(model_name, SIZES["ragged"], training)
    whole = VmapEngine(model, 0.2).updates(parameters, clients, orders)
    parts = VmapEngine(model, 0.2, chunk_bytes=chunk_bytes).updates(parameters, clients, orders)
    assert np.all(distances(whole.deltas, parts.deltas) <= TOLERANCE["float32"])


def test_a_phone_does_not_depend_on_its_neighbours() -> None:
    """NaN in one phone's data stays there, and every other phone's update is as if alone."""
    training = LocalTraining(epochs=1, batch_size=4, learning_rate=0.2)
    model, parameters, clients, orders = setting("match", [6, 3, 5], training)
    alone = VmapEngine(model, 0.2).updates(parameters, clients[:1], orders[:1])
    clients[1].columns["features"][:] = np.nan
    together = VmapEngine(model, 0.2).updates(parameters, clients, orders)
    assert np.isfinite(together.deltas[[0, 2]]).all()
    assert np.isnan(together.deltas[1]).all()
    assert np.all(distances(alone.deltas, together.deltas[:1]) <= TOLERANCE["float32"])


def test_one_step_is_the_textbook_gradient() -> None:
    """Gradient of the conditional logit: expected minus chosen features under the softmax (McFadden 1974)."""
    training = LocalTraining(epochs=1, batch_size=10, learning_rate=0.5)
    model, parameters, clients, orders = setting("match", [10], training)
    columns = clients[0].columns
    logits = columns["features"].astype(np.float64) @ parameters["weights"].astype(np.float64) - columns["logq"]
    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    expected = (chances[:, :, None] * columns["features"]).sum(axis=1)
    chosen = columns["features"][np.arange(10), columns["label"]]
    loss = -np.log(chances[np.arange(10), columns["label"]]).mean()
    for name in ("loop", "vmap"):
        result = make_engine(name, model, learning_rate=0.5, dtype="float64").updates(parameters, clients, orders)
        np.testing.assert_allclose(result.deltas[0], -0.5 * (expected - chosen).mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(result.losses[0], loss, rtol=1e-12)


def test_full_batch_with_huge_batch_size_and_mixed_widths() -> None:
    training = LocalTraining(epochs=1, batch_size=1000, learning_rate=0.2)
    model, parameters, clients, orders = setting("two_tower", [6, 3, 5], training)
    orders[1] = orders[1][:, :7]
    loop, vmap = (
        make_engine(name, model, learning_rate=0.2, dtype="float64").updates(parameters, clients, orders)
        for name in ("loop", "vmap")
    )
    assert np.all(distances(loop.deltas, vmap.deltas) <= TOLERANCE["float64"])


@dataclass(frozen=True)
class BiasedMatrix:
    """Matrix factorisation with item biases: two tables on one index."""

    row_columns: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {"bias": ("items",), "item_rows": ("items",), "user_rows": ("user",)}
    )
    name = "biased"

    def initial(self, seed: int) -> Parameters:
        rng = _rng(seed)
        shapes = {"bias": (9,), "item_rows": (9, 3), "user_rows": (5, 3)}
        return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}

    def loss(self, parameters: Mapping[str, Tensor], batch: Mapping[str, Tensor], mask: Tensor) -> Tensor:
        user = embedding(batch["user"], parameters["user_rows"])
        items = embedding(batch["items"], parameters["item_rows"])
        bias = embedding(batch["items"], parameters["bias"].unsqueeze(-1)).squeeze(-1)
        logits = (items * user.unsqueeze(-2)).sum(-1) + bias
        return masked_mean(logits.logsumexp(-1) - logits[..., 0], mask)

    def scores(self, parameters: Parameters, query: np.ndarray) -> np.ndarray:
        return parameters["bias"][query].astype(np.float64)


def test_two_tables_may_share_an_index() -> None:
    rng, training = _rng(4), LocalTraining(2, 3, 0.2)
    clients = [
        ClientExamples({"user": rng.integers(0, 5, count), "items": rng.integers(0, 9, (count, 4))}) for count in (7, 2)
    ]
    orders = [schedule(client.count, training, rng) for client in clients]
    model = BiasedMatrix()
    loop, vmap = (
        make_engine(name, model, learning_rate=0.2, dtype="float64").updates(model.initial(0), clients, orders)
        for name in ("loop", "vmap")
    )
    assert np.all(distances(loop.deltas, vmap.deltas) <= TOLERANCE["float64"])
    crossed = BiasedMatrix({"bias": ("items",), "item_rows": ("items", "user"), "user_rows": ("user",)})
    with pytest.raises(ConfigError, match="'items' stands in two"):
        make_engine("vmap", crossed, learning_rate=0.2).updates(model.initial(0), clients, orders)


@pytest.mark.parametrize("name", ["loop", "vmap"])
@pytest.mark.parametrize("bad", [-1, 40])
def test_an_id_outside_its_table_is_refused(name: str, bad: int) -> None:
    """Unchecked, it would alias a row of the next phone in the chunk."""
    training = LocalTraining(epochs=1, batch_size=4, learning_rate=0.2)
    model, parameters, clients, orders = setting("two_tower", [6, 3], training)
    clients[0].columns["terms"][2, 1] = bad
    with pytest.raises(OutOfRange, match=r"examples\.terms.*rows 0\.\.39"):
        make_engine(name, model, learning_rate=0.2).updates(parameters, clients, orders)


@pytest.mark.parametrize("name", ["loop", "vmap"])
def test_read_only_examples_are_accepted(name: str) -> None:
    training = LocalTraining(epochs=1, batch_size=4, learning_rate=0.2)
    model, parameters, clients, orders = setting("match", [6], training)
    for column in clients[0].columns.values():
        column.flags.writeable = False
    make_engine(name, model, learning_rate=0.2).updates(parameters, clients, orders)


@pytest.mark.parametrize("name", ["loop", "vmap"])
def test_a_schedule_may_not_name_another_phones_example(name: str) -> None:
    training = LocalTraining(epochs=1, batch_size=4, learning_rate=0.2)
    model, parameters, clients, orders = setting("match", [6, 3], training)
    engine = make_engine(name, model, learning_rate=0.2)
    with pytest.raises(OutOfRange, match=r"schedules\[1\]"):
        engine.updates(parameters, clients, [orders[0], orders[0]])
    with pytest.raises(OutOfRange, match="1 for 2 clients"):
        engine.updates(parameters, clients, orders[:1])
    with pytest.raises(OutOfRange, match=r"\[steps, batch\]"):
        engine.updates(parameters, clients, [orders[0], orders[1].ravel()])


def test_unknown_settings_list_the_choices() -> None:
    with pytest.raises(UnknownSetting, match="loop, vmap"):
        make_engine("ray", MatchModel(2), learning_rate=0.1)
    with pytest.raises(UnknownSetting, match="float32, float64"):
        make_engine("vmap", MatchModel(2), learning_rate=0.1, dtype="bfloat16")
    with pytest.raises(OutOfRange, match=r"client\.learning_rate"):
        make_engine("vmap", MatchModel(2), learning_rate=0.0)

"""The exported step: equal to torch after 100 steps, small, the same bytes each time, allowed operators only."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlearn.device.operators import ALLOWED_OPERATORS, operators_of
from fedlearn.device.plan import ColumnSpec
from fedlearn.engine.example_privacy import PrivateSgd, private_local_step
from fedlearn.engine.step import local_step
from fedlearn.errors import BundleRefused
from fedlearn.export.graph import onnx_graph
from fedlearn.export.step import step_onnx
from fedlearn.models import MatchModel, Model
from fedlearn.models.two_tower import TwoTowerModel
from fedlearn.terms import ExamplePrivacy

B, STEPS, RATE = 16, 100, 0.1
PRIVACY = ExamplePrivacy(noise_multiplier=0.5, l2_clip_norm=0.8)
TOLERANCE = 1e-5
"""The task's: a hundred steps of f32 in another order of additions stay within it, a wrong step does not."""


def match_columns(width: int, k: int) -> tuple[ColumnSpec, ...]:
    return (ColumnSpec("features", "<f4", (k, width)), ColumnSpec("label", "<i8", ()), ColumnSpec("logq", "<f4", (k,)))


def tower_columns(terms: int, k: int) -> tuple[ColumnSpec, ...]:
    return (
        ColumnSpec("items", "<i8", (k,)),
        ColumnSpec("label", "<i8", ()),
        ColumnSpec("logq", "<f4", (k,)),
        ColumnSpec("term_weight", "<f4", (terms,)),
        ColumnSpec("terms", "<i8", (terms,)),
    )


@dataclass(frozen=True)
class Case:
    model: Model
    columns: tuple[ColumnSpec, ...]
    most_bytes: int


CASES = {
    "match": Case(MatchModel(23), match_columns(23, 64), 35_000),
    "match ridge": Case(MatchModel(23, 0.01), match_columns(23, 64), 35_000),
    "two_tower": Case(TwoTowerModel(), tower_columns(24, 64), 200_000),
    "two_tower 150k": Case(TwoTowerModel(4096, 500, 32, 64), tower_columns(24, 20), 200_000),
}
SHORT = [("match", False), ("match", True), ("two_tower 150k", False)]
"""The others are in tests/long."""
_graphs: dict[tuple[str, bool], bytes] = {}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def graph(name: str, private: bool) -> bytes:
    if (name, private) not in _graphs:
        case = CASES[name]
        _graphs[name, private] = step_onnx(case.model, case.columns, B, PRIVACY if private else None)
    return _graphs[name, private]


def session(model: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def batch(case: Case, rng: np.random.Generator) -> dict[str, NDArray[np.generic]]:
    found: dict[str, NDArray[np.generic]] = {}
    for spec in case.columns:
        most = {"terms": getattr(case.model, "terms", 0), "items": getattr(case.model, "items", 0), "label": 8}
        if spec.dtype == "<i8":
            found[spec.name] = rng.integers(0, most[spec.name], (B, *spec.shape))
        elif spec.name == "term_weight":
            found[spec.name] = (rng.random((B, *spec.shape)) < 0.7).astype(np.float32)
        else:
            found[spec.name] = rng.uniform(-1, 1, (B, *spec.shape)).astype(np.float32)
    return found


def torch_change(
    case: Case, weights: Mapping[str, Tensor], rows: Mapping[str, NDArray[np.generic]], mask: NDArray[np.bool_],
    noise: Mapping[str, NDArray[np.float32]] | None,
) -> Mapping[str, Tensor]:  # fmt: skip
    given = (
        {name: value[None] for name, value in weights.items()},
        {n: torch.from_numpy(r)[None] for n, r in rows.items()},
    )
    if noise is None:
        return local_step(case.model, RATE)(*given, torch.from_numpy(mask)[None])
    private = PrivateSgd(PRIVACY.noise_multiplier, PRIVACY.l2_clip_norm, B)
    drawn = {name: torch.from_numpy(value)[None] for name, value in noise.items()}
    return private_local_step(case.model, RATE, private)(*given, torch.from_numpy(mask)[None], drawn)


def run_both(name: str, private: bool, rate: float = RATE) -> tuple[dict[str, NDArray[np.float32]], float]:
    """The delta after STEPS steps through ONNX, and how far torch is from it; every third batch is padded."""
    case, rng = CASES[name], np.random.default_rng(5)
    incoming = dict(case.model.initial(1))
    running = session(graph(name, private))
    names = sorted(incoming)
    delta = {n: np.zeros_like(incoming[n]) for n in names}
    slow = {n: torch.zeros(incoming[n].shape) for n in names}
    for step in range(STEPS):
        rows = batch(case, rng)
        mask = np.arange(B) < (B if step % 3 else rng.integers(0, B))
        noise = {n: rng.standard_normal(incoming[n].shape).astype(np.float32) for n in names} if private else None
        feed = {f"p.{n}": incoming[n] for n in names} | {f"d.{n}": delta[n] for n in names}
        feed |= {f"c.{n}": rows[n] for n in rows} | {f"n.{n}": value for n, value in (noise or {}).items()}
        feed |= {"mask": mask, "learning_rate": np.array(rate, np.float32)}
        delta = dict(zip(names, running.run([f"next.{n}" for n in names], feed), strict=True))
        weights = {n: torch.from_numpy(incoming[n]) + slow[n] for n in names}
        change = torch_change(case, weights, rows, mask, noise)
        slow = {n: slow[n] + change[n][0] for n in names}
    return delta, max(float(np.abs(delta[n] - slow[n].numpy()).max()) for n in names)


@pytest.mark.parametrize(("name", "private"), SHORT)
def test_a_hundred_steps_equal_torch(name: str, private: bool) -> None:
    delta, apart = run_both(name, private)
    assert max(float(np.abs(value).max()) for value in delta.values()) > 0.01
    assert apart <= TOLERANCE


def test_control_another_learning_rate_is_seen() -> None:
    assert run_both("match", private=False, rate=1.01 * RATE)[1] > 10 * TOLERANCE


@pytest.mark.parametrize(("name", "private"), SHORT)
def test_small_and_of_allowed_operators(name: str, private: bool) -> None:
    data = graph(name, private)
    assert len(data) <= CASES[name].most_bytes
    assert operators_of(data) <= ALLOWED_OPERATORS
    for word in (b"torch", b"/site-packages/", b"File ", b"pkg."):
        assert word not in data


@pytest.mark.parametrize("private", [False, True], ids=["plain", "private"])
def test_an_empty_mask_changes_nothing(private: bool) -> None:
    case, rng = CASES["match"], np.random.default_rng(0)
    incoming = case.model.initial(1)
    before = {f"d.{n}": rng.standard_normal(v.shape).astype(np.float32) for n, v in incoming.items()}
    feed = {f"p.{n}": v for n, v in incoming.items()} | before | {f"c.{n}": v for n, v in batch(case, rng).items()}
    feed |= {"mask": np.zeros(B, bool), "learning_rate": np.array(RATE, np.float32)}
    if private:
        feed |= {f"n.{n}": np.ones_like(v) for n, v in incoming.items()}
    after = session(graph("match", private)).run([f"next.{n}" for n in incoming], feed)
    assert all(np.array_equal(value, before[name]) for name, value in zip(before, after, strict=True))


def test_inputs_and_outputs_have_the_documented_names_and_shapes() -> None:
    running = session(graph("match", private=True))
    assert {i.name: (i.type, i.shape) for i in running.get_inputs()} == {
        "p.weights": ("tensor(float)", [23]),
        "d.weights": ("tensor(float)", [23]),
        "c.features": ("tensor(float)", [16, 64, 23]),
        "c.label": ("tensor(int64)", [16]),
        "c.logq": ("tensor(float)", [16, 64]),
        "mask": ("tensor(bool)", [16]),
        "learning_rate": ("tensor(float)", []),
        "n.weights": ("tensor(float)", [23]),
    }
    assert [(o.name, o.shape) for o in running.get_outputs()] == [("next.weights", [23])]


_AGAIN = """
import hashlib
from fedlearn.device.plan import ColumnSpec as C
from fedlearn.export.step import step_onnx
from fedlearn.models import MatchModel
from fedlearn.terms import ExamplePrivacy
columns = [C("features", "<f4", (64, 23)), C("label", "<i8", ()), C("logq", "<f4", (64,))]
print(hashlib.sha256(step_onnx(MatchModel(23), columns, 16, ExamplePrivacy(0.5, 0.8))).hexdigest())
"""


def test_another_process_with_other_hash_seeds_writes_the_same_bytes() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _AGAIN], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}
    )
    assert done.stdout.strip() == hashlib.sha256(graph("match", private=True)).hexdigest()


def test_a_model_with_another_operator_is_refused() -> None:
    with pytest.raises(BundleRefused, match="Erf"):
        onnx_graph(lambda x: (torch.erf(x),), {"x": torch.zeros(3)}, ["y"], "step.onnx")


def test_a_model_that_stores_a_table_is_refused() -> None:
    table = torch.arange(5000.0)
    with pytest.raises(BundleRefused, match="stores a constant"):
        onnx_graph(lambda x: (x + table,), {"x": torch.zeros(5000)}, ["y"], "step.onnx")

"""The exported ranking: any number of items, and equal items tie bit for bit wherever they stand."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from fedlearn.device.operators import ALLOWED_OPERATORS, operators_of
from fedlearn.errors import BundleRefused
from fedlearn.export.infer import infer_onnx
from fedlearn.models import MatchModel
from fedlearn.models.two_tower import TwoTowerModel


def session(model: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def tied(running: ort.InferenceSession, width: int, fixed: dict[str, NDArray[np.float32]], rows: str) -> bool:
    """Whether one row gets the same bits at three places of lists of every length."""
    rng = np.random.default_rng(1)
    same = True
    for n in (*range(1, 70), 600, 1777):
        row, others = rng.standard_normal(width), rng.standard_normal((n, width))
        others[rng.integers(0, n, 3)] = row
        table = others.astype(np.float32)
        (scores,) = running.run(["scores"], fixed | {rows: table})
        found = scores[(table == row.astype(np.float32)).all(axis=1)]
        (alone,) = running.run(["scores"], fixed | {rows: row[None].astype(np.float32)})
        same &= bool((found.view(np.int32) == alone.view(np.int32)).all())
    return same


def test_match_equals_the_model_and_ties() -> None:
    model, rng = MatchModel(23), np.random.default_rng(0)
    running = session(infer_onnx(model))
    weights = rng.standard_normal(23).astype(np.float32)
    for n in (0, 1, 7, 1000):
        features = rng.uniform(-1, 1, (n, 23)).astype(np.float32)
        (scores,) = running.run(["scores"], {"features": features, "p.weights": weights})
        assert scores.shape == (n,)
        np.testing.assert_allclose(scores, model.scores({"weights": weights}, features), atol=1e-5)
    assert tied(running, 23, {"p.weights": weights}, "features")


def test_control_a_sum_along_rows_does_not_tie() -> None:
    made = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Mul", ["features", "p.weights"], ["products"]),
            onnx.helper.make_node("ReduceSum", ["products", "last"], ["scores"], keepdims=0),
        ],
        "graph",
        [
            onnx.helper.make_tensor_value_info("features", 1, ["N", 23]),
            onnx.helper.make_tensor_value_info("p.weights", 1, [23]),
        ],
        [onnx.helper.make_tensor_value_info("scores", 1, ["N"])],
        [onnx.helper.make_tensor("last", 7, [1], [-1])],
    )
    model = onnx.helper.make_model(made, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 20)])
    weights = np.random.default_rng(0).standard_normal(23).astype(np.float32)
    assert not tied(session(model.SerializeToString()), 23, {"p.weights": weights}, "features")


@pytest.mark.parametrize("width", [16, 10])
def test_two_tower_equals_the_model_ties_and_pads(width: int) -> None:
    model, rng = TwoTowerModel(terms=100, items=50, width=width, hidden=8), np.random.default_rng(0)
    running = session(infer_onnx(model))
    parameters = model.initial(3)
    fixed = {f"p.{name}": array for name, array in parameters.items()}
    for count in (0, 1, 24):
        terms = rng.integers(0, 100, count)
        (scores,) = running.run(["scores"], fixed | {"terms": terms, "term_weight": np.ones(count, np.float32)})
        np.testing.assert_allclose(scores, model.scores(parameters, terms), atol=1e-5)
        padded = {"terms": np.zeros(30, np.int64), "term_weight": np.zeros(30, np.float32)}
        padded["terms"][:count], padded["term_weight"][:count] = terms, 1.0
        np.testing.assert_allclose(running.run(["scores"], fixed | padded)[0], scores, atol=1e-6)
    assert tied(running, width, {**fixed, **padded}, "p.item_rows")


@pytest.mark.parametrize("model", [MatchModel(23), TwoTowerModel()], ids=["match", "two_tower"])
def test_bytes_are_few_equal_and_of_allowed_operators(model: MatchModel | TwoTowerModel) -> None:
    data = infer_onnx(model)
    assert data == infer_onnx(model)
    assert len(data) < 5000
    assert operators_of(data) <= ALLOWED_OPERATORS


def test_a_model_without_a_ranking_graph_is_refused() -> None:
    class Odd(MatchModel):
        @property
        def name(self) -> str:
            return "odd"

    with pytest.raises(BundleRefused, match="odd"):
        infer_onnx(Odd(3))

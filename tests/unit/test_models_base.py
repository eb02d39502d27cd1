"""Parameters, examples and the two built-in models."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from fedlearn.errors import ConfigError, OutOfRange
from fedlearn.models import ClientExamples, MatchModel, flatten, parameter_schema, unflatten
from fedlearn.models.two_tower import TwoTowerModel


def test_flatten_goes_by_sorted_name_and_back() -> None:
    parameters = {"b": np.array([[1, 2], [3, 4]], np.float32), "a": np.array([9], np.float32)}
    flat = flatten(parameters)
    assert flat.tolist() == [9, 1, 2, 3, 4]
    assert flat.dtype == np.float32
    back = unflatten(flat.astype(np.float64), parameters)
    assert list(back) == ["a", "b"]
    assert back["b"].tolist() == [[1, 2], [3, 4]]
    assert back["b"].dtype == np.float32
    assert parameter_schema(parameters) == (("a", (1,), "float32"), ("b", (2, 2), "float32"))
    flat[0] = 0
    assert parameters["a"][0] == 9


def test_unflatten_refuses_another_length() -> None:
    with pytest.raises(ConfigError, match=r"expected \(3,\)"):
        unflatten(np.zeros(4), {"a": np.zeros(3, np.float32)})


def test_examples_need_columns_of_one_length() -> None:
    assert ClientExamples({"x": np.zeros((0, 3))}).count == 0
    for columns in ({}, {"x": np.zeros(2), "y": np.zeros(3)}):
        with pytest.raises(ConfigError, match=r"examples\.columns"):
            ClientExamples(columns)


def test_examples_hide_their_values() -> None:
    assert "0.5" not in repr(ClientExamples({"x": np.full(2, 0.5)}))


def test_match_scores_equal_rows_equally() -> None:
    """A matrix product would round a row differently at different positions, and hide ties from the tie rule."""
    rng = np.random.Generator(np.random.Philox(1))
    row = rng.standard_normal(23).astype(np.float32)
    weights = {"weights": rng.standard_normal(23).astype(np.float32)}
    scores = MatchModel(23).scores(weights, np.tile(row, (101, 1)))
    assert scores.shape == (101,)
    assert len(set(scores.tolist())) == 1
    np.testing.assert_allclose(scores[0], row.astype(np.float64) @ weights["weights"].astype(np.float64))


def test_match_refuses_bad_settings() -> None:
    with pytest.raises(OutOfRange, match=r"model\.width"):
        MatchModel(0)
    with pytest.raises(OutOfRange, match=r"model\.l2"):
        MatchModel(3, l2=-1.0)
    with pytest.raises(OutOfRange, match=r"model\.hidden"):
        TwoTowerModel(hidden=0)


def test_two_tower_fixture_has_44k_weights() -> None:
    assert flatten(TwoTowerModel().initial(0)).size == 44_112


def test_what_a_phone_imports_needs_no_torch() -> None:
    code = "import sys, fedlearn.engine, fedlearn.models, fedlearn.clip; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

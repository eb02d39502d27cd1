"""Noise of prefix sums: against the matrices written out."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from fedlearn.errors import InvalidSpend, MissingDependency
from fedlearn.privacy.error import max_error, mean_error, prefix_noise_response
from fedlearn.privacy.factorization import INDEPENDENT, Blt, Factorization, Toeplitz, Tree
from fedlearn.privacy.sensitivity import first_column
from fedlearn.types import F64

BLT = Blt((0.99, 0.7, 0.2), (0.2, 0.25, 0.3))


def dense(column: F64) -> F64:
    steps = len(column)
    return np.array([[column[row - step] if row >= step else 0.0 for step in range(steps)] for row in range(steps)])


@pytest.mark.parametrize("steps", [1, 2, 9, 64])
@pytest.mark.parametrize("factorization", [INDEPENDENT, BLT, Toeplitz((1.0,)), Toeplitz((1.0, 0.9))])
def test_equals_the_dense_matrices(factorization: Toeplitz | Blt, steps: int) -> None:
    if isinstance(factorization, Toeplitz) and len(factorization.coefficients) > steps:
        factorization = INDEPENDENT
    prefix_sums = np.tri(steps)
    noise = prefix_sums @ np.linalg.inv(dense(first_column(factorization, steps)))
    norms2 = np.square(noise).sum(axis=1)
    np.testing.assert_allclose(prefix_noise_response(factorization, steps), noise[:, 0], rtol=1e-9)
    assert max_error(factorization, steps, 1.0) == pytest.approx(math.sqrt(norms2.max()), rel=1e-12)
    assert mean_error(factorization, steps, 4.0) == pytest.approx(2 * math.sqrt(norms2.mean()), rel=1e-12)


@pytest.mark.parametrize("steps", [1, 5, 8, 13, 31])
def test_equals_the_tree_s_decoder(steps: int) -> None:
    """A prefix is a sum of disjoint blocks, largest first: decoder times C is the matrix of prefix sums."""
    nodes = [
        (start, size)
        for size in (1 << height for height in range(steps.bit_length()))
        for start in range(0, steps - size + 1, size)
    ]
    strategy = np.array([[float(start <= step < start + size) for step in range(steps)] for start, size in nodes])
    decoder = np.zeros((steps, len(nodes)))
    for step in range(steps):
        start = 0
        for height in reversed(range(steps.bit_length())):
            if (step + 1) >> height & 1:
                decoder[step, nodes.index((start, 1 << height))] = 1
                start += 1 << height
    np.testing.assert_array_equal(decoder @ strategy, np.tri(steps))
    norms2 = np.square(decoder).sum(axis=1)
    assert max_error(Tree(), steps, 9.0) == pytest.approx(3 * math.sqrt(norms2.max()), rel=1e-15)
    assert mean_error(Tree(), steps, 1.0) == pytest.approx(math.sqrt(norms2.mean()), rel=1e-15)


def test_the_noise_of_independent_steps_adds_up() -> None:
    assert max_error(INDEPENDENT, 100, 1.0) == pytest.approx(10.0, rel=1e-15)
    assert mean_error(INDEPENDENT, 100, 1.0) == pytest.approx(math.sqrt(50.5), rel=1e-15)


@pytest.mark.parametrize("factorization", [INDEPENDENT, BLT, Tree()])
def test_what_is_out_of_range_is_refused(factorization: Factorization) -> None:
    for steps in (0, -1, 1.5, True):
        with pytest.raises(InvalidSpend, match="steps="):
            max_error(factorization, steps, 1.0)  # type: ignore[arg-type]
    for sens2 in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InvalidSpend, match="sens2="):
            mean_error(factorization, 10, sens2)


def test_without_scipy_the_message_is_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.signal", None)
    with pytest.raises(MissingDependency, match="pip install"):
        max_error(BLT, 10, 1.0)

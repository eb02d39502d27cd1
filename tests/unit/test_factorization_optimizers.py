"""Optimised factorizations: deterministic, near the best that other means find, never worse than no correlation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from fedlearn.errors import InvalidSpend
from fedlearn.privacy.banded_optimizer import optimize_banded
from fedlearn.privacy.blt_optimizer import optimize_blt
from fedlearn.privacy.error import max_error
from fedlearn.privacy.factorization import INDEPENDENT, Blt, Factorization, Toeplitz
from fedlearn.privacy.participation import most_participations
from fedlearn.privacy.sensitivity import squared_sensitivity

# A Blt's scales are above zero, so where no correlation is best it comes only this close to it.
NEARLY = 1 + 1e-7


def error(factorization: Factorization, steps: int, separation: int, most: int) -> float:
    return max_error(factorization, steps, squared_sensitivity(factorization, steps, separation, most))


SETTINGS = [
    (steps, separation, most)
    for steps, separation in ((1, 1), (2, 1), (2, 2), (3, 3), (10, 2), (25, 1), (40, 7), (60, 20), (60, 60))
    for most in {1, most_participations(steps, separation)}
]


@pytest.mark.parametrize(("steps", "separation", "most"), SETTINGS)
def test_never_worse_than_independent_noise(steps: int, separation: int, most: int) -> None:
    independent = error(INDEPENDENT, steps, separation, most)
    assert error(optimize_blt(steps, separation, most), steps, separation, most) <= independent * NEARLY
    bands = min(separation, steps)
    assert error(optimize_banded(steps, separation, most, bands), steps, separation, most) <= independent


def test_where_every_step_is_allowed_nothing_beats_independent_noise() -> None:
    """All participations together turn C into its sum of coefficients, which the inverse cannot win back."""
    assert optimize_banded(20, 1, 20, 5) == INDEPENDENT
    assert error(optimize_blt(20, 1, 20), 20, 1, 20) == pytest.approx(error(INDEPENDENT, 20, 1, 20), rel=1e-7)


@pytest.mark.parametrize(("steps", "separation", "most"), [(40, 7, 6), (60, 20, 3), (30, 30, 1)])
def test_one_buffer_equals_a_search_of_the_whole_square(steps: int, separation: int, most: int) -> None:
    """The oracle: all decays and scales on a grid."""
    found = error(optimize_blt(steps, separation, most, buffers=1), steps, separation, most)
    grid = itertools.product(np.linspace(0.01, 0.99, 60), np.linspace(0.01, 0.99, 60))
    searched = min(error(Blt((decay,), (scale,)), steps, separation, most) for decay, scale in grid)
    assert found <= searched
    assert found >= searched * 0.99  # the grid is fine: much less would mean another objective


def test_more_buffers_are_never_worse() -> None:
    errors = [error(optimize_blt(60, 20, 3, buffers), 60, 20, 3) for buffers in (1, 2, 3)]
    assert errors[0] > errors[1] * 1.001
    assert errors[1] > errors[2] * 1.001


def test_no_neighbour_of_a_blt_is_better() -> None:
    best = optimize_blt(200, 20, 10)
    least = error(best, 200, 20, 10)
    random = np.random.default_rng(5)
    for size in (1e-2, 1e-3):
        for _ in range(50):
            decay = np.clip(np.array(best.decay) * (1 + size * random.normal(size=2)), 1e-3, 1 - 1e-4)
            scale = np.array(best.scale) * (1 + size * random.normal(size=2))
            assert error(Blt(tuple(decay), tuple(scale)), 200, 20, 10) >= least * (1 - 1e-6)


def test_no_neighbour_of_a_banded_matrix_is_better() -> None:
    best = np.array(optimize_banded(200, 20, 10, 20).coefficients)
    least = error(Toeplitz(tuple(best)), 200, 20, 10)
    random = np.random.default_rng(6)
    for size in (1e-2, 1e-3):
        for _ in range(50):
            other = best * np.exp(size * random.normal(size=20))
            other = np.sort(other / other.max())[::-1]
            assert error(Toeplitz(tuple(map(float, other))), 200, 20, 10) >= least * (1 - 1e-7)


def test_banded_beats_the_square_root_it_starts_from() -> None:
    steps, separation, most = 100, 10, 10
    square_root = [1.0]
    for index in range(1, separation):
        square_root.append(square_root[-1] * (2 * index - 1) / (2 * index))
    start = error(Toeplitz(tuple(square_root)), steps, separation, most)
    assert error(optimize_banded(steps, separation, most, separation), steps, separation, most) < 0.95 * start


def test_more_bands_than_the_separation() -> None:
    """They pay where a unit takes part less often than the separation would let it."""
    narrow = error(optimize_banded(100, 10, 2, 10), 100, 10, 2)
    wide = error(optimize_banded(100, 10, 2, 60), 100, 10, 2)
    assert wide < 0.95 * narrow


def test_deterministic() -> None:
    assert optimize_blt(60, 10, 6) == optimize_blt(60, 10, 6)
    assert optimize_banded(60, 10, 6, 10) == optimize_banded(60, 10, 6, 10)


@pytest.mark.parametrize(("steps", "separation", "most"), [(0, 1, 1), (10, 0, 1), (10, 2, 0), (10, 2, 6)])
def test_bounds_out_of_range_are_refused(steps: int, separation: int, most: int) -> None:
    with pytest.raises(InvalidSpend):
        optimize_blt(steps, separation, most)
    with pytest.raises(InvalidSpend):
        optimize_banded(steps, separation, most, 1)


@pytest.mark.parametrize("bad", [0, -1, 1.0, True, 61])
def test_sizes_out_of_range_are_refused(bad: int) -> None:
    with pytest.raises(InvalidSpend, match="buffers="):
        optimize_blt(60, 20, 3, buffers=bad)
    with pytest.raises(InvalidSpend, match="bands="):
        optimize_banded(60, 20, 3, bands=bad)


def test_numbers_can_be_read() -> None:
    """At most ten digits, so that a plan can be printed and typed."""
    blt = optimize_blt(60, 20, 3)
    for value in (*blt.decay, *blt.scale, *optimize_banded(60, 20, 3, 20).coefficients):
        assert value == float(f"{value:.10g}")
        assert math.isfinite(value)

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedlearn.errors import OutOfRange
from fedlearn.privacy.grid import check_capacity, from_grid, grid_step, to_grid
from fedlearn.types import F64

CLIPS = st.floats(1e-6, 1e6)
UNITS = arrays(np.float64, st.integers(1, 12), elements=st.floats(-1, 1))


def norm_squared(vector: F64) -> Fraction:
    return sum((Fraction(float(value)) ** 2 for value in vector), Fraction(0))


@given(CLIPS)
@settings(derandomize=True, deadline=None, max_examples=200)
def test_step_is_a_power_of_two_about_two_to_the_minus_thirty_of_the_clip(clip: float) -> None:
    step = grid_step(clip)
    assert math.frexp(step)[0] == 0.5
    assert clip * 2**-31 < step <= clip * 2**-30


@given(CLIPS, UNITS)
@settings(derandomize=True, deadline=None, max_examples=300)
def test_the_grid_never_lengthens_a_vector(clip: float, unit: F64) -> None:
    vector = unit * clip
    step = grid_step(clip)
    moved = from_grid(to_grid(vector, step), step)
    assert norm_squared(moved) <= norm_squared(vector)  # exact rational arithmetic
    assert (np.abs(moved) <= np.abs(vector)).all()
    assert (np.abs(moved - vector) < step).all()


@given(UNITS)
@settings(derandomize=True, deadline=None, max_examples=100)
def test_rounding_to_nearest_would_fail_the_same_check(unit: F64) -> None:
    vector = np.append(unit, 0.75 * grid_step(1.0))
    step = grid_step(1.0)
    assert norm_squared(np.rint(vector[-1:] / step) * step) > norm_squared(vector[-1:])


@given(UNITS)
@settings(derandomize=True, deadline=None, max_examples=100)
def test_what_is_on_the_grid_stays(unit: F64) -> None:
    step = grid_step(1.0)
    once = to_grid(unit, step)
    assert (to_grid(from_grid(once, step), step) == once).all()


@given(arrays(np.float64, (7, 5), elements=st.floats(-1, 1)), st.permutations(range(7)))
@settings(derandomize=True, deadline=None, max_examples=100)
def test_the_sum_does_not_depend_on_order(rows: F64, order: list[int]) -> None:
    step = grid_step(1.0)
    grid = to_grid(rows, step)
    assert (from_grid(grid.sum(0), step) == from_grid(grid[order].sum(0), step)).all()


@pytest.mark.parametrize("clip", [0.0, -1.0, math.nan, math.inf, 5e-324, 1e-300])
def test_clip_out_of_range(clip: float) -> None:
    with pytest.raises(OutOfRange, match="l2_clip_norm"):
        grid_step(clip)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e300])
def test_values_that_cannot_be_on_a_grid(bad: float) -> None:
    with pytest.raises(OutOfRange, match="values"):
        to_grid(np.array([0.5, bad]), grid_step(1.0))


@pytest.mark.parametrize("step", [0.3, 0.0, -0.5, math.nan, math.inf])
def test_step_must_be_a_power_of_two(step: float) -> None:
    with pytest.raises(OutOfRange, match="power of two"):
        to_grid(np.zeros(2), step)
    with pytest.raises(OutOfRange, match="power of two"):
        from_grid(np.zeros(2, dtype=np.int64), step)


def test_a_sum_that_is_not_exact_in_f64_is_refused() -> None:
    step = grid_step(1.0)
    assert from_grid(np.array([2**53], dtype=np.int64), step)[0] == 2**53 * step
    for value in (2**53 + 1, -(2**53) - 1, np.iinfo(np.int64).min):
        with pytest.raises(OutOfRange, match="2\\^53"):
            from_grid(np.array([value], dtype=np.int64), step)


def test_capacity() -> None:
    step = grid_step(1.0)
    check_capacity(2**31, 1.0, step)
    with pytest.raises(OutOfRange, match="split the cohort"):
        check_capacity(2**32, 1.0, step)
    with pytest.raises(OutOfRange, match="count"):
        check_capacity(-1, 1.0, step)

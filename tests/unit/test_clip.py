"""The edge-case table of ``fedlearn.clip``, row by row."""

from __future__ import annotations

import numpy as np
import pytest

from fedlearn.clip import clip_l2, clip_rows
from fedlearn.errors import ContributionRejected, OutOfRange, Reason


def test_inside_the_bound_is_untouched() -> None:
    values = np.array([0.25, -0.0, 0.125])
    clipped = clip_l2(values, 1.0)
    assert clipped.values.tobytes() == values.tobytes()
    assert clipped.l2_bound == 1.0


def test_outside_the_bound_keeps_its_direction() -> None:
    clipped = clip_l2(np.array([30.0, 40.0], np.float32), 5.0)
    assert clipped.values.dtype == np.float64
    np.testing.assert_allclose(clipped.values, [3.0, 4.0], rtol=1e-14)


def test_at_the_bound_is_not_counted_as_clipped() -> None:
    rows = clip_rows(np.array([[3.0, 4.0]]), 5.0)
    np.testing.assert_allclose(rows.values, [[3.0, 4.0]], rtol=1e-14)
    assert not rows.clipped[0]


@pytest.mark.parametrize("values", [np.zeros(3), np.zeros(0), np.array([-0.0])])
def test_zero_stays_zero(values: np.ndarray) -> None:
    assert clip_l2(values, 1.0).values.tobytes() == values.tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_is_refused(bad: float) -> None:
    values = np.array([0.1, bad, 0.2])
    with pytest.raises(ContributionRejected) as caught:
        clip_l2(values, 1.0)
    assert caught.value.reason is Reason.NOT_FINITE
    rows = clip_rows(np.stack([values, [3.0, 0.0, 4.0], np.zeros(3)]), 1.0)
    assert rows.finite.tolist() == [False, True, True]
    assert rows.clipped.tolist() == [False, True, False]
    assert rows.norms.tolist() == [0.0, 5.0, 0.0]
    assert not rows.values[0].any()


@pytest.mark.parametrize("huge", [1e155, 1e200, np.finfo(np.float64).max])
def test_squares_that_overflow(huge: float) -> None:
    rows = clip_rows(np.array([[huge, -huge, 0.0]]), 2.0)
    np.testing.assert_allclose(rows.values, [[np.sqrt(2), -np.sqrt(2), 0.0]], rtol=1e-13)
    assert rows.finite[0]
    assert rows.clipped[0]
    assert np.isfinite(rows.norms[0])


@pytest.mark.parametrize("tiny", [5e-324, 1e-310, 1e-170])
def test_squares_that_underflow(tiny: float) -> None:
    rows = clip_rows(np.array([[tiny, tiny]]), 1.0)
    assert rows.values.tolist() == [[tiny, tiny]]
    assert rows.norms[0] > 0.0


def test_a_result_below_the_normal_numbers_is_zero() -> None:
    rows = clip_rows(np.array([[1e-170, 1e-175, 1e-310]]), 1e-307)
    assert rows.values[0, 0] <= 1e-307
    assert rows.values[0, 1:].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("bound", [0.0, -1.0, np.nan, np.inf, 5e-324])
def test_a_bound_that_bounds_nothing_is_refused(bound: float) -> None:
    with pytest.raises(OutOfRange, match=r"privacy\.clip"):
        clip_l2(np.ones(2), bound)


def test_input_is_not_changed() -> None:
    values = np.full((2, 3), 7.0)
    clip_rows(values, 1.0)
    assert np.all(values == 7.0)


def test_no_rows() -> None:
    rows = clip_rows(np.zeros((0, 4), np.float32), 1.0)
    assert rows.values.shape == (0, 4)
    assert rows.norms.shape == (0,)

"""What leaves a phone: never longer than the clip norm, and exactly what a fold accepts."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from fedlearn.clip import clip_l2
from fedlearn.errors import ContributionRejected, Reason
from fedlearn.fold import Fold, FoldTerms
from fedlearn.privacy.grid import grid_step
from fedlearn.task import RoundTask
from fedlearn.terms import TrainingTerms
from fedlearn.types import ClippedDelta, Level
from fedlearn.wire import decode_contribution, encode_contribution, task_digest
from fedlearn_client.contribution import make_contribution

DIM = 33


def task(clip: float, grid: bool) -> RoundTask:
    return RoundTask(
        run_id="run",
        step=0,
        attempt=0,
        seed=0,
        parameters={"weights": np.zeros(DIM, np.float32)},
        training=TrainingTerms(1, 1, 0.1, False, 2),
        l2_clip_norm=clip,
        grid_step=grid_step(clip) if grid else None,
        sampling_probability=1.0,
        round_key=bytes(32),
    )


def squares(values: np.ndarray, scale: float) -> Fraction:
    return sum((Fraction(v) * Fraction(scale)) ** 2 for v in values.tolist())


@pytest.mark.parametrize("grid", [True, False])
@pytest.mark.parametrize("clip", [0.01, 0.7, 1.0, 13.0, 1e6])
def test_never_longer_than_the_clip_norm_in_exact_arithmetic(clip: float, grid: bool) -> None:
    rng = np.random.default_rng(3)
    asked = task(clip, grid)
    fold = Fold(FoldTerms(task_digest(asked), DIM, clip, asked.grid_step, Level.PHONE))
    for _ in range(40):
        delta = clip_l2(rng.standard_normal(DIM) * clip * 10.0 ** rng.uniform(-4, 4), clip)
        made = decode_contribution(encode_contribution(make_contribution(delta, asked)))
        assert squares(made.values, made.scale) <= Fraction(clip) ** 2
        assert fold.offer(lambda made=made: made) is made
        error = np.abs(made.values.astype(np.float64) * made.scale - delta.values).max()
        assert error <= (asked.grid_step if grid else 2.0**-23 * clip)
    assert fold.accepted == 40
    assert not fold.rejected


def test_plain_rounding_to_f32_would_lengthen() -> None:
    """The negative control for rounding toward zero."""
    value = 1.0 - 2.0**-30
    assert float(np.float32(value)) > value
    made = make_contribution(ClippedDelta(np.full(DIM, value / math.sqrt(DIM)), 1.0), task(1.0, False))
    assert np.linalg.norm(made.values.astype(np.float64)) <= value
    edge = make_contribution(ClippedDelta(np.array([value] + [0.0] * (DIM - 1)), 1.0), task(1.0, False))
    assert float(edge.values[0]) <= value


def test_a_value_beyond_f32_stays_finite() -> None:
    huge = ClippedDelta(np.array([1e300] + [0.0] * (DIM - 1)), 1e300)
    assert np.isfinite(make_contribution(huge, task(1e300, False)).values).all()


@pytest.mark.parametrize(("grid", "codec"), [(True, "grid64"), (False, "f32")])
def test_fields(grid: bool, codec: str) -> None:
    asked = task(1.0, grid)
    first, second = (make_contribution(ClippedDelta(np.zeros(DIM), 1.0), asked) for _ in range(2))
    assert (first.codec, first.level, first.count, first.l2_bound) == (codec, Level.PHONE, 1, 1.0)
    assert first.scale == (asked.grid_step if grid else 1.0)
    assert first.task_digest == task_digest(asked)
    assert first.nonce != second.nonce
    assert len(first.nonce) == 16


def test_refuses_another_clip_norm_or_shape() -> None:
    asked = task(1.0, True)
    with pytest.raises(ContributionRejected) as longer:
        make_contribution(ClippedDelta(np.zeros(DIM), 1.5), asked)
    assert longer.value.reason is Reason.OVER_NORM
    with pytest.raises(ContributionRejected) as shape:
        make_contribution(ClippedDelta(np.zeros(DIM + 1), 1.0), asked)
    assert shape.value.reason is Reason.WRONG_SHAPE
    make_contribution(ClippedDelta(np.zeros(DIM), 0.5), replace(asked, l2_clip_norm=1.0))

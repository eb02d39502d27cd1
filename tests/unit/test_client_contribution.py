"""What leaves a phone: never longer than the clip norm, and exactly what a fold accepts."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from fedlearn.clip import clip_l2
from fedlearn.device.task import DeviceTask
from fedlearn.errors import ContributionRejected, OutOfRange, Reason
from fedlearn.fold import Fold, FoldTerms
from fedlearn.types import ClippedDelta, Level
from fedlearn.wire import decode_contribution, encode_contribution
from fedlearn_client.contribution import make_contribution

_spec = importlib.util.spec_from_file_location("worker_examples", Path(__file__).with_name("worker_examples.py"))
assert _spec
assert _spec.loader
made = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(made)

DIM = 33


def task(clip: float) -> DeviceTask:
    return made.task_for(made.match_plan(clip=clip))


def squares(values: np.ndarray, scale: float) -> Fraction:
    return sum((Fraction(v) * Fraction(scale)) ** 2 for v in values.tolist())


@pytest.mark.parametrize("clip", [0.01, 0.7, 1.0, 13.0, 1e6])
def test_never_longer_than_the_clip_norm_in_exact_arithmetic(clip: float) -> None:
    rng = np.random.default_rng(3)
    asked = task(clip)
    fold = Fold(FoldTerms(asked.digest, DIM, clip, asked.mechanism.grid_step, Level.PHONE))
    for _ in range(40):
        delta = clip_l2(rng.standard_normal(DIM) * clip * 10.0 ** rng.uniform(-4, 4), clip)
        sent = decode_contribution(encode_contribution(make_contribution(delta, asked, DIM)))
        assert squares(sent.values, sent.scale) <= Fraction(clip) ** 2
        assert fold.offer(lambda sent=sent: sent) is sent
        assert np.abs(sent.values.astype(np.float64) * sent.scale - delta.values).max() <= asked.mechanism.grid_step
    assert fold.accepted == 40
    assert not fold.rejected


def test_rounding_to_nearest_would_lengthen() -> None:
    """The negative control for rounding toward zero."""
    asked = task(1.0)
    step = asked.mechanism.grid_step
    value = np.full(DIM, (math.floor(1 / math.sqrt(DIM) / step) + 0.75) * step)
    delta = ClippedDelta(value * (1 - 2.0**-52), 1.0)
    nearest = np.round(delta.values / step)
    assert np.linalg.norm(nearest * step) > np.linalg.norm(delta.values)
    sent = make_contribution(delta, asked, DIM)
    assert squares(sent.values, step) < squares(delta.values, 1.0)


def test_fields_tell_of_the_task_alone() -> None:
    asked = task(1.0)
    first, second = (make_contribution(ClippedDelta(np.zeros(DIM), 1.0), asked, DIM) for _ in range(2))
    assert (first.codec, first.level, first.count, first.l2_bound) == ("grid64", Level.PHONE, 1, 1.0)
    assert first.scale == asked.mechanism.grid_step
    assert first.task_digest == asked.digest
    assert first.nonce != second.nonce
    assert len(first.nonce) == 16
    full = make_contribution(clip_l2(np.arange(DIM), 1.0), asked, DIM)
    assert len(encode_contribution(full)) == len(encode_contribution(first)), "an empty phone looks the same"


def test_refuses_another_clip_norm_or_shape() -> None:
    asked = task(1.0)
    with pytest.raises(ContributionRejected) as longer:
        make_contribution(ClippedDelta(np.zeros(DIM), 1.5), asked, DIM)
    assert longer.value.reason is Reason.OVER_NORM
    with pytest.raises(ContributionRejected) as shape:
        make_contribution(ClippedDelta(np.zeros(DIM + 1), 1.0), asked, DIM)
    assert shape.value.reason is Reason.WRONG_SHAPE
    make_contribution(ClippedDelta(np.zeros(DIM), 0.5), asked, DIM)


def test_refuses_what_is_not_finite_or_off_any_grid() -> None:
    asked = task(1.0)
    with pytest.raises(OutOfRange):
        make_contribution(ClippedDelta(np.full(DIM, np.nan), 1.0), asked, DIM)
    crooked = replace(asked, mechanism=replace(asked.mechanism, grid_step=0.3))
    with pytest.raises(OutOfRange):
        make_contribution(ClippedDelta(np.zeros(DIM), 1.0), crooked, DIM)

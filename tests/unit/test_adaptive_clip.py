"""The clip finds its quantile; the joint release is one Gaussian release; what cannot be adapted is refused."""

from __future__ import annotations

import importlib.util
import math
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedlearn.clip import clip_rows, joint_bound
from fedlearn.errors import OutOfRange
from fedlearn.privacy.adaptive_clip import RANGE, AdaptiveClipSettings, append_fit, require_independent_noise
from fedlearn.privacy.events import Event, MatrixGaussian, PoissonGaussian
from fedlearn.privacy.factorization import Toeplitz
from fedlearn.privacy.grid import from_grid, grid_step, to_grid

_spec = importlib.util.spec_from_file_location("adaptive_town", Path(__file__).with_name("adaptive_town.py"))
town = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = town
_spec.loader.exec_module(town)

ROWS = town.updates(seed=1)
NORMS = np.linalg.norm(ROWS, axis=1)


# --- it finds the quantile ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.1, 10.0])
@pytest.mark.parametrize(("quantile", "learning_rate"), [(0.5, 0.2), (0.8, 0.5)])
def test_within_five_percent_of_the_quantile_from_ten_times_off(
    factor: float, quantile: float, learning_rate: float
) -> None:
    """The spread around the target is 1 % here, nearly all of it from the cohort's draw, which is fixed."""
    target = float(np.quantile(NORMS, quantile))
    clips = town.adapt(ROWS, AdaptiveClipSettings(factor * target, quantile, learning_rate), rounds=100)
    assert abs(clips[0] / target - factor) < 1e-9
    assert abs(clips[-1] / target - 1) < 0.05
    assert np.median(np.abs(np.array(clips[-20:]) / target - 1)) < 0.03


@pytest.mark.parametrize("factor", [0.7, 1.5])
def test_the_wrong_sign_runs_away(factor: float) -> None:
    def wrong(adaptive: AdaptiveClipSettings, clip: float, released: float, scale: float) -> float:
        return clip**2 / adaptive.next_clip(clip, released, scale)

    target = float(np.median(NORMS))
    clips = town.adapt(ROWS, AdaptiveClipSettings(factor * target), rounds=100, step=wrong)
    assert not 0.01 < clips[-1] / target < 100
    assert (clips[-1] > target) is (factor > 1)


def test_the_range_holds_whatever_the_noise() -> None:
    adaptive = AdaptiveClipSettings(0.5)
    for released, limit in ((1e300, 0.5 / RANGE), (-1e300, 0.5 * RANGE)):
        assert adaptive.next_clip(0.5, released, 0.1) == pytest.approx(limit, rel=1e-12)


def test_one_step_by_hand() -> None:
    """Andrew et al. 2021, algorithm 1: C <- C exp(-eta (b - gamma)); 30 of 40 phones within the clip."""
    adaptive = AdaptiveClipSettings(2.0, target_quantile=0.5, learning_rate=0.2)
    released = 0.3 * (30 * 0.5 - 10 * 0.5) / 40
    assert adaptive.next_clip(2.0, released, 0.3) == pytest.approx(2.0 * math.exp(-0.2 * (0.75 - 0.5)), rel=1e-14)


# --- it costs what a fixed clip costs -------------------------------------------------------------------------------


@pytest.mark.parametrize("noise_multiplier", [0.3, 1.0, 7.0])
@pytest.mark.parametrize("over_half", [1.001, 2.0, 10.0, 1000.0])
@pytest.mark.parametrize("clip", [1e-3, 0.1, 40.0])
def test_the_joint_release_is_the_papers_split(noise_multiplier: float, over_half: float, clip: float) -> None:
    """Andrew et al. 2021, theorem 1: z_delta = (z^-2 - (2 sigma_b)^-2)^(-1/2) for the updates beside sigma_b."""
    count_noise = over_half * noise_multiplier / 2
    scale = clip * AdaptiveClipSettings(clip, count_noise=count_noise).ratio(noise_multiplier)
    std = noise_multiplier * joint_bound(clip, scale)
    assert std / scale == pytest.approx(count_noise, rel=1e-9), "the noise on the count of bits, in phones"
    z_delta = (noise_multiplier**-2 - (2 * count_noise) ** -2) ** -0.5
    assert std / clip == pytest.approx(z_delta, rel=1e-9), "the noise on the updates, over the clip"


def test_by_default_the_count_costs_the_update_one_percent() -> None:
    scale = 0.1 * AdaptiveClipSettings(0.1).ratio(2.0)
    assert joint_bound(0.1, scale) / 0.1 == pytest.approx(1.01, rel=1e-12)
    assert 2.0 * joint_bound(0.1, scale) / scale == pytest.approx(2 * 3.56, rel=1e-3)
    assert AdaptiveClipSettings(0.1, count_noise=100 / 20).ratio(None) == AdaptiveClipSettings(0.1).ratio(None)


FINITE = st.floats(-1e100, 1e100, allow_subnormal=True)
POSITIVE = st.floats(1e-100, 1e100)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    deltas=hnp.arrays(np.float64, st.tuples(st.integers(0, 4), st.integers(0, 5)), elements=FINITE | st.just(np.nan)),
    clip=POSITIVE,
    ratio=st.floats(1e-6, 1e6),
    data=st.data(),
)
def test_no_joint_vector_is_over_its_bound(deltas: np.ndarray, clip: float, ratio: float, data: st.DataObject) -> None:
    """In exact arithmetic, and on the grid."""
    trained = data.draw(hnp.arrays(np.bool_, len(deltas)))
    rows = clip_rows(deltas, clip)
    bound = joint_bound(clip, clip * ratio)
    vectors = append_fit(rows, trained, clip * ratio)
    spacing = grid_step(bound)
    for vector in (*vectors, *from_grid(to_grid(vectors, spacing), spacing)):
        assert sum(Fraction(value) ** 2 for value in vector.tolist()) <= Fraction(bound) ** 2
    told = vectors[:, -1]
    assert (told[~(trained & rows.finite)] == 0).all()
    fits = trained & rows.finite & (rows.norms <= clip)
    assert (told[fits] == clip * ratio / 2).all()
    assert (told[trained & rows.finite & ~fits] == -clip * ratio / 2).all()


@settings(derandomize=True, deadline=None, max_examples=300)
@given(clip=POSITIVE, scale=POSITIVE)
def test_the_bound_is_never_rounded_down_and_hardly_up(clip: float, scale: float) -> None:
    squared = Fraction(clip) ** 2 + Fraction(scale) ** 2 / 4
    bound = joint_bound(clip, scale)
    assert Fraction(bound) ** 2 >= squared
    assert Fraction(bound) ** 2 <= squared * (1 + Fraction(1, 10**14))


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("initial", {"initial": 0.0}),
        ("initial", {"initial": math.nan}),
        ("target_quantile", {"target_quantile": 0.0}),
        ("target_quantile", {"target_quantile": 1.0}),
        ("target_quantile", {"target_quantile": math.nan}),
        ("learning_rate", {"learning_rate": -0.2}),
        ("learning_rate", {"learning_rate": math.inf}),
        ("count_noise", {"count_noise": 0.0}),
    ],
)
def test_settings_out_of_range(field: str, change: dict[str, float]) -> None:
    with pytest.raises(OutOfRange, match=rf"privacy\.adaptive_clip\.{field}="):
        AdaptiveClipSettings(**{"initial": 0.1, **change})


@pytest.mark.parametrize("count_noise", [0.5, 1.0])
def test_a_count_noise_that_no_scale_gives(count_noise: float) -> None:
    with pytest.raises(OutOfRange, match=r"above half the noise multiplier 2\.0; use e\.g\. 8, or null"):
        AdaptiveClipSettings(0.1, count_noise=count_noise).ratio(2.0)


@pytest.mark.parametrize(("clip", "scale"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0), (math.inf, 1.0), (1.0, math.nan)])
def test_a_bound_out_of_range(clip: float, scale: float) -> None:
    with pytest.raises(OutOfRange, match="finite and > 0"):
        joint_bound(clip, scale)


@dataclass(frozen=True)
class Plan:
    """As much of a plan as the check reads."""

    event: Event
    mechanism: str


def test_correlated_noise_is_refused_with_a_way_out() -> None:
    require_independent_noise(None)
    require_independent_noise(Plan(PoissonGaussian(1.0, 0.1), "gaussian"))
    with pytest.raises(OutOfRange, match=r"mode=blt .*charged on its own") as refused:
        require_independent_noise(Plan(MatrixGaussian(Toeplitz((1.0, 0.5)), 10, 5, 2, 1.0), "blt"))
    assert refused.value.code == "FL102"

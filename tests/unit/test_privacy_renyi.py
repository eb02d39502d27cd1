"""Renyi divergences against many digits, and against the library where it is well conditioned."""

from __future__ import annotations

import math
import random

import mpmath
import numpy as np
import pytest
from dp_accounting import dp_event, rdp

from fedlearn.errors import InvalidSpend
from fedlearn.privacy import renyi
from fedlearn.privacy.dp_library import poisson_renyi
from fedlearn.privacy.events import (
    FixedSizeGaussian,
    MatrixGaussian,
    MetricRelease,
    PoissonGaussian,
    RepeatAndSelect,
    TruncatedPoissonGaussian,
)
from fedlearn.privacy.factorization import INDEPENDENT
from fedlearn.privacy.renyi import ORDERS, composed_curve, curve_delta, curve_epsilon, renyi_curve

ORDERS_TRIED = (2.0, 3.0, 4.0, 5.0, 7.3, 8.0, 11.0, 16.0, 32.0)


def exact_moment(z: float, q: float, order: int) -> mpmath.mpf:
    """ln of Mironov, Talwar and Zhang 2019, section 3.3, for whole orders."""
    p, v = mpmath.mpf(q), mpmath.mpf(z) ** 2
    terms = (
        mpmath.binomial(order, i) * p**i * (1 - p) ** (order - i) * mpmath.exp(mpmath.mpf(i * i - i) / (2 * v))
        for i in range(order + 1)
    )
    return mpmath.log(mpmath.fsum(terms))


def quadrature_moment(z: float, q: float, order: float) -> mpmath.mpf:
    """ln E[(1 - q + q e^((2 x - 1) / (2 z^2)))^order], for any order."""
    p, s, a = mpmath.mpf(q), mpmath.mpf(z), mpmath.mpf(order)

    def integrand(x: mpmath.mpf) -> mpmath.mpf:
        ratio = 1 - p + p * mpmath.exp((2 * x - 1) / (2 * s * s))
        return mpmath.npdf(x, 0, s) * ratio**a

    kink = s * s * mpmath.log(1 / p - 1) + mpmath.mpf(1) / 2
    points = {mpmath.mpf(-12) * s + k * (24 * s + a) / 12 for k in range(13)}
    return mpmath.log(mpmath.quad(integrand, sorted(points | ({kink} if -12 * s < kink < a + 12 * s else set()))))


def test_whole_orders_are_never_too_small_even_where_the_library_is() -> None:
    rng = random.Random(4)
    library_low = 0
    with mpmath.workdps(40):
        for _ in range(60):
            z, q = 10 ** rng.uniform(-1.3, 4), 10 ** rng.uniform(-8, -0.0001)
            order = rng.choice([2, 3, 5, 11, 33, 64, 128, 256])
            truth = exact_moment(z, q, order) / (order - 1)
            assert renyi_curve(PoissonGaussian(z, q), (float(order),))[0] >= truth
            library_low += float(poisson_renyi(z, q, [float(order)])[0]) < truth
    assert library_low > 5, "the margin is there for a reason"


def test_fractional_orders_are_never_too_small() -> None:
    with mpmath.workdps(30):
        for z, q, order in ((0.8, 0.01, 1.1), (1.0, 0.001, 2.5), (2.0, 0.3, 1.01), (5.0, 1e-4, 7.3), (30.0, 0.05, 3.7)):
            truth = quadrature_moment(z, q, order) / (mpmath.mpf(order) - 1)
            assert renyi_curve(PoissonGaussian(z, q), (order,))[0] >= truth


def test_later_orders_bound_earlier_ones() -> None:
    for event in (
        PoissonGaussian(0.4, 0.3),
        FixedSizeGaussian(3.0, 1000, 900),
        RepeatAndSelect(MetricRelease(1), 3, 5, 0),
    ):
        curve = renyi_curve(event)
        assert (np.diff(curve) >= 0).all()
        assert (curve > 0).all()


def test_fixed_size_equals_the_library_where_it_is_well_conditioned() -> None:
    for z, n, m in ((0.4, 1000, 3), (0.8, 10_000, 100), (1.0, 10_000, 100), (3.0, 500, 20), (8.0, 1000, 100)):
        accountant = rdp.RdpAccountant(list(ORDERS_TRIED), rdp.rdp_privacy_accountant.NeighborRel.REPLACE_ONE)
        accountant.compose(dp_event.SampledWithoutReplacementDpEvent(n, m, dp_event.GaussianDpEvent(z)))
        ours = renyi_curve(FixedSizeGaussian(z, n, m), ORDERS_TRIED)
        assert ours == pytest.approx(accountant.rdp, rel=1e-6, abs=1e-10)
        assert (ours >= np.minimum.accumulate(accountant.rdp[::-1])[::-1] * (1 - 1e-12)).all()


@pytest.mark.parametrize("z", [0.1, 0.7, 3.0, 50.0, 2000.0])
def test_moments_of_the_likelihood_ratio_keep_their_digits(z: float) -> None:
    ours = renyi._log_divergences(z, 64)
    with mpmath.workdps(600):
        s = 1 / mpmath.mpf(z) ** 2
        for j in (2, 4, 10, 32, 64):
            terms = [(-1) ** (j - k) * mpmath.binomial(j, k) * mpmath.exp(s * k * (k - 1) / 2) for k in range(j + 1)]
            assert ours[j] == pytest.approx(float(mpmath.log(mpmath.fsum(terms))), rel=1e-12)


def test_fixed_size_never_exceeds_the_whole_population() -> None:
    order = np.asarray(ORDERS)
    for z in (0.7, 3.0, 100.0):
        sampled = renyi_curve(FixedSizeGaussian(z, 1000, 10))
        assert (sampled <= order / (2 * z * z) + 1e-9).all()
        assert renyi_curve(FixedSizeGaussian(z, 10, 10)) == pytest.approx(order / (2 * z * z))


@pytest.mark.parametrize("shape", [0.0, 0.5, 1.0, 3.0, math.inf])
@pytest.mark.parametrize("mean", [1.5, 10.0, 1000.0])
def test_repeat_and_select_equals_the_library(mean: float, shape: float) -> None:
    one = MetricRelease(4.0)
    ours = renyi_curve(RepeatAndSelect(one, 3, mean, shape))
    accountant = rdp.RdpAccountant(list(ORDERS))
    repeated = dp_event.SelfComposedDpEvent(dp_event.GaussianDpEvent(4.0), 3)
    accountant.compose(dp_event.RepeatAndSelectDpEvent(repeated, mean, shape))
    theirs = np.minimum.accumulate(accountant.rdp[::-1])[::-1]
    assert ours == pytest.approx(theirs, rel=1e-8)
    assert (ours >= theirs * (1 - 1e-8)).all()


@pytest.mark.parametrize(("shape", "gamma"), [(1.0, 0.1), (0.0, 0.2), (2.5, 0.05)])
def test_halting_probability_inverts_the_mean(shape: float, gamma: float) -> None:
    # Papernot and Steinke 2022, definition 1.
    share = math.log(1 / gamma) if shape == 0 else (1 - gamma**shape) / shape
    mean = (1 / gamma - 1) / share
    log_halting = renyi._log_halting(mean, shape)
    assert -math.log(gamma) <= log_halting <= -math.log(gamma) * (1 + 1e-10)


def test_epsilon_and_delta_are_inverse() -> None:
    curve = composed_curve([(PoissonGaussian(1.0, 0.01), 1000)])
    value = curve_epsilon(curve, 1e-5)
    assert f"{value:.3f}" == "2.101"
    assert curve_delta(curve, value) == pytest.approx(1e-5, rel=1e-4)
    assert curve_delta(curve, 0.0) <= 1.0
    tiny = composed_curve([(MetricRelease(1e4), 1)])
    assert curve_delta(tiny, 0.0) < 1e-3, "the bound by total variation"


def test_what_has_no_divergence_is_refused() -> None:
    with pytest.raises(InvalidSpend, match="no Renyi accountant"):
        renyi_curve(TruncatedPoissonGaussian(1.0, 0.1, 100, 20))
    with pytest.raises(InvalidSpend, match="repetitions"):
        renyi_curve(RepeatAndSelect(MetricRelease(1.0), 1, 1e16, 0.0))


def test_no_number_is_an_error_not_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    for bad in (math.nan, -math.inf):
        monkeypatch.setattr(renyi, "poisson_renyi", lambda z, q, orders, bad=bad: np.full(len(orders), bad))
        renyi._curve.cache_clear()
        with pytest.raises(InvalidSpend, match="no number"):
            renyi_curve(PoissonGaussian(1.234, 0.0567))
    monkeypatch.undo()
    renyi._curve.cache_clear()


def test_infinite_orders_are_left_out_and_all_infinite_is_infinite() -> None:
    curve = np.full(len(ORDERS), math.inf)
    assert curve_epsilon(curve, 1e-5) == math.inf
    curve[20] = 0.5
    assert math.isfinite(curve_epsilon(curve, 1e-5))


def test_a_sampling_probability_next_to_one_counts_as_one() -> None:
    nearly = PoissonGaussian(2.0, math.nextafter(1.0, 0.0))
    assert renyi_curve(nearly) == pytest.approx(renyi_curve(PoissonGaussian(2.0, 1.0)))


def test_matrix_mechanisms_have_the_gaussian_s() -> None:
    event = MatrixGaussian(INDEPENDENT, 9, 3, 3, 2.0)
    assert renyi_curve(event) == pytest.approx(np.asarray(ORDERS) * 3 / 8, rel=1e-12)

"""Closed forms of the Gaussian against arithmetic with 60 digits."""

from __future__ import annotations

import math
import random

import mpmath
import pytest

from fedlearn.errors import InvalidSpend
from fedlearn.privacy.events import (
    FixedSizeGaussian,
    MatrixGaussian,
    MetricRelease,
    PoissonGaussian,
    RepeatAndSelect,
    TruncatedPoissonGaussian,
)
from fedlearn.privacy.factorization import INDEPENDENT, Tree
from fedlearn.privacy.gaussian import gaussian_delta, gaussian_epsilon, mu_of, total_mu, zcdp_epsilon, zcdp_of

POINTS = 2000


def exact_delta(mu: float, epsilon: float) -> mpmath.mpf:
    """Balle and Wang 2018, theorem 8: Q(a) - e^epsilon Q(b)."""
    with mpmath.workdps(60):
        m, e = mpmath.mpf(mu), mpmath.mpf(epsilon)
        ahead = mpmath.erfc((e / m - m / 2) / mpmath.sqrt(2)) / 2
        return +(ahead - mpmath.exp(e) * mpmath.erfc((e / m + m / 2) / mpmath.sqrt(2)) / 2)


def test_epsilon_is_never_below_the_exact_one() -> None:
    rng = random.Random(1)
    loose = 0
    for index in range(POINTS):
        mu = 10 ** rng.uniform(-6, 2)
        delta = 10 ** rng.uniform(-300 if index % 4 == 0 else -30, -0.01)
        epsilon = gaussian_epsilon(mu, delta)
        assert exact_delta(mu, epsilon) <= delta, (mu, delta)
        if epsilon > 1e-4:
            assert exact_delta(mu, epsilon * (1 - 1e-9)) > delta, (mu, delta)
            loose += 1
    assert loose > POINTS / 2


def test_delta_is_never_below_the_exact_one() -> None:
    rng = random.Random(2)
    for _ in range(POINTS):
        mu = 10 ** rng.uniform(-6, 2)
        epsilon = rng.uniform(0, 3) * (mu * mu / 2 + 6 * mu)
        exact = exact_delta(mu, epsilon)
        ours = gaussian_delta(mu, epsilon)
        assert ours >= min(exact, 1)
        if exact > 1e-290:
            assert ours <= exact * (1 + 1e-11 + 1e-11 / mu)


def test_delta_without_its_allowance_would_be_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    import fedlearn.privacy.gaussian as module

    monkeypatch.setattr(module, "_SPECIAL", -1e-14)
    monkeypatch.setattr(module, "_UP", 1 - 1e-14)
    rng = random.Random(2)
    pairs = [(10 ** rng.uniform(-6, 2), rng.uniform(0, 3)) for _ in range(200)]
    points = [(mu, share * (mu * mu / 2 + 6 * mu)) for mu, share in pairs]
    assert any(gaussian_delta(mu, epsilon) < exact_delta(mu, epsilon) for mu, epsilon in points)


def test_edges() -> None:
    assert gaussian_epsilon(0.0, 1e-5) == 0.0
    assert gaussian_epsilon(math.inf, 1e-5) == math.inf
    assert gaussian_epsilon(1e200, 1e-5) == math.inf
    assert gaussian_epsilon(1e-3, 0.5) == 0.0
    assert gaussian_delta(0.0, 0.0) == 0.0
    assert gaussian_delta(1e200, 1.0) == 1.0
    assert gaussian_delta(1.0, math.inf) == 0.0


@pytest.mark.parametrize("bad", [-1.0, math.nan])
def test_arguments_out_of_range(bad: float) -> None:
    for call in (
        lambda: gaussian_epsilon(bad, 1e-5),
        lambda: gaussian_delta(bad, 1.0),
        lambda: gaussian_delta(1.0, bad),
        lambda: zcdp_epsilon(bad, 1e-5),
        lambda: gaussian_epsilon(1.0, bad),
        lambda: zcdp_epsilon(1.0, bad),
    ):
        with pytest.raises(InvalidSpend, match=r"must be"):
            call()


@pytest.mark.parametrize("rho", [1e-8, 1e-3, 0.1, 0.81, 5.0, 1e4])
@pytest.mark.parametrize("delta", [1e-2, 1e-6, 1e-10, 1e-100])
def test_zcdp_conversion_is_the_least_over_orders_and_above_the_gaussian(rho: float, delta: float) -> None:
    ours = zcdp_epsilon(rho, delta)
    # Canonne, Kamath and Steinke 2020, proposition 12, over a fine grid of orders, with 50 digits.
    with mpmath.workdps(50):
        least = mpmath.inf
        for step in range(-1200, 1601):
            order = 1 + mpmath.mpf(10) ** (mpmath.mpf(step) / 200)
            value = order * mpmath.mpf(rho) + mpmath.log(1 / (order * mpmath.mpf(delta))) / (order - 1)
            least = min(least, value + mpmath.log(1 - 1 / order))
        least = max(least, 0)
    assert ours <= least * (1 + 1e-9) + 1e-9
    assert ours >= least * (1 - 1e-3) - 1e-9
    # The plain Gaussian of that rho is one of the things that are rho-zCDP.
    assert ours >= gaussian_epsilon(math.sqrt(2 * rho), delta) * (1 - 1e-9)
    # Bun and Steinke 2016, proposition 1.3, is looser.
    assert ours <= rho + 2 * math.sqrt(-rho * math.log(delta)) + 1e-9


def test_mu_of_each_kind() -> None:
    assert mu_of(MetricRelease(4.0)) == pytest.approx(0.25, rel=1e-13)
    assert mu_of(PoissonGaussian(4.0, 1.0)) == pytest.approx(0.25, rel=1e-13)
    assert mu_of(FixedSizeGaussian(4.0, 10, 10)) == pytest.approx(0.25, rel=1e-13)
    # Independent noise, three participations: sensitivity sqrt(3).
    assert mu_of(MatrixGaussian(INDEPENDENT, 9, 3, 3, 2.0)) == pytest.approx(math.sqrt(3) / 2, rel=1e-13)
    assert total_mu([(0.3, 4), (0.4, 1)]) == pytest.approx(math.sqrt(4 * 0.09 + 0.16), rel=1e-13)
    for event in (
        PoissonGaussian(1.0, 0.5),
        FixedSizeGaussian(1.0, 10, 9),
        TruncatedPoissonGaussian(1.0, 0.1, 10, 5),
        RepeatAndSelect(MetricRelease(1.0), 1, 2.0, 1.0),
    ):
        with pytest.raises(InvalidSpend, match="no plain Gaussian"):
            mu_of(event)


def test_zcdp_of_each_kind_gives_no_credit_for_sampling() -> None:
    assert zcdp_of(PoissonGaussian(2.0, 0.01)) == pytest.approx(0.125, rel=1e-12)
    assert zcdp_of(FixedSizeGaussian(2.0, 100, 3)) == pytest.approx(0.125, rel=1e-12)
    assert zcdp_of(MetricRelease(2.0)) == pytest.approx(0.125, rel=1e-12)
    # The unit's update may take the place of another's: twice the distance, four times the rho.
    assert zcdp_of(TruncatedPoissonGaussian(2.0, 0.01, 100, 3)) == pytest.approx(0.5, rel=1e-12)
    assert zcdp_of(TruncatedPoissonGaussian(2.0, 0.01, 100, 100)) == pytest.approx(0.125, rel=1e-12)
    with pytest.raises(InvalidSpend, match="no zCDP figure"):
        zcdp_of(RepeatAndSelect(MetricRelease(1.0), 1, 2.0, 1.0))


def test_the_gboard_tree() -> None:
    """Spanish keyboard of 2022 (google-research/federated, dp_ftrl notebook): rho 0.81, epsilon 8.90 by RDP."""
    event = MatrixGaussian(Tree(), 2000, 314, 6, 7.0)
    assert f"{zcdp_of(event):.4f}" == "0.8061"
    assert f"{gaussian_epsilon(mu_of(event), 1e-10):.3f}" == "8.526"
    assert f"{zcdp_epsilon(zcdp_of(event), 1e-10):.2f}" == "8.90"

from __future__ import annotations

import math

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from fedlearn.errors import InvalidSpend, MissingDependency
from fedlearn.privacy import accountants
from fedlearn.privacy.accountants import SEARCHING, delta_at, epsilon, epsilon_curve, largest_count, require_accountant
from fedlearn.privacy.events import PoissonGaussian

EVENT = PoissonGaussian(1.0, 0.01)


def test_nothing_spent_is_zero() -> None:
    assert epsilon([], 1e-5) == 0.0
    assert epsilon([(EVENT, 0)], 1e-5) == 0.0
    assert delta_at([], 1.0) == 0.0


def test_equal_events_are_merged_in_any_order() -> None:
    other = PoissonGaussian(2.0, 0.05)
    one = epsilon([(EVENT, 10), (other, 7), (EVENT, 5)], 1e-5, discretization=SEARCHING)
    two = epsilon([(other, 7), (EVENT, 15)], 1e-5, discretization=SEARCHING)
    assert one == two
    assert one > epsilon([(EVENT, 15)], 1e-5, discretization=SEARCHING)


def test_epsilon_and_delta_at_are_inverse() -> None:
    spend = [(EVENT, 200)]
    value = epsilon(spend, 1e-5)
    assert delta_at(spend, value) == pytest.approx(1e-5, rel=1e-3)
    assert delta_at(spend, value * 1.01) < 1e-5 < delta_at(spend, value * 0.99)


def test_more_events_more_noise_and_sampling_move_epsilon_the_right_way() -> None:
    base = epsilon([(EVENT, 100)], 1e-5)
    assert epsilon([(EVENT, 101)], 1e-5) > base
    assert epsilon([(PoissonGaussian(1.1, 0.01), 100)], 1e-5) < base
    assert epsilon([(PoissonGaussian(1.0, 0.011), 100)], 1e-5) > base


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_delta_out_of_range(delta: float) -> None:
    with pytest.raises(InvalidSpend, match="delta"):
        epsilon([(EVENT, 1)], delta)


@pytest.mark.parametrize("count", [-1, 1.5, True])
def test_count_out_of_range(count: object) -> None:
    with pytest.raises(InvalidSpend, match="count"):
        epsilon([(EVENT, count)], 1e-5)  # type: ignore[list-item]


@pytest.mark.parametrize("target", [-1.0, math.nan])
def test_epsilon_of_delta_at_out_of_range(target: float) -> None:
    with pytest.raises(InvalidSpend, match="epsilon"):
        delta_at([(EVENT, 1)], target)


def test_delta_below_floating_point_is_refused_not_rounded() -> None:
    with pytest.raises(InvalidSpend, match="too small to certify"):
        epsilon([(EVENT, 100_000)], 1e-12)


def test_unknown_accountant() -> None:
    require_accountant("pld")
    with pytest.raises(InvalidSpend, match="unknown"):
        require_accountant("moments")


def test_wide_losses_are_coarsened_upwards_not_refused() -> None:
    # The exact Gaussian's closed form (Balle and Wang 2018, theorem 8), sensitivity over std = 20, solved for epsilon.
    def excess(value: float) -> float:
        return float(norm.cdf(10 - value / 20) - math.exp(value + norm.logcdf(-10 - value / 20))) - 1e-5

    exact = brentq(excess, 0, 400, xtol=1e-12)
    coarse = epsilon([(PoissonGaussian(0.05, 1.0), 1)], 1e-5, discretization=SEARCHING)
    assert exact <= coarse <= exact * (1 + 1e-5)


def test_curve_is_a_monotone_upper_bound_that_ends_at_the_reported_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accountants, "_MAX_ANCHORS", 10)
    counts = range(31)
    curve = epsilon_curve(EVENT, counts, 1e-5)
    assert curve[0] == 0.0
    assert list(curve) == sorted(curve)
    assert curve[-1] == epsilon([(EVENT, 30)], 1e-5)
    for count in (1, 2, 17, 29):
        exact = epsilon([(EVENT, count)], 1e-5)
        assert exact <= curve[count] <= epsilon([(EVENT, count + 4)], 1e-5, discretization=SEARCHING)


def test_curve_keeps_the_order_of_its_counts() -> None:
    assert epsilon_curve(EVENT, [], 1e-5) == ()
    up = epsilon_curve(EVENT, [1, 10, 20], 1e-5)
    assert epsilon_curve(EVENT, [20, 1, 10, 10], 1e-5) == (up[2], up[0], up[1], up[1])


def test_largest_count_is_the_last_that_fits() -> None:
    n = largest_count(EVENT, 1.0, 1e-5)
    assert epsilon([(EVENT, n)], 1e-5) <= 1.0 < epsilon([(EVENT, n + 1)], 1e-5)
    assert largest_count(EVENT, 1.0, 1e-5, spent=[(EVENT, n - 4)]) == 4
    assert largest_count(EVENT, 1.0, 1e-5, spent=[(EVENT, n + 4)]) == 0
    assert largest_count(EVENT, 1.0, 1e-5, at_most=5) == 5
    assert largest_count(PoissonGaussian(0.5, 1.0), 1.0, 1e-5) == 0


def test_missing_library_prints_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise accountants.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(accountants.importlib.metadata, "version", absent)
    with pytest.raises(MissingDependency, match=r"pip install 'fedlearn\[privacy\]'"):
        accountants.accounting_version()

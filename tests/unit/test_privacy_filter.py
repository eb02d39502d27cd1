from __future__ import annotations

import math

import pytest

from fedlearn.errors import InvalidSpend
from fedlearn.privacy.events import (
    FixedSizeGaussian,
    MetricRelease,
    PoissonGaussian,
    RepeatAndSelect,
    TruncatedPoissonGaussian,
)
from fedlearn.privacy.filter import RdpFilter, ZcdpFilter
from fedlearn.privacy.gaussian import renyi_epsilon, zcdp_epsilon, zcdp_of

CAPS = [(3.0, 1e-6), (0.1, 1e-8), (20.0, 1e-5), (1e-3, 1e-10), (200.0, 1e-6), (1.0, 0.5), (1e-6, 0.5), (1e4, 1e-9)]


@pytest.mark.parametrize(("epsilon", "delta"), CAPS)
def test_capacity_converts_back_to_at_most_the_cap(epsilon: float, delta: float) -> None:
    rho = ZcdpFilter(epsilon, delta).capacity
    assert zcdp_epsilon(rho, delta) <= epsilon < zcdp_epsilon(rho * (1 + 1e-5), delta) + 1e-11
    order = RdpFilter.order_for(epsilon, delta)
    divergence = RdpFilter(order, epsilon, delta).capacity
    assert renyi_epsilon(order, divergence, math.log(delta)) <= epsilon
    assert renyi_epsilon(order, divergence * (1 + 1e-5) + 1e-12, math.log(delta)) > epsilon * (1 - 1e-5)
    # One order admits no more of a plain Gaussian than all orders together, and not much less.
    assert 0 < divergence / order <= rho * (1 + 1e-5)


def test_order_depends_on_the_cap_alone_and_is_whole_above_two() -> None:
    assert RdpFilter.order_for(3.0, 1e-6) == 10.0
    assert RdpFilter(10.0, 3.0, 1e-6).order == 10.0


def test_cost_adds_up_and_is_rounded_up() -> None:
    event = PoissonGaussian(2.0, 0.01)
    zcdp, renyi = ZcdpFilter(3.0, 1e-6), RdpFilter(10.0, 3.0, 1e-6)
    assert zcdp.cost(event, 0) == renyi.cost(event, 0) == 0.0
    assert zcdp.cost(event, 100) >= 100 * zcdp_of(event)
    assert zcdp.cost(event, 100) == pytest.approx(100 / 8, rel=1e-12)
    assert renyi.cost(MetricRelease(2.0), 3) == pytest.approx(3 * 10 / 8, rel=1e-12)
    assert renyi.cost(event, 100) < zcdp.cost(event, 100) * 10, "sampling earns credit here"
    assert renyi.cost(FixedSizeGaussian(2.0, 1000, 10), 1) > 0
    assert renyi.cost(RepeatAndSelect(event, 100, 5.0, 1.0), 1) > renyi.cost(event, 100)


@pytest.mark.parametrize("count", [-1, 1.5, True])
def test_counts_out_of_range(count: object) -> None:
    for which in (ZcdpFilter(3.0, 1e-6), RdpFilter(10.0, 3.0, 1e-6)):
        with pytest.raises(InvalidSpend, match="count"):
            which.cost(MetricRelease(1.0), count)  # type: ignore[arg-type]


def test_events_without_a_figure_are_refused() -> None:
    with pytest.raises(InvalidSpend, match="no zCDP figure"):
        ZcdpFilter(3.0, 1e-6).cost(RepeatAndSelect(MetricRelease(1.0), 1, 2.0, 1.0), 1)
    with pytest.raises(InvalidSpend, match="no Renyi accountant"):
        RdpFilter(10.0, 3.0, 1e-6).cost(TruncatedPoissonGaussian(1.0, 0.1, 100, 20), 1)


@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 1e-6), (math.inf, 1e-6), (math.nan, 1e-6), (1, 0), (1, 1)])
def test_caps_out_of_range(epsilon: float, delta: float) -> None:
    for make in (lambda: ZcdpFilter(epsilon, delta), lambda: RdpFilter(4.0, epsilon, delta)):
        with pytest.raises(InvalidSpend, match=r"epsilon|delta"):
            make()


@pytest.mark.parametrize("order", [1.0, 0.5, math.inf, math.nan])
def test_orders_out_of_range(order: float) -> None:
    with pytest.raises(InvalidSpend, match="order"):
        RdpFilter(order, 3.0, 1e-6)


def test_an_order_too_small_for_the_cap_is_refused() -> None:
    with pytest.raises(InvalidSpend, match="order_for"):
        RdpFilter(1.5, 0.1, 1e-9)

"""Privacy filters: budgets over runs of which each is chosen after seeing the results of those before it.

An accountant of fixed events does not cover that: the next run's plan may depend on what the earlier ones released. A
filter does (Feldman and Zrnic 2021, theorem 4.5): fix an order alpha and a capacity B beforehand, and admit a run only
while the sum of all admitted Renyi divergences of order alpha stays <= B. Then everything that was released is
(alpha, B)-RDP, however the runs were chosen. The order is fixed before the first run because the theorem is about one
order: choosing afterwards the order at which the runs look cheapest is a choice that depends on what was released. The
zCDP filter sums rho instead: a sum <= rho holds B = alpha rho for every order at once, by the same theorem.

One run is one plan: its own events are fixed before it begins, and all of them are paid for before its first release.
All events of one filter are under one neighboring relation, the budget scope's.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from fedlearn.errors import InvalidSpend
from fedlearn.privacy.events import Event
from fedlearn.privacy.gaussian import renyi_epsilon, zcdp_epsilon, zcdp_of
from fedlearn.privacy.renyi import renyi_curve

_LARGEST_CAPACITY = 1e9


class ZcdpFilter:
    """Adds up zCDP without credit for sampling: what a device can recompute from the plans alone.

    Formal guarantee: while the sum of ``cost`` over all admitted events is <= ``capacity``, everything released is
    (epsilon, delta)-DP, also when each run was chosen adaptively (Feldman and Zrnic 2021; converted by Canonne, Kamath
    and Steinke 2020, proposition 12).

    Args:
        epsilon: the cap, finite, > 0.
        delta: in (0, 1).

    Raises:
        InvalidSpend: an argument is out of range.
    """

    def __init__(self, epsilon: float, delta: float) -> None:
        _require_cap(epsilon, delta)
        self._capacity = _largest(lambda rho: zcdp_epsilon(rho, delta) <= epsilon)

    @property
    def capacity(self) -> float:
        """The largest rho found that converts to at most epsilon; rounded down."""
        return self._capacity

    def cost(self, event: Event, count: int) -> float:
        """Return the rho of ``count`` (>= 0) such events, rounded up.

        Raises:
            InvalidSpend: the count is no integer >= 0, or the event has no zCDP figure.
        """
        return _times(zcdp_of(event), count)


class RdpFilter:
    """Adds up Renyi divergences of one order: with credit for Poisson sampling and fixed-size cohorts.

    Formal guarantee: as ``ZcdpFilter``, with one order that was fixed before the first run.

    Args:
        order: alpha > 1, finite; of ``order_for`` unless a plan names another.
        epsilon: the cap, finite, > 0.
        delta: in (0, 1).

    Raises:
        InvalidSpend: an argument is out of range, or no divergence of this order, however small, meets the cap.
    """

    def __init__(self, order: float, epsilon: float, delta: float) -> None:
        _require_cap(epsilon, delta)
        if not 1 < order <= 1e6:
            raise InvalidSpend(f"order={order}: must be > 1 and at most 1e6.")
        log_delta = _log_down(delta)
        if renyi_epsilon(order, 0.0, log_delta) > epsilon:
            raise InvalidSpend(
                f"order={order}: too small for epsilon={epsilon} at delta={delta}; use RdpFilter.order_for."
            )
        self._order = order
        self._capacity = _largest(lambda divergence: renyi_epsilon(order, divergence, log_delta) <= epsilon)

    @staticmethod
    def order_for(epsilon: float, delta: float) -> float:
        """Return the order at which a plain Gaussian of just this (epsilon, delta) is cheapest.

        It depends on the cap alone, never on a run. A whole number above 2, where the divergences of sampled events are
        exact sums.

        Raises:
            InvalidSpend: an argument is out of range.
        """
        rho = ZcdpFilter(epsilon, delta).capacity
        order = 1 + math.sqrt(-math.log(delta) / rho)
        return float(math.ceil(order)) if order > 2 else order

    @property
    def order(self) -> float:
        """Alpha."""
        return self._order

    @property
    def capacity(self) -> float:
        """The largest Renyi divergence found, of this order, that converts to at most epsilon; rounded down."""
        return self._capacity

    def cost(self, event: Event, count: int) -> float:
        """Return the Renyi divergence of ``count`` (>= 0) such events, rounded up.

        Raises:
            InvalidSpend: the count is no integer >= 0, or the event has no Renyi figure (a truncated one).
        """
        return _times(float(renyi_curve(event, (self._order,))[0]), count)


def _times(cost: float, count: int) -> float:
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise InvalidSpend(f"count={count!r}: must be an integer >= 0.")
    if count == 0:
        return 0.0
    if not cost > 0:
        raise InvalidSpend(f"cost={cost}: no number > 0; such an event cannot be filtered.")
    return math.nextafter(cost * count, math.inf)


def _largest(fits: Callable[[float], bool]) -> float:
    """Return the largest cost found that fits; costs of 0 fit. The condition is true below and false above."""
    if fits(_LARGEST_CAPACITY):
        return _LARGEST_CAPACITY
    low, high = 0.0, _LARGEST_CAPACITY
    for _ in range(200):
        middle = math.sqrt(low * high) if low > 0 else high / 1e6
        if not low < middle < high or middle < 1e-300:
            break
        low, high = (middle, high) if fits(middle) else (low, middle)
    # The searched minimum over orders is not monotone to the last digit.
    return low * (1 - 1e-12)


def _log_down(delta: float) -> float:
    return math.log(delta) * (1 + 1e-15)


def _require_cap(epsilon: float, delta: float) -> None:
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise InvalidSpend(f"epsilon={epsilon}: must be finite and > 0.")
    if not 0 < delta < 1:
        raise InvalidSpend(f"delta={delta}: must be in (0, 1).")

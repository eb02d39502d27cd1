"""The Gaussian mechanism in closed form: its privacy parameter mu, its zCDP rho, and exact (epsilon, delta).

mu is sensitivity over the std of the noise. n independent releases, also adaptive ones, are one release whose mu is the
root of the sum of squares (Dong, Roth and Su 2022, corollary 3.3). Every rounding errs toward more epsilon.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Final

from scipy.special import erfcx, ndtr

from fedlearn.errors import InvalidSpend
from fedlearn.privacy.events import (
    Event,
    FixedSizeGaussian,
    MatrixGaussian,
    MetricRelease,
    PoissonGaussian,
    TruncatedPoissonGaussian,
    kind_of,
)
from fedlearn.privacy.sensitivity import squared_sensitivity

_UNIT: Final = 2.0**-53
# Relative error allowed for erfcx and ndtr: about 45 units in the last place, ten times what was measured.
_SPECIAL: Final = 1e-14
_UP: Final = 1 + 1e-14
_LEAST_POSITIVE: Final = 5e-324
_HALF_LOG_TAU: Final = 0.5 * math.log(2 * math.pi)


def mu_of(event: Event) -> float:
    """Return the mu of an event that is a Gaussian mechanism: not sampled, not repeated; rounded up.

    Raises:
        InvalidSpend: the event is none.
    """
    match event:
        case MatrixGaussian():
            squared = squared_sensitivity(
                event.factorization, event.steps, event.min_separation, event.max_participations
            )
            return math.sqrt(squared) / event.noise_multiplier * _UP
        case MetricRelease():
            return _UP / event.noise_multiplier
        case PoissonGaussian(sampling_probability=1.0):
            return _UP / event.noise_multiplier
        case FixedSizeGaussian() if event.cohort == event.population:
            return _UP / event.noise_multiplier
        case _:
            raise InvalidSpend(f"{kind_of(event)}: sampled or repeated, so it is no plain Gaussian mechanism.")


def total_mu(parts: Iterable[tuple[float, int]]) -> float:
    """Return the mu of all (mu, count) together, rounded up."""
    return math.sqrt(math.fsum(count * mu * mu for mu, count in parts)) * _UP


def zcdp_of(event: Event) -> float:
    """Return rho such that the event is rho-zCDP (Bun and Steinke 2016), without credit for sampling; rounded up.

    Under the event's own relation. A sampled cohort is a mixture of cohorts, and Renyi divergence is quasi-convex: its
    rho is at most that of the worst cohort. For a truncated cohort that is one in which the unit's update takes the
    place of another's, a distance of twice the clip norm.

    Raises:
        InvalidSpend: a repeat-and-select, which has no zCDP figure here.
    """
    match event:
        case PoissonGaussian() | FixedSizeGaussian():
            mu = 1 / event.noise_multiplier
        case TruncatedPoissonGaussian():
            mu = (1.0 if event.cohort_cap == event.population else 2.0) / event.noise_multiplier
        case MatrixGaussian() | MetricRelease():
            mu = mu_of(event)
        case _:
            raise InvalidSpend(f"{kind_of(event)}: has no zCDP figure here; a Renyi filter accounts for it.")
    return mu * mu / 2 * _UP


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Return the delta of the Gaussian mechanism at ``epsilon`` (Balle and Wang 2018, theorem 8), rounded up.

    Args:
        mu: sensitivity over std, >= 0.
        epsilon: >= 0.

    Returns:
        Delta in [0, 1]: at least the exact value, and over it by about 1e-13 relative (1e-14 / mu for mu < 0.1).

    Raises:
        InvalidSpend: an argument is NaN or negative.
    """
    _require_at_least_zero("mu", mu)
    _require_at_least_zero("epsilon", epsilon)
    if mu == 0 or math.isinf(epsilon):
        return 0.0
    return min(1.0, max(math.exp(_log_delta(mu, epsilon)) * _UP, _LEAST_POSITIVE))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the least epsilon of the Gaussian mechanism at ``delta``, rounded up.

    Bisects on the rounded-up delta in log space, so that also a delta of 1e-300 has an answer.

    Args:
        mu: sensitivity over std, >= 0.
        delta: in (0, 1).

    Returns:
        Epsilon >= 0; ``inf`` where it exceeds floating point.

    Raises:
        InvalidSpend: an argument is NaN or out of range.
    """
    _require_at_least_zero("mu", mu)
    log_delta = _log_of_delta(delta)
    high = (mu / 2 + math.sqrt(-2 * log_delta)) * mu * (1 + 1e-9)
    return _least(lambda epsilon: _log_delta(mu, epsilon) <= log_delta, high)


def zcdp_epsilon(rho: float, delta: float) -> float:
    """Return an epsilon such that everything rho-zCDP is (epsilon, delta)-DP, rounded up.

    The tight conversion of Renyi divergences (Canonne, Kamath and Steinke 2020, proposition 12), which improves on Bun
    and Steinke (2016), at the best order found; any order is valid.

    Args:
        rho: >= 0; ``inf`` gives ``inf``.
        delta: in (0, 1).

    Raises:
        InvalidSpend: an argument is NaN or out of range.
    """
    _require_at_least_zero("rho", rho)
    log_delta = _log_of_delta(delta)
    if rho == 0 or math.isinf(rho):
        return rho
    return min_over_orders(lambda order: order * rho, log_delta, math.sqrt(-log_delta / rho))


def renyi_epsilon(order: float, divergence: float, log_delta: float) -> float:
    """Return the epsilon that a Renyi divergence of one order gives (Canonne, Kamath and Steinke 2020, proposition 12),
    rounded up.

    Args:
        order: > 1, finite.
        divergence: bound on the Renyi divergence of that order, >= 0.
        log_delta: ln delta, < 0.
    """
    tail = -(log_delta + math.log(order)) / (order - 1)
    # Each of the three terms is off by a few units in its last place at most.
    slack = 8 * _UNIT * (divergence + (math.log(order) - log_delta) / (order - 1) + 1 / (order - 1) + 1)
    return max(0.0, divergence + math.log1p(-1 / order) + tail + slack)


def min_over_orders(divergence: Callable[[float], float], log_delta: float, guess: float) -> float:
    """Return the least ``renyi_epsilon`` over orders near 1 + ``guess``, by golden section over ln(order - 1)."""
    golden = (math.sqrt(5) - 1) / 2

    def at(exponent: float) -> float:
        order = 1 + math.exp(exponent)
        return renyi_epsilon(order, divergence(order), log_delta)

    centre = math.log(min(max(guess, 1e-12), 1e12))
    low, high = centre - 4, centre + 4
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = at(left), at(right)
    best = min(at_left, at_right)
    for _ in range(60):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - golden * (high - low)
            at_left = at(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + golden * (high - low)
            at_right = at(right)
        best = min(best, at_left, at_right)
    return best


def _log_delta(mu: float, epsilon: float) -> float:
    """Return an upper bound on ln delta.

    With a = epsilon / mu - mu / 2, b = a + mu and the Mills ratio R(x) = Q(x) / phi(x), delta is Q(a) - e^epsilon Q(b)
    = phi(a) (R(a) - R(b)), which neither overflows nor, for large epsilon, cancels.
    """
    if mu == 0:
        return -math.inf
    # A little less than epsilon: delta is decreasing in it, and that covers the rounding of a.
    a = epsilon * (1 - 8 * _UNIT) / mu - mu / 2 * (1 + 8 * _UNIT)
    b = a + mu
    if not math.isfinite(a) or not math.isfinite(b):
        return -math.inf if a > 0 else 0.0
    log_density = -a * a / 2 * (1 - 8 * _UNIT) - _HALF_LOG_TAU
    mills_b = _mills(b)
    if a < 0:
        subtrahend = math.exp(log_density) * mills_b
        over = float(ndtr(-a)) - subtrahend + _SPECIAL * (float(ndtr(-a)) + subtrahend)
        return math.log(min(max(over, _LEAST_POSITIVE), 1.0))
    mills_a = _mills(a)
    return log_density + math.log(mills_a - mills_b + _SPECIAL * (mills_a + mills_b)) + 16 * _UNIT


def _mills(x: float) -> float:
    return math.sqrt(math.pi / 2) * float(erfcx(x / math.sqrt(2)))


def _least(holds: Callable[[float], bool], high: float) -> float:
    """Return the least point in [0, high] found at which a condition, false below and true above, holds."""
    if not math.isfinite(high):
        return math.inf
    if holds(0.0):
        return 0.0
    while not holds(high):
        high *= 2
        if not math.isfinite(high):
            return math.inf
    low = 0.0
    while high - low > 4 * _UNIT * high:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _log_of_delta(delta: float) -> float:
    if not 0 < delta < 1:
        raise InvalidSpend(f"delta={delta}: must be in (0, 1).")
    return math.log(delta) * (1 + 4 * _UNIT)  # negative: rounded down


def _require_at_least_zero(name: str, value: float) -> None:
    if not value >= 0:
        raise InvalidSpend(f"{name}={value}: must be >= 0.")

"""Renyi divergences of every event that has them, and the conversion to epsilon. Rounded toward more epsilon.

Sources: Mironov 2017 (composition), Mironov, Talwar and Zhang 2019 (Poisson sampling), Wang, Balle and Kasiviswanathan
2019 (fixed-size cohorts), Papernot and Steinke 2022 (repeat and select), Canonne, Kamath and Steinke 2020 (conversion).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import MAX_EMAX, MIN_EMIN, ROUND_HALF_EVEN, Context, Decimal
from functools import lru_cache
from itertools import pairwise
from typing import Final

import numpy as np
from scipy.special import gammaln, logsumexp

from fedlearn.errors import InvalidSpend
from fedlearn.privacy.dp_library import poisson_renyi
from fedlearn.privacy.events import (
    Event,
    FixedSizeGaussian,
    PoissonGaussian,
    RepeatAndSelect,
    TruncatedPoissonGaussian,
)
from fedlearn.privacy.gaussian import mu_of, renyi_epsilon
from fedlearn.types import F64

ORDERS: Final = (
    *(1.01, 1.02, 1.03, 1.05, 1.07),
    *(1 + tenth / 10 for tenth in range(1, 100)),
    *(float(order) for order in range(11, 65)),
    *(72.0, 80.0, 96.0, 112.0, 128.0, 160.0, 192.0, 256.0, 320.0, 384.0, 512.0, 768.0, 1024.0, 2048.0),
)
"""Orders that are searched. Each gives a valid figure, the least is reported."""

# (order - 1) x divergence of a Poisson-sampled Gaussian is rounded by the library, on 2,500 random points against 50
# digits, down by at most 7e-14 where it is below 1 and by 1e-14 of itself above; for tiny q it even comes out negative.
_MARGIN: Final = 1e-11
_EXACT_DIFFERENCES: Final = 256
_ALMOST_ALL: Final = 1 - 1e-9
_LARGEST_MEAN: Final = 1e15


def renyi_curve(event: Event, orders: Sequence[float] = ORDERS) -> F64:
    """Return upper bounds on one event's Renyi divergences, under its own relation.

    Args:
        event: any but a truncated one.
        orders: increasing, each > 1.

    Returns:
        f64[orders], each > 0; ``inf`` where none could be computed.

    Raises:
        InvalidSpend: the event has no Renyi figure here, or a divergence came out as no number.
    """
    return _curve(event, tuple(orders)).copy()


def composed_curve(spend: Sequence[tuple[Event, int]], orders: Sequence[float] = ORDERS) -> F64:
    """Return upper bounds on the Renyi divergences of all events together.

    Args:
        spend: each event and how often it happened, >= 0; at least one.
        orders: increasing, each > 1.
    """
    total = np.zeros(len(orders))
    for event, count in spend:
        if count > 0:
            total += count * _curve(event, tuple(orders))
    return total * (1 + 1e-14 * len(spend))


def curve_epsilon(curve: F64, delta: float, orders: Sequence[float] = ORDERS) -> float:
    """Return the least epsilon that the curve gives at ``delta`` (Canonne, Kamath and Steinke 2020, proposition 12)."""
    log_delta = math.log(delta) * (1 + 1e-15)
    finite = [(order, float(value)) for order, value in zip(orders, curve, strict=True) if math.isfinite(value)]
    return min((renyi_epsilon(order, value, log_delta) for order, value in finite), default=math.inf)


def curve_delta(curve: F64, epsilon: float, orders: Sequence[float] = ORDERS) -> float:
    """Return the least delta that the curve gives at ``epsilon`` (the same proposition, solved for delta)."""
    order = np.asarray(orders)
    with np.errstate(over="ignore", invalid="ignore"):
        log_delta = (order - 1) * (curve - epsilon + np.log1p(-1 / order)) - np.log(order)
    log_delta = log_delta + 1e-12 * (np.abs(log_delta) + (order - 1) * epsilon + 1)
    # A divergence of any order bounds that of order one: delta <= sqrt(1 - exp(-KL)) (Bretagnolle and Huber 1979).
    total_variation = np.sqrt(-np.expm1(-curve)) * (1 + 1e-14)
    best = min(float(np.nanmin(np.exp(np.minimum(log_delta, 0.0)))), float(np.nanmin(total_variation)))
    return min(1.0, best)


@lru_cache(maxsize=256)
def _curve(event: Event, orders: tuple[float, ...]) -> F64:
    order = np.asarray(orders)
    match event:
        case TruncatedPoissonGaussian():
            raise InvalidSpend(
                "truncated_poisson_gaussian: has no Renyi accountant, hence cannot be composed with a "
                "repeat_and_select or counted by a Renyi filter; use poisson_gaussian without a cap."
            )
        case RepeatAndSelect():
            curve = _repeated(event, orders)
        case PoissonGaussian() if event.sampling_probability < _ALMOST_ALL:
            raw = poisson_renyi(event.noise_multiplier, event.sampling_probability, orders)
            curve = raw * (1 + _MARGIN) + _MARGIN * order / (order - 1)
        case PoissonGaussian():
            curve = order / (2 * event.noise_multiplier**2) * (1 + 1e-14)
        case FixedSizeGaussian() if event.cohort < event.population:
            raw = _fixed_size(event, orders)
            curve = raw * (1 + _MARGIN) + _MARGIN * order / (order - 1)
        case _:
            curve = order * mu_of(event) ** 2 / 2 * (1 + 1e-14)
    if np.isnan(curve).any() or (curve < 0).any():
        raise InvalidSpend(f"{event}: its Renyi divergence is no number >= 0; no figure can be given.")
    # Divergences grow with their order, so each is at most any later one.
    curve = np.minimum.accumulate(curve[::-1])[::-1]
    curve.setflags(write=False)
    return curve


def _repeated(event: RepeatAndSelect, orders: tuple[float, ...]) -> F64:
    """Bound the divergences of repeat and select (Papernot and Steinke 2022, theorems 2 and 6)."""
    wide = tuple(sorted({*orders, *ORDERS}))
    order = np.asarray(wide)
    one = event.count * _curve(event.event, wide) * (1 + 1e-14)
    mean_term = math.log(event.mean) / (order - 1)
    if math.isinf(event.shape):
        at = [curve_delta(one, math.log1p(1 / (value - 1)), wide) for value in wide]
        out = one + event.mean * np.asarray(at) + mean_term
    else:
        extra = (1 + event.shape) * np.min((1 - 1 / order) * one + _log_halting(event.mean, event.shape) / order)
        out = one + mean_term + extra
    out = np.minimum.accumulate(out[::-1])[::-1] * (1 + 1e-13)
    return out[np.isin(order, orders)]


def _log_halting(mean: float, shape: float) -> float:
    """Return ln(1 / gamma) of the truncated negative binomial distribution with this mean, rounded up."""

    if mean > _LARGEST_MEAN:
        raise InvalidSpend(f"mean={mean}: more than {_LARGEST_MEAN:g} repetitions are not accounted for.")

    def mean_at(x: float) -> float:
        return math.expm1(x) / x if shape == 0 else shape * math.expm1(x) / -math.expm1(-shape * x)

    low, high = 0.0, 1.0
    while mean_at(high) < mean:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if mean_at(middle) >= mean else (middle, high)
    return high * (1 + 1e-12)


def _fixed_size(event: FixedSizeGaussian, orders: tuple[float, ...]) -> F64:
    """Bound the divergences of one fixed-size cohort (Wang, Balle and Kasiviswanathan 2019, theorem 27; corollary 10
    between integers).
    """
    needed = sorted({int(edge) for order in orders for edge in (math.floor(order), math.ceil(order))} - {1})
    terms = _fixed_size_terms(event.noise_multiplier, event.cohort / event.population, needed[-1])
    log_moment = {1: 0.0} | {order: _log_moment(terms, order) for order in needed}

    def at(order: float) -> float:
        low, high = math.floor(order), math.ceil(order)
        share = order - low
        return ((1 - share) * log_moment[low] + share * log_moment[high]) / (order - 1)

    return np.asarray([at(order) for order in orders])


def _log_moment(terms: F64, order: int) -> float:
    j = np.arange(2, order + 1)
    binomials = gammaln(order + 1) - gammaln(j + 1) - gammaln(order - j + 1)
    return float(logsumexp(np.concatenate(([0.0], terms[: order - 1] + binomials))))


def _fixed_size_terms(z: float, q: float, highest: int) -> F64:
    """Return for j = 2 .. highest the logarithm of the theorem's j-th summand, without its binomial coefficient."""
    j = np.arange(2, highest + 1, dtype=np.float64)
    plain = math.log(2) + j * (j - 1) / (2 * z * z)
    tight = np.full_like(plain, np.inf)
    tight[0] = math.log(4) + math.log(math.expm1(z**-2)) if z > 0.04 else plain[0]
    if highest > 2:
        divergences = _log_divergences(z, min(highest + 1, _EXACT_DIFFERENCES))
        for index in range(3, min(highest, _EXACT_DIFFERENCES - 1) + 1):
            pair = divergences[2 * (index // 2)] + divergences[2 * -(-index // 2)]
            tight[index - 2] = math.log(4) + pair / 2
    return np.minimum(plain, tight) + j * math.log(q)


@lru_cache(maxsize=32)
def _log_divergences(z: float, highest: int) -> dict[int, float]:
    """Return ln E[(L - 1)^j] for even j up to ``highest``, where ln L is the loss of the plain Gaussian.

    E[L^k] = exp(k (k - 1) / (2 z^2)), and the moments of L - 1 are the finite differences of that sequence. Nearly all
    digits cancel: floating point loses them, so enough are carried.
    """
    digits = 60 + math.ceil(highest * (0.31 + max(0.0, math.log10(z))))
    context = Context(prec=digits, rounding=ROUND_HALF_EVEN, Emax=MAX_EMAX, Emin=MIN_EMIN)
    logs = Context(prec=25, rounding=ROUND_HALF_EVEN, Emax=MAX_EMAX, Emin=MIN_EMIN)
    base = context.exp(context.divide(Decimal(1), context.multiply(Decimal(z), Decimal(z))))
    moments, power = [Decimal(1)], Decimal(1)
    for _ in range(highest):
        moments.append(context.multiply(moments[-1], power))
        power = context.multiply(power, base)
    found: dict[int, float] = {}
    for j in range(1, highest + 1):
        moments = [context.subtract(later, earlier) for earlier, later in pairwise(moments)]
        if j % 2 == 0:
            found[j] = float(logs.ln(moments[0]))
    return found

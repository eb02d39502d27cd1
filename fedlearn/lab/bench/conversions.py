"""Conversions that published figures were made with. For reproducing them only: the tight ones are in ``privacy``.

The divergences are computed by quadrature here, independently of the library behind ``fedlearn.privacy.renyi``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from scipy.special import logsumexp

from fedlearn.privacy.gaussian import gaussian_epsilon
from fedlearn.types import F64

OLD_ORDERS: Final = (*(1 + tenth / 10 for tenth in range(1, 100)), *(float(order) for order in range(12, 64)))
"""Orders of TF-Privacy's and Opacus's examples."""

INTEGER_ORDERS: Final = tuple(float(order) for order in range(2, 33))
"""Orders of the moments accountant of 2016."""

Conversion = Callable[[float, float, float], float]
"""(order, divergence, delta) -> epsilon."""


def mironov_2017(order: float, divergence: float, delta: float) -> float:
    """Return epsilon by the first conversion (Mironov 2017, proposition 3): divergence + ln(1/delta) / (order - 1)."""
    return divergence - math.log(delta) / (order - 1)


def canonne_2020(order: float, divergence: float, delta: float) -> float:
    """Return epsilon by the tight conversion (Canonne, Kamath and Steinke 2020, proposition 12)."""
    return divergence + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)


def sampled_divergence(noise_multiplier: float, sampling_probability: float, order: float) -> float:
    """Return the Renyi divergence of one Poisson-sampled Gaussian release by the trapezoid rule.

    ln E[(1 - q + q e^((2 x - 1) / (2 z^2)))^order] / (order - 1) over x ~ N(0, z^2) (Mironov, Talwar and Zhang 2019).
    The integrand is analytic in a strip of half-width pi z^2, where the rule errs by less than 1e-30.
    """
    z, q = noise_multiplier, sampling_probability
    step = min(z, z * z) / 16
    x = np.arange(-14 * z, order + 14 * z, step)
    log_density = -x * x / (2 * z * z) - math.log(z * math.sqrt(2 * math.pi))
    stays = math.log1p(-q) if q < 1 else -math.inf
    log_ratio = np.logaddexp(stays, math.log(q) + (2 * x - 1) / (2 * z * z))
    return float(logsumexp(log_density + order * log_ratio) + math.log(step)) / (order - 1)


def sampled_curve(
    noise_multiplier: float, sampling_probability: float, steps: int, orders: Sequence[float] = OLD_ORDERS
) -> F64:
    """Return f64[orders]: divergences of ``steps`` releases."""
    return steps * np.asarray([sampled_divergence(noise_multiplier, sampling_probability, order) for order in orders])


def converted(curve: F64, delta: float, conversion: Conversion, orders: Sequence[float] = OLD_ORDERS) -> float:
    """Return the least epsilon over the orders."""
    return min(conversion(order, float(value), delta) for order, value in zip(orders, curve, strict=True))


def central_limit(noise_multiplier: float, sampling_probability: float, steps: int, delta: float) -> float:
    """Return what the GDP accountant reports (Bu et al. 2020, corollary 5.4): an approximation, refused as a figure."""
    mu = sampling_probability * math.sqrt(steps * math.expm1(noise_multiplier**-2))
    return gaussian_epsilon(mu, delta)

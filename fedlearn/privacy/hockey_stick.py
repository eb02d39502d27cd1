"""Hockey-stick divergences of the Poisson-sampled Gaussian, for many epsilons at once and to relative precision.

H(P || Q) = integral of max(0, P - e^epsilon Q) is the least delta at epsilon. Sampling reduces it to that of the plain
Gaussian at another epsilon (Balle, Barthe and Gaboardi 2018).
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import erfcx, log_ndtr, ndtr

from fedlearn.types import F64


def removed_divergences(mu: float, q: float, epsilons: F64) -> F64:
    """Return H((1 - q) N(0, 1) + q N(mu, 1) || N(0, 1)): a unit that may have been in the cohort is removed.

    It is q H'(N(mu, 1) || N(0, 1)) at epsilon' = ln(1 + (e^epsilon - 1) / q), and 1 - e^epsilon where there is none.

    Args:
        mu: sensitivity over std, > 0.
        q: sampling probability, in (0, 1].
        epsilons: f64[n], finite, of any sign.

    Returns:
        f64[n], in [0, 1].
    """
    if q == 1:
        return _gaussian(mu, epsilons)
    inside = epsilons > math.log1p(-q)
    out = -np.expm1(np.minimum(epsilons, 0.0))
    some = epsilons[inside]
    high = np.maximum(some, 1.0)
    with np.errstate(over="ignore", divide="ignore"):
        low = np.log1p(np.expm1(some) / q)
    moved = np.where(some > 1, high - math.log(q) + np.log1p((q - 1) * np.exp(-high)), low)
    out[inside] = q * _gaussian(mu, moved)
    return out


def added_divergences(mu: float, q: float, epsilons: F64) -> F64:
    """Return H(N(0, 1) || (1 - q) N(0, 1) + q N(mu, 1)): a unit that may then be in the cohort is added.

    It is (1 - (1 - q) e^epsilon) H'(N(0, 1) || N(mu, 1)) at epsilon' = -ln(1 + (e^-epsilon - 1) / q), and 0 where
    there is none.

    Args:
        mu: sensitivity over std, > 0.
        q: sampling probability, in (0, 1].
        epsilons: f64[n], finite, of any sign.

    Returns:
        f64[n], in [0, 1].
    """
    if q == 1:
        return _gaussian(mu, epsilons)
    inside = epsilons < -math.log1p(-q)
    out = np.zeros_like(epsilons)
    some = epsilons[inside]
    low = np.minimum(some, -1.0)
    with np.errstate(over="ignore", divide="ignore"):
        high = -np.log1p(np.expm1(-some) / q)
    moved = np.where(some < -1, low + math.log(q) - np.log1p((q - 1) * np.exp(low)), high)
    share = q - (1 - q) * np.expm1(some)
    out[inside] = np.maximum(share, 0.0) * _gaussian(mu, moved)
    return out


def replaced_divergences(mu: float, q: float, epsilons: F64) -> F64:
    """Return H((1 - q) N(0, 1) + q N(-mu, 1) || (1 - q) N(0, 1) + q N(mu, 1)): a unit is replaced by another.

    The loss falls with x; it is epsilon at x = (asinh(-sinh(epsilon / 2) e^(mu^2 / 2) (1 - q) / q) - epsilon / 2) / mu.

    Args:
        mu: sensitivity of one update over std, > 0.
        q: sampling probability, in (0, 1].
        epsilons: f64[n], finite, of any sign.

    Returns:
        f64[n], in [0, 1], to about 1e-16; the same in both directions.
    """
    half = np.abs(epsilons) / 2
    stays = math.log1p(-q) if q < 1 else -math.inf
    with np.errstate(divide="ignore", invalid="ignore"):
        log_sinh = half + np.log1p(-np.exp(-2 * half)) - math.log(2)
        log_y = mu * mu / 2 + stays - math.log(q) + log_sinh
    asinh = np.logaddexp(0.5 * np.logaddexp(0.0, 2 * log_y), log_y)
    # By the definition of asinh this is ln(sqrt(1 + y^2) + y), which loses small y.
    asinh = np.where(log_y < -1, np.arcsinh(np.exp(np.minimum(log_y, 0.0))), asinh)
    x = (-np.sign(epsilons) * asinh - epsilons / 2) / mu
    upper = (1 - q) * ndtr(x) + q * ndtr(x + mu)
    log_lower = np.logaddexp(stays + log_ndtr(x), math.log(q) + log_ndtr(x - mu))
    clipped: F64 = np.clip(upper - np.exp(epsilons + log_lower), 0.0, 1.0)
    return clipped


def _gaussian(mu: float, epsilons: F64) -> F64:
    """Return the plain Gaussian's: phi(a) (R(a) - R(a + mu)) with the Mills ratio R, a = epsilon / mu - mu / 2."""
    a = np.clip(epsilons / mu - mu / 2, -1e150, 1e150)
    b = a + mu
    density = np.exp(-a * a / 2) / math.sqrt(2 * math.pi)
    ahead = np.where(a > 0, density * _mills(np.maximum(a, 0.0)), ndtr(-a))
    # Left of zero the Mills ratio grows beyond floating point, and epsilon is negative.
    left = np.exp(np.minimum(epsilons, 0.0)) * ndtr(-b)
    behind = np.where(b > 0, density * _mills(np.maximum(b, 0.0)), left)
    clipped: F64 = np.clip(ahead - behind, 0.0, 1.0)
    return clipped


def _mills(x: F64) -> F64:
    ratio: F64 = math.sqrt(math.pi / 2) * erfcx(x / math.sqrt(2))
    return ratio

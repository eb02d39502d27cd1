"""How much noise a matrix mechanism leaves in the prefix sums of its releases: what factorizations are compared by.

A training step applies the sum of all releases so far, ``A (X + C^-1 Z)`` with A the matrix of prefix sums, so what
matters is the noise A C^-1 Z. At the noise multiplier that one participation set needs for a given guarantee, its std
in step t is proportional to sqrt(sens2) * ||row t of A C^-1||. No guarantee rests on these figures; nothing is rounded
up.
"""

from __future__ import annotations

import math

import numpy as np

from fedlearn.errors import InvalidSpend, MissingDependency
from fedlearn.privacy.factorization import Blt, Factorization, Toeplitz, Tree
from fedlearn.types import F64


def max_error(factorization: Factorization, steps: int, sens2: float) -> float:
    """Return the largest std of a prefix sum's noise, per coordinate, at noise multiplier 1 and clip norm 1.

    "At noise multiplier 1" is after the sensitivity, so that mechanisms of one value have the same guarantee: the
    figure is sqrt(sens2) * max over t of ||row t of A C^-1||.

    Args:
        factorization: C.
        steps: n >= 1.
        sens2: squared sensitivity of C, > 0, from ``squared_sensitivity``.

    Raises:
        InvalidSpend: steps or sens2 is out of range.
        MissingDependency: scipy is not installed.
    """
    return math.sqrt(_checked(sens2) * float(_row_norms2(factorization, steps).max()))


def mean_error(factorization: Factorization, steps: int, sens2: float) -> float:
    """Return the root of the mean, over steps, of the noise variance of which ``max_error`` is the largest.

    Raises:
        InvalidSpend: steps or sens2 is out of range.
        MissingDependency: scipy is not installed.
    """
    return math.sqrt(_checked(sens2) * float(_row_norms2(factorization, steps).mean()))


def prefix_noise_response(factorization: Toeplitz | Blt, steps: int) -> F64:
    """Return the first column of A C^-1, which is lower-triangular Toeplitz: the power series 1 / ((1 - x) c(x)).

    Raises:
        MissingDependency: scipy is not installed.
    """
    impulse = np.zeros(steps)
    impulse[0] = 1.0
    if isinstance(factorization, Toeplitz):
        inverse = _filtered(np.ones(1), np.array(factorization.coefficients), impulse)
    else:
        inverse = _filtered(*_rational_inverse(factorization), impulse)
    return np.cumsum(inverse)


def _row_norms2(factorization: Factorization, steps: int) -> F64:
    """Return the squared norms of the rows of A C^-1; for the tree, of its decoder.

    The tree releases the prefix sum of t + 1 steps as the sum of the popcount(t + 1) largest aligned blocks that make
    it up, each with a noise of its own.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InvalidSpend(f"steps={steps!r}: must be an integer >= 1.")
    if isinstance(factorization, Tree):
        return np.bitwise_count(np.arange(1, steps + 1)).astype(np.float64)
    return np.cumsum(np.square(prefix_noise_response(factorization, steps)))


def _rational_inverse(blt: Blt) -> tuple[F64, F64]:
    """Return numerator and denominator, lowest power first, of 1 / c(x).

    c(x) = 1 + x sum_j scale_j / (1 - decay_j x), over the common denominator d(x) = prod_j (1 - decay_j x).
    """
    denominator = np.ones(1)
    for decay in blt.decay:
        denominator = np.convolve(denominator, [1.0, -decay])
    numerator = denominator.copy()
    for index, scale in enumerate(blt.scale):
        others = np.ones(1)
        for other, decay in enumerate(blt.decay):
            if other != index:
                others = np.convolve(others, [1.0, -decay])
        numerator[1:] += scale * others
    return denominator, numerator


def _filtered(numerator: F64, denominator: F64, values: F64) -> F64:
    try:
        from scipy.signal import lfilter  # noqa: PLC0415  # optional
    except ImportError as error:
        raise MissingDependency("Comparing mechanisms needs scipy: pip install 'fedlearn[privacy]'") from error
    result: F64 = lfilter(numerator, denominator, values)
    return result


def _checked(sens2: float) -> float:
    if not (math.isfinite(sens2) and sens2 > 0):
        raise InvalidSpend(f"sens2={sens2}: must be finite and > 0.")
    return sens2

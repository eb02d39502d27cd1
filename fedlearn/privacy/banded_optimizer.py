"""The banded Toeplitz matrix of least error for given participation bounds (Choquette-Choo et al. 2023)."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from scipy.optimize import minimize
from scipy.signal import lfilter

from fedlearn.errors import InvalidSpend
from fedlearn.privacy.error import max_error
from fedlearn.privacy.factorization import INDEPENDENT, Toeplitz
from fedlearn.privacy.participation import Participation
from fedlearn.privacy.sensitivity import squared_sensitivity, sum_of_columns
from fedlearn.types import F64

_DIGITS: Final = 10
_OPTIONS: Final = {"maxiter": 2000, "maxfun": 3000, "maxcor": 20, "ftol": 1e-11, "gtol": 1e-8}


def optimize_banded(steps: int, min_separation: int, max_participations: int, bands: int) -> Toeplitz:
    """Return a banded Toeplitz matrix whose ``max_error``, at its own sensitivity, is the least that was found.

    Deterministic: quasi-Newton descent from the first bands of the square-root factorization (Fichtenberger et al.
    2022), over the amounts by which coefficients fall from one to the next. They are kept >= 0, so that every point is
    a valid Toeplitz; its inverse stays bounded, because a polynomial with falling coefficients has no root inside the
    unit circle (Eneström and Kakeya). Never worse than independent noise, which is returned where nothing beats it.

    More bands than ``min_separation`` are allowed: the sensitivity holds for them too.

    Args:
        steps: n >= 1.
        min_separation: b >= 1, y - x.
        max_participations: k in [1, ceil(n / b)].
        bands: most coefficients, in [1, n]; the noise state is bands - 1 floats per parameter.

    Raises:
        InvalidSpend: an argument is out of range.
    """
    limits = Participation(min_separation, max_participations)
    limits.check_fits(steps)
    if isinstance(bands, bool) or not isinstance(bands, int) or not 1 <= bands <= steps:
        raise InvalidSpend(f"bands={bands!r}: must be an integer in [1, {steps}], no more than there are steps.")

    def log_error(falls: F64) -> tuple[float, F64]:
        value, gradient = _log_error_squared(_coefficients(falls), steps, limits)
        return value, np.cumsum(gradient)

    # The error does not depend on the scale of C, so the descent is free in it; only c_0 = 0 must be kept away.
    bounds = [(1e-9, None)] + [(0.0, None)] * (bands - 1)
    start = _square_root_coefficients(bands)
    found = minimize(
        log_error, start - np.append(start[1:], 0.0), jac=True, method="L-BFGS-B", bounds=bounds, options=_OPTIONS
    )
    optimized = _toeplitz(_coefficients(found.x))

    def error(candidate: Toeplitz) -> float:
        sens2 = squared_sensitivity(candidate, steps, min_separation, max_participations)
        return max_error(candidate, steps, sens2)

    return min(INDEPENDENT, optimized, key=error)


def _log_error_squared(column: F64, steps: int, limits: Participation) -> tuple[float, F64]:
    """Return log(sensitivity^2 * ||last row of A C^-1||^2) and its gradient in the coefficients.

    With the power series r = 1 / ((1 - x) c) of that row, dr/dc_i = -x^i r / c: a correlation of r with r / c.
    """
    bands = len(column)
    padded = np.zeros(steps)
    padded[:bands] = column
    moved = sum_of_columns(padded, limits)
    sens2 = float(moved @ moved)
    # The sum of columns is linear in c; its transpose is the same sum run backwards.
    sens2_gradient = 2 * sum_of_columns(moved[::-1], limits)[::-1][:bands]
    row = lfilter([1.0], column, np.ones(steps))
    row2 = float(row @ row)
    size = 1 << (2 * steps).bit_length()
    spectrum = np.fft.rfft(row, size) * np.conj(np.fft.rfft(lfilter([1.0], column, row), size))
    row2_gradient = -2 * np.fft.irfft(spectrum, size)[:bands]
    return math.log(sens2) + math.log(row2), sens2_gradient / sens2 + row2_gradient / row2


def _square_root_coefficients(count: int) -> F64:
    """Return the first coefficients of (1 - x)^(-1/2)."""
    indices = np.arange(1, count)
    return np.cumprod(np.concatenate([[1.0], (2 * indices - 1) / (2 * indices)]))


def _coefficients(falls: F64) -> F64:
    return np.cumsum(falls[::-1])[::-1]


def _toeplitz(column: F64) -> Toeplitz:
    """Return the column over its first entry, in decimals that can be read and compared, without zeros at the end."""
    values = [float(f"{value:.{_DIGITS}g}") for value in column / column[0]]
    while values[-1] == 0:
        values.pop()
    return Toeplitz(tuple(values))

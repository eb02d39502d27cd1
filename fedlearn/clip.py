"""L2 clipping of whole updates: the step that bounds what one phone can change.

Formal guarantee: the L2 norm of a clipped vector, in exact arithmetic, is at most ``l2_clip_norm``, whatever bits came
in. Floating point may not erode it: the norm is computed in f64 and may be low by a relative (d / 2 + 2) 2^-53 (Higham
2002, section 3.1, for any order of summation), so every vector that could be over the bound is scaled to
``l2_clip_norm * (1 - (4 d + 64) 2^-53)``; for a million weights that is 5e-10 below the bound. Clipping twice changes
nothing.

| input | result |
|---|---|
| zero vector, or d = 0 | itself |
| norm below the bound | itself, bit for bit (f32 widens exactly) |
| norm at the bound up to rounding | shrunk by the margin above; not counted as clipped |
| norm above the bound | scaled down, direction kept |
| entries whose square overflows or underflows (1e200, subnormals) | as above: divided by the largest entry first |
| a result below the smallest normal number | 0: rounding a subnormal could move it up |
| NaN or infinity anywhere | refused (``clip_l2``), or a zero row with ``finite`` false (``clip_rows``) |
| ``l2_clip_norm`` zero, negative, NaN, infinite, or subnormal (< 2.3e-308) | OutOfRange |
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import ContributionRejected, OutOfRange, Reason
from fedlearn.types import F64, ClippedDelta

_UNIT = 2.0**-53
_TINY = float(np.finfo(np.float64).tiny)
# Between these a sum of squares has neither overflowed nor lost more than rounding to underflow.
_SAFE_SQUARES = (1e-200, 1e300)
# Above this, what rounding adds to subnormal entries is far below the margin.
_SAFE_BOUND = 1e-200


@dataclass(frozen=True, slots=True)
class ClippedRows:
    """Many clipped updates.

    Args:
        values: f64[n, d]; each row has norm <= l2_bound, and is zero where ``finite`` is false.
        norms: f64[n], norms before clipping, capped at the largest f64; 0 where ``finite`` is false. Sensitive.
        clipped: bool[n], true where the norm was above the bound.
        finite: bool[n], false where a row held NaN or infinity and must be rejected as ``Reason.NOT_FINITE``.
        l2_bound: the clip norm.
    """

    values: F64 = field(repr=False)
    norms: F64 = field(repr=False)
    clipped: NDArray[np.bool_] = field(repr=False)
    finite: NDArray[np.bool_] = field(repr=False)
    l2_bound: float


def clip_l2(values: NDArray[Any], l2_clip_norm: float) -> ClippedDelta:
    """Clip one update; see the module's guarantee and edge cases.

    Args:
        values: f32 or f64 [d].
        l2_clip_norm: bound on the L2 norm, > 0 and finite, in model units.

    Returns:
        f64[d] with norm <= l2_clip_norm, and that bound.

    Raises:
        OutOfRange: the clip norm is not positive and finite.
        ContributionRejected: ``NOT_FINITE``.
    """
    rows = clip_rows(values[None, :], l2_clip_norm)
    if not rows.finite[0]:
        raise ContributionRejected(Reason.NOT_FINITE, "the local update holds NaN or infinity.")
    return ClippedDelta(rows.values[0], rows.l2_bound)


def clip_rows(deltas: NDArray[Any], l2_clip_norm: float) -> ClippedRows:
    """Clip each row by itself; see the module's guarantee and edge cases.

    Args:
        deltas: f32 or f64 [n, d], one update a row; not changed.
        l2_clip_norm: bound on each row's L2 norm, > 0 and finite, in model units.

    Raises:
        OutOfRange: the clip norm is not positive and finite.
    """
    bound = float(l2_clip_norm)
    if not _TINY <= bound < math.inf:
        raise OutOfRange(f"privacy.clip={l2_clip_norm}: must be > 0 and finite, e.g. 1.0.")
    values = np.array(deltas, dtype=np.float64, order="C")
    # Overflow is expected here and handled below; NaN and infinity both make the sum of squares not finite.
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        squares = np.einsum("ij,ij->i", values, values)
    norms = np.sqrt(squares)
    finite = np.ones(len(values), dtype=bool)
    odd = np.flatnonzero(~((squares > _SAFE_SQUARES[0]) & (squares < _SAFE_SQUARES[1])))
    finite[odd] = np.isfinite(values[odd]).all(axis=1)
    values[~finite] = 0.0
    norms[odd] = _scaled(values[odd])[1]
    margin = (2 * values.shape[1] + 32) * _UNIT
    target = bound * (1.0 - 2.0 * margin)
    over = norms > bound * (1.0 - margin)
    plain = over & (bound > _SAFE_BOUND)
    plain[odd] = False
    # A factor of exactly 1 changes no bit; one pass in place is far cheaper than copying the rows to shrink.
    values *= np.divide(target, norms, out=np.ones_like(norms), where=plain)[:, None]
    rest = np.flatnonzero(over & ~plain)
    values[rest] = _shrunk(values[rest], target)
    return ClippedRows(values, norms, norms > bound, finite, bound)


def joint_bound(l2_clip_norm: float, count_scale: float) -> float:
    """Return sqrt(C^2 + (s/2)^2), never rounded down: a bound on an update and one coordinate of +-s/2 together.

    Args:
        l2_clip_norm: C, bound on the update's L2 norm, finite, > 0.
        count_scale: s, finite, > 0.

    Raises:
        OutOfRange: an argument is not positive and finite, or the bound is not finite.
    """
    half = count_scale / 2
    bound = math.hypot(l2_clip_norm, half)
    if not (l2_clip_norm > 0.0 and half > 0.0 and math.isfinite(bound)):
        raise OutOfRange(f"privacy.clip={l2_clip_norm}, count_scale={count_scale}: must be finite and > 0.")
    squared = Fraction(l2_clip_norm) ** 2 + Fraction(half) ** 2
    while Fraction(bound) ** 2 < squared:  # hypot may be low by one step
        bound = math.nextafter(bound, math.inf)
    return bound


def _scaled(values: F64) -> tuple[F64, F64]:
    """Return finite rows divided by their largest entry, and their norms, capped at the largest f64."""
    largest = np.abs(values).max(axis=1, initial=0.0)
    units = values / np.where(largest > 0.0, largest, 1.0)[:, None]
    with np.errstate(over="ignore", under="ignore"):
        norms = largest * np.sqrt(np.einsum("ij,ij->i", units, units))
    return units, np.minimum(norms, np.finfo(np.float64).max)


def _shrunk(values: F64, target: float) -> F64:
    """Return finite, non-zero rows scaled to norm ``target``."""
    units, _ = _scaled(values)
    with np.errstate(under="ignore"):
        units *= (target / np.sqrt(np.einsum("ij,ij->i", units, units)))[:, None]
    units[np.abs(units) < _TINY] = 0.0
    return units

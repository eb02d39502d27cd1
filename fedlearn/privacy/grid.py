"""The integer grid on which private sums are formed, so that folding is exact and order-independent.

The step is a power of two, so dividing by it and multiplying by it are exact in binary floating point.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Final

import numpy as np

from fedlearn.errors import OutOfRange
from fedlearn.types import F64, I64

RESOLUTION_BITS: Final = 30
_HEADROOM_BITS: Final = 62
_EXACT_F64: Final = 1 << 53
_LOW_WORD: Final = np.uint64(0xFFFFFFFF)


def grid_step(l2_clip_norm: float) -> float:
    """Return the grid's spacing for a clip norm: the power of two in (C * 2^-31, C * 2^-30].

    Args:
        l2_clip_norm: C, finite, > 0.

    Raises:
        OutOfRange: C is not finite and > 0, or so small that the spacing is not a normal number.
    """
    if not (math.isfinite(l2_clip_norm) and l2_clip_norm > 0):
        raise OutOfRange(f"privacy.l2_clip_norm={l2_clip_norm}: must be finite and > 0, e.g. 1.0.")
    _, exponent = math.frexp(l2_clip_norm)
    step = math.ldexp(1.0, exponent - 1 - RESOLUTION_BITS)
    if step < np.finfo(np.float64).tiny:
        raise OutOfRange(f"privacy.l2_clip_norm={l2_clip_norm}: too small for a grid, use >= 1e-290.")
    return step


def check_capacity(count: int, l2_clip_norm: float, step: float) -> None:
    """Refuse a cohort whose exact integer sum could overflow int64: count * C / step must stay below 2^62.

    Raises:
        OutOfRange: it could.
    """
    if count < 0 or count * Fraction(l2_clip_norm) / Fraction(step) >= 1 << _HEADROOM_BITS:
        raise OutOfRange(
            f"count={count}: the sum of so many updates of norm {l2_clip_norm} does not fit the grid of step {step}; "
            "split the cohort over more rounds."
        )


def to_grid(values: F64, step: float) -> I64:
    """Move each vector onto the grid without lengthening it.

    Guarantee: let k = trunc(v / step). The division is exact (step is a power of two), and truncation toward zero gives
    |k_i * step| <= |v_i| in every coordinate, hence ||k * step||_2 <= ||v||_2: a vector clipped to C stays within C,
    and one device moves the integer sum by at most C / step in L2 norm, with no allowance for rounding.

    Args:
        values: f64[..., d], finite.
        step: power of two, from ``grid_step``.

    Returns:
        i64[..., d], in units of ``step``.

    Raises:
        OutOfRange: a value is not finite, the step is not a power of two, or a value exceeds 2^62 steps.
    """
    _require_power_of_two(step)
    if not np.isfinite(values).all():
        raise OutOfRange("values: not finite; reject such an update before it reaches the grid.")
    if values.size and np.abs(values).max() >= math.ldexp(step, _HEADROOM_BITS):
        raise OutOfRange(f"values: exceed 2^{_HEADROOM_BITS} grid steps of {step}; clip before the grid.")
    return np.trunc(np.asarray(values, dtype=np.float64) / step).astype(np.int64)


def from_grid(grid: I64, step: float) -> F64:
    """Return the vector in model units, exactly.

    Args:
        grid: i64[..., d], each entry at most 2^53 in magnitude: beyond that f64 would round.
        step: power of two, from ``grid_step``.

    Raises:
        OutOfRange: an entry is too large to be exact, or the step is not a power of two.
    """
    _require_power_of_two(step)
    if grid.size and (int(grid.max()) > _EXACT_F64 or int(grid.min()) < -_EXACT_F64):
        raise OutOfRange("grid: a sum exceeds 2^53 steps and is not exact in f64; use a smaller cohort.")
    exact: F64 = grid.astype(np.float64) * step
    return exact


def _require_power_of_two(step: float) -> None:
    if not (math.isfinite(step) and step > 0 and math.frexp(step)[0] == 0.5):
        raise OutOfRange(f"grid step={step}: must be a power of two, from grid_step().")

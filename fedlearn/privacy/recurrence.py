"""Noise recurrences: which integer is subtracted from a step's fresh noise, given the noise of the steps before.

A mechanism with strategy matrix C adds zhat = C^-1 z to its sums. Row by row: zhat_t = z_t - f_t, where f_t depends on
earlier noise only. Here every zhat_t is an integer; f_t is the exact linear expression in the integers zhat_0, ...,
zhat_{t-1}, up to an error of at most ``error`` per coordinate. ``correlated`` charges for that error.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import InvalidSpend, PrivacyError
from fedlearn.privacy.factorization import Blt, Factorization, Toeplitz, Tree
from fedlearn.types import F64, I64

STATE_BYTES: Final = 6
"""A stored value is a signed integer of 48 bits."""

_LIMIT_BITS: Final = 8 * STATE_BYTES - 1
_MOST_FRACTION_BITS: Final = 16
# Room for this many standard deviations: beyond, the noise is refused, less than once in 10^50 releases.
_REACH: Final = 16
_HALF: Final = Fraction(1, 2)
_ULP: Final = Fraction(1, 1 << 53)


class Recurrence(Protocol):
    """What one mechanism remembers, in ``rows`` integer vectors.

    ``error`` bounds |f_t - exact linear expression| per coordinate and step, rounding included, for any noise that
    ``advance`` lets pass.
    """

    rows: int
    error: Fraction

    def advance(self, state: I64, step: int, fresh: I64) -> tuple[I64, I64]:
        """Return zhat_t, i64[d], and the state after step t, from the state before and z_t; both are left alone.

        Raises:
            PrivacyError: noise beyond 16 standard deviations, for which there is no room.
        """
        ...

    def deviations(self, steps: int) -> F64:
        """Return the standard deviation of zhat_t over that of z_t, for each step."""
        ...


def recurrence_for(factorization: Factorization, steps: int, scale: Fraction) -> Recurrence:
    """Return the recurrence of C^-1.

    Args:
        factorization: C.
        steps: analysed length, >= 1.
        scale: upper bound on the std of z_t, in grid steps.

    Raises:
        InvalidSpend: the noise is too wide for 48-bit state.
    """
    match factorization:
        case Toeplitz():
            return _Banded(factorization, steps, scale)
        case Blt():
            return _Buffered(factorization, steps, scale)
        case Tree():
            return _Blocks(steps, scale)


class _Banded:
    """zhat_t = z_t - round(sum_{j=1}^{p-1} c_j zhat_{t-j}); remembers the last p - 1 rows, zhat_s in row s mod (p - 1).

    Rounding adds 1/2, floating-point addition of p - 1 products c_j zhat, |zhat| <= limit, less than
    2 p 2^-53 limit sum c_j.
    """

    def __init__(self, factorization: Toeplitz, steps: int, scale: Fraction) -> None:
        self._coefficients = factorization.coefficients[1:]
        self.rows = len(self._coefficients)
        self._limit = _room(float(self.deviations(steps).max()) * scale)
        total = sum(map(Fraction, self._coefficients))
        self.error = _HALF + 2 * (self.rows + 1) * _ULP * self._limit * total if self.rows else Fraction(0)

    def advance(self, state: I64, step: int, fresh: I64) -> tuple[I64, I64]:
        total = np.zeros(fresh.size)
        for lag, coefficient in enumerate(self._coefficients, start=1):
            total += coefficient * state[(step - lag) % self.rows]
        noise = fresh - _rounded(total)
        _require_within(noise, self._limit)
        after = state.copy()
        if self.rows:
            after[step % self.rows] = noise
        return noise, after

    def deviations(self, steps: int) -> F64:
        coefficients = np.array(self._coefficients)
        response = np.zeros(steps)
        response[0] = 1.0
        for step in range(1, steps):
            reach = min(step, len(self._coefficients))
            response[step] = -(coefficients[:reach] @ response[step - reach : step][::-1])
        return _running_norm(response)


class _Buffered:
    """zhat_t = z_t - round(w' S_{t-1}), S_t = diag(decay) S_{t-1} + zhat_t, one row per buffer (McMahan et al. 2024).

    S is kept in units of u = 2^-fraction grid steps. Its product with the decay is off by less than 2^-6 units in f64,
    as it is below 2^47, and rounded to a unit: so a buffer is off by at most (1/2 + 2^-6) u / (1 - decay) from the
    exact sum over the same zhat. Weighing m buffers in f64 adds less than m 2^-5 u, and rounding the result 1/2.
    """

    def __init__(self, factorization: Blt, steps: int, scale: Fraction) -> None:
        self._decay, self._scale = factorization.decay, factorization.scale
        self.rows = len(self._decay)
        widest = _room(max(float(_running_norm(part).max()) for part in self._responses(steps)) * scale)
        self._fraction_bits = min(_MOST_FRACTION_BITS, _LIMIT_BITS - widest.bit_length())
        self._limit = (1 << (_LIMIT_BITS - self._fraction_bits)) - 1
        unit = Fraction(1, 1 << self._fraction_bits)
        buffers = sum(
            Fraction(weight) * (_HALF + Fraction(1, 64)) / (1 - Fraction(decay))
            for decay, weight in zip(self._decay, self._scale, strict=True)
        )
        self.error = _HALF + unit * (buffers + Fraction(self.rows, 32))

    def advance(self, state: I64, step: int, fresh: I64) -> tuple[I64, I64]:
        del step
        total = np.zeros(fresh.size)
        for weight, buffer in zip(self._scale, state, strict=True):
            total += weight * buffer
        noise = fresh - _rounded(total * 2.0**-self._fraction_bits)
        _require_within(noise, self._limit)
        shifted = noise << self._fraction_bits
        after = np.empty_like(state)
        for row, decay in enumerate(self._decay):
            np.add(_rounded(decay * state[row]), shifted, out=after[row])
        _require_within(after, (1 << _LIMIT_BITS) - 1)
        return noise, after

    def deviations(self, steps: int) -> F64:
        return _running_norm(self._responses(steps)[0])

    def _responses(self, steps: int) -> tuple[F64, F64]:
        """Return what one unit of z_0 does to each later zhat [steps] and to each buffer [steps, rows]."""
        decay, scale = np.array(self._decay), np.array(self._scale)
        noise, buffers = np.ones(steps), np.ones((steps, self.rows))
        for step in range(1, steps):
            noise[step] = -(scale @ buffers[step - 1])
            buffers[step] = decay * buffers[step - 1] + noise[step]
        return noise, buffers


class _Blocks:
    """Row t of C adds up the aligned block of 2^m steps that ends with step t, for the largest m: of the nodes of the
    binary trees, those of which prefix sums are made. What step t adds to the noise of the prefix sum is a new node's
    noise less that of the nodes it replaces; row l remembers the active node of 2^l steps. Integers: no error at all.
    """

    def __init__(self, steps: int, scale: Fraction) -> None:
        self.rows = steps.bit_length()
        self.error = Fraction(0)
        self._limit = _room(scale)

    def advance(self, state: I64, step: int, fresh: I64) -> tuple[I64, I64]:
        _require_within(fresh, self._limit)
        after, level = state.copy(), _level(step)
        after[:level] = 0  # not read again: forgotten
        after[level] = fresh
        return fresh - state[:level].sum(axis=0), after

    def deviations(self, steps: int) -> F64:
        return np.sqrt([1.0 + _level(step) for step in range(steps)])


def state_to_bytes(state: I64) -> bytes:
    """Return integers of 48 bits as 6 bytes each, little-endian."""
    words = np.ascontiguousarray(state, dtype="<i8").view(np.uint8).reshape(-1, 8)
    return words[:, :STATE_BYTES].tobytes()


def state_from_bytes(content: bytes, rows: int, dimension: int) -> I64:
    """Read integers of 48 bits back, i64[rows, dimension].

    Raises:
        PrivacyError: another number of bytes.
    """
    if len(content) != rows * dimension * STATE_BYTES:
        raise PrivacyError(f"noise state: {len(content)} bytes for {rows} rows of {dimension} values.")
    words: NDArray[np.uint8] = np.zeros((rows * dimension, 8), dtype=np.uint8)
    words[:, 8 - STATE_BYTES :] = np.frombuffer(content, dtype=np.uint8).reshape(-1, STATE_BYTES)
    values: I64 = (words.view("<i8") >> (64 - 8 * STATE_BYTES)).reshape(rows, dimension).astype(np.int64, copy=False)
    return values


def _level(step: int) -> int:
    """Return m for the largest block of 2^m steps that ends with this one: the trailing zeros of step + 1."""
    count = step + 1
    return (count & -count).bit_length() - 1


def _running_norm(response: F64) -> F64:
    """Return the std at each step of what responds so to independent unit noise in all steps so far."""
    norm: F64 = np.sqrt(np.cumsum(response**2, axis=0))
    return norm


def _room(deviation: Fraction | float) -> int:
    """Return the magnitude up to which values of this std are accepted."""
    limit = math.ceil(_REACH * deviation)
    if limit.bit_length() > _LIMIT_BITS:
        raise InvalidSpend(
            f"noise with a std of {float(deviation):.3g} grid steps does not fit its 48-bit state; "
            "use a larger grid step."
        )
    return limit


def _rounded(values: F64) -> I64:
    return np.rint(values, out=values).astype(np.int64)


def _require_within(values: I64, limit: int) -> None:
    if values.size and (int(values.max()) > limit or int(values.min()) < -limit):
        raise PrivacyError("noise beyond 16 standard deviations: the random source is broken; nothing was released.")

"""Rounded normal noise without any error of distribution.

``rounded_normal`` returns integers distributed exactly as round(scale * g), g standard normal and continuous. Sums lie
on an integer grid, so for an integer x: x + round(scale * g) = round(x + scale * g). A release with this noise is
post-processing of the Gaussian mechanism itself, and every figure for that mechanism holds with no further term. (The
discrete Gaussian of Canonne, Kamath and Steinke 2020 would be exact too, but is another mechanism, with figures of its
own under composition and subsampling.)

Fast path: Karney's decomposition ("Sampling exactly from the normal distribution", ACM TOMS 42(1), 2016) in numpy, with
floating point used only to decide comparisons. Where its proven error leaves a comparison open, that one attempt is
finished in exact arithmetic (``exact_scalar``) from the same random bits. So what is returned is what exact arithmetic
would have returned, bit for bit; the total-variation error is 0 and no tail is cut. What remains is an assumption about
the random bits: that ChaCha20 under a fresh key from the operating system cannot be told from uniform.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import InvalidSpend, MissingDependency, PrivacyError
from fedlearn.privacy.exact_scalar import ByteSource, LazyUniform, cumulative_bounds, exp_bounds, rounded_deviate
from fedlearn.rng import os_bytes
from fedlearn.types import F64, I64

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers import CipherContext

_U64 = NDArray[np.uint64]
_Bool = NDArray[np.bool_]

LARGEST_SCALE: Final = 1 << 50
"""At most: int64 then holds 8,191 standard deviations."""

_CHUNK: Final = 1 << 15  # attempts at a time: their arrays stay in the cache
_WORDS: Final = 3  # 64-bit words an attempt: sign and k, x, acceptance
_CHOICE_BITS: Final = 63
_UNIFORM_STEP: Final = 2.0**-53
_EXP_CELLS: Final = 64
# |computed acceptance probability - true one| < 2^-36 (see _acceptance_probability); the guard leaves a factor of 64.
_ACCEPTANCE_GUARD: Final = 2.0**-30
_STREAM_LIMIT: Final = 1 << 37  # ChaCha20 numbers its 64-byte blocks by 32 bits


class CsprngStream:
    """Random bytes for one release: a ChaCha20 keystream under a fresh 256-bit key from the operating system.

    The key is handed to the cipher and forgotten; the object shows nothing and cannot be copied or pickled.

    Raises:
        MissingDependency: ``cryptography`` is not installed.
    """

    __slots__ = ("_keystream", "_left")

    def __init__(self) -> None:
        try:
            from cryptography.hazmat.primitives.ciphers import Cipher, algorithms  # noqa: PLC0415  # optional
        except ImportError as error:
            raise MissingDependency("Private noise needs cryptography: pip install 'fedlearn[privacy]'") from error
        self._keystream: CipherContext = Cipher(algorithms.ChaCha20(os_bytes(32), bytes(16)), mode=None).encryptor()
        self._left = _STREAM_LIMIT

    def __call__(self, count: int) -> bytes:
        """Return the next ``count`` bytes.

        Raises:
            PrivacyError: the keystream would repeat itself; a release never comes near.
        """
        self._left -= count
        if self._left < 0:
            raise PrivacyError(f"noise: one release needs more than {_STREAM_LIMIT} random bytes; split the model.")
        return self._keystream.update(bytes(count))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(<hidden>)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise PrivacyError(f"{type(self).__name__} is secret and cannot be pickled or copied.")


def rounded_normal(count: int, scale: Fraction | float, source: ByteSource, *, _widen: float = 0.0) -> I64:
    """Return independent integers distributed exactly as round(scale * g), g ~ N(0, 1).

    Args:
        count: how many, >= 0.
        scale: standard deviation before rounding, in (0, 2^50]; taken as the exact rational it is.
        source: uniformly random bytes; ``CsprngStream()`` for anything that is released.
        _widen: for tests only: widens every guard, so that more attempts take the slow path. Changes no result.

    Returns:
        i64[count].

    Raises:
        InvalidSpend: the scale is out of range or the count negative.
        PrivacyError: the source is broken.
    """
    if count < 0:
        raise InvalidSpend(f"count={count}: must be >= 0.")
    exact = require_scale(scale)
    noise = np.empty(count, dtype=np.int64)
    filled = 0
    while filled < count:
        # 0.715 of the attempts are kept; the surplus is dropped by position, whatever its value.
        attempts = min(_CHUNK, math.ceil(1.42 * (count - filled)) + 16)
        kept = _kept(attempts, exact, source, _widen)[: count - filled]
        noise[filled : filled + kept.size] = kept
        filled += kept.size
    return noise


def require_scale(scale: Fraction | float) -> Fraction:
    """Return the scale as the exact rational it is.

    Raises:
        InvalidSpend: it is not in (0, 2^50].
    """
    if not 0 < scale <= LARGEST_SCALE:
        raise InvalidSpend(f"noise std of {scale} grid steps: must be in (0, 2^50]; use a larger grid step.")
    return Fraction(scale)


def _kept(attempts: int, scale: Fraction, source: ByteSource, widen: float) -> I64:
    """Return what is left of so many attempts."""
    words: _U64 = np.frombuffer(source(8 * _WORDS * attempts), dtype="<u8").reshape(_WORDS, attempts)
    head, position, acceptance = words
    whole, open_choice = _whole_parts(head >> np.uint64(1), widen)
    x = _leading_bits(position)
    probability, threshold = _acceptance_probability(whole, x), _leading_bits(acceptance)
    guard = _ACCEPTANCE_GUARD + widen
    accepted = threshold < probability - guard
    magnitude, open_rounding = _magnitudes(whole + x, float(scale), widen)
    values: I64 = magnitude.astype(np.int64) * (1 - 2 * (head & np.uint64(1)).view(np.int64))
    unsure = open_choice | (np.abs(threshold - probability) <= guard) | (accepted & open_rounding)
    for index in np.flatnonzero(unsure):
        deviate = rounded_deviate(
            LazyUniform(int(head[index]) >> 1, _CHOICE_BITS, source),
            LazyUniform(int(position[index]), 64, source),
            LazyUniform(int(acceptance[index]), 64, source),
            negative=bool(int(head[index]) & 1),
            scale=scale,
        )
        accepted[index] = deviate is not None
        values[index] = 0 if deviate is None else deviate
    return values[accepted]


def _leading_bits(word: _U64) -> F64:
    """Return the leading 53 bits as a number in [0, 1): at most 2^-53 below the uniform that the word begins."""
    bits: I64 = (word >> np.uint64(11)).view(np.int64)
    return bits.astype(np.float64) * _UNIFORM_STEP


def _whole_parts(choice: _U64, widen: float) -> tuple[F64, _Bool]:
    """Return k per 63-bit uniform, and where those bits do not decide it.

    The uniform lies in [choice, choice + 1) * 2^-63 and the boundary F(k) inside the cell whose number the table holds,
    so only equal numbers leave it open. The table ends where that cell is the last one: the whole tail is open there.
    """
    guard = round(widen * 2**_CHOICE_BITS)
    lowest = np.zeros(choice.size, dtype=np.uint8)
    highest = np.zeros(choice.size, dtype=np.uint8)
    for cell in _boundary_cells():
        lowest += choice > np.uint64(cell + guard)
        highest += choice >= np.uint64(max(0, cell - guard))
    return lowest.astype(np.float64), lowest != highest


def _acceptance_probability(whole: F64, x: F64) -> F64:
    """Return exp(-X(2k + X)/2) for the uniform X that begins with ``x``, with an error below 2^-36.

    Only +, -, *, floor and a table: correctly rounded by IEEE 754, whatever the mathematics library. With u = 2^-53:
    - t = x (k + x/2) <= 9.5 is off by 2 roundings (< 20u), and as X - x < u where the slope is k + x <= 10: < 30u;
    - r = t - j/64 in [0, 1/64) is exact, since both are multiples of t's last bit;
    - the Taylor polynomial of degree 4 leaves out less than r^5/120 < 2^-36.9, and its 8 operations on values <= 1
      round by less than 8u in all; the table entry and the last product by less than 2u.
    As exp(-t) has slope <= 1, the sum is below 2^-36.9 + 40u < 2^-36. Subtracting the guard, and the threshold's 53
    bits, add 2u.
    """
    t = x * (whole + 0.5 * x)
    cell = np.floor(t * _EXP_CELLS)
    r = t - cell * (1 / _EXP_CELLS)
    polynomial = 1.0 - r * (1.0 - r * (0.5 - r * (1 / 6 - r * (1 / 24))))
    probability: F64 = _exp_table()[cell.astype(np.intp)] * polynomial
    return probability


def _magnitudes(deviate: F64, scale: float, widen: float) -> tuple[F64, _Bool]:
    """Return floor(scale * deviate + 1/2) and where the floating-point error leaves it open.

    With u = 2^-53: the sum k + x, the scale, the product and the last sum round by a factor within 1 +- u each, and x
    is less than u too small: the error is below 4.1u * scaled + u * scale. The guard is about twice that.
    """
    scaled = scale * deviate + 0.5
    guard = scaled * 2.0**-50 + (scale * 2.0**-52 + widen)
    lowest: F64 = np.floor(scaled - guard)
    return lowest, lowest != np.floor(scaled + guard)


@lru_cache(maxsize=1)
def _boundary_cells() -> tuple[int, ...]:
    """Return floor(2^63 * F(k)) for k = 0, 1, ... up to the first that is 2^63 - 1."""
    extra = 96
    cells: list[int] = []
    while not cells or cells[-1] != (1 << _CHOICE_BITS) - 1:
        low, high = (bound >> extra for bound in cumulative_bounds(len(cells), _CHOICE_BITS + extra))
        if low != high:
            raise PrivacyError("noise: a table entry is not decided by 159 bits.")
        cells.append(low)
    return tuple(cells)


@lru_cache(maxsize=1)
def _exp_table() -> F64:
    """Return exp(-j/64), correctly rounded up to 2^-80, for every cell that ``_acceptance_probability`` can name."""
    cells = len(_boundary_cells()) * _EXP_CELLS  # k < len, and t < k + 1/2
    return np.array([exp_bounds(Fraction(cell, _EXP_CELLS), 96)[0] / (1 << 96) for cell in range(cells)])

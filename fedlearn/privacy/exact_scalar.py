"""One rounded normal deviate in exact arithmetic: the slow path behind ``exact_normal``, and its oracle.

A deviate is made of uniforms whose leading bits are known; wherever those do not decide, more bits are drawn. Every
comparison is between integers, and exp is enclosed between rational bounds, so nothing is ever approximated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Final

from fedlearn.errors import PrivacyError

ByteSource = Callable[[int], bytes]
"""Returns that many uniformly random bytes."""

_WORD_BITS: Final = 64
_MARGIN_BITS: Final = 64
_MOST_BITS: Final = 1 << 10


class LazyUniform:
    """A uniform deviate in [0, 1) that is known to lie in [value, value + 1) * 2^-bits.

    Args:
        value: the leading bits, as an integer in [0, 2^bits).
        bits: how many are known.
        source: where further ones come from.
    """

    __slots__ = ("_source", "bits", "value")

    def __init__(self, value: int, bits: int, source: ByteSource) -> None:
        self.value = value
        self.bits = bits
        self._source = source

    def extend(self) -> None:
        """Draw 64 further bits.

        Raises:
            PrivacyError: 1024 bits decided nothing: with a working source, once in 2^1000 draws.
        """
        if self.bits >= _MOST_BITS:
            raise PrivacyError("noise: the random source repeats itself; no noise was released. Repair the source.")
        self.value = self.value << _WORD_BITS | int.from_bytes(self._source(_WORD_BITS // 8), "little")
        self.bits += _WORD_BITS


def rounded_deviate(
    choice: LazyUniform, position: LazyUniform, acceptance: LazyUniform, *, negative: bool, scale: Fraction
) -> int | None:
    """Return the nearest integer to ``scale`` times a normal deviate, or None if this attempt is rejected.

    The deviate is +-(k + x): ``choice`` gives k with P(k) proportional to exp(-k^2/2), ``position`` is x, uniform in
    [0, 1), and ``acceptance`` keeps the pair with probability exp(-x(2k + x)/2). Kept pairs have a density proportional
    to exp(-(k + x)^2/2): the half-normal one (Karney 2016). Ties of the rounding have probability zero.
    """
    whole = _whole_part(choice)
    if not _accepted(whole, position, acceptance):
        return None
    magnitude = _rounded(whole, position, scale)
    return -magnitude if negative else magnitude


def _whole_part(choice: LazyUniform) -> int:
    """Return the smallest k with choice < F(k), for F the cumulative distribution of k."""
    whole = 0
    while True:
        low, high = cumulative_bounds(whole, choice.bits + _MARGIN_BITS)
        if (choice.value + 1) << _MARGIN_BITS <= low:
            return whole
        if choice.value << _MARGIN_BITS >= high:
            whole += 1
        else:
            choice.extend()


def _accepted(whole: int, position: LazyUniform, acceptance: LazyUniform) -> bool:
    """Return whether acceptance < exp(-x(2k + x)/2), which falls as x rises."""
    while True:
        bits = acceptance.bits + _MARGIN_BITS
        if (acceptance.value + 1) << _MARGIN_BITS <= exp_bounds(_exponent(whole, position, 1), bits)[0]:
            return True
        if acceptance.value << _MARGIN_BITS >= exp_bounds(_exponent(whole, position, 0), bits)[1]:
            return False
        position.extend()
        acceptance.extend()


def _exponent(whole: int, position: LazyUniform, end: int) -> Fraction:
    """Return x(2k + x)/2 at the lower (0) or upper (1) end of where x lies."""
    x = position.value + end
    return Fraction(x * ((2 * whole << position.bits) + x), 1 << (2 * position.bits + 1))


def _rounded(whole: int, position: LazyUniform, scale: Fraction) -> int:
    """Return floor(scale * (k + x) + 1/2)."""
    while True:
        at = (whole << position.bits) + position.value
        denominator = 2 * scale.denominator << position.bits
        half = scale.denominator << position.bits
        lowest = (2 * scale.numerator * at + half) // denominator
        # The upper end is not attained: the largest integer strictly below is ceil - 1.
        highest = -(-(2 * scale.numerator * (at + 1) + half) // denominator) - 1
        if lowest == highest:
            return lowest
        position.extend()


@lru_cache(maxsize=64)
def cumulative_bounds(whole: int, bits: int) -> tuple[int, int]:
    """Return integers around 2^bits * F(k), F(k) = sum_{j <= k} exp(-j^2/2) / sum_{j >= 0} exp(-j^2/2).

    Args:
        whole: k >= 0.
        bits: of the result, >= 1.

    Returns:
        (low, high) with low <= 2^bits * F(k) <= high.
    """
    work = bits + 32
    # Beyond ``last`` every exp(-j^2/2) < 2^-(j^2/2) <= 2^-work, falling by more than half each: together < 2 units.
    last = max(whole, math.isqrt(2 * work) + 1)
    weights = [exp_bounds(Fraction(j * j, 2), work) for j in range(last + 1)]
    total_low = sum(low for low, _ in weights)
    total_high = sum(high for _, high in weights) + 2
    part_low = sum(low for low, _ in weights[: whole + 1])
    part_high = sum(high for _, high in weights[: whole + 1])
    return (part_low << bits) // total_high, -(-(part_high << bits) // total_low)


def exp_bounds(exponent: Fraction, bits: int) -> tuple[int, int]:
    """Return integers around 2^bits * exp(-exponent).

    Args:
        exponent: >= 0.
        bits: of the result, >= 1.

    Returns:
        (low, high) with low <= 2^bits * exp(-exponent) <= high, few units apart.
    """
    # exp(-q) = exp(-q / 2^s)^(2^s) with q / 2^s < 1/16; each squaring at most doubles the width and adds 2 units.
    squarings = math.floor(exponent).bit_length() + 4
    work = bits + squarings + 16
    reduced = (exponent.numerator << work) // (exponent.denominator << squarings)
    low, high = _taylor_bounds(reduced, work)
    for _ in range(squarings):
        low, high = low * low >> work, -(-high * high >> work)
    return low >> (work - bits), -(-high >> (work - bits))


def _taylor_bounds(reduced: int, work: int) -> tuple[int, int]:
    """Enclose 2^work * exp(-r) for every r in [reduced, reduced + 1) * 2^-work, r < 1/16."""
    low = high = term_low = term_high = 1 << work
    order = 0
    while term_high > 1:
        order += 1
        term_low = term_low * reduced // (order << work)
        term_high = -(-term_high * reduced // (order << work))
        if order % 2:
            low, high = low - term_high, high - term_low
        else:
            low, high = low + term_low, high + term_high
    # The terms alternate and fall, so what is left out is at most the last one, one unit; the other unit is for r,
    # which was rounded down by less than one unit while exp(-r) falls no faster than r rises.
    return low - 2, high + 1

"""What a phone's own participations cost, in zCDP, by the phone's own arithmetic: pure Python, and rounded up.

A page beside ``fedlearn.privacy``, which needs numpy and scipy and is the operator's side. Guarantee: no figure here is
below the one there for the same mechanism, nor below the true one. No credit is taken for sampling, for other phones,
or for steps that the phone left out.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Final

from fedlearn.device.mechanism import MechanismTerms
from fedlearn.errors import InvalidSpend
from fedlearn.privacy.factorization import Blt, Factorization, Toeplitz, Tree
from fedlearn.privacy.participation import Participation

MOST_STEPS: Final = 1 << 17
"""Longest run with coefficients that a phone takes part in: bounds its time and memory. A tree has no such bound."""

_UNIT: Final = 2.0**-53
_EXACT_BELOW: Final = 2.0**53
# More than the few roundings of rho's own formula, there and here.
_UP: Final = 1 + 1e-13
# A run that costs more has no noise to speak of; below it no sum of runs overflows.
_MOST_RHO: Final = 1e12
_GOLDEN: Final = (math.sqrt(5) - 1) / 2


@lru_cache(maxsize=64, typed=True)
def squared_sensitivity(factorization: Factorization, steps: int, min_separation: int, participations: int) -> float:
    """Return a bound on how far j participations with updates of norm 1 can move C's output, squared.

    Toeplitz and Blt: ||sum of C's columns 0, b, ..., (j - 1) b||^2, the worst participation set (Kalinin and Lampert
    2024, theorem 2). At most 1e-9, and for 2,000 steps 1e-11, above
    ``fedlearn.privacy.sensitivity.squared_sensitivity``.

    Tree: the sum over its levels l = 0 ... floor(log2 n) of j * min(j, ceil(2^l / b)). Proof: the rows of C are aligned
    blocks of 2^l <= n steps, and a participation set moves a block by the number a of its participations in it. Blocks
    of one level are disjoint, so their a add up to at most j; b steps lie between participations, so no a exceeds
    ceil(2^l / b), nor j. Hence the sum of a^2 over a level is at most (largest a) * (sum of a) <= j min(j, ceil(2^l /
    b)). The exact value, a dynamic programme that needs numpy, is at most this.

    Args:
        factorization: C.
        steps: n, in [1, 131072]; up to any length for a tree.
        min_separation: b >= 1, y - x.
        participations: j in [1, ceil(n / b)].

    Raises:
        InvalidSpend: an argument is out of range, or there are more coefficients than steps.
    """
    Participation(min_separation, participations).check_fits(steps)
    if isinstance(factorization, Tree):
        levels = range(steps.bit_length())
        return float(sum(participations * min(participations, -(-(1 << level) // min_separation)) for level in levels))
    if steps > MOST_STEPS:
        raise InvalidSpend(f"steps={steps}: a phone takes part in runs of at most {MOST_STEPS} steps.")
    column = _first_column(factorization, steps)
    moved = _sum_of_columns(column, min_separation, participations)
    total = math.fsum(value * value for value in moved)
    if total < _EXACT_BELOW and all(value in (0.0, 1.0) for value in column):
        return total  # integers throughout
    # As in fedlearn.privacy.sensitivity: relative errors of at most ``operations`` units, there and here. The result
    # there is raised by twice that. So four times that keeps this one above it, and the rest is for terms of second
    # order.
    buffers = len(factorization.scale) if isinstance(factorization, Blt) else 0
    operations = 3 * steps + 2 * participations + 2 * buffers + 4
    return total * (1 + 8 * operations * _UNIT)


def rho(terms: MechanismTerms, participations: int) -> float:
    """Return the zCDP of j participations of one phone in a run, zero-out adjacency: squared sensitivity / (2 z^2).

    A joint Gaussian release whose mean moves by at most that (Bun and Steinke 2016, proposition 1.6), also when the
    phone chooses its steps and updates as it goes: for a lower-triangular C that changes nothing (Denisov et al.
    2022, theorem 2.1). Rises with j; 0 for none.

    Args:
        terms: of the run, with all its n steps.
        participations: j in [0, ceil(n / b)].

    Raises:
        InvalidSpend: an argument is out of range, or the result over 1e12.
    """
    noise = terms.noise_multiplier
    if not (math.isfinite(noise) and noise > 0):
        raise InvalidSpend(f"noise_multiplier={noise}: must be finite and > 0.")
    if participations == 0:
        return 0.0
    squared = squared_sensitivity(terms.factorization, terms.steps, terms.min_separation, participations)
    spent = squared / noise / noise / 2 * _UP
    if not spent <= _MOST_RHO:
        raise InvalidSpend(
            f"noise_multiplier={noise}: {participations} participations cost more zCDP than {_MOST_RHO:g}."
        )
    return spent


def epsilon(rho: float, delta: float) -> float:
    """Return an epsilon such that everything rho-zCDP is (epsilon, delta)-DP, rounded up.

    Canonne, Kamath and Steinke (2020), proposition 12: for every order a > 1 one is rho a + ln(1 - 1/a) -
    ln(delta a) / (a - 1). Golden section looks for the least; whatever order it ends at is valid.

    Args:
        rho: >= 0; ``inf`` gives ``inf``.
        delta: in (0, 1).

    Raises:
        InvalidSpend: an argument is NaN or out of range.
    """
    if not rho >= 0:
        raise InvalidSpend(f"rho={rho}: must be >= 0.")
    if not 0 < delta < 1:
        raise InvalidSpend(f"delta={delta}: must be in (0, 1).")
    if rho == 0 or math.isinf(rho):
        return rho
    log_delta = math.log(delta) * (1 + 4 * _UNIT)  # negative: rounded down

    def at(exponent: float) -> float:
        above_one = math.exp(exponent)
        order = 1 + above_one
        # order - 1 is what the order really is above one: exp(exponent) may differ from it by a rounding
        tail = (math.log(order) - log_delta) / (order - 1)
        value = rho * order + math.log1p(-1 / order) + -(log_delta + math.log(order)) / (order - 1)
        return value + 16 * _UNIT * (rho * order + tail + 1 / (order - 1) + 1)

    # the best order is near 1 + sqrt(-ln delta / rho), and an order of 1 + 1e-12 or 1e12 serves beyond
    centre = math.log(min(max(math.sqrt(-log_delta / rho), 1e-12), 1e12))
    return max(0.0, _least(at, centre - 4, centre + 4))


def total(parts: Sequence[float]) -> float:
    """Return the sum of zCDP figures, rounded up: what runs cost together, also runs that are begun while others go on.

    Each run's noise is Gaussian and drawn by itself, so the runs are one Gaussian release with a longer matrix, to
    which the bound for adaptively chosen steps applies; no figure here depends on what was released.

    Raises:
        InvalidSpend: they are no zCDP figures.
    """
    exact = math.fsum(parts)  # correctly rounded
    if not exact >= 0:
        raise InvalidSpend(f"rho: {exact} is no sum of zCDP figures.")
    return math.nextafter(exact, math.inf) if exact > 0 else 0.0


def _first_column(factorization: Toeplitz | Blt, steps: int) -> array[float]:
    """Return c_0 ... c_{n-1}, or the least non-increasing sequence that is nowhere below what rounding made of them."""
    if isinstance(factorization, Toeplitz):
        count = len(factorization.coefficients)
        if count > steps:
            raise InvalidSpend(f"coefficients: there are {count}, but only {steps} steps.")
        return array("d", (*factorization.coefficients, *(0.0 for _ in range(steps - count))))
    column = array("d", bytes(8 * steps))
    for decay, scale in zip(factorization.decay, factorization.scale, strict=True):
        power = 1.0  # by products, whose rounding is bounded by the standard for floats
        for index in range(1, steps):
            column[index] += scale * power
            power *= decay
    column[0] = 1.0
    return array("d", reversed(tuple(accumulate(reversed(column), max))))


def _sum_of_columns(column: array[float], separation: int, count: int) -> array[float]:
    """Return the sum of C's columns 0, b, ..., (count - 1) b: those of each power of two in count, by doubling.

    No entry is the result of more than count - 1 additions, and none of a difference, which would cancel.
    """
    moved, summed = array("d", bytes(8 * len(column))), 0
    block, size = array("d", column), 1
    while size <= count:
        if count & size:
            _add_delayed(moved, block, summed * separation)
            summed += size
        if size * 2 <= count:
            _add_delayed(block, array("d", block), size * separation)
        size *= 2
    return moved


def _add_delayed(target: array[float], values: array[float], delay: int) -> None:
    """Add to ``target``, in place, what ``values`` would be ``delay`` steps later."""
    for index in range(delay, len(target)):
        target[index] += values[index - delay]


def _least(function: Callable[[float], float], low: float, high: float) -> float:
    """Return the least value seen of a function with one valley."""
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = function(left), function(right)
    best = min(at_left, at_right)
    for _ in range(60):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = function(right)
        best = min(best, at_left, at_right)
    return best

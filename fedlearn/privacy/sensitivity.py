"""How far one unit's participations can move what a matrix mechanism releases: the sensitivity of C.

A unit that takes part in the steps of a set P with updates u_x of norm at most 1 moves C's output by the sum over x in
P of the outer product of C's column x and u_x. Its squared Frobenius norm is the sum over x, y in P of
G[x, y] <u_x, u_y>, with the Gram matrix G = C'C. Our C are non-negative, so G is, and no term exceeds G[x, y]: equal
directions are the worst case, and the squared sensitivity is the largest ||sum of C's columns in P||^2 over all P.

For the same reason it never falls when an entry of C grows. So rounding coefficients up gives an upper bound.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from fedlearn.errors import InvalidSpend
from fedlearn.privacy.factorization import Blt, Factorization, Toeplitz, Tree
from fedlearn.privacy.participation import Participation
from fedlearn.privacy.tree_sensitivity import tree_squared_sensitivity
from fedlearn.types import F64

_UNIT_ROUNDOFF: Final = 2.0**-53
_EXACT_BELOW: Final = 2.0**53


def squared_sensitivity(
    factorization: Factorization, steps: int, min_separation: int, max_participations: int
) -> float:
    """Return the squared L2 sensitivity for updates of norm at most 1: multiply by the squared clip norm.

    Toeplitz and Blt: the worst participation set is {0, b, 2b, ...} with all k participations (Kalinin and Lampert
    2024, theorem 2). It holds for every k, b and length n, because with c_0 >= c_1 >= ... >= 0 the Gram matrix is
    G[x, y] = sum over u < n - y of c_u c_{u + y - x} for x <= y, which grows neither with y nor with y - x, and the
    i-th and j-th members of any other set lie no earlier and no closer than i b and j b. Bands, however many, are a
    special case; columns cut off at n are allowed for.

    Tree: a dynamic programme over its nodes; see ``tree_sensitivity``.

    Guarantee: at least the true value. The tree's is an exact integer, as is that of coefficients which are all 0 or 1.
    Otherwise the result is raised by a relative bound on its rounding error, about (6 n + 4 k) 2^-53.

    Args:
        factorization: C.
        steps: n >= 1, the releases that are analysed.
        min_separation: b >= 1, y - x.
        max_participations: k in [1, ceil(n / b)].

    Raises:
        InvalidSpend: an argument is out of range, or there are more coefficients than steps.
    """
    limits = Participation(min_separation, max_participations)
    limits.check_fits(steps)
    if isinstance(factorization, Tree):
        return float(tree_squared_sensitivity(steps, min_separation, max_participations))
    column = first_column(factorization, steps)
    # A scale whose sum rounds to 1 may leave c_1 above c_0 by less than half an ulp. The bound is taken of the least
    # non-increasing sequence that is nowhere below the computed one.
    column = np.maximum.accumulate(column[::-1])[::-1]
    moved = sum_of_columns(column, limits)
    total = float(moved @ moved)
    if total < _EXACT_BELOW and bool(np.isin(column, (0.0, 1.0)).all()):
        return total  # a sum of integers, exact in any order
    # Relative errors in units of 2^-53: a Blt's coefficient n + buffers (the products of a power, the scale, the sum
    # over buffers), a sum of k non-negative terms k; both double when squared; the sum of n squares adds n.
    # Non-negative terms do not cancel, and what underflows is nothing beside c_0^2 = 1. The bound is doubled for terms
    # of second order.
    buffers = len(factorization.scale) if isinstance(factorization, Blt) else 0
    operations = 3 * steps + 2 * max_participations + 2 * buffers + 4
    return total * (1 + 2 * operations * _UNIT_ROUNDOFF)


def first_column(factorization: Toeplitz | Blt, steps: int) -> F64:
    """Return c_0 ... c_{steps-1}, steps >= 1: zeros where a Toeplitz has no more, by closed form for a Blt.

    Raises:
        InvalidSpend: there are more coefficients than steps.
    """
    column = np.zeros(steps)
    if isinstance(factorization, Toeplitz):
        count = len(factorization.coefficients)
        if count > steps:
            raise InvalidSpend(f"coefficients: there are {count}, but only {steps} steps.")
        column[:count] = factorization.coefficients
        return column
    column[0] = 1.0
    for decay, scale in zip(factorization.decay, factorization.scale, strict=True):
        # By products, whose rounding is bounded by the standard for floats; that of a library's power is not.
        powers = np.full(steps - 1, decay)
        powers[:1] = 1.0
        column[1:] += scale * np.cumprod(powers)
    return column


def sum_of_columns(column: F64, limits: Participation) -> F64:
    """Return the sum of C's columns 0, b, ..., (k - 1) b: those of each power of two in k, by doubling.

    No entry is the result of more than k - 1 additions, and none of a difference, which would cancel.
    """
    total, summed = np.zeros_like(column), 0
    block, size = column, 1
    while size <= limits.max_participations:
        if limits.max_participations & size:
            total = total + _delayed(block, summed * limits.min_separation)
            summed += size
        block = block + _delayed(block, size * limits.min_separation)
        size *= 2
    return total


def _delayed(values: F64, steps: int) -> F64:
    moved = np.zeros_like(values)
    moved[steps:] = values[: max(len(values) - steps, 0)]
    return moved

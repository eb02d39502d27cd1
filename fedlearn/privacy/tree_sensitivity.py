"""Sensitivity of the tree mechanism, by dynamic programming over aligned blocks (Kairouz et al. 2021, appendix D).

The rows of C are the aligned blocks [i 2^h, (i+1) 2^h) that lie inside the steps: the nodes of one complete binary tree
per bit of their number, the largest first. A participation set moves each node by the number of its participations, so
its squared sensitivity is the sum over all nodes of the squared count: an integer, computed here without rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import InvalidSpend
from fedlearn.privacy.participation import Participation, most_participations

MOST_STEPS: Final = 1 << 14
"""Up to here the slowest separation takes some seconds."""

# No sum of squared counts exceeds 2 steps^2 <= 2^29, so an impossible entry stays negative when possible ones are added
# to it, which is all that is ever added, and 32 bits hold every entry.
_IMPOSSIBLE: Final = -(1 << 30)
_Table = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class _Forest:
    """The best participation sets of some consecutive trees.

    ``best[p - 1, s, e]`` is the largest sum of squared counts over their nodes of p >= 1 participations that keep free
    the first s leaves and the last e. Both axes end where b or the leaves do: more free leaves are never asked for, or
    leave no room. Where only the whole is of interest the axis of s is cut to its first entry.
    """

    leaves: int
    best: _Table


@lru_cache(maxsize=256, typed=True)
def tree_squared_sensitivity(steps: int, min_separation: int, max_participations: int) -> int:
    """Return the largest sum over all nodes of squared counts, over the participation sets of at most k steps.

    2,000 steps take some hundredths of a second; memory is about 8 * steps * b bytes, half a gigabyte at most.

    Args:
        steps: in [1, 16384].
        min_separation: b >= 1, y - x.
        max_participations: k in [1, ceil(steps / b)].

    Raises:
        InvalidSpend: an argument is out of range.
    """
    limits = Participation(min_separation, max_participations)
    limits.check_fits(steps)
    if steps > MOST_STEPS:
        raise InvalidSpend(f"steps={steps}: the tree's sensitivity is computed up to {MOST_STEPS} steps only; use blt.")
    if max_participations == 1:
        return steps.bit_length()  # one node of each size, in the largest tree
    largest, *others = (height for height in reversed(range(steps.bit_length())) if steps >> height & 1)
    trees = _complete_trees(largest - 1, limits)
    # Of the whole, and so of its first tree, only the table's first row is asked for.
    whole = _single(largest, limits, 1) if _holds_one(largest, limits) else _double(trees[-1], limits, 1)
    for height in others:
        whole = _join(whole, trees[height], limits, 1)
    return int(whole.best[:, 0, 0].max())


def _complete_trees(highest: int, limits: Participation) -> list[_Forest]:
    """Return the tables of the complete trees of height 0 ... ``highest``."""
    trees: list[_Forest] = []
    for height in range(highest + 1):
        starts = min(1 << height, limits.min_separation)
        one = _holds_one(height, limits)
        trees.append(_single(height, limits, starts) if one else _double(trees[-1], limits, starts))
    return trees


def _holds_one(height: int, limits: Participation) -> bool:
    return 1 << height <= limits.min_separation


def _single(height: int, limits: Participation, starts: int) -> _Forest:
    """Return the table of a tree with room for one participation: it counts in one node of each of its levels."""
    leaves = 1 << height
    best = np.full((1, starts, min(leaves, limits.min_separation)), _IMPOSSIBLE, dtype=np.int32)
    for start in range(starts):
        best[0, start, : leaves - start] = height + 1
    return _Forest(leaves, best)


def _double(half: _Forest, limits: Participation, starts: int) -> _Forest:
    """Return the table of the tree whose root has two such halves."""
    both = _join(half, half, limits, starts)
    for count, table in enumerate(both.best, start=1):
        np.add(table, count * count, out=table)
    return both


def _join(left: _Forest, right: _Forest, limits: Participation, starts: int) -> _Forest:
    """Return the table of the two side by side: all in one of them, or split so that b steps lie across the border."""
    separation = limits.min_separation
    leaves = left.leaves + right.leaves
    most = min(limits.max_participations, most_participations(leaves, separation))
    width = min(separation, leaves)
    best = np.full((most, starts, width), _IMPOSSIBLE, dtype=np.int32)
    right_most, _, right_width = right.best.shape
    left_most, left_starts, _ = left.best.shape
    first_free = np.maximum(np.arange(starts) - left.leaves, 0)
    best[:right_most, :, :right_width] = right.best[:, first_free, :]
    last_free = np.maximum(np.arange(width) - right.leaves, 0)
    alone = best[:left_most, : min(left_starts, starts)]
    np.maximum(alone, left.best[:, :starts, last_free], out=alone)
    for count in range(1, min(left_most, most - 1) + 1):
        others = min(right_most, most - count)
        split = best[count : count + others, :, :right_width]
        _split(split, left.best[count - 1, :starts], right.best[:others], separation)
    return _Forest(leaves, best)


def _split(best: _Table, left: _Table, right: _Table, separation: int) -> None:
    """Raise ``best`` to the sum of one table entry of the left part and one of the right, b steps apart.

    The more leaves the left part keeps free at its end, the more of them the right part may use. So for each value that
    the left part can reach, only the most it can keep free counts: values are few, numbers of leaves many.
    """
    for value in np.unique(left[left > 0]):
        free = np.count_nonzero(left >= value, axis=1) - 1
        rows = np.flatnonzero((free >= 0) & (free >= separation - right.shape[1]))
        best[:, rows] = np.maximum(best[:, rows], value + right[:, separation - 1 - free[rows]])

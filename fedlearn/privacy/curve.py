"""How epsilon grows over the rounds of a plan: never below what the releases so far spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from fedlearn.privacy.accountants import epsilon, epsilon_curve
from fedlearn.privacy.events import MatrixGaussian, NeighboringRelation
from fedlearn.privacy.factorization import Toeplitz, Tree
from fedlearn.privacy.participation import most_participations
from fedlearn.privacy.plan import PrivacyPlan

_MAX_ANCHORS: Final = 128
_MAX_TREE_WORK: Final = 2e9
"""Operations to spend on the trees of one curve: about two seconds."""
_LEAST_TREE_WIDTH: Final = 100


def spend_curve(plan: PrivacyPlan, counts: Sequence[int]) -> tuple[float, ...]:
    """Return upper bounds on what the first releases of a plan spend, at the plan's delta.

    The first t releases of a matrix mechanism are themselves the matrix mechanism of t steps, its first t rows. Epsilon
    is that of the shorter mechanism under the same separation.

    Args:
        plan: the plan.
        counts: releases, each in [0, plan.steps], in any order.

    Returns:
        One epsilon per entry of ``counts``: 0.0 for no release, ``certified_epsilon`` for all. Between at most 128
        points that are computed, the value of the next larger one.
    """
    if isinstance(plan.event, MatrixGaussian):
        return _prefix_curve(plan.event, counts, plan.delta)
    values = epsilon_curve(plan.event, counts, plan.delta, neighboring_relation=plan.neighboring_relation)
    return tuple(
        # the two grids may disagree in the last digits; a report shows one figure
        plan.certified_epsilon if count == plan.steps else min(value, plan.certified_epsilon)
        for count, value in zip(counts, values, strict=True)
    )


def prefix(event: MatrixGaussian, steps: int) -> MatrixGaussian:
    """Return the event of the first releases alone.

    Args:
        event: the whole mechanism.
        steps: in [1, event.steps].
    """
    factorization = event.factorization
    if isinstance(factorization, Toeplitz):
        factorization = Toeplitz(factorization.coefficients[:steps])
    most = min(event.max_participations, most_participations(steps, event.min_separation))
    return replace(event, factorization=factorization, steps=steps, max_participations=most)


def tree_work(steps: int, min_separation: int) -> float:
    """Return the rough number of operations behind the sensitivity of one tree; a small b has as many short loops."""
    return steps * steps * max(min(min_separation, steps), _LEAST_TREE_WIDTH) / 10


def _prefix_curve(event: MatrixGaussian, counts: Sequence[int], delta: float) -> tuple[float, ...]:
    distinct = sorted(set(counts) - {0})
    anchors = _anchors(event, distinct)
    computed: dict[int, float] = {0: 0.0}
    running = float("inf")
    for anchor in reversed(anchors):
        relation = NeighboringRelation.ZERO_OUT
        # fewer releases never cost more, whatever an upper bound on each says
        running = min(running, epsilon([(prefix(event, anchor), 1)], delta, neighboring_relation=relation))
        computed[anchor] = running
    following = iter(anchors)
    current = 0
    for count in distinct:
        while current < count:
            current = next(following)
        computed[count] = computed[current]
    return tuple(computed[count] for count in counts)


def _anchors(event: MatrixGaussian, distinct: Sequence[int]) -> list[int]:
    """Return the counts to compute: among them the largest."""
    most = _MAX_ANCHORS
    if isinstance(event.factorization, Tree):
        # the work of n evenly spaced prefixes is about n / 3 that of the whole
        most = max(1, min(most, int(3 * _MAX_TREE_WORK / tree_work(event.steps, event.min_separation))))
    stride = -(-len(distinct) // most) if distinct else 1
    return sorted({*distinct[-1:], *distinct[stride - 1 :: stride]})

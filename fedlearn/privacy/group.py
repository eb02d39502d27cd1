"""Epsilon of more than one unit together: two phones of one person."""

from __future__ import annotations

import math

from fedlearn.privacy.accountants import REPORTED
from fedlearn.privacy.choices import sound_epsilon
from fedlearn.privacy.events import NeighboringRelation, PoissonGaussian
from fedlearn.privacy.gaussian import gaussian_epsilon
from fedlearn.privacy.plan import PrivacyPlan


def pair_epsilon(event: PoissonGaussian, count: int, delta: float, *, discretization: float = REPORTED) -> float:
    """Return an upper bound on the epsilon of two devices together, each of them Poisson-sampled on its own.

    The lesser of two bounds. One: a step that holds either device holds both, a sum of sensitivity 2 drawn with
    probability 1 - (1 - q)^2; enlarging the shifts of a mixture of Gaussians never lowers its divergence
    (Choquette-Choo, Ganesh, Steinke and Thakurta 2024). At q = 1 it is exact. Two: group privacy in two steps, from
    both devices to one to none: (2 e, (1 + exp(e)) d) for every (e, d) of one device.

    Also a bound for replacing one device by another, which is to remove one and to add one.

    Args:
        event: of one device.
        count: releases, >= 1.
        delta: in (0, 1).
        discretization: ``REPORTED`` or ``SEARCHING``.

    Raises:
        InvalidSpend: an argument is out of range, or delta is too small to be certified over so many releases.
    """
    q = event.sampling_probability
    either = min(1.0, math.nextafter(q * (2 - q), 1.0))
    both = PoissonGaussian(event.noise_multiplier / 2, either)
    bound = sound_epsilon([(both, count)], delta, discretization, NeighboringRelation.ADD_OR_REMOVE)
    return min(bound, _in_two_steps(event, count, delta, discretization, bound))


def extra_participation_epsilon(plan: PrivacyPlan, column_norm: float) -> float:
    """Return an upper bound on epsilon if a device takes part once more than its bounds allow, in any step.

    By the triangle inequality: its further participation moves C's output by one column's norm at most.

    Args:
        plan: of a matrix mechanism.
        column_norm: the largest L2 norm of a column of C.
    """
    return gaussian_epsilon((plan.sensitivity + column_norm) / plan.noise_multiplier * (1 + 1e-14), plan.delta)


def _in_two_steps(event: PoissonGaussian, count: int, delta: float, discretization: float, enough: float) -> float:
    """Return 2 e for an e whose delta of one device is at most delta / (1 + exp(e)); inf if 2 e passes ``enough``."""

    guess = 0.0
    while 2 * guess < min(enough, 1400.0):  # exp of at most 700 is finite
        share = delta / (1 + math.exp(guess))
        needed = sound_epsilon([(event, count)], share, discretization, NeighboringRelation.ADD_OR_REMOVE)
        if needed <= guess:
            return 2 * guess
        guess = needed * 1.001
    return math.inf

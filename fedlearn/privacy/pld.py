"""Composition of privacy loss distributions (Doroshenko, Ghazi, Kamath, Kumar and Manurangsi 2022), pessimistic.

Two error sources that the library does not cover are covered here: composition by FFT leaves a floating-point error in
delta, for which a margin is subtracted from delta first, and a distribution too wide for memory is put on a coarser
grid, which can only raise epsilon.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache, reduce
from typing import Final

import numpy as np
from scipy.stats import binom

from fedlearn.errors import InvalidSpend
from fedlearn.privacy.dp_library import LossDistribution, gaussian_losses
from fedlearn.privacy.events import MetricRelease, PoissonGaussian, TruncatedPoissonGaussian

REPORTED: Final = 1e-4
"""Discretization of privacy losses behind every figure that is reported."""

SEARCHING: Final = 1e-3
"""Discretization while searching: ten times faster, also an upper bound, loose when epsilon is far below 1."""

LossEvent = PoissonGaussian | TruncatedPoissonGaussian | MetricRelease
"""Events that have a privacy loss distribution under add-or-remove."""

Sampled = PoissonGaussian | TruncatedPoissonGaussian

# The FFT error in delta per composed event: measured, not proven. In 1,830 comparisons (random configurations of 2 to
# 100,000 events, half of the later ones truncated, both directions, deltas 1e-5 to 1e-10) with the same composition of
# an exponentially tilted distribution, which keeps the tail's relative precision, it was at most 1.17e-16 on the
# reported grid and 1.64e-16 on the searching one.
_DELTA_ERROR_REPORTED: Final = 2e-16
_DELTA_ERROR_SEARCHING: Final = 2.5e-16
_MAX_MARGIN_SHARE: Final = 0.1
# Cells of the widest distribution kept: beyond, a coarser grid, which only raises epsilon.
_MAX_CELLS_REPORTED: Final = 1 << 21
_MAX_CELLS_SEARCHING: Final = 1 << 18
# Relative error allowed for the binomial tails of a truncated cohort: ten times the most that was measured.
_TAIL_ERROR: Final = 1e-10


def loss_epsilon(spend: Sequence[tuple[LossEvent, int]], delta: float, discretization: float) -> float:
    """Return an upper bound on the epsilon of all events together.

    Args:
        spend: distinct events and how often each happened, >= 1; not empty.
        delta: in (0, 1).
        discretization: grid of privacy losses, > 0.

    Returns:
        Epsilon >= 0; ``inf`` when no finite epsilon holds at this delta.

    Raises:
        InvalidSpend: delta is so small that floating point cannot bound it over this many events.
    """
    merged = _merged(spend)
    return _epsilon(_composed(merged, discretization), _effective_delta(merged, delta, discretization))


def loss_delta(spend: Sequence[tuple[LossEvent, int]], epsilon: float, discretization: float) -> float:
    """Return an upper bound on the delta of all events together at ``epsilon`` >= 0."""
    merged = _merged(spend)
    raw = float(_composed(merged, discretization).get_delta_for_epsilon(epsilon))
    return min(1.0, (max(raw, 0.0) + _margin(merged, discretization)) * _inflation(merged))


def _merged(spend: Sequence[tuple[LossEvent, int]]) -> list[tuple[Sampled, int]]:
    """Replace all plain Gaussians by the one they equal: 1 / z^2 adds up (Dong, Roth and Su 2022, corollary 3.3)."""
    sampled: list[tuple[Sampled, int]] = []
    plain: list[tuple[float, int]] = []
    for event, count in spend:
        if isinstance(event, MetricRelease) or (isinstance(event, PoissonGaussian) and event.sampling_probability == 1):
            plain.append((event.noise_multiplier, count))
        else:
            sampled.append((event, count))
    if plain:
        # Rounded down, by more than the sum and the root can be off: less noise is the safe side.
        root = math.sqrt(math.fsum(count / z / z for z, count in plain))
        exact = len(plain) == 1 and plain[0][1] == 1
        sampled.append((PoissonGaussian(plain[0][0] if exact else (1 - 1e-15) / root, 1.0), 1))
    return sampled


def _margin(spend: Sequence[tuple[Sampled, int]], discretization: float) -> float:
    """Bound the floating-point error of the composed delta; a plain Gaussian is not composed and leaves none."""
    folded = sum(count for event, count in spend if event.sampling_probability < 1)
    per_event = _DELTA_ERROR_REPORTED if discretization <= REPORTED else _DELTA_ERROR_SEARCHING
    return per_event * (folded + len(spend))


def _inflation(spend: Sequence[tuple[Sampled, int]]) -> float:
    """Return by what factor delta may be too small because the weights of truncated cohorts are rounded.

    Delta is a sum of products of one weight per event: a relative error r of each leaves at most (1 + r)^n.
    """
    truncated = sum(count for event, count in spend if isinstance(event, TruncatedPoissonGaussian))
    return math.exp(truncated * _TAIL_ERROR) if truncated else 1.0


def _effective_delta(spend: Sequence[tuple[Sampled, int]], delta: float, discretization: float) -> float:
    margin = _margin(spend, discretization)
    if margin > _MAX_MARGIN_SHARE * delta:
        raise InvalidSpend(
            f"delta={delta}: too small to certify over {sum(count for _, count in spend)} events in floating point; "
            f"use delta >= {margin / _MAX_MARGIN_SHARE:.1e}."
        )
    return delta / _inflation(spend) - margin


def _epsilon(distribution: LossDistribution, delta: float) -> float:
    with np.errstate(over="ignore"):  # an epsilon beyond floating point is reported as infinite
        return float(distribution.get_epsilon_for_delta(delta))


def _composed(spend: Sequence[tuple[Sampled, int]], discretization: float) -> LossDistribution:
    cell = max(_cell(event, count, discretization) for event, count in spend)
    parts = [_single(event, cell).self_compose(count) for event, count in spend]
    return reduce(lambda left, right: left.compose(right), parts)


def _cell(event: Sampled, count: int, wanted: float) -> float:
    """Return ``wanted``, or a coarser grid where the composed distribution would not fit into memory."""
    cells = _MAX_CELLS_REPORTED if wanted <= REPORTED else _MAX_CELLS_SEARCHING
    if 32 * _width(event, count) / wanted <= cells:
        return wanted
    rough = max(1e-2, wanted, 32 * _width(event, count) / cells)
    reach = _epsilon(_single(event, rough).self_compose(count), 1e-12)
    if not math.isfinite(reach):
        return rough
    return max(wanted, max(2 * reach, 32 * _width(event, 1)) / cells)


def _width(event: Sampled, count: int) -> float:
    """Upper estimate of the std of the composed loss; the sampled loss is never wider than the plain Gaussian's."""
    z = event.noise_multiplier / (4 if isinstance(event, TruncatedPoissonGaussian) else 1)
    return math.sqrt(count) / z + 1 / (32 * z * z)


@lru_cache(maxsize=4)
def _single(event: Sampled, cell: float) -> LossDistribution:
    if isinstance(event, TruncatedPoissonGaussian):
        return _truncated(event, cell)
    return gaussian_losses(event.noise_multiplier, event.sampling_probability, cell)


def _truncated(event: TruncatedPoissonGaussian, cell: float) -> LossDistribution:
    """Return the losses of one sum over a truncated cohort: a mixture whose component is public to the adversary.

    Given how many OTHERS were drawn, which does not depend on the unit: below the cap nothing is truncated. At or above
    it, the kept others are a uniform subset R of the size of the cap, independent of their number; the unit, with
    probability q', takes the place of one of R, which moves the sum by 2 C at most. Telling the adversary which case it
    was cannot lower a hockey-stick divergence, in either direction. The second case is bounded by the replace-one pair
    (1 - q') N(0) + q' N(2), (1 - q') N(0) + q' N(-2), whose second member lies further out than the true N(0).
    (dp-accounting's from_truncated_subsampled_gaussian_mechanism, with roundings that err toward more epsilon.)
    """
    n, q, cap, z = event.population, event.sampling_probability, event.cohort_cap, event.noise_multiplier
    untruncated = gaussian_losses(z, q, cell)
    others_at_cap = float(binom.sf(cap - 1, n - 1, q))
    if others_at_cap <= 0.0:
        return untruncated
    others_below = float(binom.cdf(cap - 1, n - 1, q))
    kept = float(binom.sf(cap, n, q)) * cap / n / others_at_cap * (1 + 3 * _TAIL_ERROR)
    replaced = gaussian_losses(z / 2, min(kept, q), cell, replace_one=True)
    if others_at_cap <= others_below:
        return replaced.compute_mixture(untruncated, others_at_cap)
    return untruncated.compute_mixture(replaced, others_below)

"""The one place where noise meets a sum.

A mechanism takes a ``BoundedSum`` and the ``Charge`` that pays for exactly that sum, and returns a ``NoisyMean``. Its
noise comes from the operating system; there is no seed anywhere.
"""

from __future__ import annotations

import math
import threading
from fractions import Fraction
from typing import Final, Protocol

import numpy as np

from fedlearn.errors import ChargeMismatch, InvalidSpend
from fedlearn.privacy.exact_normal import CsprngStream, require_scale, rounded_normal
from fedlearn.privacy.exact_scalar import ByteSource
from fedlearn.types import I64, BoundedSum, Charge, NoisyMean

_SUM_LIMIT: Final = 2.0**62

_consumed: set[str] = set()
"""Digests of the sums that were released in this process, by any mechanism object. A digest names one sum only: it is
blinded. A restarted process has no sum that could be released again."""
_consuming = threading.Lock()


class Mechanism(Protocol):
    """Releases one sum under one charge."""

    def release(self, bounded: BoundedSum, charge: Charge) -> NoisyMean:
        """Return the noisy mean.

        Raises:
            ChargeMismatch: the charge is not this sum's own unused one.
            InvalidSpend: the sum cannot be released privately (not finite, not on a grid).
        """
        ...


class GaussianMechanism:
    """Adds independent Gaussian noise to every coordinate of a sum and divides by a public constant.

    Formal guarantee: if adding or removing one device moves the exact sum by at most ``bounded.l2_sensitivity`` in L2
    norm, then one release is the Gaussian mechanism with the given noise multiplier (Dwork and Roth 2014, app. A);
    with a Poisson-sampled cohort it is the event ``PoissonGaussian``. The sum x and the noise are integers in grid
    steps, and x + round(g) = round(x + g) for the continuous Gaussian g: what is released is post-processing of the
    mechanism that was accounted for, exactly (``exact_normal``). Its std is the noise multiplier times the sensitivity
    as a rational number, never below.

    ============================  ==========================================
    case                          result
    ============================  ==========================================
    NaN or Inf in the sum         ``InvalidSpend``, nothing drawn
    sum off its grid, or no grid  ``InvalidSpend``, nothing drawn
    charge of another step/sum    ``ChargeMismatch``, nothing drawn
    charge used before, anywhere  ``ChargeMismatch``, nothing drawn
    empty cohort (sum of zeros)   noise alone, like any other sum
    ============================  ==========================================

    Args:
        noise_multiplier: std of the noise over the sensitivity; finite, > 0.
        denominator: the plan's public constant; finite, > 0.
        byte_source: for tests only; by default a fresh ``CsprngStream`` per release.

    Raises:
        InvalidSpend: an argument is out of range.
        MissingDependency: at the release, if ``cryptography`` is not installed.
    """

    def __init__(self, noise_multiplier: float, denominator: float, *, byte_source: ByteSource | None = None) -> None:
        require_positive("noise_multiplier", noise_multiplier)
        require_positive("denominator", denominator)
        self._noise_multiplier = noise_multiplier
        self._denominator = denominator
        self._byte_source = byte_source

    def release(self, bounded: BoundedSum, charge: Charge) -> NoisyMean:
        """Return (sum + noise) / denominator; see the class for guarantee, edge cases and errors."""
        total, step = grid_sum(bounded)
        scale = require_scale(Fraction(self._noise_multiplier) * Fraction(bounded.l2_sensitivity) / Fraction(step))
        claim(bounded, charge, self._noise_multiplier)
        source = CsprngStream() if self._byte_source is None else self._byte_source
        noisy = total + rounded_normal(total.size, scale, source)
        return NoisyMean(
            values=noisy.astype(np.float64) * step / self._denominator,
            noise_std=self._noise_multiplier * bounded.l2_sensitivity / self._denominator,
            denominator=self._denominator,
            charge_id=charge.id,
        )


def claim(bounded: BoundedSum, charge: Charge, noise_multiplier: float) -> None:
    """Use the charge up. It counts as used from here on, in every thread, whatever happens next.

    Args:
        bounded: the sum that is about to be released.
        charge: must pay for exactly this step and sum.
        noise_multiplier: the mechanism's; must be the charged one.

    Raises:
        ChargeMismatch: it pays for something else, or was used before.
    """
    if charge.step != bounded.step:
        raise ChargeMismatch(f"charge {charge.id}: pays for step {charge.step}, not for step {bounded.step}.")
    if charge.noise_multiplier != noise_multiplier:
        raise ChargeMismatch(
            f"charge {charge.id}: pays for noise multiplier {charge.noise_multiplier}, "
            f"the mechanism adds {noise_multiplier}."
        )
    if charge.sum_digest != bounded.digest:
        raise ChargeMismatch(f"charge {charge.id}: pays for another sum (digest {charge.sum_digest[:16]}...).")
    with _consuming:
        if charge.sum_digest in _consumed:
            raise ChargeMismatch(f"charge {charge.id}: used before; every release needs its own.")
        _consumed.add(charge.sum_digest)


def unprotected_mean(bounded: BoundedSum, denominator: float) -> NoisyMean:
    """Return sum / denominator with no noise: privacy off, guarantees nothing.

    Args:
        bounded: the sum, finite.
        denominator: finite, > 0.

    Raises:
        InvalidSpend: an argument is not finite or the denominator not > 0.
    """
    require_positive("denominator", denominator)
    if not np.isfinite(bounded.values).all():
        raise InvalidSpend("bounded.values: not finite.")
    return NoisyMean(values=bounded.values / denominator, noise_std=0.0, denominator=denominator, charge_id=None)


def require_positive(name: str, value: float) -> None:
    """Refuse what is not finite and > 0.

    Raises:
        InvalidSpend: it is not; names it.
    """
    if not (math.isfinite(value) and value > 0):
        raise InvalidSpend(f"{name}={value}: must be finite and > 0.")


def grid_sum(bounded: BoundedSum) -> tuple[I64, float]:
    """Return a sum that may be released, in grid steps: exact integers, and the step.

    Raises:
        InvalidSpend: it is not finite, not on its grid, or too large; or its sensitivity or grid is no positive number.
    """
    require_positive("bounded.l2_sensitivity", bounded.l2_sensitivity)
    step = bounded.grid_step
    if step is None:
        raise InvalidSpend("bounded.grid_step=None: a private sum lies on an integer grid (fedlearn.privacy.grid).")
    require_positive("bounded.grid_step", step)
    if math.frexp(step)[0] != 0.5:
        raise InvalidSpend(f"bounded.grid_step={step}: must be a power of two, from grid_step().")
    if not np.isfinite(bounded.values).all():
        raise InvalidSpend("bounded.values: not finite; reject such contributions before the sum.")
    with np.errstate(over="ignore"):  # refused in the next line
        steps = np.rint(bounded.values / step)
    if (np.abs(steps) >= _SUM_LIMIT).any():
        raise InvalidSpend("bounded.values: 2^62 grid steps or more; use a smaller cohort.")
    if (steps * step != bounded.values).any():
        raise InvalidSpend(f"bounded.values: not multiples of the grid step {step}.")
    return steps.astype(np.int64), step

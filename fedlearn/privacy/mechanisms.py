"""The one place where noise meets a sum.

A mechanism takes a ``BoundedSum`` and the ``Charge`` that pays for exactly that sum, and returns a ``NoisyMean``. Its
noise comes from the operating system; there is no seed anywhere.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Protocol

import numpy as np

from fedlearn.errors import ChargeMismatch, InvalidSpend
from fedlearn.rng import os_bytes
from fedlearn.types import F64, BoundedSum, Charge, NoisyMean

ByteSource = Callable[[int], bytes]
"""Returns that many uniformly random bytes. Production code never passes one: the default is the OS's CSPRNG."""

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
    norm, then one release is the Gaussian mechanism with the given noise multiplier (Dwork and Roth 2014, app. A); with
    a Poisson-sampled cohort it is the event ``PoissonGaussian``. Rounding the noise to the sum's grid and dividing by a
    constant are post-processing.

    Honest limit: the noise is a 53-bit floating-point Box-Muller transform of OS randomness, not an exact sampler. It
    never exceeds 8.6 standard deviations (a tail of 1e-17 is missing) and its smallest steps are rounded, which the
    accounted delta does not include. Rounding to the grid hides the low-order bits that Mironov (2012) exploits, but is
    no proof. Reports say "floating-point sampler".

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
        byte_source: for tests only.

    Raises:
        InvalidSpend: an argument is out of range.
    """

    def __init__(self, noise_multiplier: float, denominator: float, *, byte_source: ByteSource = os_bytes) -> None:
        _require_positive("noise_multiplier", noise_multiplier)
        _require_positive("denominator", denominator)
        self._noise_multiplier = noise_multiplier
        self._denominator = denominator
        self._byte_source = byte_source

    def release(self, bounded: BoundedSum, charge: Charge) -> NoisyMean:
        """Return (sum + noise) / denominator; see the class for guarantee, edge cases and errors."""
        step = _require_grid(bounded)
        self._claim(bounded, charge)
        std = self._noise_multiplier * bounded.l2_sensitivity
        noise = std * standard_normal(bounded.values.size, self._byte_source)
        on_grid = np.rint(noise / step) * step
        return NoisyMean(
            values=(bounded.values + on_grid) / self._denominator,
            noise_std=std / self._denominator,
            denominator=self._denominator,
            charge_id=charge.id,
        )

    def _claim(self, bounded: BoundedSum, charge: Charge) -> None:
        """Use the charge up. It counts as used from here on, in every thread, whatever happens next."""
        if charge.step != bounded.step:
            raise ChargeMismatch(f"charge {charge.id}: pays for step {charge.step}, not for step {bounded.step}.")
        if charge.noise_multiplier != self._noise_multiplier:
            raise ChargeMismatch(
                f"charge {charge.id}: pays for noise multiplier {charge.noise_multiplier}, "
                f"the mechanism adds {self._noise_multiplier}."
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
    _require_positive("denominator", denominator)
    if not np.isfinite(bounded.values).all():
        raise InvalidSpend("bounded.values: not finite.")
    return NoisyMean(values=bounded.values / denominator, noise_std=0.0, denominator=denominator, charge_id=None)


def standard_normal(count: int, byte_source: ByteSource = os_bytes) -> F64:
    """Return f64[count] standard normal values by the transform of Box and Muller (1958) over 53-bit uniforms.

    Args:
        count: >= 0.
        byte_source: random bytes; production code leaves the default.
    """
    pairs = (count + 1) // 2
    bits = np.frombuffer(byte_source(16 * pairs), dtype="<u8") >> np.uint64(11)
    uniform = bits.astype(np.float64)
    # (0, 1] under the logarithm, [0, 1) around the circle.
    radius = np.sqrt(-2.0 * np.log((uniform[:pairs] + 1.0) * 2.0**-53))
    angle = (2.0 * math.pi * 2.0**-53) * uniform[pairs:]
    normal = np.empty(2 * pairs, dtype=np.float64)
    np.multiply(radius, np.cos(angle), out=normal[:pairs])
    np.multiply(radius, np.sin(angle), out=normal[pairs:])
    return normal[:count]


def _require_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise InvalidSpend(f"{name}={value}: must be finite and > 0.")


def _require_grid(bounded: BoundedSum) -> float:
    """Return the grid step of a sum that may be released."""
    _require_positive("bounded.l2_sensitivity", bounded.l2_sensitivity)
    step = bounded.grid_step
    if step is None:
        raise InvalidSpend("bounded.grid_step=None: a private sum lies on an integer grid (fedlearn.privacy.grid).")
    _require_positive("bounded.grid_step", step)
    if not np.isfinite(bounded.values).all():
        raise InvalidSpend("bounded.values: not finite; reject such contributions before the sum.")
    if (np.rint(bounded.values / step) * step != bounded.values).any():
        raise InvalidSpend(f"bounded.values: not multiples of the grid step {step}.")
    return step

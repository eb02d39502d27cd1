"""The matrix mechanisms: noise of one step is partly taken back in later ones, so prefix sums carry less of it.

What is released in step t, in grid steps, is the integer ``o_t = x_t + z_t - f_t``: the sum, a fresh exact rounded
Gaussian of std s, and a correction computed from the noise of earlier steps (``recurrence``).

Why exactly these integers honour the charged event. Write zhat_t = z_t - f_t for the noise that is added. C is lower
triangular with ones on its diagonal, and f_t = sum_{i < t} C_ti zhat_i + e_t with |e_t| <= eta in every coordinate,
where e is rounding and floating point, whatever they do. So z = C zhat + e.

1. The outputs so far and the data determine all noise so far: zhat_i = o_i - x_i. So f_t is a function of them, and
   o_t is the rounding, hence post-processing, of a Gaussian release with mean x_t - f_t, chosen adaptively, and std s.
2. Take two neighbouring runs with sums x and x', which may depend on earlier outputs, and the same outputs. Then
   zhat'_t - zhat_t = x_t - x'_t =: D_t exactly, and the means differ by z'_t - z_t = [C D]_t + e'_t - e_t. D is zero
   but in the steps in which the unit takes part, at most k of them, at least b apart; there its norm is at most the
   clip norm (zero-out; clipped vectors are put on the grid without growing).
3. So for every sequence of outputs the squared differences of the means add up to at most
   (clip sqrt(sens2) + 2 eta sqrt(d T))^2. The errors of f do not pass through C, because the recurrence goes on from
   the integers that were really added.
4. Adaptively chosen Gaussian releases with such an almost sure bound B^2 on the total are mu-GDP with mu = B / s
   (Smith and Thakurta 2022; Koskela, Tobaben and Honkela 2023). With s = z clip (1 + slack) and
   slack = 2 eta sqrt(d T) / clip, enough as sens2 >= 1, this is mu <= sqrt(sens2) / z: the charged event.

Two conditions. Step 4 needs at most one published release per step: a draw that was never published is no release; it
is discarded, and its step drawn afresh from the state before it. (A process that dies because of the values it drew
publishes something about them after all: what follows a release must not fail for them.) And eta holds for noise within
16 standard deviations; noise beyond ends the mechanism without a release, which adds less than 1e-40 to delta.
"""

from __future__ import annotations

import hashlib
import math
import threading
from fractions import Fraction
from pathlib import Path
from typing import Final

import numpy as np

from fedlearn.errors import ChargeMismatch, InvalidSpend
from fedlearn.privacy.events import MatrixGaussian, event_to_json
from fedlearn.privacy.exact_normal import CsprngStream, require_scale, rounded_normal
from fedlearn.privacy.exact_scalar import ByteSource
from fedlearn.privacy.mechanisms import claim, grid_sum, require_positive
from fedlearn.privacy.noise_state import NoiseStateStore
from fedlearn.privacy.recurrence import (
    STATE_BYTES,
    Recurrence,
    recurrence_for,
    state_from_bytes,
    state_to_bytes,
)
from fedlearn.types import I64, BoundedSum, Charge, NoisyMean

LARGEST_SLACK: Final = Fraction(1, 100)
"""A mechanism whose rounding would cost more noise than this is refused."""

_MOST_STATE_BYTES: Final = (1 << 31) - (1 << 20)  # what AES-GCM takes at once


class CorrelatedMechanism:
    """Adds correlated Gaussian noise to one sum per step and divides by a public constant. Made by ``open``.

    Formal guarantee: if a unit takes part in at most ``event.max_participations`` steps, any two of them at least
    ``event.min_separation`` apart, and zeroing out its updates moves the exact sum of such a step by at most
    ``l2_sensitivity`` in L2 norm, then all releases together are the event, under zero-out (argument in the module's
    text). Both conditions are the caller's to enforce.

    ================================  ===============================================
    case                              result
    ================================  ===============================================
    step out of order                 ``ChargeMismatch``, nothing drawn
    step past the analysed ones       ``InvalidSpend``, nothing drawn
    other clip norm, grid or size     ``InvalidSpend``, nothing drawn
    charge of another step/sum, used  ``ChargeMismatch``, nothing drawn
    state cannot be made durable      ``OSError``; the draw is discarded
    empty cohort (sum of zeros)       noise alone, like any other sum
    ================================  ===============================================
    """

    def __init__(
        self,
        event: MatrixGaussian,
        denominator: float,
        *,
        l2_sensitivity: float,
        grid_step: float,
        dimension: int,
        state: NoiseStateStore,
        next_step: int,
        byte_source: ByteSource | None = None,
    ) -> None:
        """Go on at a step with the state that the store has for it; see ``open``."""
        require_positive("denominator", denominator)
        if not 0 <= next_step <= event.steps:
            raise InvalidSpend(f"next_step={next_step}: must be in [0, {event.steps}], the steps of the event.")
        self._event, self._denominator = event, denominator
        self._l2_sensitivity, self._grid_step, self._dimension = l2_sensitivity, grid_step, dimension
        self._byte_source = byte_source
        self._recurrence, self._scale = _calibrated(event, l2_sensitivity, grid_step, dimension)
        self._deviations = self._recurrence.deviations(event.steps)
        self._store, self._next_step = state, next_step
        rows = self._recurrence.rows
        if rows * dimension * STATE_BYTES > _MOST_STATE_BYTES:
            raise InvalidSpend(
                f"a state of {rows} rows of {dimension} values is over 2 GiB: use blt, fewer bands, or a smaller model."
            )
        content = state.open(next_step, lambda: state_to_bytes(np.zeros((rows, dimension), np.int64)))
        self._state = state_from_bytes(content, rows, dimension)
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls,
        run_id: str,
        event: MatrixGaussian,
        denominator: float,
        *,
        l2_sensitivity: float,
        grid_step: float,
        dimension: int,
        next_step: int,
        directory: Path | None = None,
        byte_source: ByteSource | None = None,
    ) -> CorrelatedMechanism:
        """Begin a run's mechanism at step 0, or go on with it at the step that the published checkpoint names.

        Args:
            run_id: whose secret state; the caller holds the run (``SecretStore.hold``).
            event: as charged; fixed for the run, like the next four.
            denominator: the plan's public constant; finite, > 0.
            l2_sensitivity: the clip norm: how far one participation can move a sum; finite, > 0.
            grid_step: spacing of the sums' grid, a power of two.
            dimension: coordinates of a sum, >= 1.
            next_step: first step whose release is not public, in [0, event.steps]. Anything made public from a release,
                the model above all, must be public only once the checkpoint that names the next step is durable.
            directory: of secret state; by default $FEDLEARN_STATE, else the user's state directory.
            byte_source: for tests only; by default a fresh ``CsprngStream`` per release.

        Raises:
            NoiseStateLost: the state before ``next_step`` is gone, damaged, or another run's.
            InvalidSpend: an argument is out of range, differs from those the run began with, or rounding would need
                more than 1 % more noise.
            PrivacyError: others can read the state's files.
            MissingDependency: ``cryptography`` is not installed.
        """
        mechanism: dict[str, str | int | float] = {
            "event": hashlib.sha256(event_to_json(event).encode()).hexdigest(),
            "l2_sensitivity": l2_sensitivity,
            "grid_step": grid_step,
            "dimension": dimension,
        }
        return cls(
            event,
            denominator,
            l2_sensitivity=l2_sensitivity,
            grid_step=grid_step,
            dimension=dimension,
            state=NoiseStateStore(run_id, mechanism, directory),
            next_step=next_step,
            byte_source=byte_source,
        )

    @property
    def next_step(self) -> int:
        """The only step that can be released next."""
        return self._next_step

    @property
    def slack(self) -> float:
        """Share by which the noise is larger than the event says, to cover the rounding of corrections."""
        return float(
            _slack(self._recurrence, self._l2_sensitivity, self._grid_step, self._dimension, self._event.steps)
        )

    def release(self, bounded: BoundedSum, charge: Charge) -> NoisyMean:
        """Return (sum + correlated noise) / denominator, once the state after this step is durable."""
        with self._lock:
            total = self._admitted(bounded)
            claim(bounded, charge, self._event.noise_multiplier)
            step = self._next_step
            source = CsprngStream() if self._byte_source is None else self._byte_source
            fresh = rounded_normal(self._dimension, self._scale, source)
            noise, after = self._recurrence.advance(self._state, step, fresh)
            self._store.save(step + 1, state_to_bytes(after))
            self._state, self._next_step = after, step + 1
        std = float(self._scale * Fraction(self._grid_step)) * float(self._deviations[step])
        return NoisyMean(
            values=(total + noise).astype(np.float64) * self._grid_step / self._denominator,
            noise_std=std / self._denominator,
            denominator=self._denominator,
            charge_id=charge.id,
        )

    def destroy(self) -> None:
        """Destroy the secret state: the run has ended, no further step can be released."""
        with self._lock:
            self._store.destroy()
            self._state = np.zeros((0, 0), np.int64)
            self._next_step = self._event.steps

    def _admitted(self, bounded: BoundedSum) -> I64:
        """Return the integer sum of the step whose turn it is."""
        if self._next_step >= self._event.steps:
            raise InvalidSpend(
                f"step {bounded.step}: the mechanism has ended; {self._event.steps} steps were analysed and charged."
            )
        if bounded.step != self._next_step:
            raise ChargeMismatch(
                f"step {bounded.step}: out of order, step {self._next_step} is next; a step is released once."
            )
        for name, given, fixed in (
            ("l2_sensitivity", bounded.l2_sensitivity, self._l2_sensitivity),
            ("grid_step", bounded.grid_step, self._grid_step),
            ("values.shape", bounded.values.shape, (self._dimension,)),
        ):
            if given != fixed:
                raise InvalidSpend(
                    f"bounded.{name}={given}: the mechanism was begun with {fixed}. Noise of earlier steps is taken "
                    "back at its own scale, so nothing may change within a run, adaptive clipping included; "
                    "start a new run."
                )
        return grid_sum(bounded)[0]


def _calibrated(
    event: MatrixGaussian, l2_sensitivity: float, grid_step: float, dimension: int
) -> tuple[Recurrence, Fraction]:
    """Return the recurrence and the exact std of z_t in grid steps, enlarged by the slack."""
    require_positive("l2_sensitivity", l2_sensitivity)
    require_positive("grid_step", grid_step)
    if dimension < 1:
        raise InvalidSpend(f"dimension={dimension}: must be >= 1.")
    plain = Fraction(event.noise_multiplier) * Fraction(l2_sensitivity) / Fraction(grid_step)
    recurrence = recurrence_for(event.factorization, event.steps, plain * (1 + LARGEST_SLACK))
    slack = _slack(recurrence, l2_sensitivity, grid_step, dimension, event.steps)
    if slack > LARGEST_SLACK:
        raise InvalidSpend(
            f"rounding the correlated noise would need {float(slack):.1%} more of it, over {float(LARGEST_SLACK):.0%}: "
            f"use a smaller grid step than {grid_step} (fedlearn.privacy.grid), fewer steps, or a smaller model."
        )
    return recurrence, require_scale(plain * (1 + slack))


def _slack(recurrence: Recurrence, l2_sensitivity: float, grid_step: float, dimension: int, steps: int) -> Fraction:
    """Return 2 eta sqrt(d T) over the clip norm in grid steps, rounded up."""
    root = math.isqrt(dimension * steps) + 1
    return 2 * recurrence.error * root * Fraction(grid_step) / Fraction(l2_sensitivity)

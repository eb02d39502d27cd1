"""From settings to ONE plan object: sampling, clip, noise, and what it spends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from fedlearn.errors import CannotCalibrate, OutOfRange
from fedlearn.privacy.accountants import epsilon
from fedlearn.privacy.calibrate import MIN_NOISE_MULTIPLIER, calibrate
from fedlearn.privacy.events import NeighboringRelation, PoissonGaussian, Unit
from fedlearn.privacy.grid import grid_step

MECHANISM: Final = "gaussian"
SAMPLING: Final = "Poisson: one independent secret draw per device and step"
CONVERSION: Final = "PLD, pessimistic, losses on a grid of 1e-4 (dp-accounting)"


@dataclass(frozen=True, slots=True)
class PrivacySettings:
    """What the engineer chooses. Give exactly one of ``epsilon`` and ``noise_multiplier``.

    Args:
        delta: in (0, 1 / population).
        l2_clip_norm: bound on one device's whole update, finite, > 0.
        epsilon: target over the whole run, finite, > 0; the noise is calibrated to it.
        noise_multiplier: std of the noise over the clip norm, finite, > 0; epsilon follows from it.
    """

    delta: float
    l2_clip_norm: float
    epsilon: float | None = None
    noise_multiplier: float | None = None


@dataclass(frozen=True, slots=True)
class PrivacyPlan:
    """A run's private part, fixed before the run begins. Every field is public.

    Args:
        epsilon: budget of the whole run: the target that was asked for, or what the given noise spends.
        certified_epsilon: what ``steps`` releases spend by the accountant of record; at most ``epsilon``.
        delta: of both figures.
        noise_multiplier: std of the noise over the sensitivity.
        sampling_probability: q, of each device in each step.
        steps: releases the plan pays for.
        l2_clip_norm: clip norm C, the sensitivity of the sum to one device.
        denominator: public constant q * population that every sum is divided by.
        population: devices.
        unit: what one unit of privacy is.
        neighboring_relation: adjacency of the guarantee.
        mechanism: name of the mechanism.
        sampling: how a cohort is drawn.
        conversion: how epsilon was computed.
    """

    epsilon: float
    certified_epsilon: float
    delta: float
    noise_multiplier: float
    sampling_probability: float
    steps: int
    l2_clip_norm: float
    denominator: float
    population: int
    unit: Unit = Unit.DEVICE
    neighboring_relation: NeighboringRelation = NeighboringRelation.ADD_OR_REMOVE
    mechanism: str = MECHANISM
    sampling: str = SAMPLING
    conversion: str = CONVERSION

    @property
    def event(self) -> PoissonGaussian:
        """What one release spends."""
        return PoissonGaussian(self.noise_multiplier, self.sampling_probability)


def make_plan(settings: PrivacySettings, *, population: int, rounds: int, cohort: float) -> PrivacyPlan:
    """Check the settings, calibrate, and return the plan.

    Args:
        settings: the engineer's choice.
        population: devices, >= 1; treated as public.
        rounds: releases, >= 1.
        cohort: expected devices per round, in (0, population]; q = cohort / population.

    Raises:
        OutOfRange: a setting is outside its range; the message names it and the fix.
        CannotCalibrate: no noise meets the target, or the given noise spends no finite epsilon.
    """
    _check_sizes(population, rounds, cohort)
    _check_settings(settings, population)
    q = cohort / population
    if settings.noise_multiplier is None:
        target = settings.epsilon if settings.epsilon is not None else math.nan
        noise_multiplier = calibrate(target, settings.delta, q, rounds)
    else:
        target = None
        noise_multiplier = settings.noise_multiplier
    certified = epsilon([(PoissonGaussian(noise_multiplier, q), rounds)], settings.delta)
    if not math.isfinite(certified):
        raise CannotCalibrate(
            f"privacy.noise_multiplier={noise_multiplier}: no finite epsilon holds over {rounds} rounds; add noise."
        )
    return PrivacyPlan(
        epsilon=certified if target is None else target,
        certified_epsilon=certified,
        delta=settings.delta,
        noise_multiplier=noise_multiplier,
        sampling_probability=q,
        steps=rounds,
        l2_clip_norm=settings.l2_clip_norm,
        denominator=float(cohort),
        population=population,
    )


def _check_sizes(population: int, rounds: int, cohort: float) -> None:
    if isinstance(population, bool) or not isinstance(population, int) or population < 1:
        raise OutOfRange(f"population={population!r}: must be an integer >= 1.")
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise OutOfRange(f"rounds={rounds!r}: must be an integer >= 1.")
    if not 0 < cohort <= population:
        raise OutOfRange(
            f"cohort.size={cohort}: must be in (0, {population}], the population; the sampling probability "
            f"{cohort / population:g} must be in (0, 1]."
        )


def _check_settings(settings: PrivacySettings, population: int) -> None:
    given = [settings.epsilon is not None, settings.noise_multiplier is not None]
    if sum(given) != 1:
        raise OutOfRange("privacy.epsilon, privacy.noise_multiplier: give exactly one of them.")
    for name, value in (("epsilon", settings.epsilon), ("noise_multiplier", settings.noise_multiplier)):
        if value is not None and not (math.isfinite(value) and value > 0):
            example = "3.0" if name == "epsilon" else "1.0"
            raise OutOfRange(f"privacy.{name}={value}: must be finite and > 0, e.g. {example}.")
    if not 0 < settings.delta < 1 / population:
        raise OutOfRange(
            f"privacy.delta={settings.delta}: must be > 0 and below 1/population = {1 / population:g} (as large a "
            f"delta allows publishing one device's data outright); use e.g. {0.1 / population:.1g}."
        )
    if settings.noise_multiplier is not None and settings.noise_multiplier < MIN_NOISE_MULTIPLIER:
        raise OutOfRange(
            f"privacy.noise_multiplier={settings.noise_multiplier}: below {MIN_NOISE_MULTIPLIER} no figure means "
            "anything; use more noise, or privacy=none and say so."
        )
    grid_step(settings.l2_clip_norm)  # refuses a clip norm that is not finite and > 0

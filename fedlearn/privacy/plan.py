"""From settings to ONE plan object: sampling or separation, clip, noise, and what it spends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from fedlearn.errors import CannotCalibrate, OutOfRange
from fedlearn.privacy.accountants import accounting_for, epsilon
from fedlearn.privacy.calibrate import calibrate, calibrate_matrix
from fedlearn.privacy.events import Event, MatrixGaussian, NeighboringRelation, PoissonGaussian, Unit
from fedlearn.privacy.gaussian import mu_of, total_mu, zcdp_of
from fedlearn.privacy.participation import Participation, most_participations
from fedlearn.privacy.sensitivity import squared_sensitivity
from fedlearn.privacy.settings import (
    GAUSSIAN,
    LEAST_NOISE,
    PrivacySettings,
    check_room,
    check_settings,
    check_sizes,
    require_whole,
)
from fedlearn.privacy.shipped import MECHANISMS, best_factorization

__all__ = ["MECHANISMS", "PrivacyPlan", "PrivacySettings", "make_plan", "participation_bounds"]

POISSON_SAMPLING: Final = "Poisson: one independent secret draw per device and step"


@dataclass(frozen=True, slots=True)
class PrivacyPlan:
    """A run's private part, fixed before the run begins. Every field is public.

    Args:
        epsilon: budget of the whole run: the target that was asked for, or what the given noise spends.
        certified_epsilon: what ``steps`` releases spend by the accountant of record; at most ``epsilon``.
        delta: of both figures.
        noise_multiplier: std of the noise over the clip norm (of the i.i.d. Z for a matrix mechanism).
        l2_clip_norm: clip norm C, a bound on one device's update.
        denominator: public constant that every sum is divided by: the expected cohort.
        population: devices.
        cohort: expected devices per step.
        steps: releases the plan pays for.
        event: what is spent: one release, or all of them where the mechanism is one for the whole run.
        count: how often ``event`` happens: ``steps``, or 1 for a ``MatrixGaussian``.
        sampling_probability: q of each device in each step; None where nothing is sampled.
        participation: bounds on one device's participations; None where cohorts are Poisson-sampled.
        sensitivity: L2 sensitivity of what the noise is added to, for a clip norm of 1; 1.0 for Poisson sampling.
        rho: of zero-concentrated DP, over all steps; None where sampling amplifies.
        mu: of Gaussian DP, over all steps; None where sampling amplifies.
        unit: what one unit of privacy is.
        neighboring_relation: adjacency of the guarantee.
        mechanism: one of ``MECHANISMS``.
        sampling: how a cohort comes about, in words.
        conversion: how epsilon was computed, in words.
    """

    epsilon: float
    certified_epsilon: float
    delta: float
    noise_multiplier: float
    l2_clip_norm: float
    denominator: float
    population: int
    cohort: float
    steps: int
    event: Event
    count: int
    sampling_probability: float | None
    participation: Participation | None
    sensitivity: float
    rho: float | None
    mu: float | None
    unit: Unit
    neighboring_relation: NeighboringRelation
    mechanism: str
    sampling: str
    conversion: str


def make_plan(settings: PrivacySettings, *, population: int, rounds: int, cohort: float) -> PrivacyPlan:
    """Check the settings, calibrate, and return the plan.

    Without ``min_separation`` every cohort is Poisson-sampled with q = cohort / population, and sampling amplifies.
    With it the plan is participation-bounded: the bounds alone limit one device, nothing is amplified, and the
    guarantee is zero-out over the whole sequence of releases.

    Args:
        settings: the engineer's choice.
        population: devices, >= 1; treated as public.
        rounds: releases, >= 1.
        cohort: expected devices per round, in (0, population].

    Raises:
        OutOfRange: a setting is outside its range; the message names it and the fix.
        UnknownSetting: no such mechanism.
        CannotCalibrate: no noise meets the target, or the given noise spends no finite epsilon.
    """
    check_sizes(population, rounds, cohort)
    check_settings(settings, population)
    if settings.min_separation is None:
        return _sampled(settings, population, rounds, cohort)
    return _participation_bounded(settings, population, rounds, cohort)


def participation_bounds(settings: PrivacySettings, *, population: int, rounds: int, cohort: float) -> Participation:
    """Return the participation bounds that a plan with a separation rests on.

    Args:
        settings: with ``min_separation``.
        population: devices, >= 1.
        rounds: releases, >= 1.
        cohort: expected devices per round, > 0.

    Raises:
        OutOfRange: b or k is outside its range, k is not counted by anyone, or the population is too small.
    """
    b = settings.min_separation
    if isinstance(b, bool) or not isinstance(b, int) or b < 1:
        raise OutOfRange(f"privacy.min_separation={b!r}: must be an integer >= 1; 1 allows every step.")
    most = most_participations(rounds, b)
    k = most if settings.max_participations is None else settings.max_participations
    require_whole("privacy.max_participations", k)
    if k > most:
        raise OutOfRange(
            f"privacy.max_participations={k}: {rounds} rounds at min_separation={b} leave room for {most} at most; "
            f"use {most}, or leave it out."
        )
    if k < most and not settings.participations_enforced:
        raise OutOfRange(
            f"privacy.max_participations={k}: a separation of {b} alone allows {most} in {rounds} rounds. Fewer hold "
            "only where k is counted per credential on the phone and at the gateway: set "
            f"privacy.participations_enforced if it is, or use {most}."
        )
    check_room(population, rounds, cohort, b, k)
    return Participation(min_separation=b, max_participations=k)


def _sampled(settings: PrivacySettings, population: int, rounds: int, cohort: float) -> PrivacyPlan:
    q = cohort / population
    if settings.noise_multiplier is None:
        noise_multiplier = calibrate(_target(settings), settings.delta, q, rounds)
    else:
        noise_multiplier = settings.noise_multiplier
    event = PoissonGaussian(noise_multiplier, q)
    certified = epsilon([(event, rounds)], settings.delta)
    _require_finite(certified, noise_multiplier, rounds)
    return PrivacyPlan(
        epsilon=certified if settings.epsilon is None else settings.epsilon,
        certified_epsilon=certified,
        delta=settings.delta,
        noise_multiplier=noise_multiplier,
        l2_clip_norm=settings.l2_clip_norm,
        denominator=float(cohort),
        population=population,
        cohort=float(cohort),
        steps=rounds,
        event=event,
        count=rounds,
        sampling_probability=q,
        participation=None,
        sensitivity=1.0,
        rho=rounds * zcdp_of(event) if q == 1 else None,
        mu=total_mu([(mu_of(event), rounds)]) if q == 1 else None,
        unit=Unit.DEVICE,
        neighboring_relation=NeighboringRelation.ADD_OR_REMOVE,
        mechanism=GAUSSIAN,
        sampling=POISSON_SAMPLING,
        conversion=accounting_for([(event, rounds)], NeighboringRelation.ADD_OR_REMOVE).conversion,
    )


def _participation_bounded(settings: PrivacySettings, population: int, rounds: int, cohort: float) -> PrivacyPlan:
    bounds = participation_bounds(settings, population=population, rounds=rounds, cohort=cohort)
    b, k = bounds.min_separation, bounds.max_participations
    factorization = best_factorization(settings.mechanism, rounds, b, k)
    sensitivity = math.sqrt(squared_sensitivity(factorization, rounds, b, k))
    if settings.noise_multiplier is None:
        noise_multiplier = calibrate_matrix(
            _target(settings), settings.delta, factorization, steps=rounds, min_separation=b, max_participations=k
        )
    else:
        noise_multiplier = settings.noise_multiplier
        _check_noise_over(sensitivity, noise_multiplier)
    event = MatrixGaussian(factorization, rounds, b, k, noise_multiplier)
    certified = epsilon([(event, 1)], settings.delta, neighboring_relation=NeighboringRelation.ZERO_OUT)
    _require_finite(certified, noise_multiplier, rounds)
    return PrivacyPlan(
        epsilon=certified if settings.epsilon is None else settings.epsilon,
        certified_epsilon=certified,
        delta=settings.delta,
        noise_multiplier=noise_multiplier,
        l2_clip_norm=settings.l2_clip_norm,
        denominator=float(cohort),
        population=population,
        cohort=float(cohort),
        steps=rounds,
        event=event,
        count=1,
        sampling_probability=None,
        participation=bounds,
        sensitivity=sensitivity,
        rho=zcdp_of(event),
        mu=mu_of(event),
        unit=Unit.DEVICE,
        neighboring_relation=NeighboringRelation.ZERO_OUT,
        mechanism=settings.mechanism,
        sampling=f"no sampling: a device takes part {k} times at most, {b} steps apart at least",
        conversion=accounting_for([(event, 1)], NeighboringRelation.ZERO_OUT).conversion,
    )


def _target(settings: PrivacySettings) -> float:
    return math.nan if settings.epsilon is None else settings.epsilon


def _check_noise_over(sensitivity: float, noise_multiplier: float) -> None:
    if noise_multiplier < LEAST_NOISE * sensitivity:
        raise OutOfRange(
            f"privacy.noise_multiplier={noise_multiplier}: below {LEAST_NOISE} times the mechanism's sensitivity "
            f"{sensitivity:.4g} no figure means anything; use at least {LEAST_NOISE * sensitivity:.3g}."
        )


def _require_finite(certified: float, noise_multiplier: float, rounds: int) -> None:
    if not math.isfinite(certified):
        raise CannotCalibrate(
            f"privacy.noise_multiplier={noise_multiplier}: no finite epsilon holds over {rounds} rounds; add noise."
        )

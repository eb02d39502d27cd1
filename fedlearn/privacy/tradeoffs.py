"""What each choice around a plan costs, as data: epsilon at the plan's noise, or noise at the plan's epsilon.

Every epsilon is a valid upper bound: what cannot be bounded is left out with the reason, never guessed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Final

from fedlearn.errors import InvalidSpend
from fedlearn.privacy.calibrate import calibrate, calibrate_matrix, least_noise
from fedlearn.privacy.choices import Choice, Figures, Kind, Question, answer, grid, spent
from fedlearn.privacy.curve import prefix, tree_work
from fedlearn.privacy.error import max_error
from fedlearn.privacy.events import (
    FixedSizeGaussian,
    MatrixGaussian,
    NeighboringRelation,
    PoissonGaussian,
    RepeatAndSelect,
    SingleEvent,
    TruncatedPoissonGaussian,
)
from fedlearn.privacy.factorization import state_floats
from fedlearn.privacy.gaussian import mu_of
from fedlearn.privacy.group import extra_participation_epsilon, pair_epsilon
from fedlearn.privacy.participation import Participation, most_participations
from fedlearn.privacy.plan import PrivacyPlan
from fedlearn.privacy.sensitivity import squared_sensitivity
from fedlearn.privacy.settings import GAUSSIAN, widest_separation
from fedlearn.privacy.shipped import MECHANISMS, MOST_BANDS, best_factorization

TUNING_RUNS: Final = 10
FACTORS: Final = (0.5, 2.0)

# What is spent on a mechanism that was not asked for, about five seconds: the tree's operations, coefficients times
# steps, participations times steps, steps.
_MAX_TREE_WORK: Final = 5e9
_MAX_BANDED_WORK: Final = 4e6
_MAX_COLUMN_WORK: Final = 5e8
_MAX_STEPS: Final = 50_000

_HOW: Final = {
    GAUSSIAN: "fresh noise",
    "blt": "noise is partly taken back, two buffers",
    "banded": "noise is partly taken back, many buffers",
    "tree": "noise of binary trees",
}


def tradeoffs(plan: PrivacyPlan) -> Iterator[Choice]:
    """Yield what other choices would cost, one row at a time; some take a second or two.

    Args:
        plan: the plan to vary.
    """
    return (answer(question) for question in questions(plan))


def questions(plan: PrivacyPlan) -> Iterator[Question]:
    """Yield the rows of ``tradeoffs`` without their figures, so that a caller can say what is being computed."""
    event = plan.event
    if isinstance(event, MatrixGaussian) and plan.participation is not None:
        yield from _bounded_sizes(plan, event)
        yield from _mechanisms(plan, plan.participation)
        yield from _bounded_assumptions(plan, event)
        yield from _tuning(plan, event)
    elif isinstance(event, PoissonGaussian):
        yield from _sampled_sizes(plan, event)
        yield from _mechanisms(plan, widest_participation(plan.population, plan.steps, plan.cohort))
        yield from _sampled_assumptions(plan, event)
        yield from _tuning(plan, event)


def widest_participation(population: int, rounds: int, cohort: float) -> Participation:
    """Return the bounds under the largest separation that the population allows."""
    b = min(rounds, widest_separation(population, cohort))
    return Participation(b, most_participations(rounds, b))


def plan_error(plan: PrivacyPlan) -> float:
    """Return the largest std of the noise in a prefix sum of the plan's releases, in clip norms, per coordinate."""
    if isinstance(plan.event, MatrixGaussian):
        return plan.noise_multiplier * max_error(plan.event.factorization, plan.steps, 1.0)
    return plan.noise_multiplier * math.sqrt(plan.steps)


def _sampled_sizes(plan: PrivacyPlan, event: PoissonGaussian) -> Iterator[Question]:
    own = plan.neighboring_relation
    for factor in FACTORS:
        cohort = plan.cohort * factor
        if cohort <= plan.population:
            other = replace(event, sampling_probability=cohort / plan.population)
            text = f"{cohort:,g} devices a round: the noise in their mean is {1 / factor:g} times as large."
            yield Question(f"cohort x {factor:g}", Kind.SIZE, text, own, spent(plan, [(other, plan.steps)]))
    for factor in FACTORS:
        rounds = max(1, math.floor(plan.steps * factor))
        text = f"{rounds:,} rounds with the same noise in each."
        yield Question(f"rounds x {factor:g}", Kind.SIZE, text, own, spent(plan, [(event, rounds)]))


def _bounded_sizes(plan: PrivacyPlan, event: MatrixGaussian) -> Iterator[Question]:
    own = plan.neighboring_relation
    for factor in FACTORS:
        cohort = plan.cohort * factor
        if cohort <= plan.population:
            # fewer devices a round leave room for a wider separation; more may force a narrower one
            separation = math.floor(event.min_separation / min(factor, 1.0))
            limits = _limits(plan, event, cohort, plan.steps, separation)
            text = (
                f"{cohort:,g} devices a round; {plan.population:,} devices then allow a separation of "
                f"{limits.min_separation:,}: {_times(limits)} at most. Same coefficients and noise."
            )
            spend = [(_under(event, plan.steps, limits), 1)]
            yield Question(f"cohort x {factor:g}", Kind.SIZE, text, own, spent(plan, spend))
    for factor in FACTORS:
        rounds = max(1, math.floor(plan.steps * factor))
        limits = _limits(plan, event, plan.cohort, rounds, event.min_separation)
        text = f"{rounds:,} rounds: {_times(limits)} at most. Same coefficients and noise."
        yield Question(f"rounds x {factor:g}", Kind.SIZE, text, own, spent(plan, [(_under(event, rounds, limits), 1)]))


def _limits(plan: PrivacyPlan, event: MatrixGaussian, cohort: float, rounds: int, separation: int) -> Participation:
    """Return the bounds of a changed plan that can be filled: k as before where it was counted, else all b allows."""
    b = min(separation, rounds, widest_separation(plan.population, cohort))
    most = most_participations(rounds, b)
    if event.max_participations == most_participations(event.steps, event.min_separation):
        return Participation(b, most)
    needed = math.ceil(cohort * rounds / plan.population)
    return Participation(b, min(most, max(event.max_participations, needed)))


def _times(limits: Participation) -> str:
    k = limits.max_participations
    return "once" if k == 1 else f"{k:,} times"


def _under(event: MatrixGaussian, rounds: int, limits: Participation) -> MatrixGaussian:
    factorization = prefix(event, min(rounds, event.steps)).factorization
    b, k = limits.min_separation, limits.max_participations
    return MatrixGaussian(factorization, rounds, b, k, event.noise_multiplier)


def _mechanisms(plan: PrivacyPlan, limits: Participation) -> Iterator[Question]:
    """Yield every mechanism at the plan's (epsilon, delta)."""
    yield Question(
        "gaussian, Poisson-sampled",
        Kind.MECHANISM,
        "Add-or-remove; for cohorts drawn in secret, not for phones that check in by themselves; fresh noise.",
        NeighboringRelation.ADD_OR_REMOVE,
        partial(_poisson_figures, plan),
    )
    for mechanism in MECHANISMS:
        name = "gaussian, not sampled" if mechanism == GAUSSIAN else mechanism
        text = f"Unsampled: once in {limits.min_separation:,} rounds, {_times(limits)} at most; {_HOW[mechanism]}."
        compute = partial(_matrix_figures, plan, mechanism, limits)
        yield Question(name, Kind.MECHANISM, text, NeighboringRelation.ZERO_OUT, compute)


def _poisson_figures(plan: PrivacyPlan) -> Figures:
    z = plan.noise_multiplier
    if not isinstance(plan.event, PoissonGaussian):
        z = calibrate(plan.epsilon, plan.delta, plan.cohort / plan.population, plan.steps, discretization=grid(plan))
    return Figures(plan.epsilon, z, max_error=z * math.sqrt(plan.steps), state_values=0)


def _matrix_figures(plan: PrivacyPlan, mechanism: str, limits: Participation) -> Figures:
    b, k, steps = limits.min_separation, limits.max_participations, plan.steps
    event = plan.event if isinstance(plan.event, MatrixGaussian) and mechanism == plan.mechanism else None
    if event is None and _is_slow(mechanism, steps, limits):
        raise InvalidSpend(f"it takes long at this size; ask for mechanism={mechanism} itself.")
    if event is None:
        matrix = best_factorization(mechanism, steps, b, k)
        z = calibrate_matrix(plan.epsilon, plan.delta, matrix, steps=steps, min_separation=b, max_participations=k)
    else:
        matrix, z = event.factorization, event.noise_multiplier
    return Figures(
        epsilon=plan.epsilon,
        noise_multiplier=z,
        max_error=z * max_error(matrix, steps, 1.0),
        squared_sensitivity=squared_sensitivity(matrix, steps, b, k),
        state_values=state_floats(matrix, steps),
    )


def _is_slow(mechanism: str, steps: int, limits: Participation) -> bool:
    b, k = limits.min_separation, limits.max_participations
    if mechanism == "tree":
        return tree_work(steps, b) > _MAX_TREE_WORK
    if mechanism == "banded" and steps * min(b, MOST_BANDS) > _MAX_BANDED_WORK:
        return True
    return mechanism != GAUSSIAN and (steps > _MAX_STEPS or steps * k > _MAX_COLUMN_WORK)


def _sampled_assumptions(plan: PrivacyPlan, event: PoissonGaussian) -> Iterator[Question]:
    own, q = plan.neighboring_relation, event.sampling_probability
    if q < 1:
        known = [(event, plan.steps - 1), (replace(event, sampling_probability=1.0), 1)]
        text = "A device is known to be in one of the rounds: it was not drawn in secret there."
        yield Question("one more participation", Kind.ASSUMPTION, text, own, spent(plan, known))
        yield from _capped(plan, event)
        yield from _fixed_size(plan, event)
    text = "An upper bound for both together, each drawn on its own; also if one device is replaced by another."
    yield Question("two phones of one person", Kind.ASSUMPTION, text, own, partial(_pair_figures, plan, event))


def _pair_figures(plan: PrivacyPlan, event: PoissonGaussian) -> Figures:
    value = pair_epsilon(event, plan.steps, plan.delta, discretization=grid(plan))
    return Figures(value, plan.noise_multiplier)


def _capped(plan: PrivacyPlan, event: PoissonGaussian) -> Iterator[Question]:
    deviation = math.sqrt(plan.cohort * (1 - event.sampling_probability))
    caps = {
        math.ceil(plan.cohort + 3 * deviation): "three standard deviations over the mean",
        math.ceil(plan.cohort * 1.1 - 1e-9): "a tenth over the mean",
    }
    for cap, words in caps.items():
        if cap < plan.population:
            z, q = event.noise_multiplier, event.sampling_probability
            spend = [(TruncatedPoissonGaussian(z, q, plan.population, cap), plan.steps)]
            text = f"Capped {words}, a random subset kept: a device can then push another one out."
            own = plan.neighboring_relation
            yield Question(f"cohort capped at {cap:,}", Kind.ASSUMPTION, text, own, spent(plan, spend))


def _fixed_size(plan: PrivacyPlan, event: PoissonGaussian) -> Iterator[Question]:
    cohort, relation = math.ceil(plan.cohort), NeighboringRelation.REPLACE_ONE

    def fixed(noise_over_clip: float) -> FixedSizeGaussian:
        return FixedSizeGaussian(noise_over_clip / 2, plan.population, cohort)

    def same_epsilon() -> Figures:
        return Figures(
            plan.epsilon, least_noise(fixed, plan.steps, plan.epsilon, plan.delta, neighboring_relation=relation)
        )

    text = f"Exactly {cohort:,} devices: one leaves and another enters, which moves the sum by twice the clip norm."
    same_noise = spent(plan, [(fixed(event.noise_multiplier), plan.steps)], relation)
    yield Question("cohort of a fixed size", Kind.ASSUMPTION, text, relation, same_noise)
    text = "The same at this plan's epsilon: the noise it takes."
    yield Question("cohort of a fixed size, this epsilon", Kind.ASSUMPTION, text, relation, same_epsilon)


def _bounded_assumptions(plan: PrivacyPlan, event: MatrixGaussian) -> Iterator[Question]:
    own = plan.neighboring_relation

    def once_more() -> Figures:
        column = math.sqrt(squared_sensitivity(event.factorization, event.steps, event.steps, 1))
        return Figures(extra_participation_epsilon(plan, column), plan.noise_multiplier)

    text = "One over the bounds, in any round (a phone that was reset): an upper bound."
    yield Question("one more participation", Kind.ASSUMPTION, text, own, once_more)
    # Twice the distance is half the noise: both in the same rounds, with equal updates.
    halved = replace(event, noise_multiplier=event.noise_multiplier / 2)
    text = (
        f"Exact: mu doubles, from {mu_of(event):.3g} to {mu_of(halved):.3g}; also if a device is replaced by another."
    )
    yield Question("two phones of one person", Kind.ASSUMPTION, text, own, spent(plan, [(halved, 1)]))


def _tuning(plan: PrivacyPlan, event: SingleEvent) -> Iterator[Question]:
    own = plan.neighboring_relation
    composed = spent(plan, [(event, TUNING_RUNS * plan.count)])
    text = f"{TUNING_RUNS} trainings on these devices, and anything about each of them may be shown."
    yield Question(f"{TUNING_RUNS} tuning runs, composed", Kind.TUNING, text, own, composed)
    text = (
        f"A geometric number of trainings, {TUNING_RUNS} in the mean, drawn beforehand; only the best is ever shown "
        "(Papernot and Steinke 2022)."
    )
    select = spent(plan, [(RepeatAndSelect(event, plan.count, mean=TUNING_RUNS, shape=1.0), 1)])
    yield Question(f"{TUNING_RUNS} tuning runs, repeat and select", Kind.TUNING, text, own, select)

"""One row of the table of what other choices cost, and the ways its figures are computed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from fedlearn.errors import CannotCalibrate, InvalidSpend
from fedlearn.privacy.accountants import REPORTED, SEARCHING, Spend, epsilon
from fedlearn.privacy.events import NeighboringRelation
from fedlearn.privacy.plan import PrivacyPlan
from fedlearn.privacy.renyi import composed_curve, curve_epsilon


class Kind(StrEnum):
    """What a choice is about."""

    SIZE = "size"
    MECHANISM = "mechanism"
    ASSUMPTION = "assumption"
    TUNING = "tuning"


@dataclass(frozen=True, slots=True)
class Figures:
    """What a choice costs at the plan's delta.

    Args:
        epsilon: upper bound.
        noise_multiplier: std of the noise over the clip norm.
        max_error: largest std, in clip norms, of the noise in a prefix sum of the releases; None if not asked.
        squared_sensitivity: of the strategy matrix; None where there is none.
        state_values: secret numbers kept between rounds, per parameter.
    """

    epsilon: float
    noise_multiplier: float
    max_error: float | None = None
    squared_sensitivity: float | None = None
    state_values: int | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A choice before its figures are computed.

    Args:
        name: the choice.
        kind: what it is about.
        explanation: one line.
        relation: adjacency of its epsilon.
        compute: returns the figures; may take seconds.
    """

    name: str
    kind: Kind
    explanation: str
    relation: NeighboringRelation
    compute: Callable[[], Figures]


@dataclass(frozen=True, slots=True)
class Choice:
    """A choice and what it costs.

    Args:
        name: the choice.
        kind: what it is about.
        explanation: one line; says why where there are no figures.
        neighboring_relation: adjacency of its epsilon.
        figures: None where no valid bound can be stated.
    """

    name: str
    kind: Kind
    explanation: str
    neighboring_relation: NeighboringRelation
    figures: Figures | None


def answer(question: Question) -> Choice:
    """Compute the figures of one choice; where none can be stated the explanation says why."""
    figures: Figures | None = None
    text = question.explanation
    try:
        figures = question.compute()
    except (InvalidSpend, CannotCalibrate) as error:
        text += f" No figure: {error}"
    if figures is not None and not math.isfinite(figures.epsilon):
        figures, text = None, text + " No finite epsilon holds."
    return Choice(question.name, question.kind, text, question.relation, figures)


def sound_epsilon(spend: Spend, delta: float, discretization: float, relation: NeighboringRelation) -> float:
    """Return the epsilon of the accountant of record, or the Renyi bound where delta is too small for it.

    Privacy loss distributions are composed in floating point, which cannot certify a delta near 1e-16 times the number
    of events. Renyi divergences can, and are an upper bound too, if a larger one.

    Args:
        spend: events and counts.
        delta: in (0, 1).
        discretization: grid of privacy losses.
        relation: adjacency.

    Raises:
        InvalidSpend: neither has an answer.
    """
    try:
        return epsilon(spend, delta, discretization=discretization, neighboring_relation=relation)
    except InvalidSpend as error:
        if relation is not NeighboringRelation.ADD_OR_REMOVE or not 0 < delta < 1:
            raise
        try:
            return curve_epsilon(composed_curve(spend), delta)
        except InvalidSpend:
            raise error from None


def grid(plan: PrivacyPlan) -> float:
    """Return the grid of losses for rows beside a plan: above epsilon 1 the coarse one, a few per mille over."""
    return SEARCHING if plan.certified_epsilon > 1 else REPORTED


def spent(plan: PrivacyPlan, spend: Spend, relation: NeighboringRelation | None = None) -> Callable[[], Figures]:
    """Return what computes the epsilon of ``spend`` at the plan's noise and delta, under the plan's own relation."""
    own = plan.neighboring_relation if relation is None else relation

    def compute() -> Figures:
        return Figures(sound_epsilon(spend, plan.delta, grid(plan), own), plan.noise_multiplier)

    return compute

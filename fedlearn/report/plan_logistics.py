"""How long a plan takes and what it costs a phone in traffic, with the arithmetic beside each figure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from fedlearn.privacy.plan import PrivacyPlan

DOWN_BYTES: Final = 4
"""Per parameter: a model travels as float32."""

UP_BYTES: Final = 8
"""Per parameter: an update travels on the integer grid, int64 (codec grid64)."""

DAYS_PER_MONTH: Final = 30
_EULER: Final = 0.5772156649


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure that rests on assumptions, with its arithmetic.

    Args:
        value: the figure.
        arithmetic: how it came about, in one line.
    """

    value: float
    arithmetic: str


def days_to_finish(plan: PrivacyPlan, checkins_per_day: float) -> Estimate:
    """Return the days all rounds take if every phone checks in at random times, equally often.

    Participation-bounded: a round takes whoever checks in and took part in none of the last b - 1 rounds. In the steady
    state a phone takes part once in (b rounds + its wait for the next check-in), which gives days per round
    C / (X (1 - C b / N)); where that is longer, b rounds last until the last of all N phones checked in.
    Poisson-sampled: a drawn phone is not replaced by another, so a round lasts until the last of C phones checked in.

    Args:
        plan: the plan.
        checkins_per_day: of all phones together, > 0.
    """
    n, c, x = plan.population, plan.cohort, checkins_per_day
    rate = f"{x:,.10g} check-ins a day"
    if plan.participation is None:
        per_round = n / x * _longest_wait(c)
        words = f"the last of {c:,.10g} drawn phones checks in after {n:,} / {rate} x (ln {c:,.10g} + 0.58)"
    else:
        b = min(plan.participation.min_separation, plan.steps)
        per_round = n / x * _longest_wait(n) / b
        words = f"{b:,} rounds last until all {n:,} phones checked in, {n:,} / {rate} x (ln {n:,} + 0.58)"
        free = 1 - c * b / n
        if free > 0 and c / x / free <= per_round:
            per_round = c / x / free
            words = (
                f"{c:,.10g} phones a round / {rate} / (1 - {c:,.10g} x {b:,} / {n:,}), the share of "
                "phones whose last turn is long enough ago"
            )
    return Estimate(plan.steps * per_round, f"{plan.steps:,} rounds x {per_round:.3g} days: {words}.")


def bytes_per_phone_month(plan: PrivacyPlan, parameters: int, checkins_per_day: float) -> Estimate:
    """Return the bytes a phone moves in 30 days, in the mean: one download and one upload per participation.

    Args:
        plan: the plan.
        parameters: of the model, >= 1.
        checkins_per_day: of all phones together, > 0.
    """
    days = days_to_finish(plan, checkins_per_day).value
    # a run shorter than a month costs its whole traffic
    turns = plan.cohort * plan.steps / plan.population * min(1.0, DAYS_PER_MONTH / days)
    value = math.ceil(turns * parameters * (DOWN_BYTES + UP_BYTES))
    text = (
        f"{turns:.3g} participations a month x {parameters:,} parameters x ({DOWN_BYTES} bytes down, float32, + "
        f"{UP_BYTES} up, int64 grid); headers and refused check-ins not counted."
    )
    return Estimate(value, text)


def _longest_wait(phones: float) -> float:
    """Return the mean of the longest of so many exponential waits of mean 1: about ln n + 0.58, 1 for one phone."""
    return max(1.0, math.log(phones) + _EULER) if phones > 1 else 1.0

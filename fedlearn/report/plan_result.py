"""Everything that ``fedlearn plan`` says about one plan, as data, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from fedlearn.privacy.accountants import Accounting, accounting_for
from fedlearn.privacy.choices import Choice, answer
from fedlearn.privacy.curve import spend_curve
from fedlearn.privacy.events import event_to_json
from fedlearn.privacy.plan import PrivacyPlan
from fedlearn.privacy.recurrence import STATE_BYTES
from fedlearn.privacy.tradeoffs import plan_error, questions
from fedlearn.report.guarantee import caveat_for, guarantee_sentence
from fedlearn.report.plan_logistics import Estimate, bytes_per_phone_month, days_to_finish

_CURVE_POINTS = 48


@dataclass(frozen=True, slots=True)
class PlanResult:
    """A plan and what surrounds it.

    Args:
        plan: the plan.
        accounting: how its epsilon was computed.
        max_error: largest std of the noise in a prefix sum of the releases, in clip norms.
        curve: (releases, epsilon so far), from 0 to all.
        choices: what other choices cost.
        parameters: of the model.
        checkins_per_day: of all phones together.
        days: days to finish.
        traffic: bytes per phone and month.
    """

    plan: PrivacyPlan
    accounting: Accounting
    max_error: float
    curve: tuple[tuple[int, float], ...]
    choices: tuple[Choice, ...]
    parameters: int
    checkins_per_day: float
    days: Estimate
    traffic: Estimate

    @property
    def guarantee(self) -> str:
        """The guarantee in one sentence."""
        relation = self.plan.neighboring_relation.replace("_", "-")
        return guarantee_sentence(self.plan.epsilon, self.plan.delta, self.plan.unit, relation)

    @property
    def caveat(self) -> str | None:
        """What the guarantee is not, where the population is small or delta large."""
        return caveat_for(self.plan.population, self.plan.delta)

    def state_bytes(self, choice: Choice) -> int | None:
        """Return the bytes of secret noise state that a choice keeps between rounds; None where it was not asked."""
        if choice.figures is None or choice.figures.state_values is None:
            return None
        return choice.figures.state_values * STATE_BYTES * self.parameters


def plan_result(
    plan: PrivacyPlan, *, parameters: int, checkins_per_day: float, say: Callable[[str], None]
) -> PlanResult:
    """Compute everything around a plan.

    Args:
        plan: the plan.
        parameters: of the model, >= 1.
        checkins_per_day: of all phones together, > 0.
        say: called with what is being computed.
    """
    say("epsilon round by round")
    stride = max(1, plan.steps // _CURVE_POINTS)
    counts = sorted({*range(0, plan.steps, stride), plan.steps})
    curve = tuple(zip(counts, spend_curve(plan, counts), strict=True))
    choices = []
    for question in questions(plan):
        say(question.name)
        choices.append(answer(question))
    return PlanResult(
        plan=plan,
        accounting=accounting_for([(plan.event, plan.count)], plan.neighboring_relation),
        max_error=plan_error(plan),
        curve=curve,
        choices=tuple(choices),
        parameters=parameters,
        checkins_per_day=checkins_per_day,
        days=days_to_finish(plan, checkins_per_day),
        traffic=bytes_per_phone_month(plan, parameters, checkins_per_day),
    )


def result_json(result: PlanResult) -> str:
    """Return the result as JSON: flat, snake case, null where a figure does not exist."""
    plan, bounds = result.plan, result.plan.participation
    body = {
        "epsilon": plan.epsilon,
        "certified_epsilon": plan.certified_epsilon,
        "delta": plan.delta,
        "noise_multiplier": plan.noise_multiplier,
        "sensitivity": plan.sensitivity,
        "rho": plan.rho,
        "mu": plan.mu,
        "unit": plan.unit.value,
        "neighboring_relation": plan.neighboring_relation.value,
        "mechanism": plan.mechanism,
        "sampling": plan.sampling,
        "sampling_probability": plan.sampling_probability,
        "min_separation": None if bounds is None else bounds.min_separation,
        "max_participations": None if bounds is None else bounds.max_participations,
        "population": plan.population,
        "cohort": plan.cohort,
        "rounds": plan.steps,
        "l2_clip_norm": plan.l2_clip_norm,
        "accountant": result.accounting.accountant,
        "conversion": plan.conversion,
        "cross_check": result.accounting.cross_check,
        "event": json.loads(event_to_json(plan.event)),
        "event_count": plan.count,
        "max_error": result.max_error,
        "guarantee": result.guarantee,
        "caveat": result.caveat,
        "curve": [{"rounds": rounds, "epsilon": epsilon} for rounds, epsilon in result.curve],
        "tradeoffs": [_choice_body(result, choice) for choice in result.choices],
        "parameters": result.parameters,
        "checkins_per_day": result.checkins_per_day,
        "days_to_finish": result.days.value,
        "days_arithmetic": result.days.arithmetic,
        "bytes_per_phone_month": result.traffic.value,
        "bytes_arithmetic": result.traffic.arithmetic,
    }
    return json.dumps(body, indent=2, allow_nan=False)


def _choice_body(result: PlanResult, choice: Choice) -> dict[str, object]:
    figures = choice.figures
    return {
        "name": choice.name,
        "kind": choice.kind.value,
        "epsilon": None if figures is None else figures.epsilon,
        "noise_multiplier": None if figures is None else figures.noise_multiplier,
        "neighboring_relation": choice.neighboring_relation.value,
        "max_error": None if figures is None else figures.max_error,
        "squared_sensitivity": None if figures is None else figures.squared_sensitivity,
        "state_bytes": result.state_bytes(choice),
        "explanation": choice.explanation,
    }

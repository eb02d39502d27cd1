"""Whether a run keeps to the policy that its config names: asked before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from fedlearn.clock import Clock, system_clock
from fedlearn.device.mechanism import MechanismTerms
from fedlearn.errors import OutOfRange
from fedlearn.features import FEATURES
from fedlearn.lab.config import ExperimentConfig
from fedlearn.policy.document import Policy, PurposeKind
from fedlearn.policy.floors import SAMPLED, Breach, feature_breaches, mechanism_breaches
from fedlearn.policy.rules import forbidden
from fedlearn.policy.times import parse_time
from fedlearn.privacy.events import MatrixGaussian
from fedlearn.privacy.factorization import INDEPENDENT
from fedlearn.privacy.grid import grid_step
from fedlearn.privacy.plan import PrivacyPlan

SETTINGS: Final = {
    "kind": "privacy.mode",
    "l2_clip_norm": "privacy.clip",
    "noise_multiplier": "privacy.noise_multiplier",
    "round_size": "cohort (expected size)",
    "steps": "cohort.rounds",
    "min_separation": "privacy.min_separation",
    "max_participations": "privacy.max_participations",
}
"""Fields of a mechanism -> the setting that decides them."""


def require_allowed(config: ExperimentConfig, plans: Iterable[PrivacyPlan | None], clock: Clock = system_clock) -> None:
    """Return if every plan keeps the floors of ``config.policy``, or there is no policy.

    A simulation has nobody's consent to ask, so that a policy is read here as what a rehearsal must keep to: its first
    training purpose's features, its floors, and its budget for each model (a study of many seeds spends it once each).

    Args:
        config: the experiment.
        plans: of the trainings that the run is about, not of its controls; None for one without privacy.
        clock: tells whether the policy has expired.

    Raises:
        OutOfRange: names the setting, the policy's field and the fix.
    """
    policy = config.policy
    if policy is None:
        return
    found = [str(breach) for breach in _config_breaches(config, policy, clock())]
    for plan in plans:
        if plan is None:
            found.append(
                "privacy.mode=none: a policy asks for noise in every training; choose a privacy, or policy=none."
            )
        else:
            found += [str(breach) for breach in _plan_breaches(policy, plan)]
    if found:
        raise OutOfRange(f"policy={policy.name} does not allow this run: {' '.join(dict.fromkeys(found))}")


def mechanism_terms(plan: PrivacyPlan) -> MechanismTerms:
    """Return a privacy plan's mechanism as phones are told it.

    Independent noise for bounded participation has the kind ``independent``; ``gaussian`` means sampled cohorts, in
    which a phone may take part in every step.
    """
    bounds = plan.participation
    event = plan.event
    return MechanismTerms(
        kind="independent" if plan.mechanism == SAMPLED and bounds is not None else plan.mechanism,
        factorization=event.factorization if isinstance(event, MatrixGaussian) else INDEPENDENT,
        noise_multiplier=plan.noise_multiplier,
        l2_clip_norm=plan.l2_clip_norm,
        grid_step=grid_step(plan.l2_clip_norm),
        steps=plan.steps,
        min_separation=1 if bounds is None else bounds.min_separation,
        max_participations=plan.steps if bounds is None else bounds.max_participations,
    )


def _config_breaches(config: ExperimentConfig, policy: Policy, now: float) -> list[Breach]:
    found = [Breach("policy.", words) for words in forbidden(policy)]
    if not now < parse_time(policy.expires, "policy.expires"):
        found.append(Breach("policy.expires", f"={policy.expires}: has passed; have a new version approved."))
    if config.privacy.adaptive_clip is not None:
        found.append(
            Breach(
                "privacy.adaptive_clip",
                ": moves the clip, and mechanism.max_l2_clip_norm bounds one that stays; set it to null.",
            )
        )
    purpose = next((entry.id for entry in policy.purposes if entry.kind is PurposeKind.TRAIN), None)
    if purpose is None:
        return [*found, Breach("policy.purposes", ": none is of kind train; add one to train under this policy.")]
    used = tuple(spec.name for spec in FEATURES if spec.needs <= frozenset(config.features.sources))
    return [*found, *feature_breaches(policy, used, purpose, "features.sources")]


def _plan_breaches(policy: Policy, plan: PrivacyPlan) -> list[Breach]:
    found = [
        Breach(SETTINGS[breach.field], breach.words)
        for breach in mechanism_breaches(policy, mechanism_terms(plan), int(plan.cohort))
    ]
    least = policy.population.minimum_devices
    if plan.population < least:
        found.append(Breach("devices", f"={plan.population}: under population.minimum_devices={least}; use more."))
    for name, value, cap in (
        ("epsilon", plan.epsilon, policy.budget.epsilon),
        ("delta", plan.delta, policy.budget.delta),
    ):
        if not value <= cap:
            found.append(Breach(f"privacy.{name}", f"={value:g}: over budget.{name}={cap:g}; use at most that."))
    return found

"""Whether a training keeps to the policy's floors and caps: asked by lab, exporter, server and phone alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from fedlearn.device.mechanism import MechanismTerms
from fedlearn.device.plan import DevicePlan
from fedlearn.policy.document import (
    DataType,
    Policy,
    PopulationKind,
    PurposeKind,
    RecipientKind,
)
from fedlearn.policy.keys import is_weak
from fedlearn.privacy.factorization import INDEPENDENT, Blt, Toeplitz, Tree

UPLOAD_BYTES_PER_WEIGHT: Final = 8
UPLOAD_OVERHEAD_BYTES: Final = 4096
"""Most bytes of a contribution: a coordinate as an integer, and everything around them."""

SAMPLED: Final = "gaussian"
"""The kind whose privacy comes from secret sampling: it has no separation, and is for simulated populations only."""

_FACTORIZATIONS: Final = {"blt": Blt, "banded": Toeplitz, "tree": Tree}


@dataclass(frozen=True, slots=True)
class Breach:
    """One floor or cap that is not kept.

    Args:
        field: of the training, e.g. ``noise_multiplier``.
        words: the rest of the message: value, the policy's field, and the fix.
    """

    field: str
    words: str

    def __str__(self) -> str:
        return f"{self.field}{self.words}"


def breaches(
    policy: Policy, *, mechanism: MechanismTerms, population: str, purpose: str, recipient: str, round_size: int
) -> tuple[str, ...]:
    """Return every floor that the training breaks, naming field and fix; () is fine.

    ``policy.mechanism.min_separation`` and ``max_participations`` bind phones that take part by themselves, so not the
    kind ``gaussian``: its cohorts are sampled, and only a simulated population may use it.

    Args:
        policy: that holds.
        mechanism: clip, noise and bounds of the run.
        population, purpose, recipient: ids that the training names.
        round_size: least phones in a sum that may be released.
    """
    found = (
        *who_breaches(policy, population, purpose, recipient),
        *_key_breaches(policy, recipient),
        *mechanism_breaches(policy, mechanism, round_size),
    )
    return tuple(str(breach) for breach in found)


def plan_breaches(policy: Policy, plan: DevicePlan) -> tuple[str, ...]:
    """Return everything in a device plan that the policy does not allow, naming field and fix; () is fine.

    The kind ``gaussian`` is refused in every population: what runs on phones is not sampled. The round size is not
    part of a plan: each task names its own.
    """
    found = [
        *who_breaches(policy, plan.population, plan.purpose, plan.recipient),
        *_sampling_breaches(plan),
        *mechanism_breaches(policy, plan.mechanism, policy.mechanism.min_round_size),
        *feature_breaches(policy, plan.features, plan.purpose, "features"),
        *_serving_breaches(policy, plan),
        *_width_breaches(policy, plan),
    ]
    weights = sum(math.prod(spec.shape) for spec in plan.shared)
    upload = UPLOAD_BYTES_PER_WEIGHT * weights + UPLOAD_OVERHEAD_BYTES
    if upload > policy.device.max_upload_bytes:
        found.append(
            Breach(
                "parameters",
                f": an upload of {weights} weights takes up to {upload} bytes, over "
                f"device.max_upload_bytes={policy.device.max_upload_bytes}; share fewer weights.",
            )
        )
    if plan.catalogue.max_bytes > policy.device.max_catalogue_bytes:
        found.append(
            Breach(
                "catalogue.max_bytes",
                f"={plan.catalogue.max_bytes}: over device.max_catalogue_bytes={policy.device.max_catalogue_bytes}; "
                "allow a smaller catalogue.",
            )
        )
    return tuple(str(breach) for breach in found)


def who_breaches(policy: Policy, population: str, purpose: str, recipient: str) -> tuple[Breach, ...]:
    """Return what is wrong with whom a training names."""
    found = []
    if population != policy.population.id:
        found.append(Breach("population", f"={population!r}: the policy is for {policy.population.id!r}."))
    named = next((entry for entry in policy.purposes if entry.id == purpose), None)
    if named is None or named.kind is not PurposeKind.TRAIN:
        known = ", ".join(entry.id for entry in policy.purposes if entry.kind is PurposeKind.TRAIN)
        found.append(Breach("purpose", f"={purpose!r}: no training purpose of the policy; it has: {known or 'none'}."))
        return tuple(found)
    operators = {entry.id for entry in policy.recipients if entry.kind is RecipientKind.OPERATOR}
    if recipient not in named.recipients or recipient not in operators:
        found.append(
            Breach(
                "recipient", f"={recipient!r}: not an operator of {purpose!r}; it has: {', '.join(named.recipients)}."
            )
        )
    return tuple(found)


def mechanism_breaches(policy: Policy, terms: MechanismTerms, round_size: int) -> tuple[Breach, ...]:
    """Return the floors of ``policy.mechanism`` that are not kept. A NaN keeps none."""
    floors = policy.mechanism
    found = list(_kind_breaches(policy, terms))
    if not 0.0 < terms.l2_clip_norm <= floors.max_l2_clip_norm:
        found.append(_over("l2_clip_norm", terms.l2_clip_norm, "max_l2_clip_norm", floors.max_l2_clip_norm))
    if not floors.min_noise_multiplier <= terms.noise_multiplier < math.inf:
        found.append(
            _under("noise_multiplier", terms.noise_multiplier, "min_noise_multiplier", floors.min_noise_multiplier)
        )
    if not round_size >= floors.min_round_size:
        found.append(_under("round_size", round_size, "min_round_size", floors.min_round_size))
    if not 1 <= terms.steps <= floors.max_steps:
        found.append(_over("steps", terms.steps, "max_steps", floors.max_steps))
    if terms.kind != SAMPLED:
        if not terms.min_separation >= floors.min_separation:
            found.append(_under("min_separation", terms.min_separation, "min_separation", floors.min_separation))
        if not 1 <= terms.max_participations <= floors.max_participations:
            found.append(
                _over("max_participations", terms.max_participations, "max_participations", floors.max_participations)
            )
    return tuple(found)


def feature_breaches(policy: Policy, names: tuple[str, ...], purpose: str, field: str) -> tuple[Breach, ...]:
    """Return the features that the policy does not list, or whose data no source gives for ``purpose``."""
    listed = {feature.name: feature for feature in policy.features}
    given = allowed_data_types(policy, purpose)
    found = []
    for name in names:
        feature = listed.get(name)
        if feature is None:
            found.append(Breach(field, f": {name!r} is not among the policy's features; leave it out."))
        elif not given.issuperset(feature.needs):
            missing = ", ".join(sorted(set(feature.needs) - given))
            found.append(
                Breach(field, f": {name!r} needs {missing}, which no undisputed source gives for {purpose!r}.")
            )
    return tuple(found)


def allowed_data_types(policy: Policy, purpose: str) -> frozenset[DataType]:
    """Return what the policy's undisputed sources give for ``purpose``."""
    return frozenset(
        source.data_type for source in policy.sources if purpose in source.purposes and not source.disputed
    )


def _kind_breaches(policy: Policy, terms: MechanismTerms) -> tuple[Breach, ...]:
    allowed = policy.mechanism.kinds
    if terms.kind not in allowed:
        return (Breach("kind", f"={terms.kind!r}: not in mechanism.kinds; choose from {', '.join(allowed)}."),)
    if terms.kind == SAMPLED and policy.population.kind is not PopulationKind.SIMULATED:
        return (Breach("kind", "='gaussian': for simulated populations only; use independent or a correlated kind."),)
    shape = _FACTORIZATIONS.get(terms.kind)
    fits = terms.factorization == INDEPENDENT if shape is None else isinstance(terms.factorization, shape)
    if not fits:
        return (Breach("kind", f"={terms.kind!r}: does not fit the factorization; name the kind that it is."),)
    return ()


def _key_breaches(policy: Policy, recipient: str) -> tuple[Breach, ...]:
    """A task in a placeholder's name could be anybody's, so that none is obeyed, in no population."""
    keys = (entry.task_key for entry in policy.recipients if entry.id == recipient and entry.task_key)
    if any(is_weak(key) for key in keys):
        return (Breach("recipient", f"={recipient!r}: has a placeholder as task_key; put the operator's public key."),)
    return ()


def _sampling_breaches(plan: DevicePlan) -> tuple[Breach, ...]:
    """A phone decides by itself when it checks in, so that no plan for phones may count on being sampled."""
    if plan.mechanism.kind != SAMPLED:
        return ()
    return (
        Breach("mechanism.kind", "='gaussian': phones are not sampled; train with independent or correlated noise."),
    )


def _serving_breaches(policy: Policy, plan: DevicePlan) -> tuple[Breach, ...]:
    if not plan.serves:
        return ()
    purpose = next((entry for entry in policy.purposes if entry.id == plan.serves), None)
    if purpose is None or purpose.kind is not PurposeKind.RECOMMEND:
        return (Breach("serves", f"={plan.serves!r}: no recommend purpose of the policy."),)
    return feature_breaches(policy, plan.features, plan.serves, "serves")


def _width_breaches(policy: Policy, plan: DevicePlan) -> tuple[Breach, ...]:
    """A column of features is as wide as the policy's features are together, and as long as the candidates."""
    if not plan.features:
        return ()
    listed = {feature.name: feature.width for feature in policy.features}
    width = sum(listed.get(name, 0) for name in plan.features)
    column = next((spec for spec in plan.columns if spec.name == "features"), None)
    if column is None or column.shape != (plan.training.candidates, width):
        shape = None if column is None else column.shape
        return (
            Breach(
                "columns",
                f": features has the shape {shape} a row; {plan.training.candidates} candidates of the policy's "
                f"features have ({plan.training.candidates}, {width}).",
            ),
        )
    return ()


def _over(field: str, value: float, cap_name: str, cap: float) -> Breach:
    return Breach(field, f"={value:g}: over mechanism.{cap_name}={cap:g}; use at most that.")


def _under(field: str, value: float, floor_name: str, floor: float) -> Breach:
    return Breach(field, f"={value:g}: under mechanism.{floor_name}={floor:g}; use at least that.")

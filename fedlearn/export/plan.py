"""From a trained model to a ``DevicePlan``: what an approval pins and a phone obeys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from fedlearn import __version__
from fedlearn.catalogue import Catalogue
from fedlearn.device.catalogue_bundle import DEFAULT_MAX_BYTES, spec_of
from fedlearn.device.catalogue_file import catalogue_bytes
from fedlearn.device.mechanism import MechanismTerms
from fedlearn.device.operators import operators_of
from fedlearn.device.plan import ColumnSpec, DevicePlan, ParameterSpec, Scope, TrainingSpec
from fedlearn.errors import OutOfRange, UnknownSetting
from fedlearn.models.base import Model, Parameters
from fedlearn.policy.document import Policy, PurposeKind, RecipientKind
from fedlearn.policy.floors import SAMPLED, breaches, plan_breaches
from fedlearn.terms import TrainingTerms

MAX_EXAMPLES: Final = 1000
"""Of one phone, where nobody says otherwise: the newest count."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained model with everything a phone must know to go on training it.

    Args:
        name: of the run.
        model: its ``loss`` is exported.
        parameters: trained weights, f32.
        examples: how occasions become columns: ``match`` or ``two_tower``.
        example_options: of that builder; for ``two_tower`` ``terms`` (T, term ids an example) and ``rows`` (of the term
            table), in sorted order.
        features: columns of ``fedlearn.features`` that the model reads, in order; () where it reads none.
        terms: how phones train.
        mechanism: clip, noise and participation bounds.
        catalogue: what is ranked.
    """

    name: str
    model: Model
    parameters: Parameters = field(repr=False)
    examples: str
    example_options: tuple[tuple[str, int], ...]
    features: tuple[str, ...]
    terms: TrainingTerms
    mechanism: MechanismTerms
    catalogue: Catalogue = field(repr=False)


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What a run does not know; None takes the policy's first that fits.

    Args:
        purpose: id of a training purpose.
        recipient: id of the operator.
        serves: id of the recommend purpose that the weights serve; "" for none.
        private: parameters that stay on the phone.
        max_examples: the newest this many are trained on, >= 1.
        max_catalogue_bytes: of a catalogue that fits, >= 1; None: the default, at most the policy's cap.
        minimum_runtime: least version of the phone's runtime.
    """

    purpose: str | None = None
    recipient: str | None = None
    serves: str | None = None
    private: tuple[str, ...] = ()
    max_examples: int = MAX_EXAMPLES
    max_catalogue_bytes: int | None = None
    minimum_runtime: str = __version__


def columns_of(trained: Trained) -> tuple[ColumnSpec, ...]:
    """Return the columns of a batch, sorted by name; raise UnknownSetting for examples nobody can build."""
    k = trained.terms.candidates
    label, logq = ColumnSpec("label", "<i8", ()), ColumnSpec("logq", "<f4", (k,))
    if trained.examples == "match":
        return (ColumnSpec("features", "<f4", (k, len(trained.features))), label, logq)
    if trained.examples == "two_tower":
        width = (dict(trained.example_options)["terms"],)
        terms, weight = ColumnSpec("terms", "<i8", width), ColumnSpec("term_weight", "<f4", width)
        return (ColumnSpec("items", "<i8", (k,)), label, logq, weight, terms)
    raise UnknownSetting(f"examples={trained.examples!r}: choose among match, two_tower.")


def make_plan(trained: Trained, policy: Policy, options: PlanOptions, graphs: Mapping[str, bytes]) -> DevicePlan:
    """Return the plan, if the policy allows it.

    Args:
        trained: model and terms.
        policy: it will run under.
        options: what the run does not know.
        graphs: the exported graphs; the plan lists their operators.

    Raises:
        OutOfRange: the training's privacy rests on sampling, its weights are no model's, its catalogue is too large, or
            it breaks the policy; names every field and the fix.
    """
    require_exportable(trained)
    purpose = _one(options.purpose, policy, PurposeKind.TRAIN) or ""
    serves = _one(options.serves, policy, PurposeKind.RECOMMEND)
    cap = options.max_catalogue_bytes or min(DEFAULT_MAX_BYTES, policy.device.max_catalogue_bytes)
    require_catalogue_fits(trained.catalogue, cap)
    plan = DevicePlan(
        name=trained.name,
        population=policy.population.id,
        purpose=purpose,
        recipient=options.recipient or _operator(policy, purpose),
        serves=serves or "",
        model=trained.model.name,
        examples=trained.examples,
        example_options=trained.example_options,
        parameters=_parameters(trained.parameters, options.private),
        columns=columns_of(trained),
        features=trained.features,
        training=_training(trained.terms, options.max_examples),
        mechanism=trained.mechanism,
        catalogue=spec_of(trained.catalogue, cap),
        operators=tuple(sorted({name for graph in graphs.values() for name in operators_of(graph)})),
        minimum_runtime=options.minimum_runtime,
    )
    found = dict.fromkeys((*_mechanism_breaches(policy, plan), *plan_breaches(policy, plan)))
    if found:
        raise OutOfRange(f"policy={policy.name} does not allow this plan: {' '.join(found)}")
    return plan


def require_exportable(trained: Trained) -> None:
    """Refuse what no phone could keep to: privacy that rests on secret sampling, and weights that are no model's.

    Raises:
        OutOfRange: names the field and the fix.
    """
    mechanism = trained.mechanism
    if mechanism.kind == SAMPLED:
        raise OutOfRange(
            "privacy.mode=gaussian: its epsilon rests on secret random sampling, which phones that check in by "
            "themselves cannot promise; train with a mechanism that bounds participation, e.g. privacy=blt."
        )
    expected = {name: array.shape for name, array in trained.model.initial(0).items()}
    if {name: array.shape for name, array in trained.parameters.items()} != expected:
        raise OutOfRange(
            f"{trained.name}: its weights are not those of model {trained.model.name}; export the run anew."
        )
    if not all(np.isfinite(array).all() for array in trained.parameters.values()):
        raise OutOfRange(f"{trained.name}: its weights hold NaN or infinity; train again with a lower learning rate.")


def require_catalogue_fits(catalogue: Catalogue, max_bytes: int) -> None:
    """Refuse a catalogue that phones would refuse for its size; raise OutOfRange with the fix."""
    size = len(catalogue_bytes(catalogue))
    if size > max_bytes:
        raise OutOfRange(
            f"catalogue {catalogue.name!r}: {size} bytes, over {max_bytes}; leave out items, or raise "
            "--max-catalogue-bytes and the policy's device.max_catalogue_bytes."
        )


def weights_of(parameters: Parameters, specs: Sequence[ParameterSpec]) -> bytes:
    """Return parameters as ``weights.bin`` has them: little-endian f32, one after the other."""
    return b"".join(np.ascontiguousarray(parameters[spec.name], dtype="<f4").tobytes() for spec in specs)


def _parameters(parameters: Parameters, private: tuple[str, ...]) -> tuple[ParameterSpec, ...]:
    unknown = sorted(set(private) - parameters.keys())
    if unknown:
        raise UnknownSetting(f"--private {unknown[0]}: the model has {', '.join(sorted(parameters))}.")
    return tuple(
        ParameterSpec(name, parameters[name].shape, Scope.PRIVATE if name in private else Scope.SHARED)
        for name in sorted(parameters)
    )


def _training(terms: TrainingTerms, max_examples: int) -> TrainingSpec:
    return TrainingSpec(
        epochs=terms.epochs,
        batch_size=terms.batch_size,
        candidates=terms.candidates,
        learning_rate=terms.learning_rate,
        shuffle=terms.shuffle,
        max_examples=max_examples,
        example_privacy=terms.example_privacy,
    )


def _one(asked: str | None, policy: Policy, kind: PurposeKind) -> str | None:
    """Return the purpose that was asked for, or the policy's first of its kind."""
    return next((entry.id for entry in policy.purposes if entry.kind is kind), None) if asked is None else asked


def _operator(policy: Policy, purpose: str) -> str:
    operators = {entry.id for entry in policy.recipients if entry.kind is RecipientKind.OPERATOR}
    named = (name for entry in policy.purposes if entry.id == purpose for name in entry.recipients)
    return next((name for name in named if name in operators), "")


def _mechanism_breaches(policy: Policy, plan: DevicePlan) -> tuple[str, ...]:
    """Also what a plan does not say but every task of it will: who signs it."""
    return breaches(
        policy,
        mechanism=plan.mechanism,
        population=plan.population,
        purpose=plan.purpose,
        recipient=plan.recipient,
        round_size=policy.mechanism.min_round_size,
    )

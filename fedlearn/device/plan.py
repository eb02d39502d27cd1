"""``plan.json`` of a task bundle: schema ``fedlearn.plan/1``. What an approval pins and a phone obeys."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from fedlearn.device.mechanism import MechanismTerms
from fedlearn.terms import ExamplePrivacy

SCHEMA: Final = "fedlearn.plan/1"


class Scope(StrEnum):
    """Where a parameter lives."""

    SHARED = "shared"
    PRIVATE = "private"  # of this phone alone: trained, kept encrypted, never uploaded


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """One named f32 tensor. The flat order is the sorted order of the names, shared ones only.

    Args:
        name: as in the model.
        shape: at most 8 dimensions, each >= 1.
        scope: shared or private.
    """

    name: str
    shape: tuple[int, ...]
    scope: Scope


@dataclass(frozen=True, slots=True)
class ColumnSpec:
    """One column of a batch: shape [B, *shape]; dtype ``<f4`` or ``<i8``."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TrainingSpec:
    """How the phone trains; ``fedlearn.terms.TrainingTerms`` without the words a simulation needs.

    Args:
        epochs: passes over the phone's examples, >= 1.
        batch_size: B, fixed in ``step.onnx``.
        candidates: K, fixed in ``step.onnx``.
        learning_rate: > 0; an input of the step.
        shuffle: whether each epoch has an order of its own.
        max_examples: the newest this many are used, >= 1: bounds time and memory.
        example_privacy: of the phone's own steps, or None. Then ``private_step.onnx`` runs instead.
    """

    epochs: int
    batch_size: int
    candidates: int
    learning_rate: float
    shuffle: bool
    max_examples: int
    example_privacy: ExamplePrivacy | None


@dataclass(frozen=True, slots=True)
class CatalogueSpec:
    """Which catalogues fit: replaceable without a new approval while these stand.

    Args:
        name: of the catalogue.
        domain: what is ranked.
        attributes: attribute names that items may have, sorted.
        max_bytes: of ``catalogue.json``.
    """

    name: str
    domain: str
    attributes: tuple[str, ...]
    max_bytes: int


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """Everything about a training that a reviewer approves and a phone pins.

    Args:
        name: of the run it was exported from.
        population: id in the policy.
        purpose: id of a training purpose of the policy.
        recipient: id of the operator.
        serves: id of the recommend purpose that ``infer.onnx`` and the weights serve, or "".
        model: name of the model.
        examples: how occasions become columns: ``match`` or ``two_tower``.
        example_options: of that builder, e.g. ``{"terms": 24, "rows": 4096}``.
        parameters: in sorted name order.
        columns: of a batch, in sorted name order; those that ``step.onnx`` reads.
        features: columns of ``fedlearn.features`` that the model reads, in order; () where it reads none.
        training: how the phone trains.
        mechanism: clip, noise, separation: every task must say the same.
        catalogue: which catalogues fit.
        operators: ONNX operators of all graphs, sorted; a graph with another one is refused.
        minimum_runtime: least version of the runtime.
    """

    name: str
    population: str
    purpose: str
    recipient: str
    serves: str
    model: str
    examples: str
    example_options: tuple[tuple[str, int], ...]
    parameters: tuple[ParameterSpec, ...]
    columns: tuple[ColumnSpec, ...]
    features: tuple[str, ...]
    training: TrainingSpec
    mechanism: MechanismTerms
    catalogue: CatalogueSpec
    operators: tuple[str, ...]
    minimum_runtime: str

    @property
    def shared(self) -> tuple[ParameterSpec, ...]:
        """Parameters that are uploaded and fetched, in flat order."""
        return tuple(spec for spec in self.parameters if spec.scope is Scope.SHARED)

    @property
    def private(self) -> tuple[ParameterSpec, ...]:
        """Parameters that never leave the phone, in flat order."""
        return tuple(spec for spec in self.parameters if spec.scope is Scope.PRIVATE)

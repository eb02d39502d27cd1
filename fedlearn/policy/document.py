"""What a policy says: schema ``fedlearn.policy/1``. Plain frozen data; ``load`` reads it, ``lint`` judges it.

Every field of the JSON or YAML document has the name it has here; docs/policy.md explains them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

SCHEMA: Final = "fedlearn.policy/1"
LONGEST_RETENTION_DAYS: Final = 30


class DataType(StrEnum):
    """What a source delivers. Each is granted by itself."""

    MESSAGE_CONTENT = "message_content"
    CHOICE = "choice"


FEATURE_SOURCE: Final = {DataType.MESSAGE_CONTENT: "chat", DataType.CHOICE: "choices"}
"""Data type -> the name that ``fedlearn.features`` gives its source."""


class PopulationKind(StrEnum):
    """Who the devices are."""

    SIMULATED = "simulated"
    ENROLLED = "enrolled"


class PurposeKind(StrEnum):
    """What a purpose does with data."""

    RECOMMEND = "recommend"
    TRAIN = "train"


class RecipientKind(StrEnum):
    """Who may receive: the phone maker's own surface or another app (rankings), or an operator (private sums)."""

    SURFACE = "surface"
    APP = "app"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Population:
    """The devices.

    Args:
        id: names the population; also in tasks and budgets.
        kind: simulated or enrolled.
        minimum_devices: fewer than this and no run may begin, >= 1.
    """

    id: str
    kind: PopulationKind
    minimum_devices: int


@dataclass(frozen=True, slots=True)
class Purpose:
    """One thing that data may be used for, in the words the owner reads.

    Args:
        id: names the purpose, in grants, tasks and budgets.
        kind: recommend or train.
        text: the words on the consent screen.
        text_version: rises whenever ``text`` changes; >= 1. A grant for older words is void.
        recipients: ids of those who may receive what comes of it; at least one.
    """

    id: str
    kind: PurposeKind
    text: str
    text_version: int
    recipients: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Recipient:
    """Who may receive.

    Args:
        id: app id of a surface or app; name of an operator.
        kind: surface, app or operator.
        name: as shown to the owner.
        task_key: Ed25519 public key (64 hex digits) that signs an operator's tasks; "" for the others.
    """

    id: str
    kind: RecipientKind
    name: str
    task_key: str


@dataclass(frozen=True, slots=True)
class Source:
    """One kind of data of one app.

    Args:
        app: id of the producing app.
        owner: who answers for the app's data.
        data_type: what is delivered.
        purposes: ids of the purposes it may serve.
        collection: how the app comes by it: ``own_app`` (the app's own content) or ``owner_import``. Screen,
            notification and accessibility scraping have names only so that lint can refuse them.
        third_party: ``drop``: whatever others wrote changes no bit. The only rule there is.
        minors: ``off``: nothing of a minor, nor of an owner of unknown age. The only rule there is.
        disputed: somebody claims this data; then it is never used, whatever was granted.
        retention_days: derived data is deleted after this, 1..30.
    """

    app: str
    owner: str
    data_type: DataType
    purposes: tuple[str, ...]
    collection: str
    third_party: str
    minors: str
    disputed: bool
    retention_days: int


@dataclass(frozen=True, slots=True)
class Feature:
    """One group of numbers made from sources.

    Args:
        name: column of ``fedlearn.features``.
        needs: data types that must all be granted; none for what the public catalogue alone gives.
        why: what it is for, in a sentence.
        width: numbers per item, >= 1.
    """

    name: str
    needs: tuple[DataType, ...]
    why: str
    width: int


@dataclass(frozen=True, slots=True)
class MechanismFloors:
    """What every training must satisfy; a phone refuses a task that does not.

    Args:
        kinds: allowed: gaussian, independent, blt, banded, tree. ``gaussian`` (amplified by sampling) for simulated
            populations only.
        max_l2_clip_norm: > 0.
        min_noise_multiplier: least std of the i.i.d. noise over the clip, > 0.
        min_round_size: least phones in a sum that may be released, >= 2.
        min_separation: least b, >= 1.
        max_participations: most k, >= 1.
        max_steps: most mechanism steps of one run, >= 1.
    """

    kinds: tuple[str, ...]
    max_l2_clip_norm: float
    min_noise_multiplier: float
    min_round_size: int
    min_separation: int
    max_participations: int
    max_steps: int


@dataclass(frozen=True, slots=True)
class Budget:
    """Epsilon at delta, both > 0; delta < 1."""

    epsilon: float
    delta: float


@dataclass(frozen=True, slots=True)
class DeviceCaps:
    """What one phone grants at most, whatever the server says.

    Args:
        epsilon: over all purposes and runs, by the phone's own account, without amplification.
        delta: of that epsilon.
        max_upload_bytes: of one contribution.
        max_catalogue_bytes: of a catalogue bundle.
        max_training_seconds: of one local round, <= 585.
        max_rounds_per_day: local rounds in 24 hours.
    """

    epsilon: float
    delta: float
    max_upload_bytes: int
    max_catalogue_bytes: int
    max_training_seconds: int
    max_rounds_per_day: int


@dataclass(frozen=True, slots=True)
class Policy:
    """One approved set of rules. ``digest`` is over its canonical bytes (``canonical``).

    Args:
        name: of the policy.
        version: rises with every change, >= 1.
        expires: UTC, ``YYYY-MM-DDTHH:MM:SSZ``; after it nothing of the policy holds.
        population: the devices.
        purposes: at least one.
        recipients: at least one.
        sources: at least one.
        features: what models may be made of.
        mechanism: floors of private training.
        budget: of the population, for each training purpose.
        device: caps of one phone.
    """

    name: str
    version: int
    expires: str
    population: Population
    purposes: tuple[Purpose, ...]
    recipients: tuple[Recipient, ...]
    sources: tuple[Source, ...]
    features: tuple[Feature, ...]
    mechanism: MechanismFloors
    budget: Budget
    device: DeviceCaps

"""Hydra's view of a config: plain dataclass schemas in the ConfigStore. Nothing but ``config.py`` reads them.

They are not frozen because Hydra cannot use a frozen dataclass as a schema.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

# OmegaConf resolves these annotations at run time, so this module keeps to the types it knows.


@dataclass
class CitySchema:
    """The simulated city."""

    name: str = "city"
    devices: int = 1000
    rho: float = 0.6
    seed: int = 0
    language: str = "mixed"
    restaurants: int = 600
    sessions_min: int = 3
    sessions_max: int = 6


@dataclass
class CrossWozSchema:
    """CrossWOZ, task B1."""

    name: str = "crosswoz"
    root: str = MISSING
    domain: str = "restaurant"
    file: str = "val.json.zip"
    folds: int = 5
    fold_by: str = "dialogue"


@dataclass
class PluginSchema:
    """A data set found through an entry point."""

    name: str = MISSING
    options: dict[str, Any] = field(default_factory=dict)
    folds: int = 1
    fold_by: str = "last_session"


@dataclass
class FeaturesSchema:
    """Which sources may become features."""

    sources: list[str] = field(default_factory=lambda: ["catalogue", "chat", "choices"])


@dataclass
class ModelSchema:
    """The model, by name."""

    name: str = "match"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class ExamplePrivacySchema:
    """DP-SGD on the phone's own examples; off while both are null."""

    noise_multiplier: float | None = None
    clip: float | None = None


@dataclass
class ClientSchema:
    """How a phone trains."""

    epochs: int = 1
    batch_size: int = 16
    learning_rate: float = 0.5
    shuffle: bool = True
    candidates: int = 64
    example_privacy: ExamplePrivacySchema | None = field(default_factory=ExamplePrivacySchema)


@dataclass
class AdaptiveClipSchema:
    """A clip that follows a quantile of the update norms; off while there is no target."""

    target_quantile: float | None = None
    learning_rate: float = 0.2
    count_noise: float | None = None


@dataclass
class PrivacySchema:
    """The guarantee that is asked for."""

    mode: str = "gaussian"
    epsilon: float | None = 3.0
    delta: float | None = 1e-4
    clip: float = 0.1
    noise_multiplier: float | None = None
    min_separation: int | None = None
    max_participations: int | None = None
    adaptive_clip: AdaptiveClipSchema | None = field(default_factory=AdaptiveClipSchema)


@dataclass
class CohortSchema:
    """How many phones take part in a round, and how many rounds there are."""

    rounds: int = 60
    size: int | None = None
    fraction: float | None = 0.5


@dataclass
class ServerOptSchema:
    """torch.optim on the pseudo-gradient."""

    name: str = "sgd"
    learning_rate: float = 3.0
    options: dict[str, Any] = field(default_factory=dict)
    average_last: float = 0.7


@dataclass
class FleetSchema:
    """Phones behind gateways; off while there is no bundle."""

    bundle: str | None = None
    root_key: str | None = None
    population: int | None = None
    round_size: int | None = None
    over_selection: float = 1.3
    attempt_s: float = 60.0
    task_s: float = 60.0


@dataclass
class RuntimeSchema:
    """Where a round's nodes live."""

    name: str = "in_process"
    shards: int = 1
    engine: str = "vmap"
    threads: int = 1
    deadline_s: float = 600.0
    resend_s: float | None = None
    enough: float = 1.0
    minimum: float = 0.5
    attempts: int = 1
    address: str | None = None
    ca: str | None = None
    token: str | None = None
    fleet: FleetSchema | None = field(default_factory=FleetSchema)


@dataclass
class TrackingSchema:
    """Where figures are sent besides the run directory."""

    name: str = "none"
    uri: str | None = None


@dataclass
class LedgerSchema:
    """Which budget the run spends from."""

    where: str | None = None
    purpose: str = "training"
    epoch: str = "1"


@dataclass
class EvaluationSchema:
    """What is measured, and against what."""

    metrics: list[str] = field(default_factory=lambda: ["HR@10", "NDCG@10", "MRR"])
    every: int = 5
    controls: bool = True
    bootstrap: int = 1000
    users: int = 5000


@dataclass
class RunSchema:
    """Where the run is written."""

    name: str = "run"
    dir: str | None = None


@dataclass
class RootSchema:
    """The whole config."""

    data: Any = MISSING
    features: FeaturesSchema = field(default_factory=FeaturesSchema)
    model: ModelSchema = field(default_factory=ModelSchema)
    client: ClientSchema = field(default_factory=ClientSchema)
    privacy: PrivacySchema = field(default_factory=PrivacySchema)
    cohort: CohortSchema = field(default_factory=CohortSchema)
    server_opt: ServerOptSchema = field(default_factory=ServerOptSchema)
    runtime: RuntimeSchema = field(default_factory=RuntimeSchema)
    tracking: TrackingSchema = field(default_factory=TrackingSchema)
    policy: Any = field(default_factory=lambda: {"name": "none"})  # a whole document, read strictly by fedlearn.policy
    ledger: LedgerSchema = field(default_factory=LedgerSchema)
    evaluation: EvaluationSchema = field(default_factory=EvaluationSchema)
    run: RunSchema = field(default_factory=RunSchema)
    seeds: list[int] = field(default_factory=lambda: [0])


DATA_SCHEMAS: dict[str, type[CitySchema | CrossWozSchema | PluginSchema]] = {
    "city": CitySchema,
    "crosswoz": CrossWozSchema,
}
"""Built-in data sets by name; every other name is a plugin."""


def register_schemas() -> None:
    """Put the schemas where Hydra looks for them."""
    store = ConfigStore.instance()
    store.store(name="schema", node=RootSchema)
    store.store(group="data", name="city_schema", node=CitySchema)
    store.store(group="data", name="crosswoz_schema", node=CrossWozSchema)
    store.store(group="data", name="plugin_schema", node=PluginSchema)

"""A whole experiment as frozen objects: what Hydra's config becomes at the door (``door.py``)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fedlearn.errors import OutOfRange
from fedlearn.policy.document import Policy
from fedlearn.policy.load import policy_digest, policy_to_json

Scalar = bool | int | float | str
Options = Mapping[str, Scalar]


NO_POLICY = "none"
PLACE = frozenset({"run", "tracking", "ledger"})
"""Groups that say where a run and its spend are written: they decide no result."""
RUNTIME_PLACE = ("address", "ca", "token")
"""Which SuperLink: it decides no result either."""
FLEET_PLACE = ("bundle", "root_key")
"""Where a fleet's documents lie."""


@dataclass(frozen=True, slots=True)
class CityData:
    """The simulated city; ranges are checked where the city is built."""

    name: str
    devices: int
    rho: float
    seed: int
    language: str
    restaurants: int
    sessions_min: int
    sessions_max: int


@dataclass(frozen=True, slots=True)
class CrossWozData:
    """CrossWOZ by path."""

    name: str
    root: str
    domain: str
    file: str
    folds: int
    fold_by: str


@dataclass(frozen=True, slots=True)
class PluginData:
    """A data set found through an entry point."""

    name: str
    options: Options
    folds: int
    fold_by: str


DataConfig = CityData | CrossWozData | PluginData


@dataclass(frozen=True, slots=True)
class FeaturesConfig:
    """Sources that may become features."""

    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The model, by name."""

    name: str
    options: Options


@dataclass(frozen=True, slots=True)
class ExamplePrivacyConfig:
    """DP-SGD on the phone's own examples: std of the noise over the clip, and the clip of one example's gradient."""

    noise_multiplier: float
    clip: float


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """How a phone trains; ``example_privacy`` is None for plain SGD."""

    epochs: int
    batch_size: int
    learning_rate: float
    shuffle: bool
    candidates: int
    example_privacy: ExamplePrivacyConfig | None = None


@dataclass(frozen=True, slots=True)
class AdaptiveClipConfig:
    """A clip that follows a quantile of the update norms, as ``fedlearn.privacy.adaptive_clip`` says."""

    target_quantile: float
    learning_rate: float
    count_noise: float | None


@dataclass(frozen=True, slots=True)
class PrivacyConfig:
    """The guarantee that is asked for.

    Args:
        mode: ``none``, or the mechanism: ``gaussian``, ``blt``, ``banded``, ``tree``.
        epsilon: target, or None where the noise is given.
        delta: of the target; None without privacy.
        clip: L2 bound of one phone's update; with ``adaptive_clip`` the one it begins with.
        noise_multiplier: std of the noise over the clip, or None where epsilon is given.
        min_separation: steps from one participation of a phone to the next, at least; None for Poisson sampling.
        max_participations: of a phone in the run; None for as many as the separation leaves room for.
        adaptive_clip: how the clip moves, or None: it stays.
    """

    mode: str
    epsilon: float | None
    delta: float | None
    clip: float
    noise_multiplier: float | None
    min_separation: int | None = None
    max_participations: int | None = None
    adaptive_clip: AdaptiveClipConfig | None = None

    @property
    def is_private(self) -> bool:
        """Whether the run promises anything."""
        return self.mode != "none"


@dataclass(frozen=True, slots=True)
class CohortConfig:
    """Rounds, and either the expected cohort size or the sampling probability."""

    rounds: int
    size: int | None
    fraction: float | None

    def sampling_probability(self, population: int) -> float:
        """Return q in (0, 1], or raise OutOfRange naming the field."""
        if self.fraction is not None:
            return self.fraction
        size = self.size or 0
        if size > population:
            raise OutOfRange(
                f"cohort.size={size}: the sampling probability would be {size / population:.3g} > 1; "
                f"use at most the population, {population}."
            )
        return size / population


@dataclass(frozen=True, slots=True)
class ServerOptConfig:
    """torch.optim on the pseudo-gradient."""

    name: str
    learning_rate: float
    options: Options
    average_last: float


@dataclass(frozen=True, slots=True)
class FleetConfig:
    """Phones behind gateways, which take part by themselves.

    Args:
        bundle: the signed task bundle that the phones have: what is trained, and what each task must say.
        root_key: file with the public key of the root that it was approved under.
        population: devices that may take part, >= 1; public.
        round_size: least phones in a sum that may be released, >= 1; what each task promises.
        over_selection: phones that are given a task, over the wanted cohort, >= 1.
        attempt_s: seconds that a gateway waits for a cohort, > 0.
        task_s: seconds that a phone has for a task, > 0.
    """

    bundle: str
    root_key: str
    population: int
    round_size: int
    over_selection: float
    attempt_s: float
    task_s: float


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """Where a round's nodes live, and how they are asked (``fedlearn_server.collect.Asking``).

    ``address`` and ``ca`` name a SuperLink and the authority of its certificate; None: that of ``fedlearn up``.
    ``token`` is the file with its operator's token; None: something else guards its control API.
    ``fleet`` says which phones take part, with ``runtime=fleet``; None: the run simulates them.
    """

    name: str
    shards: int
    engine: str
    threads: int
    deadline_s: float
    resend_s: float | None
    enough: float
    minimum: float
    attempts: int
    address: str | None
    ca: str | None
    token: str | None
    fleet: FleetConfig | None = None


@dataclass(frozen=True, slots=True)
class TrackingConfig:
    """Where figures are sent besides the run directory."""

    name: str
    uri: str | None


@dataclass(frozen=True, slots=True)
class LedgerConfig:
    """Which budget the run spends from.

    Args:
        where: a shared ledger's file or PostgreSQL URL; None: one of its own, in the run directory.
        purpose: whose quota, in a shared ledger.
        epoch: of that quota.
    """

    where: str | None
    purpose: str
    epoch: str


@dataclass(frozen=True, slots=True)
class EvaluationConfig:
    """What is measured, and against what."""

    metrics: tuple[str, ...]
    every: int
    controls: bool
    bootstrap: int
    users: int


@dataclass(frozen=True, slots=True)
class OutputConfig:
    """The run's name and directory (None: ``runs/NAME-TIME-DIGEST``)."""

    name: str
    dir: str | None


@dataclass(frozen=True, slots=True)
class ExperimentConfig:
    """A whole, validated experiment. ``policy`` is None where nobody set floors (``policy=none``)."""

    data: DataConfig
    features: FeaturesConfig
    model: ModelConfig
    client: ClientConfig
    privacy: PrivacyConfig
    cohort: CohortConfig
    server_opt: ServerOptConfig
    runtime: RuntimeConfig
    tracking: TrackingConfig
    policy: Policy | None
    ledger: LedgerConfig
    evaluation: EvaluationConfig
    run: OutputConfig
    seeds: tuple[int, ...]

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over everything that decides the result: all of it but the run's place and the trackers."""
        content = {key: value for key, value in to_plain(self).items() if key not in PLACE}
        content["data"].pop("root", None)  # the data's own digest says what was read
        for place in RUNTIME_PLACE:
            content["runtime"].pop(place)
        fleet = content["runtime"].pop("fleet")
        if fleet is not None:
            # what the bundle says is in the terms of the run, which its nodes are told
            content["runtime"]["fleet"] = {key: value for key, value in fleet.items() if key not in FLEET_PLACE}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def to_plain(config: ExperimentConfig) -> dict[str, Any]:
    """Return nested dicts and lists, as written to ``config.yaml``."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    plain["policy"] = {"name": NO_POLICY} if config.policy is None else policy_to_json(config.policy)
    return plain


def flat_settings(config: ExperimentConfig) -> tuple[tuple[str, str], ...]:
    """Return (dotted key, value as text) of everything that decides the result, in order of key."""
    leaves: list[tuple[str, str]] = []

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, dict) and value:
            for key, child in value.items():
                walk(f"{prefix}.{key}" if prefix else key, child)
        else:
            leaves.append((prefix, json.dumps(value, ensure_ascii=False)))

    content = {key: value for key, value in to_plain(config).items() if key not in PLACE}
    content["runtime"] = {key: value for key, value in content["runtime"].items() if key not in RUNTIME_PLACE}
    if config.policy is not None:
        # a record names the policy; its words are in config.yaml
        policy = config.policy
        content["policy"] = {"name": policy.name, "version": policy.version, "digest": policy_digest(policy)}
    walk("", content)
    return tuple(sorted(leaves))

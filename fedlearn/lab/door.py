"""The door between Hydra and the house: a strict conversion into frozen objects. ``DictConfig`` travels no further."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException, ValidationError
from yaml import YAMLError

from fedlearn.errors import ConfigError, PolicyInvalid, UnknownSetting
from fedlearn.lab.config import (
    FLEET_PLACE,
    NO_POLICY,
    AdaptiveClipConfig,
    CityData,
    ClientConfig,
    CohortConfig,
    CrossWozData,
    DataConfig,
    EvaluationConfig,
    ExamplePrivacyConfig,
    ExperimentConfig,
    FeaturesConfig,
    FleetConfig,
    LedgerConfig,
    ModelConfig,
    OutputConfig,
    PluginData,
    PrivacyConfig,
    RuntimeConfig,
    ServerOptConfig,
    TrackingConfig,
    to_plain,
)
from fedlearn.lab.schemas import DATA_SCHEMAS, AdaptiveClipSchema, FleetSchema, PluginSchema, RootSchema
from fedlearn.lab.validate import unknown, validate
from fedlearn.policy.decode import field_paths
from fedlearn.policy.document import Policy
from fedlearn.policy.load import policy_from_json


def from_hydra(config: DictConfig | dict[str, Any]) -> ExperimentConfig:
    """Convert strictly; raise UnknownSetting or ConfigError naming the field and the fix.

    Hydra lets ``+group.typo=1`` through, and ``OmegaConf.to_object`` drops it silently; merging the container into a
    fresh structured schema refuses it.
    """
    plain = OmegaConf.to_container(OmegaConf.create(config), resolve=True)
    if not isinstance(plain, dict):
        raise ConfigError("the config must be a mapping of groups, e.g. experiment=city_quick.")
    return _convert({str(key): value for key, value in plain.items() if key != "hydra"})


def from_plain(plain: Mapping[str, Any]) -> ExperimentConfig:
    """Convert nested dicts, as ``to_plain`` returns them, as strictly; they may come from elsewhere.

    Nothing is resolved: an interpolation would read this side's environment into a config that another side wrote.

    Raises:
        UnknownSetting, ConfigError: names the field and the fix; an interpolation is one.
    """
    return _convert({str(key): value for key, value in plain.items()})


def _convert(content: dict[str, Any]) -> ExperimentConfig:
    _refuse_interpolations(content, "")
    data = content.pop("data", None)
    if not isinstance(data, dict) or not data.get("name"):
        raise ConfigError("data.name is missing: choose a data set, e.g. data=city or data=crosswoz.")
    if "experiment" in content and content["experiment"] is None:
        content.pop("experiment")
    merged_data = _merge(DATA_SCHEMAS.get(str(data["name"]), PluginSchema), data, "data.")
    root = _merge(RootSchema, content, "")
    experiment = ExperimentConfig(
        data=_data(merged_data),
        features=FeaturesConfig(tuple(root["features"]["sources"])),
        model=ModelConfig(**root["model"]),
        client=_client(root["client"]),
        privacy=_privacy(root["privacy"]),
        cohort=CohortConfig(**root["cohort"]),
        server_opt=ServerOptConfig(**root["server_opt"]),
        runtime=_runtime(root["runtime"]),
        tracking=TrackingConfig(**root["tracking"]),
        policy=_policy(root["policy"]),
        ledger=_ledger(root["ledger"]),
        evaluation=EvaluationConfig(**{**root["evaluation"], "metrics": tuple(root["evaluation"]["metrics"])}),
        run=OutputConfig(**root["run"]),
        seeds=tuple(root["seeds"]),
    )
    validate(experiment)
    return experiment


def setting_paths() -> list[str]:
    """Return every dotted key that exists, for hints."""
    data = {f"data.{path}" for schema in (*DATA_SCHEMAS.values(), PluginSchema) for path in _paths(schema)}
    policy = {f"policy.{path}" for path in field_paths(Policy)}
    return sorted({*_paths(RootSchema), *data, *policy} - {"data", "policy"})


def load_yaml(path: Path) -> ExperimentConfig:
    """Read a resolved ``config.yaml`` back."""
    try:
        loaded = OmegaConf.load(path)
    except (ValueError, YAMLError) as error:
        raise ConfigError(f"{path}: not YAML ({str(error).splitlines()[0]}).") from error
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{path}: expected a mapping of groups.")
    return from_hydra(loaded)


def save_yaml(config: ExperimentConfig, path: Path) -> None:
    """Write the resolved config."""
    OmegaConf.save(OmegaConf.create(to_plain(config)), path)


def _refuse_interpolations(value: object, path: str) -> None:
    """Refuse what OmegaConf would replace; the message quotes none of it, since it may name a secret."""
    if isinstance(value, str) and "${" in value:
        raise ConfigError(f"{path}: holds ${{, which is resolved on the submitter's side only; write the value itself.")
    parts: Iterable[tuple[object, object]] = ()
    if isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    for key, part in parts:
        _refuse_interpolations(part, f"{path}.{key}" if path else str(key))


def _merge(schema: type[Any], values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    try:
        merged = OmegaConf.to_container(
            OmegaConf.merge(OmegaConf.structured(schema), values), throw_on_missing=schema is not RootSchema
        )
    except ConfigKeyError as error:
        raise _unknown_key(schema, prefix, error) from error
    except MissingMandatoryValue as error:
        key = f"{prefix}{error.full_key or error.key}"
        raise ConfigError(f"{key} is missing: set it on the command line, e.g. {key}=VALUE.") from error
    except (ValidationError, OmegaConfBaseException) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{prefix}{error.full_key or error.key}: {reason}.") from error
    return {str(key): value for key, value in dict(merged).items()} if isinstance(merged, dict) else {}


def _unknown_key(schema: type[Any], prefix: str, error: ConfigKeyError) -> UnknownSetting:
    full = str(error.full_key or error.key)
    known = _paths(schema)
    near = difflib.get_close_matches(full, known, n=1)
    parent = full.rpartition(".")[0]
    siblings = sorted({_child(path, parent) for path in known if path.startswith(f"{parent}." if parent else "")})
    hint = f"did you mean {prefix}{near[0]}? " if near else ""
    return UnknownSetting(
        f"{prefix}{full} does not exist: {hint}Known here: {', '.join(prefix + path for path in siblings or known)}."
    )


def _child(path: str, parent: str) -> str:
    """First step of ``path`` below ``parent``."""
    rest = path.removeprefix(f"{parent}.") if parent else path
    step = rest.split(".")[0]
    return f"{parent}.{step}" if parent else step


def _paths(schema: type[Any], prefix: str = "") -> list[str]:
    content = OmegaConf.structured(schema)
    found: list[str] = []
    for key in content:
        node_type = OmegaConf.get_type(content, key)
        if node_type is not None and is_dataclass(node_type):
            found.extend(_paths(node_type, f"{prefix}{key}."))
        else:
            found.append(f"{prefix}{key}")
    return found


def _privacy(values: dict[str, Any]) -> PrivacyConfig:
    """Convert; ``privacy=none`` on top of a preset that names an epsilon drops its promise, loudly."""
    converted = {**values, "adaptive_clip": _adaptive_clip(values["adaptive_clip"])}
    if values["mode"] == "none":
        return PrivacyConfig(**{**converted, "epsilon": None, "delta": None, "noise_multiplier": None})
    return PrivacyConfig(**converted)


def _adaptive_clip(values: dict[str, Any] | None) -> AdaptiveClipConfig | None:
    if values is None or values == asdict(AdaptiveClipSchema()):
        return None
    if values["target_quantile"] is None:
        raise ConfigError("privacy.adaptive_clip.target_quantile=null: the clip needs one to follow, e.g. 0.5.")
    return AdaptiveClipConfig(**values)


def _client(values: dict[str, Any]) -> ClientConfig:
    example = values["example_privacy"]
    if example is None or set(example.values()) == {None}:
        return ClientConfig(**{**values, "example_privacy": None})
    for name, value in example.items():
        if value is None:
            raise ConfigError(f"client.example_privacy.{name}=null: private steps need noise and a clip, e.g. 1.0.")
    return ClientConfig(**{**values, "example_privacy": ExamplePrivacyConfig(**example)})


def _runtime(values: dict[str, Any]) -> RuntimeConfig:
    fleet = values["fleet"]
    if values["name"] != "fleet" and (fleet is None or fleet == asdict(FleetSchema())):
        return RuntimeConfig(**{**values, "fleet": None})
    fleet = fleet or asdict(FleetSchema())
    for name, value in fleet.items():
        if value is None:
            raise ConfigError(f"runtime.fleet.{name} is missing: set it, e.g. runtime.fleet.{name}=VALUE.")
    for name in FLEET_PLACE:
        # as typed, it would be another file when the run is resumed from elsewhere
        fleet = {**fleet, name: str(Path(fleet[name]).expanduser().resolve())}
    return RuntimeConfig(**{**values, "fleet": FleetConfig(**fleet)})


def _policy(values: object) -> Policy | None:
    """Convert the group strictly: a whole policy document, or only the name ``none``."""
    if not isinstance(values, dict):
        raise ConfigError("policy must be a policy document, e.g. policy=city, or policy=none.")
    if "schema" in values:
        try:
            return policy_from_json(values)
        except PolicyInvalid as error:
            raise PolicyInvalid(f"policy.{error}") from error
    for key in values:
        if key != "name":
            raise UnknownSetting(f"policy.{key} does not exist: Known here: policy.name.")
    if values.get("name") != NO_POLICY:
        raise unknown("policy.name", str(values.get("name")), (NO_POLICY,))
    return None


def _ledger(values: dict[str, Any]) -> LedgerConfig:
    where = values["where"]
    if where is not None and "://" not in where:
        # as typed, it would be another file when the run is resumed from elsewhere
        where = str(Path(where).expanduser().resolve())
    return LedgerConfig(where, values["purpose"], values["epoch"])


def _data(values: dict[str, Any]) -> DataConfig:
    if values["name"] == "city":
        return CityData(**values)
    if values["name"] == "crosswoz":
        # as typed, it would mean another folder when the run is resumed from elsewhere
        return CrossWozData(**{**values, "root": str(Path(values["root"]).expanduser().resolve())})
    return PluginData(**values)

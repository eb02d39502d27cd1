"""Every range of a config that can be checked before any work; messages name the field and the fix."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from fedlearn.errors import OutOfRange, UnknownSetting
from fedlearn.lab.config import (
    CityData,
    CohortConfig,
    DataConfig,
    ExperimentConfig,
    FeaturesConfig,
    PrivacyConfig,
    RuntimeConfig,
    TrackingConfig,
)
from fedlearn.privacy.adaptive_clip import AdaptiveClipSettings
from fedlearn.terms import ExamplePrivacy

LARGEST_EPSILON = 100.0
LEAST_NOISE, LARGEST_NOISE = 0.05, 1e5
"""Noise multipliers that the accountant can tell apart from none and from infinity."""

MECHANISMS = ("gaussian", "blt", "banded", "tree")

_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def validate(config: ExperimentConfig) -> None:
    """Check every range that needs no data; raise OutOfRange or UnknownSetting naming the field and the fix."""
    _choice("privacy.mode", config.privacy.mode, ("none", *MECHANISMS))
    _choice("runtime.name", config.runtime.name, ("in_process", "ray", "superlink", "fleet"))
    _choice("runtime.engine", config.runtime.engine, ("vmap", "loop"))
    _choice("tracking.name", config.tracking.name, ("none", "tensorboard", "mlflow"))
    _validate_data(config.data)
    if isinstance(config.data, CityData) and config.data.devices >= 1:
        _validate_size(config, config.data)
    _validate_features(config.features)
    _validate_privacy(config.privacy)
    _validate_cohort(config.cohort)
    client = config.client
    _at_least("client.epochs", client.epochs, 1)
    _at_least("client.batch_size", client.batch_size, 1)
    _at_least("client.candidates", client.candidates, 2)
    _positive("client.learning_rate", client.learning_rate)
    if client.example_privacy is not None:
        ExamplePrivacy(client.example_privacy.noise_multiplier, client.example_privacy.clip)
    _positive("server_opt.learning_rate", config.server_opt.learning_rate)
    _between("server_opt.average_last", config.server_opt.average_last, 0.0, 1.0)
    _validate_runtime(config.runtime)
    _validate_fleet(config)
    _at_least("evaluation.every", config.evaluation.every, 1)
    _at_least("evaluation.bootstrap", config.evaluation.bootstrap, 100)
    _at_least("evaluation.users", config.evaluation.users, 1)
    if not config.evaluation.metrics:
        raise OutOfRange("evaluation.metrics is empty: name at least one, e.g. [HR@10].")
    for seed in config.seeds:
        _between("seeds", seed, -(2**63), 2**63 - 1)
    _validate_participations(config)
    _validate_ledger(config)
    _validate_tracking(config.tracking)
    if not _NAME.fullmatch(config.run.name):
        raise OutOfRange(
            f"run.name={config.run.name!r}: 1-64 letters, digits, dots, dashes and underscores, e.g. run-1."
        )
    metrics = config.evaluation.metrics
    if len(set(metrics)) != len(metrics):
        raise OutOfRange(f"evaluation.metrics={list(metrics)}: name each metric once.")
    if not config.seeds or len(set(config.seeds)) != len(config.seeds):
        raise OutOfRange(f"seeds={list(config.seeds)}: give at least one seed and none twice, e.g. seeds=[0,1,2].")


def unknown(field: str, value: str, known: Iterable[str]) -> UnknownSetting:
    """Return the error for a name that does not exist, with the nearest one that does."""
    choices = sorted(known)
    near = difflib.get_close_matches(value, choices, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UnknownSetting(f"{field}={value!r} does not exist: {hint}Choose from {', '.join(choices)}.")


def _validate_size(config: ExperimentConfig, data: CityData) -> None:
    """The city's population is in its config: refuse now what could only be refused after it was made."""
    delta = config.privacy.delta
    if config.privacy.is_private and delta is not None and data.devices >= 1 and delta * data.devices >= 1.0:
        raise OutOfRange(
            f"privacy.delta={delta:g}: must be below 1/population = {1 / data.devices:.3g}; "
            f"use e.g. privacy.delta={0.1 / data.devices:.1g}."
        )
    config.cohort.sampling_probability(data.devices)


def _validate_data(data: DataConfig) -> None:
    if isinstance(data, CityData):
        _between("data.seed", data.seed, -(2**63), 2**63 - 1)
        return
    _choice("data.fold_by", data.fold_by, ("dialogue", "user", "last_session"))
    if data.fold_by != "last_session":
        _at_least("data.folds", data.folds, 2)
    if data.fold_by == "last_session" and data.folds != 1:
        raise OutOfRange(f"data.folds={data.folds}: fold_by=last_session has exactly one split; set data.folds=1.")


def _validate_features(features: FeaturesConfig) -> None:
    for source in features.sources:
        _choice("features.sources", source, ("catalogue", "chat", "choices"))
    if not features.sources or len(set(features.sources)) != len(features.sources):
        raise OutOfRange(
            f"features.sources={list(features.sources)}: name each source once, e.g. [catalogue,chat,choices]."
        )


def _validate_privacy(privacy: PrivacyConfig) -> None:
    _positive("privacy.clip", privacy.clip)
    _validate_adaptive_clip(privacy)
    if not privacy.is_private:
        return
    if (privacy.epsilon is None) == (privacy.noise_multiplier is None):
        raise OutOfRange(
            f"privacy.epsilon={privacy.epsilon} and privacy.noise_multiplier={privacy.noise_multiplier}: "
            "give exactly one; the other follows from it."
        )
    if privacy.epsilon is not None:
        _positive("privacy.epsilon", privacy.epsilon)
        if privacy.epsilon > LARGEST_EPSILON:
            raise OutOfRange(
                f"privacy.epsilon={privacy.epsilon:g}: above {LARGEST_EPSILON:g} it promises nothing; "
                "use e.g. 3.0, or privacy=none."
            )
    if privacy.noise_multiplier is not None:
        _positive("privacy.noise_multiplier", privacy.noise_multiplier)
        _between("privacy.noise_multiplier", privacy.noise_multiplier, LEAST_NOISE, LARGEST_NOISE)
    if privacy.min_separation is None and privacy.mode != "gaussian":
        raise OutOfRange(
            f"privacy.min_separation=null: {privacy.mode} needs one, e.g. privacy.min_separation=20: a phone then "
            "takes part once in 20 rounds at most. Only privacy.mode=gaussian can sample without it."
        )
    if privacy.min_separation is not None:
        _at_least("privacy.min_separation", privacy.min_separation, 1)
    if privacy.max_participations is not None:
        if privacy.min_separation is None:
            raise OutOfRange(
                f"privacy.max_participations={privacy.max_participations}: Poisson sampling has no such limit; "
                "set privacy.min_separation too, or leave it null."
            )
        _at_least("privacy.max_participations", privacy.max_participations, 1)
    if privacy.delta is None or not 0.0 < privacy.delta < 1.0:
        raise OutOfRange(f"privacy.delta={privacy.delta}: must be in (0, 1) and below 1/population, e.g. 1e-4.")


def _validate_adaptive_clip(privacy: PrivacyConfig) -> None:
    adaptive = privacy.adaptive_clip
    if adaptive is None:
        return
    AdaptiveClipSettings(privacy.clip, adaptive.target_quantile, adaptive.learning_rate, adaptive.count_noise)
    if privacy.min_separation is not None or privacy.mode not in ("none", "gaussian"):
        raise OutOfRange(
            f"privacy.adaptive_clip: does not go with privacy.mode={privacy.mode} and a separation, whose noise is "
            "analysed for one sensitivity over all steps. Set it to null and choose privacy.clip, for instance from a "
            "short run beforehand that is charged on its own."
        )


def _validate_participations(config: ExperimentConfig) -> None:
    """In a simulation only the separation holds a phone back, so only the count that follows from it is believed."""
    b, k = config.privacy.min_separation, config.privacy.max_participations
    if b is None or k is None or config.runtime.fleet is not None:
        return
    most = -(-config.cohort.rounds // b)
    if k != most:
        raise OutOfRange(
            f"privacy.max_participations={k}: {config.cohort.rounds} rounds at min_separation={b} let a phone take "
            f"part {most} times, and nothing in a simulation counts further; leave it null. `fedlearn plan "
            "--participations-enforced` plans for phones that count."
        )


def _validate_ledger(config: ExperimentConfig) -> None:
    ledger = config.ledger
    if ledger.where is None:
        return
    if not config.privacy.is_private:
        raise OutOfRange("ledger.where: privacy=none spends nothing; leave ledger.where=null, or choose a privacy.")
    if urlsplit(ledger.where).password is not None:
        raise OutOfRange(
            "ledger.where: holds a password, which would be written into the run directory; leave it out and put it "
            "into ~/.pgpass or PGPASSWORD."
        )
    for name, value in (("purpose", ledger.purpose), ("epoch", ledger.epoch)):
        if not _NAME.fullmatch(value):
            raise OutOfRange(f"ledger.{name}={value!r}: 1-64 letters, digits, dots, dashes and underscores.")


def _validate_tracking(tracking: TrackingConfig) -> None:
    """Wherever the config goes, this goes: the run directory, SuperLink's database, backups."""
    if tracking.uri is None:
        return
    try:
        host = urlsplit(tracking.uri).netloc
    except ValueError:
        # whose words may quote it
        raise OutOfRange("tracking.uri: not an address, e.g. https://mlflow.example.org.") from None
    if "@" in host:
        raise OutOfRange(
            "tracking.uri: holds a user name or password, which would be written into the run directory; leave it out "
            "and put it into MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
        )


def _validate_runtime(runtime: RuntimeConfig) -> None:
    """``fedlearn_server.collect.Asking`` refuses the same, but loads Flower, and only once data was read."""
    _at_least("runtime.shards", runtime.shards, 1)
    _at_least("runtime.threads", runtime.threads, 1)
    _positive("runtime.deadline_s", runtime.deadline_s)
    if runtime.resend_s is not None:
        _positive("runtime.resend_s", runtime.resend_s)
    if not 0.0 < runtime.minimum <= runtime.enough <= 1.0:
        raise OutOfRange(
            f"runtime.minimum={runtime.minimum}, runtime.enough={runtime.enough}: need 0 < minimum <= enough <= 1."
        )
    _at_least("runtime.attempts", runtime.attempts, 1)
    if runtime.address is None and runtime.ca is None and runtime.token is None:
        return
    if runtime.address is None:
        field = "ca" if runtime.token is None else "token"
        raise OutOfRange(
            f"runtime.address=null: runtime.{field}={getattr(runtime, field)} is whose? Give runtime.address too, or "
            "neither: then it is the SuperLink of `fedlearn up`."
        )
    if runtime.ca is None:
        raise OutOfRange(
            f"runtime.ca=null: SuperLink at runtime.address={runtime.address} is spoken to over TLS only; name the PEM "
            "of its certificate's authority, e.g. runtime.ca=ca.crt."
        )
    found = _ADDRESS.fullmatch(runtime.address)
    if found is None or not 0 < int(found[2]) < 2**16:
        raise OutOfRange(f"runtime.address={runtime.address!r}: must be HOST:PORT, e.g. superlink.example.org:8000.")


def _validate_fleet(config: ExperimentConfig) -> None:
    """Phones that check in by themselves earn no amplification: only bounded participation is accepted for them."""
    fleet = config.runtime.fleet
    if (config.runtime.name == "fleet") != (fleet is not None):
        raise OutOfRange(
            f"runtime.name={config.runtime.name}, runtime.fleet={'null' if fleet is None else 'set'}: phones behind "
            "gateways need both, e.g. runtime=fleet runtime.fleet.bundle=city.task.flb; a simulation neither."
        )
    if fleet is None:
        return
    _at_least("runtime.fleet.population", fleet.population, 1)
    _at_least("runtime.fleet.round_size", fleet.round_size, 1)
    if fleet.round_size > fleet.population:
        raise OutOfRange(
            f"runtime.fleet.round_size={fleet.round_size}: over runtime.fleet.population={fleet.population}; no step "
            "could be released."
        )
    _positive("runtime.fleet.attempt_s", fleet.attempt_s)
    _positive("runtime.fleet.task_s", fleet.task_s)
    if not 1.0 <= fleet.over_selection <= 10.0:
        raise OutOfRange(f"runtime.fleet.over_selection={fleet.over_selection}: must be in [1, 10], e.g. 1.3.")
    if config.runtime.deadline_s < fleet.attempt_s:
        raise OutOfRange(
            f"runtime.deadline_s={config.runtime.deadline_s:g}: below runtime.fleet.attempt_s={fleet.attempt_s:g}, so "
            "that no gateway could answer; use at least twice as much."
        )
    if config.runtime.minimum != 1.0:
        raise OutOfRange(
            f"runtime.minimum={config.runtime.minimum}: every part holds its share of runtime.fleet.round_size, so all "
            "must be in a sum; set runtime.minimum=1."
        )
    privacy = config.privacy
    if privacy.is_private and privacy.min_separation is None:
        raise OutOfRange(
            f"privacy.mode={privacy.mode} without a separation: rests on secret sampling, and phones that check in by "
            "themselves are not sampled; choose e.g. privacy=blt."
        )
    if privacy.adaptive_clip is not None or config.client.example_privacy is not None:
        raise OutOfRange("privacy.adaptive_clip, client.example_privacy: the approved plan decides; leave them null.")
    if len(config.seeds) != 1 or config.evaluation.controls:
        raise OutOfRange(
            f"seeds={list(config.seeds)}, evaluation.controls={config.evaluation.controls}: phones train one model, "
            "and no control; set one seed and evaluation.controls=false."
        )


def _validate_cohort(cohort: CohortConfig) -> None:
    _at_least("cohort.rounds", cohort.rounds, 1)
    if (cohort.size is None) == (cohort.fraction is None):
        raise OutOfRange(
            f"cohort.size={cohort.size} and cohort.fraction={cohort.fraction}: give exactly one (the other null)."
        )
    if cohort.size is not None:
        _at_least("cohort.size", cohort.size, 1)
    if cohort.fraction is not None and not 0.0 < cohort.fraction <= 1.0:
        raise OutOfRange(
            f"cohort.fraction={cohort.fraction}: the sampling probability must be in (0, 1], e.g. cohort.fraction=0.5."
        )


def _choice(field: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise unknown(field, value, known)


def _at_least(field: str, value: int, least: int) -> None:
    if value < least:
        raise OutOfRange(f"{field}={value}: must be >= {least}, e.g. {field}={least}.")


def _positive(field: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0.0):
        raise OutOfRange(f"{field}={value}: must be finite and > 0, e.g. {field}=1.0.")


def _between(field: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise OutOfRange(f"{field}={value}: must be in [{low:g}, {high:g}].")

"""One training: from a config, a split and a seed to a model, over whatever runtime the config names."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from fedlearn.engine.optimizers import ServerOptimizer
from fedlearn.errors import OutOfRange
from fedlearn.lab.config import CohortConfig, ExperimentConfig, PrivacyConfig, RuntimeConfig
from fedlearn.lab.fleet import fleet_bundle, fleet_initial, fleet_terms
from fedlearn.lab.local_training import training_terms
from fedlearn.lab.prepare import Split, prepare
from fedlearn.lab.registry import build_model
from fedlearn.lab.shards import Roll, describe, open_simulated
from fedlearn.models.base import Parameters
from fedlearn.privacy.adaptive_clip import AdaptiveClipSettings
from fedlearn.privacy.plan import PrivacyPlan, PrivacySettings, make_plan
from fedlearn.terms import CohortSchedule

# Flower reports usage to its vendor unless told not to before it is first imported.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

from fedlearn_server.app import make_client_app, make_server_app
from fedlearn_server.checkpoint import load_model
from fedlearn_server.collect import Asking
from fedlearn_server.grids.in_process import run_in_process
from fedlearn_server.grids.ray import require_ray, run_ray
from fedlearn_server.job import ServerOptimizerSettings, SharedLedger, TrainingJob
from fedlearn_server.round import Observer

RUNTIMES = {"in_process": run_in_process, "ray": run_ray}
SUPERLINK = "superlink"
FLEET = "fleet"
SUBMITTED = (SUPERLINK, FLEET)
"""Runtimes whose ServerApp is another process: ``fedlearn.lab.superlink`` submits to it and follows it."""


@dataclass(frozen=True, slots=True)
class Training:
    """One training of a study.

    Args:
        config: the experiment; a control may differ from the study's in privacy or sources.
        split: phones and rows.
        seed: of the simulation.
        run_id: names the training and its secret state.
        directory: holds its checkpoint, ledger and metrics.
        width: number of features.
    """

    config: ExperimentConfig
    split: Split = field(repr=False)
    seed: int
    run_id: str
    directory: Path
    width: int

    @property
    def plan(self) -> PrivacyPlan | None:
        """The privacy plan, calibrated and cached; None without privacy."""
        return plan_for(self.config, self.population)

    @property
    def population(self) -> int:
        """Phones that may take part: those of the split, or those behind gateways."""
        fleet = self.config.runtime.fleet
        return len(self.split.devices) if fleet is None else fleet.population

    def calibrate(self) -> None:
        """Make the plan now; raises OutOfRange or CannotCalibrate if it cannot be."""
        plan = self.plan
        adaptive_clip_for(self.config.privacy, plan)
        if self.config.runtime.fleet is not None:
            fleet_terms(self.config, self.run_id, plan)


def plan_for(config: ExperimentConfig, population: int) -> PrivacyPlan | None:
    """Return the plan of one training over ``population`` phones, or None with ``privacy=none``."""
    return _plan(config.privacy, config.cohort, population, counted=config.runtime.fleet is not None)


@lru_cache(maxsize=16)
def _plan(privacy: PrivacyConfig, cohort: CohortConfig, population: int, *, counted: bool) -> PrivacyPlan | None:
    if not privacy.is_private:
        return None
    if privacy.delta is None:
        raise OutOfRange("privacy.delta=None: a private run needs one, below 1/population, e.g. 1e-4.")
    settings = PrivacySettings(
        delta=privacy.delta,
        l2_clip_norm=privacy.clip,
        epsilon=privacy.epsilon,
        noise_multiplier=privacy.noise_multiplier,
        mechanism=privacy.mode,
        min_separation=privacy.min_separation,
        max_participations=privacy.max_participations,
        participations_enforced=counted,
    )
    q = cohort.sampling_probability(population)
    return make_plan(settings, population=population, rounds=cohort.rounds, cohort=q * population)


def without_privacy(config: ExperimentConfig) -> ExperimentConfig:
    """Return the same experiment with nothing protected, the same phones taking part: a control."""
    privacy = replace(config.privacy, mode="none", epsilon=None, delta=None, noise_multiplier=None)
    runtime = config.runtime
    if runtime.name == SUPERLINK:
        # the model is the same anywhere, and the other controls are trained here too
        runtime = replace(runtime, name="in_process", resend_s=None)
    return replace(config, privacy=privacy, runtime=runtime, ledger=replace(config.ledger, where=None))


def schedule_for(config: ExperimentConfig, population: int) -> CohortSchedule | None:
    """Return who takes part when, where participation is bounded; None where cohorts are sampled.

    The expected cohort decides how often a phone is available in a step of its phase.
    """
    b = config.privacy.min_separation
    if b is None:
        return None
    cohort = config.cohort.sampling_probability(population) * population
    if cohort * b > population * (1 + 1e-9):
        raise OutOfRange(
            f"cohort of {cohort:g} x privacy.min_separation={b} > population {population}: a phone takes part once in "
            f"{b} rounds at most; use cohort.fraction <= {1 / b:.4g}, or a smaller separation."
        )
    return CohortSchedule(b, min(1.0, cohort * b / population))


def adaptive_clip_for(privacy: PrivacyConfig, plan: PrivacyPlan | None) -> AdaptiveClipSettings | None:
    """Return how the clip moves, or None; raises OutOfRange if the plan's noise leaves no room for the count's."""
    adaptive = privacy.adaptive_clip
    if adaptive is None:
        return None
    settings = AdaptiveClipSettings(
        privacy.clip, adaptive.target_quantile, adaptive.learning_rate, adaptive.count_noise
    )
    settings.ratio(None if plan is None else plan.noise_multiplier)
    return settings


def run_training(training: Training, observe: Observer) -> Parameters:
    """Run or resume one training over a runtime of this process and return its model."""
    config = training.config
    job = make_job(training)
    server_app = make_server_app(job, observe)
    client_app = make_client_app(lambda: open_simulated)
    RUNTIMES[config.runtime.name](server_app, client_app, config.runtime.shards)
    return load_model(training.directory)


def make_job(training: Training) -> TrainingJob:
    """Return what the server needs to know."""
    config = training.config
    population = training.population
    plan = training.plan
    ledger = config.ledger
    fleet = config.runtime.fleet
    model = build_model(config.model, training.width)
    optimizer = config.server_opt
    return TrainingJob(
        run_id=training.run_id,
        directory=training.directory,
        rounds=config.cohort.rounds,
        population=population,
        shards=config.runtime.shards,
        sampling_probability=(
            config.cohort.sampling_probability(population)
            if plan is None or plan.sampling_probability is None
            else plan.sampling_probability
        ),
        participation=schedule_for(config, population),
        l2_clip_norm=config.privacy.clip,
        seed=training.seed,
        training=training_terms(config.client),
        initial=model.initial(training.seed) if fleet is None else fleet_initial(fleet_bundle(fleet)),
        optimizer=ServerOptimizerSettings(
            optimizer.name, optimizer.learning_rate, dict(optimizer.options), optimizer.average_last
        ),
        plan=plan,
        ledger=None if ledger.where is None else SharedLedger(ledger.where, ledger.purpose, ledger.epoch),
        asking=asking_of(config.runtime),
        cohort=(
            describe(config, training.split.fold, Roll.of(prepare(config.data), training.split))
            if fleet is None
            else fleet_terms(config, training.run_id, plan).to_json()
        ),
        gateways=fleet is not None,
        round_size=1 if fleet is None else fleet.round_size,
        adaptive_clip=adaptive_clip_for(config.privacy, plan),
    )


def asking_of(runtime: RuntimeConfig) -> Asking:
    """Return how a round asks its nodes; raises OutOfRange naming the field."""
    return Asking(runtime.deadline_s, runtime.resend_s, runtime.enough, runtime.minimum, runtime.attempts)


def check_server_optimizer(config: ExperimentConfig) -> None:
    """Raise UnknownSetting or OutOfRange if the server's optimizer cannot be built."""
    settings = config.server_opt
    ServerOptimizer(settings.name, settings.learning_rate, dict(settings.options))


def check_runtime(config: ExperimentConfig) -> None:
    """Refuse, before any work, a runtime that is not there.

    Raises:
        MissingDependency: its package is not installed.
        DeploymentRefused, SuperLinkUnreachable, SuperLinkRefused: no SuperLink answers; the message says what to do.
    """
    if config.runtime.name == "ray":
        require_ray()
    if config.runtime.name in SUBMITTED:
        from fedlearn.lab.superlink.line import Line  # noqa: PLC0415 - the operator's side of Flower

        Line(config.runtime).check()

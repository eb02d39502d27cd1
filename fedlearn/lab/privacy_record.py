"""What a study spent, read back from its ledgers: never from the config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fedlearn.errors import LedgerDamaged
from fedlearn.lab.config import ExperimentConfig, FleetConfig
from fedlearn.lab.fleet import fleet_bundle
from fedlearn.lab.study import Study
from fedlearn.lab.training import SUBMITTED, Training
from fedlearn.ledger import LEDGER_FILE, Ledger, book_of
from fedlearn.ledger.runs import RunState, total
from fedlearn.policy.document import PopulationKind
from fedlearn.privacy.accountants import accounting_for, epsilon
from fedlearn.privacy.events import Event, event_to_json
from fedlearn.privacy.example_level import EXAMPLE_LEVEL, example_epsilon
from fedlearn.privacy.participation import most_participations
from fedlearn.privacy.plan import PrivacyPlan
from fedlearn.report.fleet_guarantee import fleet_assurances, fleet_trusted, fleet_unprotected
from fedlearn.report.guarantee import (
    SIMULATION_STAMP,
    AllPublished,
    BoundedParticipation,
    Charges,
    ExampleLevel,
    Measured,
    Population,
    PrivacyMode,
    PrivacyRecord,
    Sampling,
    SpentEvent,
    caveat_for,
    default_assurances,
    default_trusted,
    default_unprotected,
    figure,
    guarantee_sentence,
)
from fedlearn.report.rounds import RoundRecord
from fedlearn.report.view import capitalised
from fedlearn_server.account import planned
from fedlearn_server.checkpoint import published_digest

Spend = tuple[tuple[Event, int], ...]

UNPROTECTED_DELTA = 1e-5
"""Delta of the example-level figure where the run itself has none."""


def privacy_record(study: Study, rounds: Sequence[RoundRecord]) -> PrivacyRecord:
    """Return the privacy of the study's headline, recomputed from what its ledgers hold.

    With several trainings, epsilon is the largest of any one model; what holds if all are published is composed over
    every charge of all of them.
    """
    config = study.config
    headline = study.arms[0]
    trainings = [training for arm, training in study.trainings() if arm.headline]
    population = min(training.population for training in trainings)
    if not config.privacy.is_private:
        return _unprotected(study, population, rounds)
    plan = max((t.plan for t in trainings if t.plan is not None), key=lambda p: p.certified_epsilon)
    spends, charges = _read_ledgers(trainings)
    relation = plan.neighboring_relation
    each = [epsilon(spend, plan.delta, neighboring_relation=relation) for spend in dict.fromkeys(spends)]
    together = _composed(spends)
    everything = epsilon(together, plan.delta, neighboring_relation=relation)
    words = str(relation).replace("_", "-")
    mode = PrivacyMode(plan.mechanism)
    participation = _participation(plan)
    accounting = accounting_for(together, relation)
    adaptive = config.privacy.adaptive_clip is not None
    record = PrivacyRecord(
        mode=mode,
        population=Population.SIMULATED,
        devices=population,
        epsilon=max(each),
        delta=plan.delta,
        unit=str(plan.unit),
        neighboring_relation=words,
        mechanism=_mechanism(plan, adaptive=adaptive),
        noise_multiplier=plan.noise_multiplier,
        l2_clip_norm=plan.l2_clip_norm,
        sampling=_sampling(plan.sampling, plan.sampling_probability, population, headline.name, rounds),
        accountant=accounting.accountant,
        conversion=accounting.conversion,
        trusted=default_trusted(mode, relayed=_is_relayed(config)),
        unprotected=default_unprotected(),
        stamp=SIMULATION_STAMP,
        caveat=caveat_for(population, plan.delta),
        guarantee=guarantee_sentence(max(each), plan.delta, str(plan.unit), words),
        assurances=default_assurances(
            mode,
            Population.SIMULATED,
            charges,
            plan.l2_clip_norm,
            participation,
            adaptive=adaptive,
            relayed=_is_relayed(config),
            enough=config.runtime.enough,
        ),
        if_all_published=AllPublished(len(spends), everything) if len(spends) > 1 else None,
        charges=charges,
        participation=participation,
        spend=tuple(SpentEvent(event_to_json(event), count) for event, count in together),
        cross_check=accounting.cross_check,
        example_level=_example_level(config, plan.delta),
    )
    fleet = config.runtime.fleet
    return record if fleet is None else _of_fleet(record, fleet)


def _of_fleet(record: PrivacyRecord, fleet: FleetConfig) -> PrivacyRecord:
    """Return the record of phones that took part by themselves; whether they are simulated their policy says."""
    enrolled = fleet_bundle(fleet).verified.policy.population.kind is PopulationKind.ENROLLED
    if record.participation is None or record.charges is None or record.l2_clip_norm is None:
        raise LedgerDamaged("runtime.fleet: no charges, or no participation bounds; no epsilon can be stated.")
    return replace(
        record,
        population=Population.ENROLLED if enrolled else Population.SIMULATED,
        stamp=None if enrolled else SIMULATION_STAMP,
        trusted=fleet_trusted(),
        unprotected=fleet_unprotected(),
        assurances=fleet_assurances(record.charges, record.l2_clip_norm, record.participation),
    )


def _is_relayed(config: ExperimentConfig) -> bool:
    return config.runtime.name in SUBMITTED


_BOUNDED = {
    "gaussian": "independent Gaussian noise in every step",
    "blt": "correlated Gaussian noise, buffered linear Toeplitz (BLT)",
    "banded": "correlated Gaussian noise, banded Toeplitz",
    "tree": "correlated Gaussian noise, binary trees",
}


def _mechanism(plan: PrivacyPlan, *, adaptive: bool) -> str:
    if plan.participation is None:
        clip = "; the clip below is the first round's, later ones follow from releases" if adaptive else ""
        return f"Gaussian on an integer grid, exact sampler, Poisson-sampled cohorts{clip}"
    return f"{_BOUNDED[plan.mechanism]}, on an integer grid, exact sampler, bounded participation"


def _example_level(config: ExperimentConfig, delta: float) -> ExampleLevel | None:
    """Return what the phones' own noise promises about one example, for a phone that joins as often as it may."""
    layer = config.client.example_privacy
    if layer is None:
        return None
    rounds, b = config.cohort.rounds, config.privacy.min_separation
    participations = rounds if b is None else most_participations(rounds, b)
    spent = example_epsilon(layer.noise_multiplier, participations, config.client.epochs, delta)
    words = (
        f"epsilon {figure(spent)} at delta {figure(delta)} for one example of a phone that joins {participations} "
        f"rounds (zero-out). {capitalised(EXAMPLE_LEVEL)}."
    )
    return ExampleLevel(spent, delta, words)


def _participation(plan: PrivacyPlan) -> BoundedParticipation | None:
    if plan.participation is None:
        return None
    bounds = plan.participation
    return BoundedParticipation(bounds.min_separation, bounds.max_participations, plan.sensitivity)


def _unprotected(study: Study, population: int, rounds: Sequence[RoundRecord]) -> PrivacyRecord:
    clip = study.config.privacy.clip
    q = study.config.cohort.sampling_probability(population)
    relayed = _is_relayed(study.config)
    return PrivacyRecord(
        mode=PrivacyMode.NONE,
        population=Population.SIMULATED,
        devices=population,
        epsilon=None,
        delta=None,
        unit="device",
        neighboring_relation=None,
        mechanism=None,
        noise_multiplier=None,
        l2_clip_norm=clip,
        sampling=_sampling("seeded draws, not secret", q, population, study.arms[0].name, rounds),
        accountant=None,
        conversion=None,
        trusted=default_trusted(PrivacyMode.NONE, relayed=relayed),
        unprotected=("everything: the model itself", *default_unprotected()),
        stamp=SIMULATION_STAMP,
        caveat=caveat_for(population, None),
        guarantee=guarantee_sentence(None, None),
        assurances=default_assurances(PrivacyMode.NONE, Population.SIMULATED, None, clip, relayed=relayed),
        if_all_published=None,
        charges=None,
        example_level=_example_level(study.config, UNPROTECTED_DELTA),
    )


def _sampling(method: str, q: float | None, population: int, model: str, rounds: Sequence[RoundRecord]) -> Sampling:
    cohorts = [r.cohort for r in rounds if r.model == model and r.cohort is not None]
    realised = Measured(sum(cohorts) / (len(cohorts) * population)) if cohorts else None
    return Sampling(method, q, realised)


def _read_ledgers(trainings: Sequence[Training]) -> tuple[list[Spend], Charges]:
    states = [_own_run(training) for training in trainings]
    charged = sum(len(state.charges) for state in states)
    committed = sum(len(state.commits) for state in states)
    spends = [tuple((part.event, part.count) for part in total(state.spent)) for state in states]
    return spends, Charges(charged, committed, charged - committed)


def _own_run(training: Training) -> RunState:
    """Return what the training's ledger says of it; refuse one that is another's or does not end with its model."""
    shared = training.config.ledger.where
    place = training.directory / LEDGER_FILE if shared is None else shared
    book, plan = book_of(Ledger.read(place)), training.plan
    state, scope = book.runs.get(training.run_id), book.required_scope
    commits = [] if state is None else [entry.published_digest for entry in state.commits.values()]
    if (
        plan is None
        or state is None
        or scope.neighboring_relation is not plan.neighboring_relation
        or (shared is None and scope.delta != plan.delta)
        or state.opened.plan != planned(plan)
        or not commits
        or commits[-1] != published_digest(training.directory)
    ):
        raise LedgerDamaged(
            f"{place}: not the ledger of the training beside it; no epsilon can be stated. Train anew in another "
            "directory."
        )
    return state


def _composed(spends: Sequence[Spend]) -> Spend:
    counts: dict[Event, int] = {}
    for spend in spends:
        for event, count in spend:
            counts[event] = counts.get(event, 0) + count
    return tuple(counts.items())

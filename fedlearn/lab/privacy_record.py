"""What a study spent, read back from its ledgers: never from the config."""

from __future__ import annotations

from collections.abc import Sequence

from fedlearn.errors import LedgerDamaged
from fedlearn.lab.study import Study
from fedlearn.lab.training import Training
from fedlearn.ledger import LEDGER_FILE, Budget, Charged, Committed, Entry, Ledger, Opened
from fedlearn.privacy import PoissonGaussian
from fedlearn.privacy.accountants import accounting_version, epsilon
from fedlearn.report.guarantee import (
    SIMULATION_STAMP,
    AllPublished,
    Charges,
    Measured,
    Population,
    PrivacyMode,
    PrivacyRecord,
    Sampling,
    caveat_for,
    default_assurances,
    default_trusted,
    default_unprotected,
    guarantee_sentence,
)
from fedlearn.report.rounds import RoundRecord
from fedlearn_server.checkpoint import published_digest

Spend = tuple[tuple[PoissonGaussian, int], ...]


def privacy_record(study: Study, rounds: Sequence[RoundRecord]) -> PrivacyRecord:
    """Return the privacy of the study's headline, recomputed from what its ledgers hold.

    With several trainings, epsilon is the largest of any one model; what holds if all are published is composed over
    every charge of all of them.
    """
    config = study.config
    headline = study.arms[0]
    trainings = [training for arm, training in study.trainings() if arm.headline]
    population = min(len(training.split.devices) for training in trainings)
    if not config.privacy.is_private:
        return _unprotected(study, population, rounds)
    plan = max((t.plan for t in trainings if t.plan is not None), key=lambda p: p.certified_epsilon)
    spends, charges = _read_ledgers(trainings)
    each = [epsilon(spend, plan.delta) for spend in dict.fromkeys(spends)]
    together = _composed(spends)
    return PrivacyRecord(
        mode=PrivacyMode.GAUSSIAN,
        population=Population.SIMULATED,
        devices=population,
        epsilon=max(each),
        delta=plan.delta,
        unit=str(plan.unit),
        neighboring_relation=str(plan.neighboring_relation).replace("_", "-"),
        mechanism="Gaussian on an integer grid, floating-point sampler, Poisson-sampled cohorts",
        noise_multiplier=plan.noise_multiplier,
        l2_clip_norm=plan.l2_clip_norm,
        sampling=_sampling(plan.sampling, plan.sampling_probability, population, headline.name, rounds),
        accountant=f"dp-accounting {accounting_version()}, PLD",
        conversion=plan.conversion,
        trusted=default_trusted(PrivacyMode.GAUSSIAN),
        unprotected=default_unprotected(),
        stamp=SIMULATION_STAMP,
        caveat=caveat_for(population, plan.delta),
        guarantee=guarantee_sentence(max(each), plan.delta),
        assurances=default_assurances(PrivacyMode.GAUSSIAN, Population.SIMULATED, charges, plan.l2_clip_norm),
        if_all_published=AllPublished(len(spends), epsilon(together, plan.delta)) if len(spends) > 1 else None,
        charges=charges,
    )


def _unprotected(study: Study, population: int, rounds: Sequence[RoundRecord]) -> PrivacyRecord:
    clip = study.config.privacy.clip
    q = study.config.cohort.sampling_probability(population)
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
        trusted=default_trusted(PrivacyMode.NONE),
        unprotected=("everything: the model itself", *default_unprotected()),
        stamp=SIMULATION_STAMP,
        caveat=caveat_for(population, None),
        guarantee=guarantee_sentence(None, None),
        assurances=default_assurances(PrivacyMode.NONE, Population.SIMULATED, None, clip),
        if_all_published=None,
        charges=None,
    )


def _sampling(method: str, q: float, population: int, model: str, rounds: Sequence[RoundRecord]) -> Sampling:
    cohorts = [record.cohort for record in rounds if record.model == model]
    realised = Measured(sum(cohorts) / (len(cohorts) * population)) if cohorts else None
    return Sampling(method, q, realised)


def _read_ledgers(trainings: Sequence[Training]) -> tuple[list[Spend], Charges]:
    spends: list[Spend] = []
    total = committed = 0
    for training in trainings:
        entries = Ledger.read(training.directory / LEDGER_FILE)
        _check_own(training, entries)
        charged = [entry for entry in entries if isinstance(entry, Charged)]
        total += len(charged)
        committed += sum(isinstance(entry, Committed) for entry in entries)
        spends.append(_composed([((entry.event, 1),) for entry in charged]))
    return spends, Charges(total, committed, total - committed)


def _check_own(training: Training, entries: Sequence[Entry]) -> None:
    """Refuse a ledger that is another run's, or that does not end with the model in the directory."""
    opened = next(entry for entry in entries if isinstance(entry, Opened))
    commits = [entry.published_digest for entry in entries if isinstance(entry, Committed)]
    plan = training.plan
    own = plan is not None and opened.budget == Budget.of(plan, training.run_id)
    if not own or not commits or commits[-1] != published_digest(training.directory):
        raise LedgerDamaged(
            f"{training.directory / LEDGER_FILE}: not the ledger of the training beside it; no epsilon can be stated. "
            "Train anew in another directory."
        )


def _composed(spends: Sequence[Spend]) -> Spend:
    counts: dict[PoissonGaussian, int] = {}
    for spend in spends:
        for event, count in spend:
            counts[event] = counts.get(event, 0) + count
    return tuple(counts.items())

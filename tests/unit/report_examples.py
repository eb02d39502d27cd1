"""Summaries and rounds as a run would leave them, with invented figures. Loaded by path: tests are no package."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedlearn.errors import Reason
from fedlearn.privacy.events import PoissonGaussian, event_to_json
from fedlearn.report.guarantee import (
    SIMULATION_STAMP,
    AllPublished,
    Charges,
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
    guarantee_sentence,
)
from fedlearn.report.rounds import Evaluation, RoundRecord, write_rounds
from fedlearn.report.summary import (
    ROUNDS_FILE,
    SUMMARY_FILE,
    Digests,
    EvaluationProtocol,
    Expectation,
    FoldValue,
    GapClosed,
    Lift,
    MetricResult,
    ModelKind,
    ModelRow,
    Rejections,
    Setting,
    Summary,
    WallTime,
    write_summary,
)

SEEDS = (0, 1, 2, 3, 4)


def metric(name: str, mean: float, half: float = 0.015, seeds=SEEDS) -> MetricResult:
    """A metric whose seeds lie around its mean."""
    values = tuple(FoldValue(s, 0, mean + half * math.sin(1.0 + 2.3 * s) / 2) for s in seeds)
    return MetricResult(name, mean, mean - half, mean + half, values)


def row(name, kind, quality, note="", *, epsilon=None) -> ModelRow:
    hr, ndcg, mrr = quality
    metrics = (metric("HR@10", hr), metric("NDCG@10", ndcg, 0.012), metric("MRR", mrr, 0.011))
    return ModelRow(name, kind, epsilon is not None, epsilon, metrics, note)


def no_privacy(devices: int = 1_000) -> PrivacyRecord:
    return PrivacyRecord(
        mode=PrivacyMode.NONE,
        population=Population.SIMULATED,
        devices=devices,
        epsilon=None,
        delta=None,
        unit="device",
        neighboring_relation=None,
        mechanism=None,
        noise_multiplier=None,
        l2_clip_norm=None,
        sampling=Sampling("fixed cohort, seeded", None, None),
        accountant=None,
        conversion=None,
        trusted=default_trusted(PrivacyMode.NONE),
        unprotected=(*default_unprotected(), "The model itself."),
        stamp=SIMULATION_STAMP,
        caveat=caveat_for(devices, None),
        guarantee=guarantee_sentence(None, None),
        assurances=default_assurances(PrivacyMode.NONE, Population.SIMULATED, None, None),
        if_all_published=None,
        charges=None,
    )


def gaussian(epsilon: float = 2.981, delta: float = 1e-4, devices: int = 1_000) -> PrivacyRecord:
    charges = Charges(80, 79, 1)
    return PrivacyRecord(
        mode=PrivacyMode.GAUSSIAN,
        population=Population.SIMULATED,
        devices=devices,
        epsilon=epsilon,
        delta=delta,
        unit="device",
        neighboring_relation="add-or-remove",
        mechanism="Gaussian, Poisson-subsampled",
        noise_multiplier=1.873,
        l2_clip_norm=0.5,
        sampling=Sampling("Poisson, secret draws per device and round", 0.1, Measured(0.1013)),
        accountant="dp-accounting 0.6.0, PLD, h=1e-4",
        conversion="hockey-stick divergence of the PLD",
        trusted=default_trusted(PrivacyMode.GAUSSIAN),
        unprotected=default_unprotected(),
        stamp=SIMULATION_STAMP,
        caveat=caveat_for(devices, delta),
        guarantee=guarantee_sentence(epsilon, delta),
        assurances=default_assurances(PrivacyMode.GAUSSIAN, Population.SIMULATED, charges, 0.5),
        if_all_published=AllPublished(5, 9.23),
        charges=charges,
        spend=(SpentEvent(event_to_json(PoissonGaussian(1.873, 0.1)), 80),),
    )


HEADLINE = "federated, epsilon 3"
PLAIN = "federated without privacy"


def summary(privacy: PrivacyRecord | None = None, **changes) -> Summary:
    """The demo's summary."""
    privacy = gaussian() if privacy is None else privacy
    private = privacy.epsilon is not None
    models = (
        row("popularity", ModelKind.CONTROL, (0.162, 0.091, 0.083)),
        row("BM25", ModelKind.CONTROL, (0.408, 0.244, 0.215), "last message only"),
        row("local-only", ModelKind.CONTROL, (0.391, 0.231, 0.207), "trained on each phone alone"),
        row(PLAIN, ModelKind.FEDERATED, (0.668, 0.451, 0.401), "non-private control"),
        *((row(HEADLINE, ModelKind.FEDERATED, (0.642, 0.428, 0.380), epsilon=privacy.epsilon),) if private else ()),
        row("central", ModelKind.REFERENCE, (0.671, 0.455, 0.404), "trained in one place without privacy"),
        row("oracle", ModelKind.REFERENCE, (0.712, 0.497, 0.441), "sees what a device sees, knows the city"),
    )
    headline = HEADLINE if private else PLAIN
    method = "paired bootstrap over users, 95 %"
    fields = {
        "schema_version": 2,
        "run_id": "city_quick-20260131-120000",
        "created": "2026-01-31T12:00:00Z",
        "command": "fedlearn train experiment=city_quick privacy.epsilon=3",
        "code_version": "0.1.0+sha256.4be1d0c2",
        "task": "chat to restaurant",
        "data": "CrossApp-Sim, 1,000 phones, rho 0.6",
        "split": "last choice per device held out",
        "protocol": EvaluationProtocol("all 600 items", "ties count against the positive"),
        "seeds": SEEDS,
        "folds": 1,
        "headline": headline,
        "models": models,
        "lifts": (
            Lift("other apps' signals", "HR@10", 0.061, 0.043, 0.080, method, 1000, Expectation.POSITIVE),
            Lift("placebo source", "HR@10", 0.002, -0.007, 0.011, method, 1000, Expectation.ZERO),
            Lift("shuffled chat", "HR@10", -0.231, -0.262, -0.199, method, 1000, Expectation.OPEN),
        ),
        "gaps": (
            *((GapClosed(headline, "popularity", "oracle", "HR@10", 0.873, 0.82, 0.92),) if private else ()),
            GapClosed(PLAIN, "popularity", "oracle", "HR@10", 0.92, 0.88, 0.96),
        ),
        "privacy": privacy,
        "digests": Digests("4be1d0c2" * 8, "90ac77f1" * 8, "17e5b3aa" * 8, "c0de0123" * 8),
        "rejected": (Rejections(Reason.NOT_FINITE, 2),),
        "wall": (WallTime("data", 4.1), WallTime("calibrate", 2.0), WallTime("train", 21.7), WallTime("evaluate", 6.3)),
        "settings": (
            Setting("data", "city"),
            Setting("data.rho", "0.6"),
            Setting("model", "match"),
            Setting("privacy.epsilon", "null" if privacy.epsilon is None else f"{privacy.epsilon:g}"),
            Setting("server_opt.lr", "0.5"),
        ),
    }
    return Summary(**{**fields, **changes})


def rounds(run: Summary, count: int = 40) -> tuple[RoundRecord, ...]:
    """Rounds of every federated row and seed."""
    rng = np.random.default_rng(7)
    out = []
    for model in (m for m in run.models if m.kind is ModelKind.FEDERATED):
        final = model.metrics[0].mean
        for seed in run.seeds:
            for t in range(count):
                rise = 1 - math.exp(-t / 8)
                noisy = 0.012 if model.protected else 0.004
                every = t % 5 == 4 or t == 0
                hr = 0.16 + (final - 0.16) * rise + rng.normal(0, noisy)
                out.append(
                    RoundRecord(
                        model=model.name,
                        seed=seed,
                        fold=0,
                        round=t,
                        step=t,
                        loss=4.16 - 1.7 * rise + rng.normal(0, 0.03),
                        cohort=int(rng.binomial(1000, 0.1)),
                        clipped_fraction=min(1.0, 0.35 + 0.4 * math.exp(-t / 6) + rng.normal(0, 0.02)),
                        signal_to_noise=(3.2 * math.exp(-t / 9) + 0.5 + abs(rng.normal(0, 0.1)))
                        if model.protected
                        else None,
                        clip=0.1,
                        update_norm=0.2 * math.exp(-t / 10) + 0.02,
                        epsilon=model.epsilon * math.sqrt((t + 1) / count) if model.epsilon is not None else None,
                        rejected={Reason.OVER_NORM: 1} if t == 3 else {},
                        evaluation=(Evaluation("HR@10", hr),) if every else (),
                        seconds=0.11,
                    )
                )
    return tuple(out)


def run_dir(folder: Path, name: str, run: Summary) -> Path:
    """Write a run directory as training would."""
    path = folder / name
    path.mkdir(parents=True)
    write_summary(path / SUMMARY_FILE, run)
    write_rounds(path / ROUNDS_FILE, rounds(run, 6))
    return path


def at_epsilon(epsilon: float, quality: float, task: str = "chat to restaurant", **changes) -> Summary:
    """The demo's summary at another epsilon, with another quality of the headline model."""
    base = summary(gaussian(epsilon))
    name = f"federated, epsilon {epsilon:g}"
    models = tuple(
        replace(m, name=name, epsilon=epsilon, metrics=(metric("HR@10", quality), metric("NDCG@10", quality * 0.66)))
        if m.name == HEADLINE
        else m
        for m in base.models
    )
    return replace(base, models=models, headline=name, task=task, gaps=(), run_id=f"eps-{epsilon:g}", **changes)

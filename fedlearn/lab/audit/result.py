"""One audit: simulate, estimate, bound, probe, and say what follows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedlearn.lab.audit.estimate import (
    CONFIDENCE,
    GUESSED_PARTS,
    GaussianEstimate,
    LowerBound,
    gaussian_estimate,
    lower_bound,
)
from fedlearn.lab.audit.pipeline import Pipeline
from fedlearn.lab.audit.probes import ProbeResult, run_probes, unpaid
from fedlearn.lab.audit.simulation import AuditConfig, Observations, OnRound, simulate
from fedlearn.lab.code import code_version
from fedlearn.privacy.accountants import epsilon
from fedlearn.privacy.events import PoissonGaussian
from fedlearn.privacy.gaussian import gaussian_epsilon
from fedlearn.types import F64

PROTOCOL: Final[Mapping[str, object]] = {
    "unit": "one canary phone; it belongs to one round and takes part in it by a fair coin",
    "relation": "add-or-remove: the coin decides whether its update is in the sum",
    "canary": "a random direction, ten times as long as the clip norm before clipping",
    "every round": "the auditor sees every released mean, and knows all directions and rounds",
    "final model": "the auditor sees the change of the model over the whole training only",
    "score": "sqrt(parameters) x cosine; N(0, 1) for a canary that took no part",
    "estimate": "two normals of variance 1 (Andrew et al. 2023), with a 95 % interval; no bound",
    "bound": "guesses in one run (Steinke, Nasr and Jagielski 2023, cor. 5.4), 95 % confidence, best of the parts",
    "guessed parts": list(GUESSED_PARTS),
    "confidence": CONFIDENCE,
    "seeded": "data, canaries, coins; the noise comes from the operating system and differs in each audit",
}


class Verdict(StrEnum):
    """What an audit ends with."""

    FINE = "fine"
    WARNING = "warning"
    ALARM = "alarm"


@dataclass(frozen=True, slots=True)
class View:
    """Figures for one kind of auditor.

    Args:
        name: what the auditor sees: ``every round`` or ``final model``.
        estimate: by equal-variance normals.
        bound: valid at 95 %.
        scores: f64[m] of every canary.
    """

    name: str
    estimate: GaussianEstimate
    bound: LowerBound
    scores: F64 = field(repr=False)


@dataclass(frozen=True, slots=True)
class AuditResult:
    """What one audit found.

    Args:
        config: what was simulated.
        code: version and source digest of what ran.
        analytic_epsilon: what the accountant of record says of one participation, all rounds seen.
        final_epsilon: what it would be if nothing but the sum of all rounds' noise and means were ever seen; no claim.
        views: figures by auditor; empty if the training broke down.
        included: bool[m], which canaries took part.
        probes: what the structural probes found.
    """

    config: AuditConfig
    code: str
    analytic_epsilon: float
    final_epsilon: float
    views: tuple[View, ...]
    included: NDArray[np.bool_] = field(repr=False)
    probes: tuple[ProbeResult, ...]

    @property
    def alarms(self) -> tuple[str, ...]:
        """What cannot be if the path does what is claimed (at 95 % confidence for a bound)."""
        over = [
            f"{view.name}: the lower bound {view.bound.epsilon:.2f} exceeds the analytic {self.analytic_epsilon:.2f}"
            for view in self.views
            if view.bound.epsilon > self.analytic_epsilon
        ]
        return (*over, *(f"{probe.name}: {probe.problem}" for probe in self.probes if not probe.passed))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is unlikely if the path does what is claimed."""
        return tuple(
            f"{view.name}: the whole interval of the estimate, from {view.estimate.low:.2f}, "
            f"exceeds the analytic {self.analytic_epsilon:.2f}"
            for view in self.views
            if view.estimate.low > self.analytic_epsilon
        )

    @property
    def verdict(self) -> Verdict:
        """The worst of what was found."""
        if self.alarms:
            return Verdict.ALARM
        return Verdict.WARNING if self.warnings else Verdict.FINE

    def to_json(self) -> dict[str, Any]:
        """Return everything but the single scores, as plain JSON types."""
        return {
            "kind": "audit",
            "config": asdict(self.config),
            "code": self.code,
            "protocol": dict(PROTOCOL),
            "population": "simulated; says nothing about any person",
            "verdict": self.verdict.value,
            "alarms": list(self.alarms),
            "warnings": list(self.warnings),
            "analytic_epsilon": self.analytic_epsilon,
            "final_epsilon": self.final_epsilon,
            "canaries_included": int(self.included.sum()),
            "views": {
                view.name: {"estimate": asdict(view.estimate), "bound": asdict(view.bound)} for view in self.views
            },
            "probes": [{**asdict(probe), "passed": probe.passed} for probe in self.probes],
        }


def audit(config: AuditConfig, pipeline: Pipeline | None = None, on_round: OnRound | None = None) -> AuditResult:
    """Audit the private path in simulation.

    Honest limits: it can show that a path leaks more than is claimed, never that it does not. It sees the faults that
    its canaries and probes excite, in a Gaussian mechanism without sampling.

    Args:
        config: what is simulated.
        pipeline: what is audited; by default the project's own path.
        on_round: called with the number of finished rounds.

    Raises:
        OutOfRange: so few canaries that fewer than two took part.
        InvalidSpend: the noise is so small that no accountant has a figure for it.
    """
    stages = Pipeline() if pipeline is None else pipeline
    analytic = epsilon([(PoissonGaussian(config.noise_multiplier, 1.0), 1)], config.delta)
    probes = run_probes(stages, config)
    views: tuple[View, ...] = ()
    included = np.zeros(config.canaries, dtype=np.bool_)
    try:
        seen = simulate(config, stages, on_round)
    except Exception as error:  # noqa: BLE001 - whatever an audited stage raises is a finding, not a crash
        problem = f"a stage broke down: {type(error).__name__}: {error}"
        probes = (*probes, ProbeResult("training", _TRAINING, problem))
    else:
        included = seen.included
        probes = (*probes, ProbeResult("training", _TRAINING, _training_problem(seen)))
        views = (
            _view("every round", seen.round_scores, included, config.delta),
            _view("final model", seen.final_scores, included, config.delta),
        )
    return AuditResult(
        config=config,
        code=code_version(),
        analytic_epsilon=analytic,
        final_epsilon=gaussian_epsilon(1.0 / (config.noise_multiplier * math.sqrt(config.rounds)), config.delta),
        views=views,
        included=included,
        probes=probes,
    )


_TRAINING: Final = "the training with canaries ends, leaves no update out, and pays for each round"


def _training_problem(seen: Observations) -> str:
    if seen.rejected:
        return f"{seen.rejected} clipped updates were left out"
    return unpaid(seen.path)


def _view(name: str, scores: F64, included: NDArray[np.bool_], delta: float) -> View:
    return View(name, gaussian_estimate(scores[included], delta), lower_bound(scores, included, delta), scores)

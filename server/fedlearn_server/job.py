"""What one training needs to know, fixed before its first round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedlearn.errors import OutOfRange
from fedlearn.models.base import Parameters
from fedlearn.privacy.adaptive_clip import AdaptiveClipSettings, require_independent_noise
from fedlearn.privacy.grid import check_capacity, grid_step
from fedlearn.privacy.participation import Participation, most_participations
from fedlearn.privacy.plan import PrivacyPlan
from fedlearn.terms import CohortSchedule, TrainingTerms
from fedlearn_server.collect import Asking


@dataclass(frozen=True, slots=True)
class ServerOptimizerSettings:
    """Knobs that see only what was released: they cannot touch privacy.

    Args:
        name: an optimizer of ``fedlearn.engine.optimizers``.
        learning_rate: of the server, > 0.
        options: further arguments of that optimizer.
        average_last: part of the rounds whose iterates are averaged, 0..1; 0 keeps the last one.
    """

    name: str
    learning_rate: float
    options: Mapping[str, Any]
    average_last: float


@dataclass(frozen=True, slots=True)
class SharedLedger:
    """The ledger of a budget that several trainings spend from.

    Args:
        where: its file, or the URL of its PostgreSQL database.
        purpose: whose quota.
        epoch: of that quota.
    """

    where: str
    purpose: str
    epoch: str


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """One training: a model, a population, a plan.

    Args:
        run_id: names the training; also names its secret state.
        directory: holds checkpoint, ledger and metrics of this training.
        rounds: mechanism steps planned, >= 1.
        population: phones in all shards together (public), >= 1.
        shards: parts the population is asked in, >= 1; any number of nodes answers for them.
        sampling_probability: each phone's chance to be included in a step, in (0, 1]; not used with ``participation``.
        l2_clip_norm: bound on one phone's update, > 0; where the clip is adapted, the one it begins with.
        seed: simulation randomness.
        training: how a phone trains.
        initial: the model to start from.
        optimizer: the server's optimizer.
        plan: the privacy plan, or None: no guarantee.
        asking: deadlines, and how much of the population must answer.
        cohort: what nodes are told about the run: canonical JSON that their cohort hosts understand.
        participation: the schedule that decides who takes part instead of a draw, or None.
        adaptive_clip: how the clip follows a quantile of the norms, or None: it stays.
        ledger: the shared ledger it spends from, or None: one of its own, in ``directory``.
        gateways: phones take part by themselves, through gateways that count their participations; what they did
            is known to nobody without noise.
        round_size: least phones in a sum that may be released, >= 1; what each phone behind a gateway was promised.
    """

    run_id: str
    directory: Path
    rounds: int
    population: int
    shards: int
    sampling_probability: float
    l2_clip_norm: float
    seed: int
    training: TrainingTerms
    initial: Parameters = field(repr=False)
    optimizer: ServerOptimizerSettings
    plan: PrivacyPlan | None
    asking: Asking
    cohort: str = field(repr=False)
    participation: CohortSchedule | None = None
    adaptive_clip: AdaptiveClipSettings | None = None
    ledger: SharedLedger | None = None
    gateways: bool = False
    round_size: int = 1

    def __post_init__(self) -> None:
        """Refuse a plan that was made for another training, or a population whose exact sum has no room."""
        self._check_adaptive_clip()
        plan = self.plan
        if plan is None:
            return
        planned = (plan.steps, plan.sampling_probability, _separation(plan.participation), plan.l2_clip_norm)
        q = self.sampling_probability if self.participation is None else None
        wanted = (self.rounds, q, _separation(self.participation), self.l2_clip_norm)
        if planned != wanted:
            raise OutOfRange(
                f"privacy plan is for (rounds, q, min_separation, clip)={planned}, the training has {wanted}: make the "
                "plan again."
            )
        bounds = plan.participation
        if self.gateways and bounds is None:
            raise OutOfRange(
                "privacy.min_separation=null: phones behind gateways are not sampled, so that nothing is amplified; "
                "choose a mechanism for bounded participation, e.g. privacy=blt."
            )
        if (
            not self.gateways
            and bounds is not None
            and bounds.max_participations < most_participations(self.rounds, bounds.min_separation)
        ):
            raise OutOfRange(
                f"privacy.max_participations={bounds.max_participations}: nothing in a simulation holds a phone to "
                "fewer participations than its separation leaves room for; leave it null."
            )
        check_capacity(self.population, self.l2_clip_norm, grid_step(self.l2_clip_norm))

    def _check_adaptive_clip(self) -> None:
        adaptive = self.adaptive_clip
        if adaptive is None:
            return
        require_independent_noise(self.plan)
        adaptive.ratio(None if self.plan is None else self.plan.noise_multiplier)
        if adaptive.initial != self.l2_clip_norm:
            raise OutOfRange(
                f"privacy.adaptive_clip.initial={adaptive.initial}: must be privacy.clip={self.l2_clip_norm}, the clip "
                "that the plan begins with."
            )

    @property
    def denominator(self) -> float:
        """The public constant a sum is divided by: the expected cohort, never the realised one."""
        if self.participation is None:
            return self.sampling_probability * self.population
        return self.participation.availability * self.population / self.participation.min_separation


def _separation(bounds: Participation | CohortSchedule | None) -> int | None:
    return None if bounds is None else bounds.min_separation

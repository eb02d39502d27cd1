"""What one training needs to know, fixed before its first round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedlearn.errors import OutOfRange
from fedlearn.models.base import Parameters
from fedlearn.privacy.grid import check_capacity, grid_step
from fedlearn.privacy.plan import PrivacyPlan
from fedlearn.task import TrainingTerms


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
class TrainingJob:
    """One training: a model, a population, a plan.

    Args:
        run_id: names the training; also names its secret state.
        directory: holds checkpoint, ledger and metrics of this training.
        rounds: mechanism steps planned, >= 1.
        population: phones in all shards together (public), >= 1.
        shards: nodes the population is spread over, >= 1.
        sampling_probability: each phone's chance to be included in a step, in (0, 1].
        l2_clip_norm: bound on one phone's update, > 0.
        seed: simulation randomness.
        training: how a phone trains.
        initial: the model to start from.
        optimizer: the server's optimizer.
        plan: the privacy plan, or None: no guarantee.
        deadline_s: seconds to wait for the nodes of one round.
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
    deadline_s: float

    def __post_init__(self) -> None:
        """Refuse a plan that was made for another training, or a population whose exact sum has no room."""
        plan = self.plan
        if plan is None:
            return
        planned = (plan.steps, plan.sampling_probability, plan.l2_clip_norm)
        if planned != (self.rounds, self.sampling_probability, self.l2_clip_norm):
            raise OutOfRange(
                f"privacy plan is for (rounds, q, clip)={planned}, the training has "
                f"{(self.rounds, self.sampling_probability, self.l2_clip_norm)}: make the plan again."
            )
        check_capacity(self.population, self.l2_clip_norm, grid_step(self.l2_clip_norm))

    @property
    def denominator(self) -> float:
        """The public constant a sum is divided by: the expected cohort, never the realised one."""
        return self.sampling_probability * self.population

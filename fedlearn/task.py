"""What a server asks of a node, and what a node answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedlearn.clip import joint_bound
from fedlearn.errors import Reason
from fedlearn.terms import CohortSchedule, TrainingTerms
from fedlearn.types import Contribution

LARGEST_LOSS = float(np.finfo(np.float32).max)
"""Of one phone, in size. A node leaves a larger one out of its figure, and a figure that holds one is refused."""


@dataclass(frozen=True, slots=True)
class RoundTask:
    """One step of training, for every phone of a node that its key includes.

    Args:
        run_id: names the run.
        step: 0-based mechanism step; an abandoned attempt keeps its step.
        attempt: rises when a charged attempt was lost, so that the retry has a fresh cohort.
        seed: simulation randomness; never protects anybody.
        parameters: name -> f32 array, the model to start from.
        training: how a phone trains.
        l2_clip_norm: bound on each phone's update, > 0.
        grid_step: spacing of the integer grid of sums, or None for f64 sums (privacy off).
        sampling_probability: each phone's chance to be included, in (0, 1]; not used with ``participation``.
        round_key: 32 bytes that decide inclusion; secret when privacy is on, hence hidden from repr.
        participation: the schedule that decides inclusion instead, or None: an independent draw per phone and step.
        count_scale: s > 0 where the clip is adapted: each phone appends ``s * (bit - 1/2)`` to its update, the bit
            saying whether it was within the clip (``fedlearn.privacy.adaptive_clip``). None: nothing is appended.
        ledger_checkpoint: of the ledger that the step is reserved in, JSON (``fedlearn.ledger.checkpoint``): gateways
            show it to phones. Not part of the task's digest: it is newer when a step is asked again.
    """

    run_id: str
    step: int
    attempt: int
    seed: int
    parameters: Mapping[str, NDArray[np.float32]] = field(repr=False)
    training: TrainingTerms
    l2_clip_norm: float
    grid_step: float | None
    sampling_probability: float
    round_key: bytes = field(repr=False)
    participation: CohortSchedule | None = None
    count_scale: float | None = None
    ledger_checkpoint: bytes = field(default=b"", repr=False)

    @property
    def weights(self) -> int:
        """Number of weights of the model: length of an update."""
        return sum(array.size for array in self.parameters.values())

    @property
    def dimension(self) -> int:
        """Length of a contribution's vector: the update and, where the clip is adapted, one coordinate more."""
        return self.weights + (self.count_scale is not None)

    @property
    def l2_bound(self) -> float:
        """Bound on the L2 norm of one phone's whole vector: the sensitivity of the step's sum."""
        return self.l2_clip_norm if self.count_scale is None else joint_bound(self.l2_clip_norm, self.count_scale)


@dataclass(frozen=True, slots=True)
class CohortReply:
    """A node's contribution, and figures about its phones that are not protected (simulated populations only).

    Args:
        contribution: the cohort's sum.
        loss_sum: sum over trained phones of the mean loss before training, where that is ``LARGEST_LOSS`` at most.
        trained: included phones with at least one example.
        clipped: phones whose update was shrunk.
        norm_sum: sum of update norms before clipping.
        rejected: reason -> phones whose update was left out.
    """

    contribution: Contribution
    loss_sum: float
    trained: int
    clipped: int
    norm_sum: float
    rejected: Mapping[Reason, int]


def shard(population: int, partition: int, partitions: int) -> range:
    """Positions of the phones that partition ``partition`` of ``partitions`` hosts, by striding over the population."""
    return range(partition, population, partitions)

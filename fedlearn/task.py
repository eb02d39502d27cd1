"""What a server asks of a node, and what a node answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import Reason
from fedlearn.types import Contribution


@dataclass(frozen=True, slots=True)
class TrainingTerms:
    """How an included phone trains.

    Args:
        epochs: passes over the phone's examples, >= 1.
        batch_size: examples a step, >= 1.
        learning_rate: of the phone's SGD, > 0.
        shuffle: whether the order of examples is drawn anew each round.
        candidates: K, the positive and K - 1 negatives, >= 2.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    shuffle: bool
    candidates: int


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
        sampling_probability: each phone's chance to be included, in (0, 1].
        round_key: 32 bytes that decide inclusion; secret when privacy is on, hence hidden from repr.
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

    @property
    def dimension(self) -> int:
        """Length d of an update."""
        return sum(array.size for array in self.parameters.values())


@dataclass(frozen=True, slots=True)
class CohortReply:
    """A node's contribution, and figures about its phones that are not protected (simulated populations only).

    Args:
        contribution: the cohort's sum.
        loss_sum: sum over trained phones of the mean loss before training.
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


def largest_shard(population: int, partitions: int) -> int:
    """Most phones any one partition hosts: what a node may speak for."""
    return -(-population // partitions)

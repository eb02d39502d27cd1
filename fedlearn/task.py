"""What a server asks of a node, and what a node answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedlearn.clip import joint_bound
from fedlearn.errors import OutOfRange, Reason
from fedlearn.types import Contribution


@dataclass(frozen=True, slots=True)
class ExamplePrivacy:
    """DP-SGD on a phone's own examples (Abadi et al. 2016).

    Args:
        noise_multiplier: std of each step's noise over ``l2_clip_norm``, finite, > 0.
        l2_clip_norm: bound on one example's gradient over all parameters together, finite, > 0.

    Raises:
        OutOfRange: names ``client.example_privacy.<field>``.
    """

    noise_multiplier: float
    l2_clip_norm: float

    def __post_init__(self) -> None:
        for name, value in (("noise_multiplier", self.noise_multiplier), ("clip", self.l2_clip_norm)):
            if not (math.isfinite(value) and value > 0.0):
                raise OutOfRange(f"client.example_privacy.{name}={value}: must be finite and > 0, e.g. 1.0.")


@dataclass(frozen=True, slots=True)
class CohortSchedule:
    """Who takes part when, with a bound on how often: each phone has a phase, and only steps of its phase are its own.

    A phone takes part in step t iff ``t mod min_separation`` is its phase and it is available then. So two of its
    steps x < y satisfy y - x >= min_separation, and T steps hold at most ceil(T / min_separation) of them.

    Args:
        min_separation: b, least y - x; >= 1, and 1 makes every step everybody's.
        availability: chance, in (0, 1], that a phone is available in a step of its phase; drawn for each anew.

    Raises:
        OutOfRange: names ``cohort.<field>``.
    """

    min_separation: int
    availability: float

    def __post_init__(self) -> None:
        if isinstance(self.min_separation, bool) or not isinstance(self.min_separation, int) or self.min_separation < 1:
            raise OutOfRange(f"cohort.min_separation={self.min_separation!r}: must be an integer >= 1, e.g. 100.")
        if not 0.0 < self.availability <= 1.0:
            raise OutOfRange(f"cohort.availability={self.availability}: must be in (0, 1], e.g. 0.8.")


@dataclass(frozen=True, slots=True)
class TrainingTerms:
    """How an included phone trains.

    Args:
        epochs: passes over the phone's examples, >= 1.
        batch_size: examples a step, >= 1.
        learning_rate: of the phone's SGD, > 0.
        shuffle: whether the order of examples is drawn anew each round.
        candidates: K, the positive and K - 1 negatives, >= 2.
        example_privacy: clip and noise of the phone's own steps, or None: plain SGD.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    shuffle: bool
    candidates: int
    example_privacy: ExamplePrivacy | None = None


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

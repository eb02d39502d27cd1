"""How a phone trains and when it takes part: plain numbers, without numpy, for servers and phones alike."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedlearn.errors import OutOfRange


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

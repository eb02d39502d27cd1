"""A clip that follows a quantile of the update norms (Andrew, Thakkar, McMahan and Ramaswamy 2021).

Each phone appends one coordinate to its clipped update: s_t * (bit - 1/2), where the bit says whether the update's norm
was within the round's clip C_t. The joint vector has L2 norm at most S_t = sqrt(C_t^2 + s_t^2 / 4), and the mechanism
releases the sum with noise of std z * S_t on EVERY coordinate, the count among them. That is one Gaussian release of
noise multiplier z, the event a fixed clip spends, and there is nothing else to account for.

It is the paper's split of one budget over two releases, read from the other end. With r = s_t / C_t, updates get noise
of z_delta * C_t with z_delta = z * sqrt(1 + r^2 / 4), and the count of bits gets noise of std
sigma_b = z * S_t / s_t = z * sqrt(1 / r^2 + 1 / 4). Hence z_delta^-2 + (2 sigma_b)^-2 = z^-2, which is the paper's
z_delta = (z^-2 - (2 sigma_b)^-2)^(-1/2). A constant r keeps both constant while C_t moves.

The next clip is a function of what was released (post-processing), and whatever it is, the next step is the same event:
composition allows a step to be chosen by earlier releases. A phone that trained on nothing has no norm: it adds 0, half
a bit, so that for the median it pulls neither way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from fedlearn.clip import ClippedRows
from fedlearn.errors import OutOfRange
from fedlearn.privacy.events import PoissonGaussian
from fedlearn.types import F64

if TYPE_CHECKING:
    from fedlearn.privacy.plan import PrivacyPlan

UPDATE_NOISE_FACTOR: Final = 1.01
"""z_delta / z by default: what the count costs the update. The paper's sigma_b = cohort / 20 costs as much at a cohort
of 71 z; above that this default is the more precise one, below it the cheaper one."""

RANGE: Final = 1e4
"""The clip stays within this factor of the one it began with: noise alone must not carry it out of floating point."""


@dataclass(frozen=True, slots=True)
class AdaptiveClipSettings:
    """How the clip moves. All of it is public and fixed before the run.

    Args:
        initial: C_0, the clip of the first round, finite, > 0.
        target_quantile: gamma in (0, 1): the share of updates that should be within the clip.
        learning_rate: eta > 0: a round moves log C by at most about eta. The paper uses 0.2.
        count_noise: sigma_b, std of the noise on the count of updates within the clip, in phones; must be above half
            the noise multiplier, and a twentieth of the cohort is the paper's. None: as little as one percent more
            noise on the update buys, which is 3.56 z phones.

    Raises:
        OutOfRange: names ``privacy.adaptive_clip.<field>``.
    """

    initial: float
    target_quantile: float = 0.5
    learning_rate: float = 0.2
    count_noise: float | None = None

    def __post_init__(self) -> None:
        _positive("initial", self.initial, "0.1")
        _positive("learning_rate", self.learning_rate, "0.2")
        if not 0.0 < self.target_quantile < 1.0:
            raise OutOfRange(
                f"privacy.adaptive_clip.target_quantile={self.target_quantile}: must be in (0, 1), e.g. 0.5."
            )
        if self.count_noise is not None:
            _positive("count_noise", self.count_noise, "10.0")

    def ratio(self, noise_multiplier: float | None) -> float:
        """Return r = s_t / C_t.

        Args:
            noise_multiplier: z of the joint release, > 0, or None without privacy.

        Raises:
            OutOfRange: ``count_noise`` is not above z / 2: no coordinate, however long, would get so little noise.
        """
        if self.count_noise is None or noise_multiplier is None:
            return 2.0 * math.sqrt(UPDATE_NOISE_FACTOR**2 - 1.0)
        squared = (self.count_noise / noise_multiplier) ** 2 - 0.25
        if squared <= 0.0:
            raise OutOfRange(
                f"privacy.adaptive_clip.count_noise={self.count_noise}: must be above half the noise multiplier "
                f"{noise_multiplier}; use e.g. {4 * noise_multiplier:.3g}, or null."
            )
        return 1.0 / math.sqrt(squared)

    def next_clip(self, clip: float, released: float, count_scale: float) -> float:
        """Return C_{t+1} = C_t * exp(-eta * (b_t - gamma)) with b_t = 1/2 + released / s_t, within ``RANGE`` of C_0.

        Too few updates within the clip (b_t < gamma) let it grow, too many let it shrink.

        Args:
            clip: C_t, > 0.
            released: the count coordinate of the noisy mean: (sum of s_t * (bit - 1/2) + noise) over the plan's
                constant denominator; finite.
            count_scale: s_t of the round, > 0.
        """
        share = 0.5 + released / count_scale
        moved = math.log(clip) - self.learning_rate * (share - self.target_quantile)
        low, high = math.log(self.initial / RANGE), math.log(self.initial * RANGE)
        return math.exp(min(max(moved, low), high))


def append_fit(rows: ClippedRows, trained: NDArray[np.bool_], count_scale: float) -> F64:
    """Return each clipped update with its coordinate s * (bit - 1/2) appended, f64[n, d + 1].

    Guarantee: each row's L2 norm is at most ``joint_bound(rows.l2_bound, count_scale)``: the coordinate's magnitude is
    s / 2 or 0, whatever the norms were.

    Args:
        rows: clipped updates.
        trained: bool[n], whether the phone has an example; one without adds 0.
        count_scale: s, > 0.
    """
    fit = np.where(rows.clipped, -0.5, 0.5) * count_scale
    return np.concatenate([rows.values, np.where(trained & rows.finite, fit, 0.0)[:, None]], axis=1)


def require_independent_noise(plan: PrivacyPlan | None) -> None:
    """Refuse a plan under which the clip may not move.

    A matrix mechanism takes noise of one step back in later ones: its guarantee is computed for one sensitivity that
    all steps share, and a clip that moves would change it.

    Raises:
        OutOfRange: the plan's releases are not independent.
    """
    if plan is not None and not isinstance(plan.event, PoissonGaussian):
        raise OutOfRange(
            f"privacy.adaptive_clip: does not go with privacy.mode={plan.mechanism} and a separation, whose noise is "
            "analysed for one sensitivity over all steps. Set it to null and choose privacy.clip, for instance from a "
            "short run beforehand that is charged on its own."
        )


def _positive(field: str, value: float, example: str) -> None:
    if not (math.isfinite(value) and value > 0.0):
        raise OutOfRange(f"privacy.adaptive_clip.{field}={value}: must be finite and > 0, e.g. {example}.")

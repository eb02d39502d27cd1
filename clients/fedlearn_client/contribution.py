"""What leaves a phone: ``ClippedDelta -> Contribution(level=phone)``."""

from __future__ import annotations

from fedlearn.device.task import DeviceTask
from fedlearn.errors import ContributionRejected, Reason
from fedlearn.privacy.grid import to_grid
from fedlearn.rng import os_bytes
from fedlearn.types import ClippedDelta, Contribution, Level
from fedlearn.wire import NONCE_BYTES


def make_contribution(delta: ClippedDelta, task: DeviceTask, dimension: int) -> Contribution:
    """Return the phone's contribution to the task's sum.

    Guarantee: the encoded vector has L2 norm <= ``task.mechanism.l2_clip_norm``: rounding onto the grid goes toward
    zero. Codec, scale, bound, digest and size are the task's and the plan's alone, and the nonce is random: nothing but
    the vector tells of the phone. A phone without an example sends zeros.

    Args:
        delta: the clipped update, f64[d].
        task: what the phone was asked.
        dimension: d, the plan's shared weights.

    Raises:
        ContributionRejected: the update's bound is over the task's clip norm, or its shape is not ``(dimension,)``.
    """
    mechanism = task.mechanism
    if delta.l2_bound > mechanism.l2_clip_norm:
        raise ContributionRejected(
            Reason.OVER_NORM, f"clipped to {delta.l2_bound}, the task says {mechanism.l2_clip_norm}"
        )
    if delta.values.shape != (dimension,):
        raise ContributionRejected(Reason.WRONG_SHAPE, f"shape {delta.values.shape}, expected ({dimension},)")
    return Contribution(
        codec="grid64",
        scale=mechanism.grid_step,
        level=Level.PHONE,
        count=1,
        l2_bound=mechanism.l2_clip_norm,
        task_digest=task.digest,
        nonce=os_bytes(NONCE_BYTES),
        values=to_grid(delta.values, mechanism.grid_step).astype("<i8"),
    )

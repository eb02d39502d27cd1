"""The last steps on a phone: a clipped update becomes a ``Contribution(level=phone)``."""

from __future__ import annotations

import numpy as np

from fedlearn.errors import ContributionRejected, Reason
from fedlearn.privacy.grid import to_grid
from fedlearn.rng import os_bytes
from fedlearn.task import RoundTask
from fedlearn.types import ClippedDelta, Contribution, Level
from fedlearn.wire import NONCE_BYTES, task_digest


def make_contribution(delta: ClippedDelta, task: RoundTask) -> Contribution:
    """Return the phone's contribution to the task's sum.

    Guarantee: the encoded vector has L2 norm <= ``task.l2_bound``: rounding onto the grid goes toward zero, and
    the f32 image used without a grid is shrunk where rounding would lengthen it.

    Args:
        delta: the clipped update, f64[d]; where the clip is adapted, with its coordinate appended.
        task: what the phone was asked; a grid step selects ``grid64``, none selects ``f32``.

    Raises:
        ContributionRejected: the update's bound is over the task's, or its shape is not the task's.
    """
    if delta.l2_bound > task.l2_bound:
        raise ContributionRejected(Reason.OVER_NORM, f"clipped to {delta.l2_bound}, the task says {task.l2_bound}")
    if delta.values.shape != (task.dimension,):
        raise ContributionRejected(Reason.WRONG_SHAPE, f"shape {delta.values.shape}, expected ({task.dimension},)")
    if task.grid_step is None:
        values = _f32_toward_zero(delta.values)
        codec, scale = "f32", 1.0
    else:
        values = to_grid(delta.values, task.grid_step).astype("<i8")
        codec, scale = "grid64", task.grid_step
    return Contribution(
        codec=codec,
        scale=scale,
        level=Level.PHONE,
        count=1,
        l2_bound=task.l2_bound,
        task_digest=task_digest(task),
        nonce=os_bytes(NONCE_BYTES),
        values=values,
    )


def _f32_toward_zero(
    values: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    with np.errstate(over="ignore"):  # infinity is stepped back to the largest f32 below
        rounded = values.astype(np.float32)
    longer = np.abs(rounded.astype(np.float64)) > np.abs(values)
    rounded[longer] = np.nextafter(rounded[longer], np.float32(0))
    return rounded.astype("<f4")

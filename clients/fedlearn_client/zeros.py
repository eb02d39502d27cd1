"""The contribution of a round in which nothing was learned, made by the daemon itself. Needs no numpy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fedlearn.proto import wire_pb2 as pb
from fedlearn_client.guard import CODEC, NONCE_BYTES, WIRE_VERSION
from fedlearn_client.hooks import ClockAndRng

if TYPE_CHECKING:
    from fedlearn.device.plan import DevicePlan
    from fedlearn.device.task import DeviceTask

_VALUE_BYTES = 8


def zero_contribution(task: DeviceTask, plan: DevicePlan, clock_rng: ClockAndRng) -> bytes:
    """Return a contribution of zeros to the task's sum.

    Guarantee: field by field and byte by byte it is what the worker sends for an update of zeros, and as long as every
    other contribution to the task; only the nonce is drawn anew.

    Args:
        task: what was asked.
        plan: the approved one.
        clock_rng: draws the nonce.
    """
    dimension = sum(math.prod(spec.shape) for spec in plan.shared)
    body = pb.Contribution(
        codec=CODEC,
        scale=task.mechanism.grid_step,
        level=pb.Contribution.LEVEL_PHONE,
        count=1,
        l2_bound=task.mechanism.l2_clip_norm,
        task_digest=task.digest,
        nonce=clock_rng.random_bytes(NONCE_BYTES),
        dimension=dimension,
        values=bytes(_VALUE_BYTES * dimension),
    )
    return pb.Envelope(version=WIRE_VERSION, contribution=body).SerializeToString(deterministic=True)

"""Who takes part in a step of a simulation whose participation is bounded: a phase a phone, and chance availability.

The draws are keyed by the simulation's seed. They protect nobody: the guarantee of a participation-bounded mechanism
holds for every order of participation that keeps the separation, known to anyone, so nothing about it is secret.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from fedlearn.terms import CohortSchedule
from fedlearn.types import I64

U64 = NDArray[np.uint64]


def phases(seed: int, device_ids: Sequence[str], min_separation: int) -> I64:
    """Return each phone's phase, i64[n] in 0..min_separation - 1, a function of (seed, phone) alone.

    Args:
        seed: of the simulation.
        device_ids: n ids, distinct inside the population.
        min_separation: b, >= 1.
    """
    # the remainder of 64 bits is uniform up to b / 2^64
    return (_draws(f"{seed}\x1fphase", device_ids) % np.uint64(min_separation)).astype(np.int64)


def takes_part(schedule: CohortSchedule, seed: int, step: int, device_ids: Sequence[str]) -> NDArray[np.bool_]:
    """Return who takes part in ``step``: the phones of its phase that are available.

    The same on any node, in any order or shard layout, and for every attempt at the step. Guarantee: whatever the
    availability, a phone's steps lie at least ``min_separation`` apart, and T steps hold at most ceil(T / b) of them.

    Args:
        schedule: separation and availability.
        seed: of the simulation.
        step: mechanism step, >= 0.
        device_ids: n ids, distinct inside the population.

    Returns:
        bool[n].
    """
    turn_of = step % schedule.min_separation
    part: NDArray[np.bool_] = phases(seed, device_ids, schedule.min_separation) == turn_of
    if schedule.availability == 1.0:
        return part
    turn = np.flatnonzero(part).tolist()
    threshold = np.uint64(math.floor(Fraction(schedule.availability) * 2**64))
    part[turn] = _draws(f"{seed}\x1f{step}\x1favailability", [device_ids[place] for place in turn]) < threshold
    return part


def _draws(purpose: str, device_ids: Sequence[str]) -> U64:
    """Return 64 bits a phone: BLAKE2b over ``purpose``, a separator and the id's UTF-8."""
    begun = hashlib.blake2b(f"{purpose}\x1f".encode(), digest_size=8)
    draws = bytearray()
    for device_id in device_ids:
        draw = begun.copy()
        draw.update(device_id.encode())
        draws += draw.digest()
    return np.frombuffer(bytes(draws), dtype="<u8").astype(np.uint64)

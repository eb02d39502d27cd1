"""The stage types of a round, in the order in which a value passes through them. ::

    ClippedDelta -> Contribution -> BoundedSum -> (Charge) -> NoisyMean

A stage takes the type before it and returns its own, so a value that skipped a stage does not type-check. The noise
scale is derived from the sensitivity that travels with the value, never typed in.
"""

from __future__ import annotations

import hashlib
import secrets
import struct
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


class Level(StrEnum):
    """Whose sum a contribution is."""

    PHONE = "phone"
    COHORT = "cohort"


@dataclass(frozen=True, slots=True)
class ClippedDelta:
    """One phone's local update after clipping: f64[d] with ``||values||_2 <= l2_bound``."""

    values: F64 = field(repr=False)
    l2_bound: float


@dataclass(frozen=True, slots=True)
class Contribution:
    """A sum of clipped updates: of one phone, a shard, a gateway, or a whole round. Contributions add up.

    Args:
        codec: name of the codec that says how ``values`` encode a vector (``fedlearn.codec``).
        scale: value of one unit of ``values``; 1.0 for float codecs, the grid step for ``grid64``.
        level: ``phone`` or ``cohort``.
        count: phones inside, each with weight one.
        l2_bound: upper bound on the L2 norm of the decoded vector; ``count * l2_clip_norm`` at most.
        task_digest: SHA-256 of the task it answers, 32 bytes.
        nonce: 16 bytes, unique per contribution: the duplicate check.
        values: encoded vector, shape [d], of the codec's dtype.
    """

    codec: str
    scale: float
    level: Level
    count: int
    l2_bound: float
    task_digest: bytes
    nonce: bytes
    values: NDArray[np.generic] = field(repr=False)


@dataclass(frozen=True, slots=True)
class BoundedSum:
    """The sum of one step over all accepted contributions.

    Args:
        values: the sum in model units, f64[d]. With privacy on it is ``grid_step`` times an exact integer vector.
        l2_sensitivity: how far one phone can move ``values`` (add-or-remove): the step's planned clip norm, never a
            node's claim.
        grid_step: spacing of the integer grid the sum lies on, or None when the sum is plain f64 (privacy off).
        step: mechanism step.
        count: accepted phones. Unprotected: never a denominator.
        blind: 32 random bytes of this object alone. Secret: never stored, sent or shown.
    """

    values: F64 = field(repr=False)
    l2_sensitivity: float
    grid_step: float | None
    step: int
    count: int = field(repr=False)
    blind: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False, compare=False)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over blind, step, grid, sensitivity and the vector's bytes: what a charge is bound to.

        A commitment, not a fingerprint. The vector carries no noise yet, and the ledger keeps the digest for ever: a
        hash of the vector alone would let whoever can compute the sums with and without one device see which is true.
        With the blind it tells nothing about the vector (SHA-256 taken as a random oracle), yet no other sum has it,
        not even an equal one. A run that goes on after a crash forms a new sum and never needs an old blind.
        """
        head = struct.pack("<qdd", self.step, self.grid_step or 0.0, self.l2_sensitivity)
        return hashlib.sha256(self.blind + head + self.values.astype("<f8").tobytes()).hexdigest()


@dataclass(frozen=True, slots=True)
class Charge:
    """Proof that the ledger durably recorded one event for one step and one sum. Only the ledger makes charges.

    Args:
        id: ledger id of the charge.
        step: mechanism step that was charged.
        noise_multiplier: std of the noise over the sensitivity, as charged.
        sum_digest: digest of the only sum that may be released under it.
    """

    id: int
    step: int
    noise_multiplier: float
    sum_digest: str


@dataclass(frozen=True, slots=True)
class NoisyMean:
    """What may leave the private part of a round.

    Args:
        values: f64[d], (sum + noise) / denominator.
        noise_std: std of the noise in each coordinate of ``values``; 0.0 when privacy is off.
        denominator: the plan's public constant, never the realised cohort size.
        charge_id: the charge it was released under, or None when privacy is off.
    """

    values: F64
    noise_std: float
    denominator: float
    charge_id: int | None

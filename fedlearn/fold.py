"""The streaming, order-independent sum of one step: checks each contribution, then adds it.

One class serves a gateway or shard (phone-level contributions) and the server (cohort-level ones). What fails a check
is left out and counted by reason; the round goes on with the rest.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from fedlearn.codec import Codec, codec_by_name, valid_scale
from fedlearn.errors import (
    CodecRefused,
    ContributionRejected,
    MessageTooLarge,
    OutOfRange,
    Reason,
    RoundFailed,
    WireError,
)
from fedlearn.privacy.grid import check_capacity, from_grid
from fedlearn.types import F64, BoundedSum, Contribution, Level

COHORT_NORM_SLACK = 1e-9
"""Relative slack on the bound of an f64 cohort sum, which is n * C only up to rounding. A sum on a grid needs none."""

ENVELOPE_BYTES = 4096
"""Room for everything in a message but the vector."""


@dataclass(frozen=True, slots=True)
class FoldTerms:
    """What a contribution must satisfy to be added.

    Args:
        task_digest: digest of the task of this step.
        dimension: length d of the vector.
        l2_clip_norm: bound on one phone's update.
        grid_step: grid of the sum, or None for f64 sums.
        level: ``phone`` at a gateway or shard, ``cohort`` at the server.
    """

    task_digest: bytes
    dimension: int
    l2_clip_norm: float
    grid_step: float | None
    level: Level

    @property
    def max_bytes(self) -> int:
        """Size cap of one contribution's message."""
        return 8 * self.dimension + ENVELOPE_BYTES

    @property
    def sum_codec(self) -> Codec:
        """Codec of the sum."""
        return codec_by_name("f64" if self.grid_step is None else "grid64")


class Fold:
    """Adds contributions as they arrive, holding one vector whatever their number.

    Guarantee: every vector that entered the sum is finite, of the right shape, answers this task, is counted once,
    and has norm <= ``l2_clip_norm`` (phone) or <= ``count * l2_clip_norm`` (cohort; that each phone inside was
    clipped is the node's word). Bounds are decided exactly, but for the slack of an f64 cohort sum. With a grid the
    sum is exact, hence independent of order and layout.
    """

    def __init__(self, terms: FoldTerms) -> None:
        self._terms = terms
        self._sum = np.zeros(terms.dimension, dtype=terms.sum_codec.dtype)
        self._nonces: set[bytes] = set()
        self.count = 0
        self.accepted = 0
        self.rejected: Counter[Reason] = Counter()

    def offer(self, decode: Callable[[], Contribution], reserved: int = 1) -> Contribution | None:
        """Add the contribution that ``decode`` returns, or count why not.

        Args:
            decode: parses the message; a WireError counts as malformed, oversize or, for its codec, wrong dtype.
            reserved: most phones this sender may speak for.

        Returns:
            the contribution if it was added, else None.
        """
        try:
            contribution = checked(decode, self._terms, reserved)
            self._require_new(contribution)
            self._require_room(contribution)
        except ContributionRejected as error:
            self.rejected[error.reason] += 1
            return None
        self._nonces.add(contribution.nonce)
        self._sum = codec_by_name(contribution.codec).add(self._sum, contribution.values)
        self.count += contribution.count
        self.accepted += 1
        return contribution

    def bounded_sum(self, step: int, l2_sensitivity: float) -> BoundedSum:
        """Return the sum with the step's planned sensitivity.

        Raises:
            RoundFailed: nothing was accepted.
            OutOfRange: a sum on a grid is beyond 2^53 grid steps in a coordinate, where f64 would round it.
        """
        if self.accepted == 0:
            counted = ", ".join(f"{reason}: {n}" for reason, n in self.rejected.items()) or "no reply arrived"
            raise RoundFailed(f"step {step}: no contribution was accepted ({counted}).")
        grid_step = self._terms.grid_step
        values = self._sum.astype(np.float64) if grid_step is None else from_grid(self._sum.astype(np.int64), grid_step)
        return BoundedSum(values, l2_sensitivity, grid_step, step, self.count)

    def _require_new(self, contribution: Contribution) -> None:
        if contribution.nonce in self._nonces:
            raise ContributionRejected(Reason.DUPLICATE, "nonce was seen before")

    def _require_room(self, contribution: Contribution) -> None:
        """Each vector is within count * C by now; while all counts together fit the grid, int64 cannot wrap."""
        if self._terms.grid_step is None:
            return
        try:
            check_capacity(self.count + contribution.count, self._terms.l2_clip_norm, self._terms.grid_step)
        except OutOfRange as error:
            raise ContributionRejected(Reason.OVER_COUNT, str(error)) from error


def checked(decode: Callable[[], Contribution], terms: FoldTerms, reserved: int = 1) -> Contribution:
    """Return the contribution that ``decode`` returns, if it may enter the sum.

    Guarantee: its vector is finite, of the right shape and encoding, answers the task of ``terms``, and has norm <=
    ``l2_clip_norm`` (phone) or <= ``count * l2_clip_norm`` (cohort). Whether it was seen before, and whether the sum
    has room for it, is the caller's to know.

    Args:
        decode: parses the message; a WireError counts as malformed, oversize or, for its codec, wrong dtype.
        terms: what it must satisfy.
        reserved: most phones this sender may speak for.

    Raises:
        ContributionRejected: with the reason to count.
    """
    try:
        contribution = decode()
    except MessageTooLarge as error:
        raise ContributionRejected(Reason.OVERSIZE, str(error)) from error
    except CodecRefused as error:
        raise ContributionRejected(Reason.WRONG_DTYPE, str(error)) from error
    except WireError as error:
        raise ContributionRejected(Reason.MALFORMED, str(error)) from error
    if contribution.level is not terms.level:
        raise ContributionRejected(Reason.WRONG_LEVEL, f"level {contribution.level}, expected {terms.level}")
    if contribution.task_digest != terms.task_digest:
        raise ContributionRejected(Reason.WRONG_TASK, "answers another task")
    _require_encoding(contribution, terms)
    if contribution.count > reserved or (terms.level is Level.PHONE and contribution.count != 1):
        raise ContributionRejected(Reason.OVER_COUNT, f"speaks for {contribution.count} phones, has {reserved}")
    _require_norm(contribution, terms)
    return contribution


def _require_encoding(contribution: Contribution, terms: FoldTerms) -> None:
    try:
        codec = codec_by_name(contribution.codec)
    except CodecRefused as error:
        raise ContributionRejected(Reason.WRONG_DTYPE, str(error)) from error
    if codec.sum_name != terms.sum_codec.name or contribution.values.dtype != codec.dtype:
        detail = f"{contribution.codec} of {contribution.values.dtype} cannot enter a {terms.sum_codec.name} sum"
        raise ContributionRejected(Reason.WRONG_DTYPE, detail)
    expected = terms.grid_step or 1.0
    if not valid_scale(codec, contribution.scale) or contribution.scale != expected:
        raise ContributionRejected(Reason.WRONG_DTYPE, f"scale {contribution.scale}, expected {expected}")
    if contribution.values.shape != (terms.dimension,):
        detail = f"shape {contribution.values.shape}, expected ({terms.dimension},)"
        raise ContributionRejected(Reason.WRONG_SHAPE, detail)


def _require_norm(contribution: Contribution, terms: FoldTerms) -> None:
    vector = codec_by_name(contribution.codec).decode(contribution.values, contribution.scale)
    if not np.isfinite(vector).all():
        raise ContributionRejected(Reason.NOT_FINITE, "NaN or infinity in the vector")
    bound = contribution.count * Fraction(terms.l2_clip_norm)
    rounded = terms.level is Level.COHORT and terms.grid_step is None
    longest = bound * Fraction(1.0 + COHORT_NORM_SLACK) if rounded else bound
    if _longer(contribution, vector, longest):
        raise ContributionRejected(Reason.OVER_NORM, f"norm over the bound {float(bound):.6g}")
    # the claim is count * C in f64 arithmetic
    if not contribution.l2_bound <= float(bound) * (1.0 + COHORT_NORM_SLACK):
        raise ContributionRejected(
            Reason.OVER_NORM, f"claims the bound {contribution.l2_bound:.6g}, allowed is {float(bound):.6g}"
        )


def _longer(contribution: Contribution, vector: F64, bound: Fraction) -> bool:
    """Whether the vector's norm is over the bound; in exact arithmetic where floating point cannot tell."""
    # scaled by its largest entry, so that squaring a huge vector cannot overflow into a pass
    largest = float(np.max(np.abs(vector), initial=0.0))
    if largest == 0.0:
        return False
    norm = largest * math.sqrt(float(np.sum((vector / largest) ** 2)))
    limit = float(bound)
    # Higham (2002), section 3.1: relative error of a sum of d squares, with room for the few other roundings
    if abs(norm - limit) > (vector.size + 16) * 2.0**-53 * limit:
        return norm > limit
    unit = Fraction(contribution.scale)
    squares = sum(Fraction(value) ** 2 for value in contribution.values.tolist())
    return squares * unit * unit > bound * bound

"""What is audited: the stages of the private path as one object, the project's own functions by default. ::

    PhoneUpdates -> clip -> onto_grid -> Contribution -> fold -> BoundedSum -> charge -> release -> publish

A test replaces one stage by a faulty one and sees whether the audit notices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedlearn.clip import ClippedRows, clip_rows
from fedlearn.errors import ChargeMismatch
from fedlearn.fold import Fold, FoldTerms
from fedlearn.privacy.adaptive_clip import AdaptiveClipSettings, append_fit
from fedlearn.privacy.events import PoissonGaussian
from fedlearn.privacy.grid import grid_step, to_grid
from fedlearn.privacy.mechanisms import GaussianMechanism, Mechanism
from fedlearn.rng import os_bytes
from fedlearn.types import F64, I64, BoundedSum, Charge, Contribution, Level, NoisyMean
from fedlearn.wire import NONCE_BYTES

TASK_DIGEST = bytes(32)
"""Stands for the digest of the task: an audit has no wire, and every phone answers the same task."""


@dataclass(frozen=True, slots=True)
class PhoneUpdates:
    """What phones hold before anything is bounded.

    Args:
        values: f64[n, d], one local update a row; any bits.
        examples: i64[n], how many examples each phone says it has.
    """

    values: F64 = field(repr=False)
    examples: I64 = field(repr=False)


@dataclass(frozen=True, slots=True)
class Published:
    """One number or vector that leaves the private part.

    Args:
        value: what is published.
        charge_id: the charge that pays for it; None claims that it does not depend on any phone.
    """

    value: F64 = field(repr=False)
    charge_id: int | None


Publication = Mapping[str, Published]


class Charges(Protocol):
    """Pays for sums. The ledger's place; an audit spends nobody's budget, so it keeps its charges in memory."""

    def charge(self, bounded: BoundedSum) -> Charge:
        """Record one event for this sum before any noise is drawn."""
        ...

    @property
    def ids(self) -> frozenset[int]:
        """Ids of all charges made."""
        ...


class InMemoryCharges:
    """Charges as the ledger makes them, for one event, kept in memory."""

    def __init__(self, event: PoissonGaussian) -> None:
        self._event = event
        self._digests: list[str] = []

    @property
    def ids(self) -> frozenset[int]:
        """Ids of all charges made."""
        return frozenset(range(len(self._digests)))

    def charge(self, bounded: BoundedSum) -> Charge:
        """Record one event for this sum.

        Raises:
            ChargeMismatch: it was charged before.
        """
        digest = bounded.digest
        if digest in self._digests:
            raise ChargeMismatch(f"step {bounded.step}: this sum was charged before.")
        self._digests.append(digest)
        return Charge(len(self._digests) - 1, bounded.step, self._event.noise_multiplier, digest)


def clip_phones(updates: PhoneUpdates, l2_clip_norm: float) -> ClippedRows:
    """Clip each phone's whole update. A phone's number of examples changes nothing: one unit of weight each."""
    return clip_rows(updates.values, l2_clip_norm)


def publish_mean(mean: NoisyMean, bounded: BoundedSum) -> Publication:
    """Publish the noisy mean under its charge, and the constants of the plan. Nothing else of the sum leaves."""
    del bounded
    return {
        "mean": Published(mean.values, mean.charge_id),
        "noise_std": Published(np.array([mean.noise_std]), None),
        "denominator": Published(np.array([mean.denominator]), None),
    }


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The stages of the private path. The defaults are the ones that every training uses.

    Args:
        clip: bounds each phone's update, and marks those that are not finite.
        onto_grid: moves vectors onto the integer grid.
        new_fold: makes the checked sum of a step.
        new_charges: makes the record of what is spent, for one event per release.
        new_mechanism: (noise multiplier, denominator) -> what adds noise under a charge.
        publish: what leaves the private part.
        append_fit: tells, in one more coordinate, which updates were within an adaptive clip.
        next_clip: (settings, clip norm, released coordinate, its scale) -> next round's clip norm.
    """

    clip: Callable[[PhoneUpdates, float], ClippedRows] = clip_phones
    onto_grid: Callable[[F64, float], I64] = to_grid
    new_fold: Callable[[FoldTerms], Fold] = Fold
    new_charges: Callable[[PoissonGaussian], Charges] = InMemoryCharges
    new_mechanism: Callable[[float, float], Mechanism] = GaussianMechanism
    publish: Callable[[NoisyMean, BoundedSum], Publication] = publish_mean
    append_fit: Callable[[ClippedRows, NDArray[np.bool_], float], F64] = append_fit
    next_clip: Callable[[AdaptiveClipSettings, float, float, float], float] = AdaptiveClipSettings.next_clip


class PrivatePath:
    """One training's way through the stages: holds the mechanism and the charges, and remembers what it published.

    Args:
        pipeline: the stages.
        noise_multiplier: std of the noise over the clip norm, > 0.
        l2_clip_norm: bound on one phone's update, > 0.
        denominator: public constant of the mean, > 0.
        dimension: length d of an update.
    """

    def __init__(
        self, pipeline: Pipeline, *, noise_multiplier: float, l2_clip_norm: float, denominator: float, dimension: int
    ) -> None:
        self.l2_clip_norm = l2_clip_norm
        self.noise_multiplier = noise_multiplier
        self.denominator = denominator
        self.dimension = dimension
        self.mechanism = pipeline.new_mechanism(noise_multiplier, denominator)
        self.charges = pipeline.new_charges(PoissonGaussian(noise_multiplier, 1.0))
        self.publications: list[Publication] = []
        self.rejected = 0
        self._pipeline = pipeline
        self._step = 0

    def run_round(self, updates: PhoneUpdates) -> Publication:
        """Sum, charge, release, publish: one round.

        Raises:
            FedlearnError: a stage refused; nothing was published.
        """
        bounded = self.bounded_sum(updates)
        mean = self.mechanism.release(bounded, self.charges.charge(bounded))
        publication = self._pipeline.publish(mean, bounded)
        self.publications.append(publication)
        return publication

    def bounded_sum(self, updates: PhoneUpdates) -> BoundedSum:
        """Clip, move onto the grid, check and add up the next step's contributions; what is refused is counted."""
        unit = grid_step(self.l2_clip_norm)
        rows = self._pipeline.clip(updates, self.l2_clip_norm)
        fold = self._pipeline.new_fold(
            FoldTerms(TASK_DIGEST, self.dimension, self.l2_clip_norm, grid_step=unit, level=Level.PHONE)
        )
        for row in self._pipeline.onto_grid(rows.values[rows.finite], unit):
            contribution = self._contribution(row, unit)
            fold.offer(lambda sent=contribution: sent)  # type: ignore[misc]  # binds this row's, not the last one's
        self.rejected += len(rows.finite) - fold.count
        self._step += 1
        return fold.bounded_sum(self._step - 1, self.l2_clip_norm)

    def _contribution(self, row: NDArray[np.int64], unit: float) -> Contribution:
        return Contribution(
            codec="grid64",
            scale=unit,
            level=Level.PHONE,
            count=1,
            l2_bound=self.l2_clip_norm,
            task_digest=TASK_DIGEST,
            nonce=os_bytes(NONCE_BYTES),
            values=row.astype("<i8"),
        )

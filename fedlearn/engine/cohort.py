"""A simulated shard as a node: ``RoundTask -> CohortReply``, thousands of phones at a time.

What a phone would do alone (train, clip, round to the grid) happens here row by row; only the sum leaves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn.clip import clip_rows
from fedlearn.engine.base import LocalUpdates
from fedlearn.engine.example_privacy import PrivateSgd
from fedlearn.engine.participation import takes_part
from fedlearn.engine.population import Population
from fedlearn.engine.registry import make_engine
from fedlearn.engine.schedule import LocalTraining, schedule
from fedlearn.errors import Reason
from fedlearn.models.base import Model
from fedlearn.privacy.adaptive_clip import append_fit
from fedlearn.privacy.grid import to_grid
from fedlearn.privacy.sampling import RoundKey, included
from fedlearn.rng import os_bytes, simulation_rng
from fedlearn.task import LARGEST_LOSS, CohortReply, RoundTask
from fedlearn.types import Contribution, Level
from fedlearn.wire import NONCE_BYTES, task_digest

PHONES_AT_ONCE = 512


@dataclass(slots=True)
class _Tally:
    """The running sum of a cohort and its unprotected figures."""

    total: NDArray[Any]
    count: int = 0
    trained: int = 0
    clipped: int = 0
    loss_sum: float = 0.0
    norm_sum: float = 0.0
    rejected: Counter[Reason] = field(default_factory=Counter)
    error: Exception | None = None


@dataclass(frozen=True)
class SimulatedCohort:
    """The phones of one shard behind one call.

    Guarantee: every phone's update enters the sum with weight one and L2 norm <= ``task.l2_clip_norm``, or not at
    all; with the coordinate of adaptive clipping its vector has norm <= ``task.l2_bound``. With a grid, it is rounded
    toward zero first, which cannot lengthen it. A phone whose data cannot be used, or whose update is not finite, is
    left out alone and counted.

    Args:
        population: the shard's phones.
        model: what they train.
        engine: ``vmap`` or ``loop``.
    """

    population: Population
    model: Model = field(repr=False)
    engine: str = "vmap"

    def __call__(self, task: RoundTask) -> CohortReply:
        """Train every included phone and return the cohort's contribution."""
        tally = _Tally(np.zeros(task.dimension, np.float64 if task.grid_step is None else np.int64))
        for positions in self._included(task):
            self._train(positions, task, tally)
        if tally.error is not None and task.grid_step is None and not tally.count:
            # where every phone fails the fault is not theirs; with privacy on, an answer may not depend on one phone
            raise tally.error
        contribution = Contribution(
            codec="f64" if task.grid_step is None else "grid64",
            scale=task.grid_step or 1.0,
            level=Level.COHORT,
            count=tally.count,
            l2_bound=tally.count * task.l2_bound,
            task_digest=task_digest(task),
            nonce=os_bytes(NONCE_BYTES),
            values=tally.total,
        )
        rejected = {reason: phones for reason, phones in tally.rejected.items() if phones}
        return CohortReply(contribution, tally.loss_sum, tally.trained, tally.clipped, tally.norm_sum, rejected)

    def _included(self, task: RoundTask) -> Iterator[list[int]]:
        ids = self.population.ids
        if task.participation is None:
            chosen = np.flatnonzero(included(RoundKey(task.round_key), ids, task.sampling_probability))
        else:
            chosen = np.flatnonzero(takes_part(task.participation, task.seed, task.step, ids))
        for start in range(0, len(chosen), PHONES_AT_ONCE):
            yield chosen[start : start + PHONES_AT_ONCE].tolist()

    def _train(self, positions: list[int], task: RoundTask, tally: _Tally) -> None:
        updates = self._updates(positions, task, tally)
        if updates is None:
            return
        rows = clip_rows(updates.deltas, task.l2_clip_norm)
        vectors = rows.values
        if task.count_scale is not None:
            vectors = append_fit(rows, updates.examples > 0, task.count_scale)
        kept = vectors[rows.finite]
        if task.grid_step is None:
            tally.total += kept.sum(axis=0)
        else:
            tally.total += to_grid(kept, task.grid_step).sum(axis=0)
        trained = rows.finite & (updates.examples > 0)
        tally.count += len(kept)
        tally.trained += int(trained.sum())
        tally.clipped += int((rows.clipped & rows.finite).sum())
        # a figure that cannot be is refused with its reply: one phone must not decide that about its neighbours
        known = trained & (np.abs(updates.losses) <= LARGEST_LOSS)
        tally.loss_sum += float(updates.losses[known].sum())
        tally.norm_sum += float(rows.norms[trained].sum())
        tally.rejected[Reason.NOT_FINITE] += int((~rows.finite).sum())

    def _updates(self, positions: list[int], task: RoundTask, tally: _Tally) -> LocalUpdates | None:
        """Train the phones together; if that fails, leave out those that fail alone, and only those.

        One phone's data must not decide whether its neighbours are in the sum: that would move the sum by more than
        one clipped update. So a phone alone in its chunk fails alone too, and phones that fail only together, as where
        their columns differ, train one by one.
        """
        try:
            return self._together(positions, task)
        except Exception as error:  # noqa: BLE001 - whatever a phone's data can raise
            tally.error = error
        alone = [(position, updates) for position in positions if (updates := self._alone(position, task)) is not None]
        tally.rejected[Reason.FAILED] += len(positions) - len(alone)
        if not alone:
            return None
        try:
            return self._together([position for position, _ in alone], task)
        except Exception:  # noqa: BLE001 - none of them is at fault
            return LocalUpdates(
                np.concatenate([updates.deltas for _, updates in alone]),
                np.concatenate([updates.losses for _, updates in alone]),
                np.concatenate([updates.examples for _, updates in alone]),
            )

    def _alone(self, position: int, task: RoundTask) -> LocalUpdates | None:
        try:
            return self._together([position], task)
        except Exception:  # noqa: BLE001 - whatever it is, this phone stays out and the others go on
            return None

    def _together(self, positions: list[int], task: RoundTask) -> LocalUpdates:
        terms = task.training
        training = LocalTraining(terms.epochs, terms.batch_size, terms.learning_rate, terms.shuffle)
        clients = self.population.examples(positions, task)
        orders = [
            schedule(
                client.count,
                training,
                simulation_rng(task.seed, task.step, self.population.ids[position], "shuffle"),
            )
            for position, client in zip(positions, clients, strict=True)
        ]
        private = PrivateSgd.of(terms)
        engine = make_engine(self.engine, self.model, learning_rate=terms.learning_rate, private=private)
        if private is None:
            return engine.updates(task.parameters, clients, orders)

        def noise(place: int) -> NDArray[np.float32]:
            # drawn when a chunk is trained: all phones' noise at once would not fit
            rng = simulation_rng(task.seed, task.step, self.population.ids[positions[place]], "example_noise")
            return rng.standard_normal((len(orders[place]), task.weights), dtype=np.float32)

        return engine.updates(task.parameters, clients, orders, noise)

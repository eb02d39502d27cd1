"""What the phones of a swarm have learned in a step, all worked out at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedlearn.clip import clip_rows
from fedlearn.device.plan import DevicePlan
from fedlearn.device.task import DeviceTask
from fedlearn.device.weights import offsets
from fedlearn.engine.population import MatchPopulation
from fedlearn.engine.registry import make_engine
from fedlearn.engine.schedule import LocalTraining, schedule
from fedlearn.models.base import Model
from fedlearn.privacy.grid import to_grid
from fedlearn.rng import simulation_rng
from fedlearn.types import I64


class Updates(Protocol):
    """Makes what phones send."""

    def of(self, position: int, task: DeviceTask, weights: bytes) -> I64:
        """Return i64[d]: one phone's clipped update on the task's grid."""
        ...


@dataclass
class LearnedUpdates:
    """Phones that train, all of a step in one pass: they hold the same weights.

    Args:
        population: their examples; position p of the swarm is position p here.
        model: what they train.
        plan: how.
    """

    population: MatchPopulation
    model: Model
    plan: DevicePlan
    _step: tuple[str, int, str] | None = field(default=None, init=False)
    _rows: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), np.int64), init=False, repr=False)

    def of(self, position: int, task: DeviceTask, weights: bytes) -> I64:
        """Return one row; the first phone of a step has all of them worked out."""
        step = (task.run_id, task.step, task.weights_digest)
        if step != self._step:
            self._rows, self._step = self._learn(task, weights), step
        row: I64 = self._rows[position]
        return row

    def _learn(self, task: DeviceTask, weights: bytes) -> NDArray[np.int64]:
        spec = self.plan.training
        local = LocalTraining(spec.epochs, spec.batch_size, spec.learning_rate, spec.shuffle)
        ids = self.population.ids
        clients = self.population.draw(range(len(ids)), spec.candidates, task.shuffle_seed, task.step)
        orders = [
            schedule(client.count, local, simulation_rng(task.shuffle_seed, task.step, name, "shuffle"))
            for name, client in zip(ids, clients, strict=True)
        ]
        engine = make_engine("vmap", self.model, learning_rate=spec.learning_rate, private=None)
        found = engine.updates(parameters(self.plan, weights), clients, orders)
        rows = clip_rows(found.deltas, task.mechanism.l2_clip_norm)
        values = np.where(rows.finite[:, None], rows.values, 0.0)
        return to_grid(values, task.mechanism.grid_step)


@dataclass(frozen=True)
class Canaries:
    """One-hot updates that prove who is in a sum: phone p adds ``unit`` grid steps to coordinate p, modulo d."""

    dimension: int
    unit: int = 1

    def of(self, position: int, task: DeviceTask, weights: bytes) -> I64:
        """Return the phone's canary."""
        del task, weights
        values = np.zeros(self.dimension, np.int64)
        values[position % self.dimension] = self.unit
        return values


def parameters(plan: DevicePlan, weights: bytes) -> Mapping[str, NDArray[Any]]:
    """Return named f32 arrays from a block of weights."""
    places = offsets(plan.shared)
    return {
        spec.name: np.frombuffer(weights[slice(*places[spec.name])], dtype="<f4").reshape(spec.shape)
        for spec in plan.shared
    }

"""The fast engine: ``local_step`` for a chunk of phones at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedlearn.engine.base import LocalUpdates, check_ids, check_noise, check_schedules, to_tensor
from fedlearn.engine.example_privacy import ExampleNoise, PrivateSgd, PrivateStep, private_local_step
from fedlearn.engine.pack import Chunk, chunks, tensors
from fedlearn.engine.step import local_step
from fedlearn.engine.touched import Touched, shared_indices
from fedlearn.models.base import ClientExamples, Model, Parameters, parameter_count
from fedlearn.types import F64, I64


@dataclass(frozen=True, slots=True)
class VmapEngine:
    """Trains many phones in one call of ``local_step``, over touched rows only where the model has tables.

    Args:
        model: the model.
        learning_rate: of the local SGD, > 0.
        dtype: torch.float32, or torch.float64 in tests.
        chunk_bytes: working memory of one chunk, apart from the result.
        private: clip and noise of the phones' steps, or None: plain SGD. Tables are then dense: noise is on every row.
    """

    model: Model
    learning_rate: float
    dtype: torch.dtype = torch.float32
    chunk_bytes: int = 32 * 2**20
    private: PrivateSgd | None = None

    def updates(
        self,
        parameters: Parameters,
        clients: Sequence[ClientExamples],
        schedules: Sequence[I64],
        noise: ExampleNoise | None = None,
    ) -> LocalUpdates:
        """See ``Engine.updates``."""
        check_schedules(clients, schedules)
        check_noise(self.private, noise)
        incoming = {name: to_tensor(parameters[name], self.dtype) for name in sorted(parameters)}
        deltas = torch.zeros((len(clients), parameter_count(parameters)), dtype=self.dtype)
        losses = np.zeros(len(clients))
        with torch.no_grad():
            for chunk in chunks(
                self.model, parameters, clients, schedules, self.chunk_bytes, per_example=self.private is not None
            ):
                inputs = tensors(chunk.columns, self.dtype)
                check_ids(self.model.row_columns, incoming, inputs)
                losses[chunk.positions] = self._losses(incoming, chunk, inputs)
                if self.private is None or noise is None:
                    self._train(incoming, chunk, inputs, deltas)
                else:
                    step = private_local_step(self.model, self.learning_rate, self.private)
                    deltas[torch.from_numpy(chunk.positions)] = _train_privately(step, incoming, chunk, inputs, noise)
        return LocalUpdates(deltas.numpy(), losses, np.array([client.count for client in clients], np.int64))

    def _losses(self, incoming: Mapping[str, Tensor], chunk: Chunk, inputs: Mapping[str, Tensor]) -> F64:
        """Return each phone's mean loss over all its examples at the incoming weights."""
        batch, mask = chunk.batch(inputs, chunk.everything())
        losses = torch.func.vmap(self.model.loss, in_dims=(None, 0, 0))(incoming, batch, mask)
        return np.asarray(losses.to(torch.float64).numpy())

    def _train(self, incoming: Mapping[str, Tensor], chunk: Chunk, inputs: dict[str, Tensor], deltas: Tensor) -> None:
        """Run the chunk's schedule and write its rows of ``deltas``; renumbers the id columns of ``inputs``."""
        indices = [
            Touched.of(chunk, inputs, columns, {name: incoming[name] for name in names})
            for columns, names in shared_indices(self.model.row_columns).items()
        ]
        dense = {name: value for name, value in incoming.items() if name not in self.model.row_columns}
        delta = {name: value.new_zeros((len(chunk.positions), *value.shape)) for name, value in dense.items()}
        step = local_step(self.model, self.learning_rate)
        for number, active in enumerate(chunk.active):
            if not active:
                continue
            batch, mask = chunk.batch(inputs, chunk.order[:active, number])
            weights = {name: value + delta[name][:active] for name, value in dense.items()}
            places = [index.places(batch) for index in indices]
            for index, place in zip(indices, places, strict=True):
                weights.update(index.gather(place))
                batch.update(index.slots(batch))
            change = step(weights, batch, mask)
            for name in dense:
                delta[name][:active] += change[name]
            for index, place in zip(indices, places, strict=True):
                index.add(place, change)
        positions = torch.from_numpy(chunk.positions)
        blocks = _blocks(incoming, deltas)
        for name in dense:
            blocks[name][positions] = delta[name]
        for index in indices:
            index.write(blocks, positions)


def _train_privately(
    step: PrivateStep, incoming: Mapping[str, Tensor], chunk: Chunk, inputs: Mapping[str, Tensor], noise: ExampleNoise
) -> Tensor:
    """Run the chunk's schedule with private steps and return its deltas [C, d]."""
    deltas = next(iter(incoming.values())).new_zeros((len(chunk.positions), sum(v.numel() for v in incoming.values())))
    delta = _blocks(incoming, deltas)
    drawn = [torch.from_numpy(noise(int(position))).to(deltas.dtype) for position in chunk.positions]
    for number, active in enumerate(chunk.active):
        if not active:
            continue
        batch, mask = chunk.batch(inputs, chunk.order[:active, number])
        weights = {name: value + delta[name][:active] for name, value in incoming.items()}
        # a phone whose schedule has ended has no step, and its mask is empty
        fresh = torch.stack([rows[min(number, len(rows) - 1)] for rows in drawn[:active]])
        change = step(weights, batch, mask, _blocks(incoming, fresh))
        for name, value in change.items():
            delta[name][:active] += value
    return deltas


def _blocks(incoming: Mapping[str, Tensor], deltas: Tensor) -> dict[str, Tensor]:
    """Return each parameter's part of ``deltas`` [n, d] as a view [n, ...]."""
    blocks = {}
    offset = 0
    for name, value in incoming.items():
        blocks[name] = deltas[:, offset : offset + value.numel()].view(len(deltas), *value.shape)
        offset += value.numel()
    return blocks

"""The oracle: one phone at a time, plain autograd, no padding, no client axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedlearn.engine.base import LocalUpdates, check_ids, check_noise, check_schedules, to_tensor
from fedlearn.engine.example_privacy import ExampleNoise, PrivateSgd
from fedlearn.models.base import ClientExamples, Model, Parameters, parameter_count
from fedlearn.types import I64


@dataclass(frozen=True, slots=True)
class LoopEngine:
    """Trains the phones one after another: slow, and easy to believe.

    Args:
        model: the model.
        learning_rate: of the local SGD, > 0.
        dtype: torch.float32, or torch.float64 in tests.
        private: clip and noise of the phones' steps, or None: plain SGD.
    """

    model: Model
    learning_rate: float
    dtype: torch.dtype = torch.float32
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
        for position, (client, order) in enumerate(zip(clients, schedules, strict=True)):
            if client.count:
                columns = {name: to_tensor(column, self.dtype) for name, column in client.columns.items()}
                check_ids(self.model.row_columns, incoming, columns)
                losses[position] = self._loss(incoming, columns)
                drawn = None if noise is None else torch.from_numpy(noise(position)).to(self.dtype)
                delta = self._train(incoming, columns, order, drawn)
                torch.cat([part.reshape(-1) for part in delta.values()], out=deltas[position])
        return LocalUpdates(deltas.numpy(), losses, np.array([client.count for client in clients], np.int64))

    def _loss(self, incoming: Mapping[str, Tensor], columns: Mapping[str, Tensor]) -> float:
        """Return the mean loss over all examples at the incoming weights."""
        count = len(next(iter(columns.values())))
        with torch.no_grad():
            return float(self.model.loss(incoming, columns, torch.ones(count, dtype=torch.bool)))

    def _train(
        self, incoming: Mapping[str, Tensor], columns: Mapping[str, Tensor], order: I64, noise: Tensor | None
    ) -> dict[str, Tensor]:
        """Return the phone's delta after its schedule."""
        weights = {name: value.clone().requires_grad_(True) for name, value in incoming.items()}
        delta = {name: torch.zeros_like(value) for name, value in incoming.items()}
        for number, row in enumerate(order):
            rows = torch.from_numpy(row[row >= 0])
            if not len(rows):
                continue
            batch = {name: column[rows] for name, column in columns.items()}
            if self.private is None or noise is None:
                gradients = self._gradient(weights, batch)
            else:
                gradients = self._noisy_gradient(weights, batch, noise[number], self.private)
            with torch.no_grad():
                for name, gradient in zip(weights, gradients, strict=True):
                    delta[name].sub_(gradient, alpha=self.learning_rate)
                    torch.add(incoming[name], delta[name], out=weights[name])
        return delta

    def _gradient(self, weights: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Return the gradient of the batch's mean loss, in the order of the weights."""
        count = len(next(iter(batch.values())))
        loss = self.model.loss(weights, batch, torch.ones(count, dtype=torch.bool))
        return torch.autograd.grad(loss, list(weights.values()), allow_unused=True, materialize_grads=True)

    def _noisy_gradient(
        self, weights: Mapping[str, Tensor], batch: Mapping[str, Tensor], noise: Tensor, private: PrivateSgd
    ) -> tuple[Tensor, ...]:
        """Return the noisy sum of clipped gradients over the constant batch size; ``noise`` is the step's, flat."""
        total = private.noise_std * noise
        for example in range(len(next(iter(batch.values())))):
            alone = {name: column[example : example + 1] for name, column in batch.items()}
            gradient = torch.cat([part.reshape(-1) for part in self._gradient(weights, alone)])
            norm = float(torch.linalg.vector_norm(gradient))
            if math.isfinite(norm):
                total = total + gradient * (private.l2_clip_norm / max(norm, private.l2_clip_norm))
        parts = torch.split(total / private.batch_size, [weight.numel() for weight in weights.values()])
        return tuple(part.reshape(weight.shape) for part, weight in zip(parts, weights.values(), strict=True))

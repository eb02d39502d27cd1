"""The oracle: one phone at a time, plain autograd, no padding, no client axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedlearn.engine.base import LocalUpdates, check_ids, check_schedules, to_tensor
from fedlearn.models.base import ClientExamples, Model, Parameters, parameter_count
from fedlearn.types import I64


@dataclass(frozen=True, slots=True)
class LoopEngine:
    """Trains the phones one after another: slow, and easy to believe.

    Args:
        model: the model.
        learning_rate: of the local SGD, > 0.
        dtype: torch.float32, or torch.float64 in tests.
    """

    model: Model
    learning_rate: float
    dtype: torch.dtype = torch.float32

    def updates(
        self, parameters: Parameters, clients: Sequence[ClientExamples], schedules: Sequence[I64]
    ) -> LocalUpdates:
        """See ``Engine.updates``."""
        check_schedules(clients, schedules)
        incoming = {name: to_tensor(parameters[name], self.dtype) for name in sorted(parameters)}
        deltas = torch.zeros((len(clients), parameter_count(parameters)), dtype=self.dtype)
        losses = np.zeros(len(clients))
        for position, (client, order) in enumerate(zip(clients, schedules, strict=True)):
            if client.count:
                columns = {name: to_tensor(column, self.dtype) for name, column in client.columns.items()}
                check_ids(self.model.row_columns, incoming, columns)
                losses[position] = self._loss(incoming, columns)
                delta = self._train(incoming, columns, order)
                torch.cat([part.reshape(-1) for part in delta.values()], out=deltas[position])
        return LocalUpdates(deltas.numpy(), losses, np.array([client.count for client in clients], np.int64))

    def _loss(self, incoming: Mapping[str, Tensor], columns: Mapping[str, Tensor]) -> float:
        """Return the mean loss over all examples at the incoming weights."""
        count = len(next(iter(columns.values())))
        with torch.no_grad():
            return float(self.model.loss(incoming, columns, torch.ones(count, dtype=torch.bool)))

    def _train(self, incoming: Mapping[str, Tensor], columns: Mapping[str, Tensor], order: I64) -> dict[str, Tensor]:
        """Return the phone's delta after its schedule."""
        weights = {name: value.clone().requires_grad_(True) for name, value in incoming.items()}
        delta = {name: torch.zeros_like(value) for name, value in incoming.items()}
        for row in order:
            rows = torch.from_numpy(row[row >= 0])
            if not len(rows):
                continue
            batch = {name: column[rows] for name, column in columns.items()}
            loss = self.model.loss(weights, batch, torch.ones(len(rows), dtype=torch.bool))
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, materialize_grads=True)
            with torch.no_grad():
                for name, gradient in zip(weights, gradients, strict=True):
                    delta[name].sub_(gradient, alpha=self.learning_rate)
                    torch.add(incoming[name], delta[name], out=weights[name])
        return delta

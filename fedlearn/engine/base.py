"""What an engine is: local training of many phones, behind one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlearn.engine.example_privacy import ExampleNoise, PrivateSgd
from fedlearn.errors import OutOfRange
from fedlearn.models.base import ClientExamples, Parameters
from fedlearn.types import F64, I64


@dataclass(frozen=True, slots=True)
class LocalUpdates:
    """What n phones computed, one row a phone, before clipping. Sensitive: it never leaves the node as it is.

    Args:
        deltas: f32 or f64 [n, d], trained - incoming weights in sorted name order; exactly 0 for an empty phone.
        losses: f64[n], mean loss over the phone's examples at the incoming weights; 0 for an empty phone.
        examples: i64[n], examples on the phone.
    """

    deltas: NDArray[Any] = field(repr=False)
    losses: F64 = field(repr=False)
    examples: I64 = field(repr=False)


class Engine(Protocol):
    """Runs local training for many phones; all engines return the same numbers up to rounding.

    Engines leave ``torch.set_num_threads`` to the process that hosts them: small batched products run fastest with
    one thread a process and one process a core.
    """

    def updates(
        self,
        parameters: Parameters,
        clients: Sequence[ClientExamples],
        schedules: Sequence[I64],
        noise: ExampleNoise | None = None,
    ) -> LocalUpdates:
        """Train every phone from the same incoming weights.

        Args:
            parameters: incoming weights.
            clients: examples of each phone, all with the same columns.
            schedules: per phone i64[steps, B] example indices, -1 for padding (``fedlearn.engine.schedule``).
            noise: each phone's, standard normal, where its steps are private (``fedlearn.engine.example_privacy``).

        Raises:
            OutOfRange: schedules that do not fit the clients.
        """
        ...


def check_schedules(clients: Sequence[ClientExamples], schedules: Sequence[I64]) -> None:
    """Raise OutOfRange unless there is one schedule per phone that names only the phone's own examples."""
    if len(clients) != len(schedules):
        raise OutOfRange(f"schedules: {len(schedules)} for {len(clients)} clients; need one for each.")
    for position, (client, order) in enumerate(zip(clients, schedules, strict=True)):
        if order.ndim != 2:
            raise OutOfRange(f"schedules[{position}]: shape {order.shape}; need [steps, batch].")
        if order.size and not (order.min() >= -1 and order.max() < client.count):
            raise OutOfRange(f"schedules[{position}]: names an example outside 0..{client.count - 1}.")


def check_noise(private: PrivateSgd | None, noise: ExampleNoise | None) -> None:
    """Raise OutOfRange unless noise comes with private steps and only with them."""
    if (private is None) != (noise is None):
        given = "no noise was given" if noise is None else "noise was given, but no clip"
        raise OutOfRange(f"client.example_privacy: private steps need a clip and each phone's noise; {given}.")


def check_ids(
    row_columns: Mapping[str, tuple[str, ...]], parameters: Mapping[str, Tensor], columns: Mapping[str, Tensor]
) -> None:
    """Raise OutOfRange unless every id is a row of its table; in a chunk it would alias another phone's row."""
    for table, names in row_columns.items():
        rows = len(parameters[table])
        for name in names:
            ids = columns[name]
            if ids.numel() and not (ids.min() >= 0 and ids.max() < rows):
                raise OutOfRange(
                    f"examples.{name}: ids {int(ids.min())}..{int(ids.max())}; {table} has rows 0..{rows - 1}."
                )


def to_tensor(array: NDArray[Any], dtype: torch.dtype) -> Tensor:
    """Return ``array`` as a tensor: floats as ``dtype``, integers as i64, booleans as they are."""
    # torch warns on read-only memory, which is what a memory-mapped store hands out: copy that.
    tensor = torch.from_numpy(np.ascontiguousarray(array) if array.flags.writeable else array.copy())
    if tensor.is_floating_point():
        return tensor.to(dtype)
    return tensor if tensor.dtype is torch.bool else tensor.to(torch.int64)

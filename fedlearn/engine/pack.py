"""Lays the ragged examples of many phones out as chunks of equal shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlearn.engine.base import to_tensor
from fedlearn.models.base import ClientExamples, Columns, Model, Parameters
from fedlearn.types import I64


@dataclass(frozen=True, slots=True)
class Chunk:
    """C phones, most steps first, as one block.

    Args:
        positions: i64[C], the phones' places in the caller's order.
        columns: name -> all their examples, one after another.
        start: i64[C], where each phone's examples begin in ``columns``.
        count: i64[C], examples of each phone, >= 1.
        order: i64[C, S, B], indices into a phone's own examples, -1 for padding.
        active: for each step, how many phones (a prefix) still have an example to train on.
    """

    positions: I64
    columns: Mapping[str, NDArray[np.generic]]
    start: I64
    count: I64
    order: I64
    active: tuple[int, ...]

    @property
    def owner(self) -> I64:
        """For every example of the chunk, its phone's place in the chunk."""
        return np.repeat(np.arange(len(self.count)), self.count)

    def everything(self) -> I64:
        """Return indices of all examples of every phone, i64[C, max count], -1 for padding."""
        index = np.arange(int(self.count.max()))
        return np.where(index < self.count[:, None], index, -1)

    def batch(self, columns: Mapping[str, Tensor], index: I64) -> tuple[dict[str, Tensor], Tensor]:
        """Gather the examples ``index`` i64[C', B] of the first C' phones: name -> [C', B, ...], and the mask.

        Padding repeats the phone's own first example, a valid value that the mask switches off; it never reads
        another phone's.
        """
        mask = index >= 0
        flat = torch.from_numpy((np.where(mask, index, 0) + self.start[: len(index), None]).ravel())
        gathered = {
            name: column.index_select(0, flat).reshape(*index.shape, *column.shape[1:])
            for name, column in columns.items()
        }
        return gathered, torch.from_numpy(mask)


def chunks(
    model: Model,
    parameters: Parameters,
    clients: Sequence[ClientExamples],
    schedules: Sequence[I64],
    chunk_bytes: int,
    *,
    per_example: bool = False,
) -> Iterator[Chunk]:
    """Yield all phones that have an example, sorted by step count, in chunks of about ``chunk_bytes``.

    Sorting puts phones of equal work side by side, so that little of a chunk is padding. ``per_example`` says that each
    example has a dense gradient of its own, and each step noise over all weights.
    """
    steps = np.array([len(order) for order in schedules], np.int64)
    count = np.array([client.count for client in clients], np.int64)
    ranked = np.lexsort((-count, -steps))
    ranked = ranked[count[ranked] > 0]
    if not len(ranked):
        return
    batch = np.minimum([schedules[position].shape[1] for position in ranked], count[ranked])
    sample = clients[ranked[0]]
    if per_example:
        total = np.cumsum(_per_example_bytes(parameters, sample, count[ranked], batch + steps[ranked]))
    else:
        total = np.cumsum(_bytes(model, parameters, sample, count[ranked], batch))
    first = 0
    while first < len(ranked):
        before = total[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(total, before + chunk_bytes, side="right")))
        yield _chunk(ranked[first:last].tolist(), clients, schedules)
        first = last


def _bytes(model: Model, parameters: Parameters, sample: ClientExamples, count: I64, batch: I64) -> I64:
    """Return roughly what each phone costs in a chunk: its weights four times, and its examples thrice.

    Four: weights, gradient, change and delta. ``sample`` is any phone with an example; all have the same columns.
    """
    dense = sum(array.nbytes for name, array in parameters.items() if name not in model.row_columns)
    touched = sum(
        parameters[table].nbytes // max(len(parameters[table]), 1) * (sample.columns[name].size // sample.count)
        for table, names in model.row_columns.items()
        for name in names
    )
    return np.asarray(4 * (dense + touched * batch) + 3 * _example_bytes(sample) * count, dtype=np.int64)


def _per_example_bytes(parameters: Parameters, sample: ClientExamples, count: I64, copies: I64) -> I64:
    """Return the same where each phone holds ``copies`` more of all weights: gradients of a batch, noise of the steps.

    Gradients twice: as they are, and scaled.
    """
    weights = sum(array.nbytes for array in parameters.values())
    return np.asarray(weights * (4 + 2 * copies) + 3 * _example_bytes(sample) * count, dtype=np.int64)


def _example_bytes(sample: ClientExamples) -> int:
    return sum(column.nbytes for column in sample.columns.values()) // sample.count


def _chunk(members: list[int], clients: Sequence[ClientExamples], schedules: Sequence[I64]) -> Chunk:
    """Build the block of the named phones."""
    order = np.full(
        (len(members), max(len(schedules[m]) for m in members), max(schedules[m].shape[1] for m in members)),
        -1,
        np.int64,
    )
    for place, member in enumerate(members):
        table = schedules[member]
        order[place, : table.shape[0], : table.shape[1]] = table
    busy = order.max(axis=2) >= 0
    # The last busy phone bounds the prefix: phones are sorted by steps, so few idle ones lie before it.
    active = tuple(int(np.flatnonzero(step)[-1]) + 1 if step.any() else 0 for step in busy.T)
    count = np.array([clients[m].count for m in members], np.int64)
    names = clients[members[0]].columns
    columns = {name: np.concatenate([clients[m].columns[name] for m in members]) for name in names}
    used = (order >= 0).any(axis=(0, 1))
    return Chunk(np.array(members, np.int64), columns, np.cumsum(count) - count, count, order[:, :, used], active)


def tensors(columns: Columns, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the columns as tensors of the engine's dtypes."""
    return {name: to_tensor(column, dtype) for name, column in columns.items()}

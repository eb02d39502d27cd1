"""Embedding tables of a chunk of phones, reduced to the rows their examples name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlearn.engine.pack import Chunk
from fedlearn.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Touched:
    """The m (phone, row) pairs that a chunk touches in the tables of one index, and the phones' deltas there.

    The chunk's id columns hold *places*, indices into these pairs, instead of ids. In a step each phone gets small
    tables with one slot for each *occurrence* of an id in its minibatch. Two occurrences of one row start equal and
    their changes add up, which is the gradient of the shared row.

    Args:
        columns: the id columns that index the tables.
        client: i64[m], the phone's position in the chunk.
        row: i64[m], row of the full tables.
        incoming: table -> [m, ...], the rows before training.
        delta: table -> [m, ...], trained - incoming; updated in place.
    """

    columns: tuple[str, ...]
    client: Tensor
    row: Tensor
    incoming: Mapping[str, Tensor]
    delta: Mapping[str, Tensor]

    @classmethod
    def of(
        cls, chunk: Chunk, inputs: dict[str, Tensor], columns: tuple[str, ...], tables: Mapping[str, Tensor]
    ) -> Touched:
        """Find the touched rows, and replace the ids in ``inputs`` by places."""
        rows = min(len(table) for table in tables.values())
        owner = torch.from_numpy(chunk.owner)
        keys = [inputs[name] + (owner * rows).reshape(-1, *[1] * (inputs[name].ndim - 1)) for name in columns]
        unique, inverse = torch.unique(torch.cat([key.flatten() for key in keys]), return_inverse=True)
        for name, part in zip(columns, inverse.split([key.numel() for key in keys]), strict=True):
            inputs[name] = part.reshape(inputs[name].shape)
        row = unique % rows
        incoming = {name: table.index_select(0, row) for name, table in tables.items()}
        delta = {name: torch.zeros_like(value) for name, value in incoming.items()}
        return cls(columns, unique // rows, row, incoming, delta)

    def places(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the place of every occurrence in a minibatch, i64[C, M]."""
        return torch.cat([batch[name].flatten(1) for name in self.columns], dim=1)

    def gather(self, places: Tensor) -> dict[str, Tensor]:
        """Return the phones' small tables at their current weights, each [C, M, ...]."""
        flat = places.flatten()
        small = {}
        for name, incoming in self.incoming.items():
            rows = incoming.index_select(0, flat).add_(self.delta[name].index_select(0, flat))
            small[name] = rows.reshape(*places.shape, *rows.shape[1:])
        return small

    def slots(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the id columns with each occurrence replaced by its slot in the small tables."""
        slots = {}
        start = 0
        for name in self.columns:
            shape = batch[name].shape
            stop = start + shape[1:].numel()
            slots[name] = torch.arange(start, stop).reshape(1, *shape[1:]).expand(shape)
            start = stop
        return slots

    def add(self, places: Tensor, change: Mapping[str, Tensor]) -> None:
        """Add the changes of the small tables [C, M, ...] to the deltas."""
        flat = places.flatten()
        for name, delta in self.delta.items():
            delta.index_add_(0, flat, change[name].flatten(0, 1))

    def write(self, blocks: Mapping[str, Tensor], positions: Tensor) -> None:
        """Write the deltas into the tables' parts of the result [n, rows, ...] at the phones' ``positions`` i64[C]."""
        for name, delta in self.delta.items():
            blocks[name][positions[self.client], self.row] = delta


def shared_indices(row_columns: Mapping[str, tuple[str, ...]]) -> dict[tuple[str, ...], list[str]]:
    """Return id columns -> the tables they index.

    Raises:
        ConfigError: a column stands in two different lists, so that its ids cannot be renumbered for both.
    """
    indices: dict[tuple[str, ...], list[str]] = {}
    for table in sorted(row_columns):
        indices.setdefault(tuple(row_columns[table]), []).append(table)
    named = [column for columns in indices for column in columns]
    for column in named:
        if named.count(column) > 1:
            raise ConfigError(
                f"model.row_columns: {column!r} stands in two different lists; give both tables one list."
            )
    return indices

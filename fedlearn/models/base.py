"""What every model shares: parameters as named arrays, a phone's examples as columns, and the ``Model`` Protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import ConfigError
from fedlearn.types import F64

if TYPE_CHECKING:
    from torch import Tensor

Parameters = Mapping[str, NDArray[np.float32]]
"""Named weights of a model; the flat order is always the sorted order of the names."""

Columns = Mapping[str, NDArray[Any]]
"""Named example columns with equal leading axis: floats (features) or integers (ids, labels)."""


@dataclass(frozen=True, slots=True)
class ClientExamples:
    """What one phone trains on in one round, possibly nothing.

    Args:
        columns: name -> array [n, ...]; the model says which it reads. n may be 0.

    Raises:
        ConfigError: no column, or columns of different length.
    """

    columns: Columns = field(repr=False)

    def __post_init__(self) -> None:
        lengths = {name: len(column) for name, column in self.columns.items()}
        if len(set(lengths.values())) != 1:
            raise ConfigError(f"examples.columns={lengths}: need at least one column, all of one length.")

    @property
    def count(self) -> int:
        """Number of examples n."""
        return len(next(iter(self.columns.values())))


class Model(Protocol):
    """A model that phones can train: two pure functions and an initial point.

    ``loss`` is written for ONE phone's minibatch; the engines add the client axis. It must use out-of-place torch
    operations that ``torch.func.vmap`` and ``torch.func.grad`` accept, draw no random numbers, and read no state.
    ``fedlearn.engine.conformance.ModelConformance`` tests all of it.
    """

    @property
    def name(self) -> str:
        """Name in configs and reports."""
        ...

    @property
    def row_columns(self) -> Mapping[str, tuple[str, ...]]:
        """Embedding tables: parameter name [rows, ...] -> the integer columns that index it; empty for dense models.

        A listed parameter may be read only by looking up its columns (``torch.nn.functional.embedding``), and these
        columns may serve nothing else: an engine may renumber rows and ids together, to work on the named rows alone.
        That is an internal speed-up. The update it returns is dense over all rows, with an index set that is the same
        for every phone, because the rows a phone touched would name its words and items.
        """
        ...

    def initial(self, seed: int) -> Parameters:
        """Return the starting point, f32, names in sorted order; equal seeds give equal bits."""
        ...

    def loss(self, parameters: Mapping[str, Tensor], batch: Mapping[str, Tensor], mask: Tensor) -> Tensor:
        """Return the mean loss over the rows of one minibatch where ``mask`` is true; a scalar.

        Args:
            parameters: name -> weights, without a client axis.
            batch: name -> [B, ...].
            mask: bool[B]; rows where it is false are padding. With no true row, loss and gradient are exactly 0.
        """
        ...

    def scores(self, parameters: Parameters, query: NDArray[Any]) -> F64:
        """Return one score per rankable item, f64[N], higher is better; equal items get bit-equal scores.

        Args:
            parameters: as returned by ``initial`` or a training round.
            query: what is known on one occasion. For models of match features the rows of all items, f32[N, d], or
                of several occasions, f32[M, N, d], which gives f64[M, N].
        """
        ...


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of ``values`` [B] where ``mask`` [B] is true; exactly 0, gradient too, when it never is."""
    weights = mask.to(values.dtype)
    return (values * weights).sum() / weights.sum().clamp(min=1.0)


def parameter_schema(parameters: Parameters) -> tuple[tuple[str, tuple[int, ...], str], ...]:
    """Return (name, shape, dtype) of every parameter in flat order: what a task digest binds."""
    return tuple((name, parameters[name].shape, parameters[name].dtype.name) for name in sorted(parameters))


def flatten(parameters: Mapping[str, NDArray[Any]], dtype: type[np.floating[Any]] = np.float32) -> NDArray[Any]:
    """Return all weights as one vector [d] of ``dtype``, in sorted name order; a fresh array."""
    if not parameters:
        return np.zeros(0, dtype)
    return np.concatenate([parameters[name].ravel() for name in sorted(parameters)]).astype(dtype)


def unflatten(vector: NDArray[Any], like: Parameters) -> Parameters:
    """Return ``vector`` [d] as f32 parameters with the names and shapes of ``like``, in sorted name order.

    Raises:
        ConfigError: the vector has another length than ``like``.
    """
    size = parameter_count(like)
    if vector.shape != (size,):
        raise ConfigError(f"vector: shape {vector.shape} does not fit a model of {size} weights; expected ({size},).")
    parts: dict[str, NDArray[np.float32]] = {}
    start = 0
    for name in sorted(like):
        stop = start + like[name].size
        parts[name] = vector[start:stop].astype(np.float32).reshape(like[name].shape)
        start = stop
    return parts


def parameter_count(parameters: Parameters) -> int:
    """Return d, the number of weights."""
    return sum(array.size for array in parameters.values())

"""What the server does with a released mean: an optimizer of ``torch.optim`` by name, and an average of iterates.

Both see only what was released, so neither costs privacy (post-processing).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedlearn.errors import ConfigError, OutOfRange, ResumeRefused, UnknownSetting
from fedlearn.models.base import Parameters, flatten, unflatten
from fedlearn.types import F64

State = Mapping[str, NDArray[Any]]
"""Checkpoint of an optimizer: plain named arrays."""

OPTIMIZERS: Mapping[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adadelta": torch.optim.Adadelta,
    "adagrad": torch.optim.Adagrad,
    "adamax": torch.optim.Adamax,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
    "rprop": torch.optim.Rprop,
}
# How torch runs its kernels, or the sign of the gradient: not the user's to set.
_RESERVED = {"self", "params", "lr", "foreach", "fused", "capturable", "differentiable", "maximize"}
_SLOT = "state."


class ServerOptimizer:
    """A ``torch.optim`` optimizer on the pseudo-gradient, which is minus the mean update (Reddi et al. 2021).

    ``sgd`` with learning rate 1 adds the mean: federated averaging (McMahan et al. 2017). The weights are kept in f64
    between rounds, so that differences of the last bit between shard layouts do not grow; what is published is their
    f32 image.

    Args:
        name: a key of ``OPTIMIZERS``, in any case.
        learning_rate: > 0.
        options: further keyword arguments of that optimizer, e.g. ``{"momentum": 0.9}`` or ``{"betas": [0.9, 0.99]}``.

    Raises:
        UnknownSetting: no such optimizer or option.
        OutOfRange: a value the optimizer refuses.
    """

    def __init__(self, name: str, learning_rate: float, options: Mapping[str, Any] | None = None) -> None:
        if name.lower() not in OPTIMIZERS:
            raise UnknownSetting(f"server_opt.name={name!r}: choose one of {', '.join(OPTIMIZERS)}.")
        if not 0.0 < learning_rate < math.inf:
            raise OutOfRange(f"server_opt.learning_rate={learning_rate}: must be > 0 and finite, e.g. 1.0.")
        self.name = name.lower()
        self.learning_rate = learning_rate
        self.options = dict(options or {})
        known = sorted(set(inspect.signature(OPTIMIZERS[self.name]).parameters) - _RESERVED)
        unknown = sorted(set(self.options) - set(known))
        if unknown:
            raise UnknownSetting(f"server_opt.options.{unknown[0]}: {self.name} takes {', '.join(known)}.")
        self._master: torch.Tensor | None = None
        self._torch = self._build(torch.zeros(1, dtype=torch.float64))

    def step(self, parameters: Parameters, mean: F64) -> Parameters:
        """Return the next parameters.

        Args:
            parameters: of the round that produced ``mean``; what the step before returned.
            mean: released mean update, f64[d].

        Raises:
            ConfigError: the mean has another length than the model.
            ResumeRefused: the parameters are not what this optimizer returned last.
        """
        flat = flatten(parameters)
        if mean.shape != flat.shape:
            raise ConfigError(f"mean: shape {mean.shape} does not fit a model of {flat.size} weights.")
        if self._master is None:
            self._adopt(flat.astype(np.float64))
        elif not np.array_equal(self._master.numpy().astype(np.float32), flat, equal_nan=True):
            raise ResumeRefused("server optimizer: the parameters are not those it returned last; make a new one.")
        master = self._weights()
        master.grad = torch.from_numpy(-np.asarray(mean, dtype=np.float64))
        self._torch.step()
        return unflatten(master.numpy(), parameters)

    def state_dict(self) -> State:
        """Return everything a resumed run needs to go on bit for bit; empty before the first step."""
        if self._master is None:
            return {}
        slots = {
            _SLOT + key: value.numpy().copy()
            for key, value in self._torch.state[self._master].items()
            if isinstance(value, torch.Tensor)
        }
        return {"master": self._master.numpy().copy(), **slots}

    def load_state_dict(self, state: State) -> None:
        """Continue from ``state_dict()`` of an optimizer with the same name and options."""
        if not state:
            self._master = None
            return
        self._adopt(np.array(state["master"], dtype=np.float64))
        # Not torch's own load_state_dict: it casts the slots to the dtype of the weights, which changes bits.
        self._torch.state[self._weights()].update(
            {
                key.removeprefix(_SLOT): torch.from_numpy(np.array(value))
                for key, value in state.items()
                if key.startswith(_SLOT)
            }
        )

    def _weights(self) -> torch.Tensor:
        if self._master is None:
            raise ResumeRefused("server optimizer: no step was taken yet.")
        return self._master

    def _adopt(self, flat: F64) -> None:
        """Make ``flat`` the master weights, with fresh slots."""
        self._master = torch.from_numpy(flat)
        self._torch = self._build(self._master)

    def _build(self, weights: torch.Tensor) -> torch.optim.Optimizer:
        options = {key: tuple(v) if isinstance(v, list | tuple) else v for key, v in self.options.items()}
        make: Callable[..., torch.optim.Optimizer] = OPTIMIZERS[self.name]
        try:
            return make([weights], lr=self.learning_rate, foreach=False, **options)
        except (ValueError, TypeError) as error:
            raise OutOfRange(f"server_opt.options={self.options}: {self.name} says: {error}") from error


class IterateAverage:
    """Mean of the parameters of the last rounds (Polyak & Juditsky 1992): less noise in the result, no privacy cost.

    Args:
        fraction: part of the rounds, counted from the end, in (0, 1]; at least one round is averaged.
        rounds: rounds of the run, >= 1.

    Raises:
        OutOfRange: fraction or rounds outside their range.
    """

    def __init__(self, fraction: float, rounds: int) -> None:
        if not 0.0 < fraction <= 1.0:
            raise OutOfRange(f"server_opt.average={fraction}: must be in (0, 1], e.g. 0.5.")
        if rounds < 1:
            raise OutOfRange(f"cohort.rounds={rounds}: must be >= 1, e.g. 100.")
        self.first = rounds - max(1, round(fraction * rounds))
        self._sum: F64 | None = None
        self._count = 0

    def add(self, round_number: int, parameters: Parameters) -> None:
        """Take in the parameters that 0-based round ``round_number`` published, if the round is among the last."""
        if round_number < self.first:
            return
        flat = flatten(parameters, np.float64)
        self._sum = flat if self._sum is None else self._sum + flat
        self._count += 1

    def value(self, parameters: Parameters) -> Parameters:
        """Return the average so far, f32; ``parameters`` themselves while no round was taken in."""
        if self._sum is None:
            return parameters
        return unflatten(self._sum / self._count, parameters)

    def state_dict(self) -> State:
        """Return the running sum and count; empty before the first round that counts."""
        if self._sum is None:
            return {}
        return {"sum": self._sum.copy(), "count": np.array(self._count, np.int64)}

    def load_state_dict(self, state: State) -> None:
        """Continue from ``state_dict()``."""
        self._sum = np.array(state["sum"], dtype=np.float64) if state else None
        self._count = int(state["count"]) if state else 0

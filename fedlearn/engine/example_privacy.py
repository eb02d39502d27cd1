"""DP-SGD on a phone's own examples (Abadi et al. 2016): the step of ``step.local_step`` with each example's gradient
clipped, and noise on their sum.

What it bounds: how much one example of a phone can show in that phone's update, to whoever sees the update. It is a
layer of its own below the guarantee for whole devices, and changes nothing about it.

Honest limits: arithmetic is floating point, so a clipped gradient may be over the clip by its rounding. The noise is an
input. In a simulation it is seeded, which protects nobody: a simulated run shows what the layer costs in accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlearn.engine.step import Tensors
from fedlearn.models.base import Model
from fedlearn.terms import TrainingTerms

ExampleNoise = Callable[[int], NDArray[np.float32]]
"""Position of a phone -> its standard normal noise, f32[steps of its schedule, d] in flat order."""

PrivateStep = Callable[[Tensors, Tensors, Tensor, Tensors], dict[str, Tensor]]


@dataclass(frozen=True, slots=True)
class PrivateSgd:
    """What makes a local step private. ``batch_size`` is the constant divisor, however many examples a batch holds."""

    noise_multiplier: float
    l2_clip_norm: float
    batch_size: int

    @classmethod
    def of(cls, terms: TrainingTerms) -> PrivateSgd | None:
        """Return what a task asks for, or None for plain SGD."""
        privacy = terms.example_privacy
        return None if privacy is None else cls(privacy.noise_multiplier, privacy.l2_clip_norm, terms.batch_size)

    @property
    def noise_std(self) -> float:
        """Std of the noise on a batch's sum of clipped gradients."""
        return self.noise_multiplier * self.l2_clip_norm


def private_local_step(model: Model, learning_rate: float | Tensor, private: PrivateSgd) -> PrivateStep:
    """Return the DP-SGD step ``(parameters, batch, mask, noise) -> change``.

    ``change = -learning_rate * (sum of clipped gradients + noise_std * noise) / batch_size``. Every argument and result
    has a leading client axis, as in ``local_step``: parameters [C, ...], batch [C, B, ...], mask bool[C, B], and noise
    of the parameters' names and shapes, standard normal and fresh for each step. A client with an empty mask has no
    step: its change is exactly 0.

    Args:
        model: its ``loss`` is differentiated one example at a time, a ridge penalty with each of them.
        learning_rate: > 0.
        private: clip, noise and divisor.
    """
    gradients = example_gradients(model)

    def step(parameters: Tensors, batch: Tensors, mask: Tensor, noise: Tensors) -> dict[str, Tensor]:
        total = clipped_sum(gradients(parameters, batch, mask), mask, private.l2_clip_norm)
        steps = mask.any(1)
        return {
            name: torch.where(_over(steps, value), value + private.noise_std * noise[name], 0.0)
            * (-learning_rate / private.batch_size)
            for name, value in total.items()
        }

    return step


def example_gradients(model: Model) -> Callable[[Tensors, Tensors, Tensor], dict[str, Tensor]]:
    """Return ``(parameters [C, ...], batch [C, B, ...], mask bool[C, B]) -> gradients [C, B, ...]``, one an example."""

    def loss(parameters: Tensors, example: Mapping[str, Tensor], counts: Tensor) -> Tensor:
        batch = {name: column.unsqueeze(0) for name, column in example.items()}
        return model.loss(parameters, batch, counts.unsqueeze(0))

    examples = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    gradients: Callable[[Tensors, Tensors, Tensor], dict[str, Tensor]] = torch.func.vmap(examples)
    return gradients


def clipped_sum(gradients: Tensors, mask: Tensor, l2_clip_norm: float) -> dict[str, Tensor]:
    """Return the sum over examples of their gradients, each first scaled down to L2 norm ``l2_clip_norm``.

    The norm is over all parameters together. Exactly 0 is added by an example that the mask hides, and by one whose
    gradient, or its norm, is not finite: left in, it would show itself by making the phone's update useless.

    Args:
        gradients: name -> [C, B, ...].
        mask: bool[C, B].
        l2_clip_norm: > 0.

    Returns:
        name -> [C, ...].
    """
    squares = sum(value.flatten(2).square().sum(2) for value in gradients.values())
    norms = torch.as_tensor(squares).sqrt()
    usable = mask & norms.isfinite()
    factors = l2_clip_norm / norms.clamp(min=l2_clip_norm)
    return {
        name: torch.where(_over(usable, value), value * _over(factors, value), 0.0).sum(1)
        for name, value in gradients.items()
    }


def _over(values: Tensor, like: Tensor) -> Tensor:
    """Return ``values`` with trailing axes of length one, so that it broadcasts over ``like``."""
    return values.reshape(*values.shape, *[1] * (like.ndim - values.ndim))

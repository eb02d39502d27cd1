"""The one training step, over a leading client axis: a simulator runs it for thousands of phones, a phone for one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fedlearn.models.base import Model

Tensors = Mapping[str, Tensor]
LocalStep = Callable[[Tensors, Tensors, Tensor], dict[str, Tensor]]


def local_step(model: Model, learning_rate: float | Tensor) -> LocalStep:
    """Return the SGD step ``(parameters, batch, mask) -> change`` with ``change = -learning_rate * gradient``.

    Every argument and result has a leading client axis: parameters [C, ...], batch [C, B, ...], mask bool[C, B]. The
    clients do not interact; one with an empty mask gets a change of exactly 0. The caller keeps
    ``delta <- delta + change`` and steps on ``incoming + delta``: what leaves a phone is the delta, and subtracting
    two nearly equal weights at the end would cost it most of its f32 digits.

    Args:
        model: its ``loss`` is differentiated as it stands.
        learning_rate: > 0; a scalar tensor where it is an input of an exported step.
    """
    gradients = torch.func.vmap(torch.func.grad(model.loss))

    def step(parameters: Tensors, batch: Tensors, mask: Tensor) -> dict[str, Tensor]:
        return {name: gradient * -learning_rate for name, gradient in gradients(parameters, batch, mask).items()}

    return step

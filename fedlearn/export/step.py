"""``step.onnx`` and ``private_step.onnx``: the engine's one training step, for one phone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedlearn.device.plan import ColumnSpec
from fedlearn.engine.example_privacy import PrivateSgd, private_local_step
from fedlearn.engine.step import local_step
from fedlearn.export.graph import Function, onnx_graph
from fedlearn.models.base import Model
from fedlearn.terms import ExamplePrivacy

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class StepFunction:
    """One training step of one phone over flat tensors.

    Args:
        function: takes the inputs in order, returns the outputs in order.
        inputs: name -> zeros or ones of its shape and dtype.
        outputs: names.
    """

    function: Function
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]


def step_onnx(
    model: Model, columns: Sequence[ColumnSpec], batch_size: int, example_privacy: ExamplePrivacy | None = None
) -> bytes:
    """Return the training step of a model as ONNX.

    Inputs, all of fixed shape: ``p.<name>`` incoming weights, ``d.<name>`` the delta so far, ``c.<name>`` each column
    [B, ...], ``mask`` bool[B], ``learning_rate`` f32; with ``example_privacy`` also ``n.<name>``, fresh standard normal
    noise of each parameter's shape. Outputs: ``next.<name>``, the next delta. A step with an empty mask
    changes nothing.

    The function is ``fedlearn.engine.step.local_step`` (or ``private_local_step``) for one client, so what a phone
    computes and what a simulation computes is one definition; they differ by rounding only.

    Args:
        model: what to train.
        columns: what the model reads, dtype and shape of one row.
        batch_size: B, >= 1; shorter batches are padded and masked.
        example_privacy: clip and noise of each example's gradient, constants of the graph; None for plain SGD.

    Raises:
        MissingDependency: onnx or onnxscript is not installed.
        BundleRefused: the model needs an operator that a phone does not run.
    """
    step = step_function(model, columns, batch_size, example_privacy)
    what = "step.onnx" if example_privacy is None else "private_step.onnx"
    return onnx_graph(step.function, step.inputs, step.outputs, what)


def step_function(
    model: Model, columns: Sequence[ColumnSpec], batch_size: int, example_privacy: ExamplePrivacy | None = None
) -> StepFunction:
    """Return the function that ``step_onnx`` exports, with its inputs and outputs; arguments as there."""
    initial = {name: torch.from_numpy(np.array(value)) for name, value in sorted(model.initial(0).items())}
    names = tuple(initial)
    rows = {
        spec.name: torch.zeros((batch_size, *spec.shape), dtype=_DTYPES[spec.dtype])
        for spec in sorted(columns, key=lambda spec: spec.name)
    }
    inputs = {f"p.{name}": value for name, value in initial.items()}
    inputs |= {f"d.{name}": torch.zeros_like(value) for name, value in initial.items()}
    inputs |= {f"c.{name}": value for name, value in rows.items()}
    inputs |= {"mask": torch.ones(batch_size, dtype=torch.bool), "learning_rate": torch.tensor(0.1)}
    private: PrivateSgd | None = None
    if example_privacy is not None:
        private = PrivateSgd(example_privacy.noise_multiplier, example_privacy.l2_clip_norm, batch_size)
        inputs |= {f"n.{name}": torch.zeros_like(value) for name, value in initial.items()}

    def change(given: Tensors) -> Tensors:
        weights = {name: (given[f"p.{name}"] + given[f"d.{name}"]).unsqueeze(0) for name in names}
        batch, mask = _one_client(given, "c", tuple(rows)), given["mask"].unsqueeze(0)
        if private is None:
            return local_step(model, given["learning_rate"])(weights, batch, mask)
        noise = _one_client(given, "n", names)
        return private_local_step(model, given["learning_rate"], private)(weights, batch, mask, noise)

    def step(*flat: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(inputs, flat, strict=True))
        changed = change(given)
        return tuple(given[f"d.{name}"] + changed[name].squeeze(0) for name in names)

    return StepFunction(step, inputs, tuple(f"next.{name}" for name in names))


def _one_client(given: Tensors, prefix: str, names: Sequence[str]) -> Tensors:
    """Give tensors a client axis of length one."""
    return {name: given[f"{prefix}.{name}"].unsqueeze(0) for name in names}


_DTYPES = {"<f4": torch.float32, "<i8": torch.int64}

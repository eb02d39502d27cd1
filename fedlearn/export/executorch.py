"""The training step as an ExecuTorch program, for phones that run that instead of onnxruntime. Not tested here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fedlearn.device.plan import ColumnSpec
from fedlearn.errors import MissingDependency
from fedlearn.export.graph import traced
from fedlearn.export.step import step_function
from fedlearn.models.base import Model
from fedlearn.terms import ExamplePrivacy

INSTALL = "A .pte file needs executorch: pip install 'fedlearn[executorch]'."


def step_pte(
    model: Model, columns: Sequence[ColumnSpec], batch_size: int, example_privacy: ExamplePrivacy | None = None
) -> bytes:
    """Return ``step.onnx``'s function as a portable ExecuTorch program: the same inputs and outputs, in that order.

    Raises:
        MissingDependency: executorch is not installed.
    """
    try:
        from executorch.exir import to_edge  # noqa: PLC0415 - optional
    except ImportError as error:
        raise MissingDependency(INSTALL) from error
    step = step_function(model, columns, batch_size, example_privacy)
    example = tuple(step.inputs.values())
    program: Any = to_edge(torch.export.export(traced(step.function, example), example)).to_executorch()
    return bytes(program.buffer)

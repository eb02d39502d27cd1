"""ONNX graphs on one thread, held to exactly the inputs and outputs that a plan implies."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedlearn.device.plan import DevicePlan
from fedlearn.errors import BundleRefused

# Read when onnxruntime is loaded. On Linux its default since 1.29 is to keep a device id and a database in the owner's
# cache and to report hashes of the graphs it runs.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime as ort

F32 = NDArray[np.float32]
Interface = dict[str, tuple[str, tuple[int | None, ...]]]

_TYPES: Final = {"<f4": "tensor(float)", "<i8": "tensor(int64)"}
_SILENT: Final = 4
_ALIGNMENT: Final = 64


def open_graph(model: bytes, what: str) -> ort.InferenceSession:
    """Return a session of one thread that logs nothing.

    Raises:
        BundleRefused: onnxruntime cannot load it.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = _SILENT
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - onnxruntime's exceptions have no base of their own
        raise BundleRefused(f"{what}: onnxruntime {ort.__version__} cannot load it ({type(error).__name__}).") from None


def aligned(values: NDArray[Any]) -> NDArray[Any]:
    """Return a copy that starts at a multiple of 64 bytes.

    onnxruntime adds up in an order that follows from an array's address: with one alignment, equal inputs give equal
    bits in every process.
    """
    room = np.empty(values.nbytes + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    made = room[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    made[...] = values
    return made


def require_interface(found: Sequence[Any], wanted: Interface, what: str) -> None:
    """Raise BundleRefused unless a graph's inputs or outputs have exactly these names, types and shapes.

    A wanted dimension of None must be free in the graph: one graph serves any number of it.
    """
    names = [node.name for node in found]
    if sorted(names) != sorted(wanted):
        odd = sorted(set(names) ^ set(wanted)) or sorted(names)
        raise BundleRefused(f"{what}: differs from the plan in {', '.join(odd[:8])}.")
    for node in found:
        kind, shape = wanted[node.name]
        given = tuple(size if isinstance(size, int) else None for size in node.shape)
        if node.type != kind or given != shape:
            raise BundleRefused(f"{what}: {node.name} is {node.type} {given}, the plan needs {kind} {shape}.")


class StepGraph:
    """``step.onnx``: one optimiser step, over and over, without a copy of the parameters at each.

    The parameters are read, never written; the delta swings between two buffers.

    Args:
        model: the graph.
        plan: its interface.
        parameters: incoming weights by name, f32.

    Raises:
        BundleRefused: it cannot be loaded, or its interface is not the plan's.
    """

    def __init__(self, model: bytes, plan: DevicePlan, parameters: Mapping[str, F32]) -> None:
        self._session = open_graph(model, "step")
        require_interface(self._session.get_inputs(), step_inputs(plan), "step: inputs")
        deltas: Interface = {f"next.{spec.name}": ("tensor(float)", spec.shape) for spec in plan.parameters}
        require_interface(self._session.get_outputs(), deltas, "step: outputs")
        size = plan.training.batch_size
        self.batch = {c.name: aligned(np.zeros((size, *c.shape), c.dtype)) for c in plan.columns}
        self.mask = aligned(np.zeros(size, bool))
        self.noise: dict[str, F32] = {}
        if plan.training.example_privacy is not None:
            self.noise = _zeros(plan)
        self._deltas = [_zeros(plan), _zeros(plan)]
        fixed: dict[str, NDArray[Any]] = {
            "mask": self.mask,
            "learning_rate": np.array(plan.training.learning_rate, np.float32),
        }
        incoming = {name: aligned(array) for name, array in parameters.items()}
        for prefix, arrays in (("p", incoming), ("c", self.batch), ("n", self.noise)):
            fixed |= {f"{prefix}.{name}": array for name, array in arrays.items()}
        # onnxruntime reads and writes these very arrays: no copy on the way in or out
        self._fixed = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in fixed.items()}
        self._keep = fixed
        # step by step: read the first and write the second, then the other way round
        self._turns = itertools.cycle([(self._bind(0), self._deltas[1]), (self._bind(1), self._deltas[0])])
        self.delta: Mapping[str, F32] = self._deltas[0]

    def _bind(self, source: int) -> Any:
        binding = self._session.io_binding()
        for name, value in self._fixed.items():
            binding.bind_ortvalue_input(name, value)
        for name, array in self._deltas[source].items():
            binding.bind_ortvalue_input(f"d.{name}", ort.OrtValue.ortvalue_from_numpy(array))
        for name, array in self._deltas[1 - source].items():
            binding.bind_ortvalue_output(f"next.{name}", ort.OrtValue.ortvalue_from_numpy(array))
        return binding

    def run(self) -> None:
        """Take one step on ``batch``, ``mask`` and ``noise`` as they stand; ``delta`` is the new one."""
        binding, self.delta = next(self._turns)
        self._session.run_with_iobinding(binding)


def _zeros(plan: DevicePlan) -> dict[str, F32]:
    return {spec.name: aligned(np.zeros(spec.shape, np.float32)) for spec in plan.parameters}


def step_inputs(plan: DevicePlan) -> Interface:
    """Return what ``step.onnx`` must take: incoming weights, delta so far, columns, mask, learning rate, noise."""
    size = plan.training.batch_size
    inputs: Interface = {"mask": ("tensor(bool)", (size,)), "learning_rate": ("tensor(float)", ())}
    for spec in plan.parameters:
        inputs |= {f"{prefix}.{spec.name}": ("tensor(float)", spec.shape) for prefix in "pd"}
        if plan.training.example_privacy is not None:
            inputs[f"n.{spec.name}"] = ("tensor(float)", spec.shape)
    for column in plan.columns:
        inputs[f"c.{column.name}"] = (_TYPES[column.dtype], (size, *column.shape))
    return inputs

"""Whether a bundle's ONNX graphs fit its plan: names, element types and shapes of what goes in and comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from fedlearn.device.operators import ALLOWED_OPERATORS, read_model
from fedlearn.device.plan import DevicePlan
from fedlearn.errors import BundleRefused
from fedlearn.proto import onnx_lite_pb2 as pb

FLOAT: Final = 1
INT64: Final = 7
BOOL: Final = 9
"""Element types, as onnx.proto numbers them."""

_TYPE_OF: Final = {"<f4": FLOAT, "<i8": INT64}
_TYPE_NAMES: Final = {FLOAT: "f32", INT64: "i64", BOOL: "bool"}

Port = tuple[int, tuple[int | None, ...]]
"""Element type and shape of an input or output; None is a size that the caller chooses."""


def step_ports(plan: DevicePlan, *, private: bool) -> tuple[dict[str, Port], dict[str, Port]]:
    """Return inputs and outputs of ``step.onnx``, or of ``private_step.onnx``, by name.

    Inputs: ``p.<parameter>`` as it came in, ``d.<parameter>`` the change so far, ``c.<column>`` of a batch, ``mask``
    bool[B], ``learning_rate`` f32 scalar; for private steps also ``n.<parameter>``, standard normal noise. Outputs:
    ``next.<parameter>``, what the next step gets as ``d.<parameter>``.
    """
    rows = plan.training.batch_size
    letters = "pdn" if private else "pd"
    inputs: dict[str, Port] = {
        f"{letter}.{spec.name}": (FLOAT, spec.shape) for letter in letters for spec in plan.parameters
    }
    inputs |= {f"c.{spec.name}": (_TYPE_OF[spec.dtype], (rows, *spec.shape)) for spec in plan.columns}
    inputs |= {"mask": (BOOL, (rows,)), "learning_rate": (FLOAT, ())}
    return inputs, {f"next.{spec.name}": (FLOAT, spec.shape) for spec in plan.parameters}


def infer_ports(plan: DevicePlan) -> tuple[dict[str, Port], dict[str, Port]]:
    """Return inputs and outputs of ``infer.onnx`` by name.

    Inputs: ``p.<parameter>``, of which a graph may leave a size open (rows of items); for ``match`` ``features``
    f32[N, d]; for ``two_tower`` ``terms`` i64[T] and ``term_weight`` f32[T]. Output: ``scores`` f32[N].
    """
    inputs: dict[str, Port] = {f"p.{spec.name}": (FLOAT, spec.shape) for spec in plan.parameters}
    if plan.examples == "match":
        inputs["features"] = (FLOAT, (None, _width(plan)))
    else:
        inputs |= {"terms": (INT64, (None,)), "term_weight": (FLOAT, (None,))}
    return inputs, {"scores": (FLOAT, (None,))}


def _width(plan: DevicePlan) -> int:
    """Return d, numbers an item: the last dimension of the column ``features``."""
    column = next((spec for spec in plan.columns if spec.name == "features"), None)
    if column is None or not column.shape:
        raise BundleRefused("columns: examples of kind match need the column features [candidates, width].")
    return column.shape[-1]


def require_graphs(plan: DevicePlan, files: Mapping[str, bytes]) -> None:
    """Refuse graphs that do not fit the plan.

    Args:
        plan: of the bundle.
        files: by name; those that end in ``.onnx`` are graphs.

    Raises:
        BundleRefused: as ``operators_of``; an operator outside ``ALLOWED_OPERATORS`` or the plan's, or one of the
            plan's that no graph has; an input or output that is absent, surplus, or of another type or shape.
    """
    ports = {
        "step.onnx": step_ports(plan, private=False),
        "private_step.onnx": step_ports(plan, private=True),
        "infer.onnx": infer_ports(plan),
    }
    found: set[str] = set()
    for name in sorted(ports.keys() & files.keys()):
        model = read_model(files[name], name)
        operators = {node.op_type for node in model.graph.node}
        surplus = sorted(operators - (ALLOWED_OPERATORS & set(plan.operators)))
        if surplus:
            raise BundleRefused(f"{name}: operator {surplus[0][:64]!r} is not among the plan's operators.")
        found |= operators
        inputs, outputs = ports[name]
        loose = name == "infer.onnx"
        _require_ports(model.graph.input, inputs, f"{name}: input", loose)
        _require_ports(model.graph.output, outputs, f"{name}: output", loose)
    if found != set(plan.operators):
        raise BundleRefused(f"operators: no graph has {', '.join(sorted(set(plan.operators) - found))}.")


def _require_ports(values: Sequence[pb.ValueInfoProto], expected: Mapping[str, Port], what: str, loose: bool) -> None:
    names = {value.name for value in values}
    for name in sorted(expected.keys() - names):
        raise BundleRefused(f"{what} {name}: absent.")
    for value in values:
        if value.name not in expected:
            raise BundleRefused(f"{what} {value.name[:128]}: not in the plan.")
        kind, shape = expected[value.name]
        if value.type.tensor_type.elem_type != kind or not _fits(value.type.tensor_type, shape, loose):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise BundleRefused(f"{what} {value.name}: must be {_TYPE_NAMES[kind]}[{wanted}].")


def _fits(tensor: pb.TypeProto.Tensor, shape: tuple[int | None, ...], loose: bool) -> bool:
    """Whether sizes are as expected; ``loose`` lets a graph leave open what the plan knows."""
    if not tensor.HasField("shape") or len(tensor.shape.dim) != len(shape):
        return False
    for dim, size in zip(tensor.shape.dim, shape, strict=True):
        is_open = dim.WhichOneof("value") == "dim_param"
        # where the caller chooses, a graph with one fixed size would work for one catalogue alone
        if size is None or is_open:
            if not is_open or not (size is None or loose):
                return False
        elif dim.WhichOneof("value") != "dim_value" or dim.dim_value != size:
            return False
    return True

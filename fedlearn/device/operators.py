"""Which ONNX graphs a phone runs: a flat list of well-known operators and nothing else.

A model is read through ``onnx_lite.proto``, so that a phone needs no onnx package. What that file does not name is an
unknown field, and a model with one is refused: a newer ONNX cannot bring in what nobody here has thought about.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from google.protobuf.message import DecodeError

from fedlearn.errors import BundleRefused
from fedlearn.proto import onnx_lite_pb2 as pb

# What the shipped models need (match and two_tower; training step, private step and inference), as torch 2.13 exports
# them. No loop, condition or function, no random number, no string, no custom code: an operator here computes a
# tensor from tensors, in time and memory that follow from their shapes. Another model's operator is added here, in
# review, before a policy's approvers ever see its plan.
ALLOWED_OPERATORS: Final = frozenset(
    (
        *("Abs", "Add", "And", "Cast", "Clip", "Concat", "Constant", "ConstantOfShape", "Div", "Equal", "Exp"),
        *("Expand", "Gather", "GatherElements", "Greater", "GreaterOrEqual", "Identity", "IsInf", "IsNaN", "Less"),
        *("LessOrEqual", "Log", "MatMul", "Max", "Min", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "ReduceMax"),
        *("ReduceSum", "Relu", "Reshape", "ScatterElements", "ScatterND", "Shape", "Slice", "Sqrt", "Squeeze", "Sub"),
        *("Sum", "Transpose", "Unsqueeze", "Where"),
    )
)
OPSETS: Final = range(18, 25)
"""Versions of the operator set: older ones lack what the step needs, newer ones were not tried (see the tests)."""

MOST_NODES: Final = 4096
MOST_MODEL_BYTES: Final = 16 * 2**20
_DOMAINS: Final = ("", "ai.onnx")
_ATTRIBUTES: Final = frozenset(
    (
        *(pb.AttributeProto.FLOAT, pb.AttributeProto.INT, pb.AttributeProto.STRING, pb.AttributeProto.TENSOR),
        *(pb.AttributeProto.FLOATS, pb.AttributeProto.INTS, pb.AttributeProto.STRINGS),
    )
)


def operators_of(model: bytes, what: str = "model") -> frozenset[str]:
    """Return the operators of an ONNX model.

    Args:
        model: the file.
        what: what to call it in messages.

    Raises:
        BundleRefused: no ONNX model, or one with another domain, subgraphs, functions, training information, tensors
            in other files, an operator set outside ``OPSETS``, or more than ``MOST_NODES`` nodes.
    """
    return frozenset(node.op_type for node in read_model(model, what).graph.node)


def read_model(model: bytes, what: str) -> pb.ModelProto:
    """Return the parsed model; raise BundleRefused as ``operators_of`` does."""
    if len(model) > MOST_MODEL_BYTES:
        raise BundleRefused(f"{what}: {len(model)} bytes; at most {MOST_MODEL_BYTES}.")
    try:
        read = pb.ModelProto.FromString(model)
    except DecodeError as error:
        raise BundleRefused(f"{what}: not an ONNX model.") from error
    _refuse_unknown_fields(read, what)
    _refuse_head(read, what)
    _refuse_graph(read.graph, what)
    return read


def _refuse_unknown_fields(model: pb.ModelProto, what: str) -> None:
    size = model.ByteSize()
    known = pb.ModelProto()
    known.CopyFrom(model)
    known.DiscardUnknownFields()
    if known.ByteSize() != size:
        raise BundleRefused(f"{what}: has ONNX fields that this runtime does not know.")


def _refuse_head(model: pb.ModelProto, what: str) -> None:
    for name in ("functions", "training_info", "configuration"):
        if getattr(model, name):
            raise BundleRefused(f"{what}: has {name}; only a plain graph is run.")
    found = [(entry.domain, entry.version) for entry in model.opset_import]
    if len(found) != 1 or found[0][0] not in _DOMAINS or found[0][1] not in OPSETS:
        raise BundleRefused(
            f"{what}: must import the ONNX operator set alone, of version {OPSETS.start}..{OPSETS.stop - 1}."
        )


def _refuse_graph(graph: pb.GraphProto, what: str) -> None:
    if not 1 <= len(graph.node) <= MOST_NODES:
        raise BundleRefused(f"{what}: {len(graph.node)} nodes; must have 1..{MOST_NODES}.")
    if graph.sparse_initializer or graph.quantization_annotation:
        raise BundleRefused(f"{what}: has sparse or quantised tensors; only dense ones are read.")
    for tensor in graph.initializer:
        _refuse_tensor(tensor, what)
    for node in graph.node:
        _refuse_node(node, what)
    inputs, constants = _names(graph.input), [tensor.name for tensor in graph.initializer]
    # an input with a default is one that a caller may forget
    if set(inputs) & set(constants):
        raise BundleRefused(f"{what}: an input is also an initializer.")
    _refuse_repeats((*inputs, *constants, *(name for node in graph.node for name in node.output if name)), what)
    _refuse_repeats(_names(graph.output), what)


def _refuse_node(node: pb.NodeProto, what: str) -> None:
    if node.domain not in _DOMAINS:
        raise BundleRefused(f"{what}: operator {node.op_type[:64]!r} is of another domain than ONNX itself.")
    if not node.op_type or node.overload or node.device_configurations:
        raise BundleRefused(f"{what}: a node has no operator, or is bound to a function or device.")
    for attribute in node.attribute:
        if attribute.g or attribute.graphs:
            raise BundleRefused(f"{what}: operator {node.op_type[:64]!r} has a subgraph.")
        if attribute.type not in _ATTRIBUTES or attribute.ref_attr_name or attribute.tensors:
            raise BundleRefused(f"{what}: operator {node.op_type[:64]!r} has an attribute of another kind than data.")
        if attribute.HasField("t"):
            _refuse_tensor(attribute.t, what)


def _refuse_tensor(tensor: pb.TensorProto, what: str) -> None:
    if tensor.external_data or tensor.data_location != pb.TensorProto.DEFAULT:
        raise BundleRefused(f"{what}: a tensor lies in another file.")
    if tensor.segment:
        raise BundleRefused(f"{what}: a tensor is in parts.")


def _names(values: Sequence[pb.ValueInfoProto]) -> list[str]:
    return [value.name for value in values]


def _refuse_repeats(names: Iterable[str], what: str) -> None:
    listed = list(names)
    if len(set(listed)) != len(listed) or "" in listed:
        raise BundleRefused(f"{what}: a value has no name, or its name is given twice.")

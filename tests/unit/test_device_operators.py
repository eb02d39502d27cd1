"""Which graphs a phone runs, and that it reads ONNX as ONNX is written."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from google.protobuf.descriptor import FieldDescriptor
from onnx import TensorProto, helper

from fedlearn.device.operators import ALLOWED_OPERATORS, MOST_NODES, OPSETS, operators_of
from fedlearn.errors import BundleRefused
from fedlearn.proto import onnx_lite_pb2

_spec = importlib.util.spec_from_file_location("device_town", Path(__file__).with_name("device_town.py"))
town = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(town)

# kept as bytes: seen, and refused unread
REFUSED = {
    *("training_info", "functions", "configuration", "quantization_annotation", "sparse_initializer"),
    *("device_configurations", "g", "graphs", "tensors", "segment", "external_data"),
}
MESSAGES = [
    *("ModelProto", "OperatorSetIdProto", "StringStringEntryProto", "GraphProto", "NodeProto", "AttributeProto"),
    *("TensorProto", "ValueInfoProto", "TypeProto", "TypeProto.Tensor", "TensorShapeProto"),
    "TensorShapeProto.Dimension",
]


def descriptor(module: Any, name: str) -> Any:
    found = module
    for part in name.split("."):
        found = getattr(found, part)
    return found.DESCRIPTOR


def test_no_message_is_left_out_here() -> None:
    top = onnx_lite_pb2.DESCRIPTOR.message_types_by_name
    nested = [f"{name}.{inner}" for name, message in top.items() for inner in message.nested_types_by_name]
    assert sorted(MESSAGES) == sorted([*top, *nested])


@pytest.mark.parametrize("name", MESSAGES)
def test_field_numbers_and_types_are_those_of_onnx(name: str) -> None:
    ours, theirs = descriptor(onnx_lite_pb2, name), descriptor(onnx, name)
    for field in ours.fields:
        real = theirs.fields_by_number[field.number]
        assert real.name == field.name
        assert field.is_repeated == real.is_repeated or field.name in REFUSED
        if field.name in REFUSED:
            assert (field.type, real.type) == (FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_MESSAGE)
        else:
            assert field.type == real.type
            assert field.is_packed == real.is_packed


@pytest.mark.parametrize("path", ["AttributeProto.AttributeType", "TensorProto.DataLocation"])
def test_enumerations_are_those_of_onnx(path: str) -> None:
    message, name = path.split(".")
    ours = descriptor(onnx_lite_pb2, message).enum_types_by_name[name].values_by_name
    theirs = descriptor(onnx, message).enum_types_by_name[name].values_by_name
    assert {key: value.number for key, value in ours.items()}.items() <= {
        key: value.number for key, value in theirs.items()
    }.items()


def test_operators_of_a_good_model() -> None:
    graphs = town.hand_made_graphs()
    assert operators_of(graphs["infer.onnx"]) == {"MatMul"}
    expected = {node.op_type for node in onnx.load_from_string(graphs["step.onnx"]).graph.node}
    assert operators_of(graphs["step.onnx"]) == expected
    assert expected <= ALLOWED_OPERATORS


@pytest.mark.parametrize("version", OPSETS)
def test_the_graph_means_the_same_in_every_operator_set(version: int) -> None:
    """By onnxruntime, and against the gradient by hand; so a set outside of these is one that nobody tried."""
    model = onnx.load_from_string(town.hand_made_graphs()["step.onnx"])
    model.opset_import[0].version = version
    data = model.SerializeToString()
    assert operators_of(data) <= ALLOWED_OPERATORS
    rng = np.random.default_rng(0)
    shape = (town.BATCH, town.CANDIDATES)
    given = {
        "p.weights": rng.normal(size=town.WIDTH),
        "d.weights": rng.normal(size=town.WIDTH),
        "c.features": rng.normal(size=(*shape, town.WIDTH)),
        "c.label": rng.integers(0, town.CANDIDATES, town.BATCH),
        "c.logq": rng.normal(size=shape),
        "mask": np.arange(town.BATCH) < 5,
        "learning_rate": np.array(0.3),
    }
    logits = given["c.features"] @ (given["p.weights"] + given["d.weights"]) - given["c.logq"]
    share = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    error = (share - np.eye(town.CANDIDATES)[given["c.label"]]) * given["mask"][:, None] / 5
    expected = given["d.weights"] - 0.3 * np.einsum("bk,bkd->d", error, given["c.features"])
    single = {name: array.astype(np.float32) if array.dtype == float else array for name, array in given.items()}
    options = ort.SessionOptions()
    options.log_severity_level = 3
    (found,) = ort.InferenceSession(data, options).run(["next.weights"], single)
    np.testing.assert_allclose(found, expected, atol=1e-5)  # single precision


def test_words_for_people_are_let_through() -> None:
    model = loaded()
    model.producer_name, model.doc_string, model.model_version = "me", "words", 3
    model.metadata_props.add(key="a", value="b")
    model.graph.doc_string = "words"
    model.graph.node[0].doc_string = "words"
    model.graph.node[0].metadata_props.add(key="a", value="b")
    model.graph.value_info.add(name="unused")
    assert operators_of(model.SerializeToString()) == {"MatMul"}


def loaded() -> onnx.ModelProto:
    return onnx.load_from_string(town.hand_made_graphs()["infer.onnx"])


def tensor(**changes: Any) -> TensorProto:
    made = helper.make_tensor("k", TensorProto.FLOAT, [1], [1.0])
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def attribute(name: str, value: Any) -> Callable[[onnx.ModelProto], object]:
    return lambda m: m.graph.node[0].attribute.append(helper.make_attribute(name, value))


def _reference(model: onnx.ModelProto) -> None:
    added = model.graph.node[0].attribute.add(name="a", type=onnx.AttributeProto.FLOAT)
    added.ref_attr_name = "b"


def _external(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(tensor(data_location=TensorProto.EXTERNAL))


def _external_key(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(tensor())
    model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")


def _nested_external(model: onnx.ModelProto) -> None:
    attribute("value", tensor(data_location=TensorProto.EXTERNAL))(model)


def _segment(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(tensor())
    model.graph.initializer[0].segment.begin = 1


REFUSALS: list[tuple[str, Callable[[onnx.ModelProto], object]]] = [
    ("another domain", lambda m: setattr(m.graph.node[0], "domain", "com.microsoft")),
    ("another domain", lambda m: setattr(m.graph.node[0], "domain", "ai.onnx.ml")),
    ("no operator", lambda m: setattr(m.graph.node[0], "op_type", "")),
    ("bound to a function", lambda m: setattr(m.graph.node[0], "overload", "x")),
    ("bound to a function or device", lambda m: m.graph.node[0].device_configurations.add()),
    ("subgraph", attribute("body", helper.make_graph([], "g", [], []))),
    ("subgraph", attribute("bodies", [helper.make_graph([], "g", [], [])])),
    ("does not know", attribute("t", helper.make_tensor_type_proto(1, [1]))),
    ("another kind", attribute("tensors", [tensor()])),
    ("another kind", lambda m: m.graph.node[0].attribute.add(name="a")),
    ("another kind", _reference),
    ("another file", _external),
    ("another file", _external_key),
    ("another file", _nested_external),
    ("in parts", _segment),
    ("sparse", lambda m: m.graph.sparse_initializer.add()),
    ("quantised", lambda m: m.graph.quantization_annotation.add()),
    ("functions", lambda m: m.functions.add(name="f")),
    ("training_info", lambda m: m.training_info.add()),
    ("configuration", lambda m: m.configuration.add(name="gpu")),
    ("ONNX operator set alone", lambda m: m.opset_import.add(domain="com.microsoft", version=1)),
    ("ONNX operator set alone", lambda m: m.opset_import.add(domain="", version=20)),
    ("ONNX operator set alone", lambda m: m.ClearField("opset_import")),
    ("ONNX operator set alone", lambda m: setattr(m.opset_import[0], "version", OPSETS.start - 1)),
    ("ONNX operator set alone", lambda m: setattr(m.opset_import[0], "version", OPSETS.stop)),
    ("nodes", lambda m: m.graph.ClearField("node")),
    ("nodes", lambda m: m.ClearField("graph")),
    ("nodes", lambda m: m.graph.node.extend([m.graph.node[0]] * MOST_NODES)),
    ("also an initializer", lambda m: m.graph.initializer.append(tensor(name="features"))),
    ("given twice", lambda m: m.graph.initializer.extend([tensor(), tensor()])),
    ("given twice", lambda m: m.graph.node.extend([m.graph.node[0]])),
    ("given twice", lambda m: m.graph.input.append(m.graph.input[0])),
    ("given twice", lambda m: m.graph.output.append(m.graph.output[0])),
    ("no name", lambda m: m.graph.input.add()),
    ("does not know", lambda m: m.graph.input[0].type.CopyFrom(helper.make_sequence_type_proto(m.graph.input[0].type))),
]


@pytest.mark.parametrize(("names", "change"), REFUSALS)
def test_refused(names: str, change: Callable[[onnx.ModelProto], object]) -> None:
    model = loaded()
    change(model)
    with pytest.raises(BundleRefused, match=names) as refused:
        operators_of(model.SerializeToString(), "infer.onnx")
    assert str(refused.value).startswith("infer.onnx: ")


def test_onnx_by_its_long_name_is_onnx() -> None:
    model = loaded()
    model.graph.node[0].domain = model.opset_import[0].domain = "ai.onnx"
    assert operators_of(model.SerializeToString()) == {"MatMul"}


@pytest.mark.parametrize("where", ["model", "graph", "node", "tensor"])
def test_an_unknown_field_is_refused_wherever_it_is(where: str) -> None:
    """As a newer ONNX would write it: field 99."""
    model = loaded()
    model.graph.initializer.append(tensor(name="k"))
    part = {
        "model": model,
        "graph": model.graph,
        "node": model.graph.node[0],
        "tensor": model.graph.initializer[0],
    }[where]
    assert operators_of(model.SerializeToString()) == {"MatMul"}
    part.MergeFromString(b"\x9a\x06\x01x")
    with pytest.raises(BundleRefused, match="does not know"):
        operators_of(model.SerializeToString())


def test_cut_anywhere_it_is_refused_or_another_model() -> None:
    data = town.hand_made_graphs()["step.onnx"]
    for length in range(0, len(data), 7):
        try:
            operators_of(data[:length])
        except BundleRefused:
            continue
        pytest.fail(f"cut at {length} of {len(data)} bytes, it is still a model")


def test_a_model_over_the_cap_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    data = town.hand_made_graphs()["step.onnx"]
    monkeypatch.setattr("fedlearn.device.operators.MOST_MODEL_BYTES", len(data) - 1)
    with pytest.raises(BundleRefused, match="at most"):
        operators_of(data)

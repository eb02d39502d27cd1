"""Graphs against a plan: names, types and shapes of what goes in and comes out, and the list of operators."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from fedlearn.device.graphs import infer_ports, require_graphs, step_ports
from fedlearn.errors import BundleRefused

_spec = importlib.util.spec_from_file_location("device_town", Path(__file__).with_name("device_town.py"))
town = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(town)

F32, I64 = TensorProto.FLOAT, TensorProto.INT64


def port(name: str, kind: int, shape: list[int | str] | None) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def put(values: Any, name: str, new: Any) -> None:
    place = [value.name for value in values].index(name)
    values[place].CopyFrom(new)


def edited(file: str, edit: Callable[[Any], object]) -> dict[str, bytes]:
    graphs = dict(town.hand_made_graphs())
    graph = onnx.load_from_string(graphs[file]).graph
    edit(graph)
    return {**graphs, file: town.model_bytes(graph)}


def test_good_graphs_pass() -> None:
    require_graphs(town.small_plan(), town.hand_made_graphs())
    require_graphs(town.small_plan(), edited("step.onnx", lambda graph: None))


STEP, INFER = "step.onnx", "infer.onnx"
# graph, side, port that is replaced (or "" to add one), what with, what the message says
WRONG: list[tuple[str, str, str, tuple[str, int, list[int | str] | None], str]] = [
    (STEP, "input", "p.weights", ("p.weights", F32, [22]), r"p\.weights: must be f32\[23\]"),
    (STEP, "input", "p.weights", ("p.weights", F32, ["N"]), r"p\.weights: must be"),
    (STEP, "input", "p.weights", ("p.weights", F32, None), r"p\.weights: must be"),
    (STEP, "input", "p.weights", ("p.weights", F32, [23, 1]), r"p\.weights: must be"),
    (STEP, "input", "p.weights", ("p.weights", TensorProto.DOUBLE, [23]), r"p\.weights: must be"),
    (STEP, "input", "c.label", ("c.label", TensorProto.INT32, [8]), r"c\.label: must be i64\[8\]"),
    (STEP, "input", "c.label", ("c.label", I64, [9]), r"c\.label: must be"),
    (STEP, "input", "mask", ("mask", F32, [8]), r"mask: must be bool\[8\]"),
    (STEP, "input", "learning_rate", ("learning_rate", F32, [1]), r"learning_rate: must be f32\[\]"),
    (STEP, "input", "", ("n.weights", F32, [23]), r"n\.weights: not in the plan"),
    (STEP, "input", "", ("seed", I64, []), "seed: not in the plan"),
    (STEP, "output", "next.weights", ("next.weights", F32, [22]), r"next\.weights: must be f32\[23\]"),
    (STEP, "output", "next.weights", ("share", F32, [8, 8]), r"next\.weights: absent"),
    (STEP, "output", "", ("share", F32, [8, 8]), "share: not in the plan"),
    (INFER, "input", "features", ("features", F32, [40, 23]), r"features: must be f32\[any, 23\]"),
    (INFER, "input", "features", ("features", F32, ["N", 22]), "features: must be"),
    (INFER, "output", "scores", ("scores", F32, [40]), r"scores: must be f32\[any\]"),
    (INFER, "output", "scores", ("scores", I64, ["N"]), "scores: must be"),
    (INFER, "output", "scores", ("scores", F32, None), "scores: must be"),
    (INFER, "output", "", ("p.weights", F32, [23]), r"p\.weights: not in the plan"),
    (INFER, "input", "", ("terms", I64, ["T"]), "terms: not in the plan"),
]


@pytest.mark.parametrize(("file", "side", "old", "new", "names"), WRONG)
def test_ports(file: str, side: str, old: str, new: Any, names: str) -> None:
    def edit(graph: Any) -> None:
        values = getattr(graph, side)
        if old:
            put(values, old, port(*new))
        else:
            values.append(port(*new))

    with pytest.raises(BundleRefused, match=f"^{file}: {side} {names}"):
        require_graphs(town.small_plan(), edited(file, edit))


def test_a_ranking_may_leave_sizes_of_parameters_open() -> None:
    loose = edited("infer.onnx", lambda g: put(g.input, "p.weights", port("p.weights", F32, ["D"])))
    require_graphs(town.small_plan(), loose)


def test_operators_are_exactly_those_of_the_plan() -> None:
    plan, graphs = town.small_plan(), town.hand_made_graphs()
    for name in plan.operators:
        fewer = tuple(other for other in plan.operators if other != name)
        with pytest.raises(BundleRefused, match=f"operator '{name}' is not among the plan's"):
            require_graphs(replace(plan, operators=fewer), graphs)
    with pytest.raises(BundleRefused, match="operators: no graph has Abs"):
        require_graphs(replace(plan, operators=("Abs", *plan.operators)), graphs)


def test_a_plan_cannot_allow_what_no_phone_runs() -> None:
    """Even where the plan names it: ``plan_from_json`` would refuse such a plan too."""

    def sine(graph: Any) -> None:
        graph.node.append(helper.make_node("Sin", ["p.weights"], ["spare"]))

    plan = town.small_plan()
    with pytest.raises(BundleRefused, match="operator 'Sin'"):
        require_graphs(replace(plan, operators=tuple(sorted((*plan.operators, "Sin")))), edited("infer.onnx", sine))


def test_ports_of_the_two_towers() -> None:
    plan = replace(town.small_plan(), examples="two_tower", features=())
    inputs, outputs = infer_ports(plan)
    assert set(inputs) == {"p.weights", "terms", "term_weight"}
    assert set(outputs) == {"scores"}
    assert set(step_ports(plan, private=True)[0]) - set(step_ports(plan, private=False)[0]) == {"n.weights"}


def test_match_needs_its_column() -> None:
    plan = town.small_plan()
    for columns in (plan.columns[1:], (replace(plan.columns[0], shape=()), *plan.columns[1:])):
        with pytest.raises(BundleRefused, match="need the column features"):
            require_graphs(replace(plan, columns=columns), town.hand_made_graphs())

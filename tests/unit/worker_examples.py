"""A plan, a task, a catalogue and graphs for tests of the worker; the match graphs are written by hand."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from fedlearn.catalogue import Catalogue, Item
from fedlearn.device.catalogue_file import catalogue_bytes
from fedlearn.device.mechanism import MechanismTerms
from fedlearn.device.plan import CatalogueSpec, ColumnSpec, DevicePlan, ParameterSpec, Scope, TrainingSpec
from fedlearn.device.plan_codec import plan_bytes, plan_digest
from fedlearn.device.task import DeviceTask
from fedlearn.device.task_codec import task_bytes, with_digest
from fedlearn.features import FEATURES
from fedlearn.privacy.factorization import INDEPENDENT
from fedlearn.privacy.grid import grid_step
from fedlearn.proto import worker_pb2 as pb
from fedlearn.terms import ExamplePrivacy

BATCH = 4
CANDIDATES = 8
DISHES = ("noodles", "dumplings", "curry", "soup", "salad")

CATALOGUE = Catalogue(
    "town",
    "restaurant",
    tuple(
        Item(
            "restaurant",
            f"place {i}",
            {"dish": (DISHES[i % len(DISHES)],), "cuisine": (("sichuan", "thai", "french")[i % 3],)},
            price=10.0 + 3 * i,
            rating=3.0 + (i % 20) / 10,
        )
        for i in range(24)
    ),
    (Item("book", "a novel"),),
)
CATALOGUE_BYTES = catalogue_bytes(CATALOGUE)
NAMES = tuple(spec.name for spec in FEATURES)
WIDTH = len(NAMES)


def mechanism(clip: float = 1.0) -> MechanismTerms:
    return MechanismTerms("independent", INDEPENDENT, 4.0, clip, grid_step(clip), 100, 10, 5)


def match_plan(
    *,
    clip: float = 1.0,
    learning_rate: float = 0.5,
    epochs: int = 2,
    privacy: ExamplePrivacy | None = None,
    private: bool = False,
    features: tuple[str, ...] = NAMES,
) -> DevicePlan:
    width = len(features)
    return DevicePlan(
        name="evening",
        population="town",
        purpose="train_food",
        recipient="operator",
        serves="recommend_food",
        model="match",
        examples="match",
        example_options=(),
        parameters=(ParameterSpec("weights", (width,), Scope.SHARED),)
        if not private
        else (
            ParameterSpec("bias", (width,), Scope.PRIVATE),
            ParameterSpec("weights", (width,), Scope.SHARED),
        ),
        columns=(
            ColumnSpec("features", "<f4", (CANDIDATES, width)),
            ColumnSpec("label", "<i8", ()),
            ColumnSpec("logq", "<f4", (CANDIDATES,)),
        ),
        features=features,
        training=TrainingSpec(epochs, BATCH, CANDIDATES, learning_rate, True, 64, privacy),
        mechanism=mechanism(clip),
        catalogue=CatalogueSpec("town", "restaurant", ("cuisine", "dish"), 1 << 20),
        operators=("MatMul", "Sub"),
        minimum_runtime="0.1.0",
    )


def task_for(plan: DevicePlan, seed: int = 7, step: int = 3) -> DeviceTask:
    return with_digest(
        DeviceTask(
            run_id="run",
            population=plan.population,
            purpose=plan.purpose,
            recipient=plan.recipient,
            step=step,
            attempt=0,
            plan_digest=plan_digest(plan),
            weights_digest=hashlib.sha256(b"weights").hexdigest(),
            token=bytes(16),
            issued=1_800_000_000.0,
            expires=1_800_003_600.0,
            round_size=1000,
            mechanism=plan.mechanism,
            shuffle_seed=seed,
            digest=b"",
        )
    )


def columns_for(plan: DevicePlan, count: int, seed: int = 0) -> dict[str, NDArray[np.generic]]:
    """Random examples for a plan of the match builder."""
    rng = np.random.default_rng(seed)
    made: dict[str, NDArray[np.generic]] = {}
    for spec in plan.columns:
        shape = (count, *spec.shape)
        made[spec.name] = {
            "label": lambda shape=shape: rng.integers(0, CANDIDATES, shape),
            "logq": lambda shape=shape: np.full(shape, -1.0, np.float32),
        }.get(spec.name, lambda shape=shape: rng.uniform(-1, 1, shape).astype(np.float32))()
    return made


def train_request(
    plan: DevicePlan, step: bytes, columns: dict[str, NDArray[np.generic]] | None, weights: NDArray[np.float32]
) -> pb.TrainRequest:
    given = [
        pb.Column(name=name, dtype=array.dtype.str, shape=array.shape, data=array.tobytes())
        for name, array in (columns or {}).items()
    ]
    return pb.TrainRequest(
        plan=plan_bytes(plan),
        step=step,
        weights=weights.astype("<f4").tobytes(),
        task=task_bytes(task_for(plan)),
        catalogue=CATALOGUE_BYTES,
        columns=given,
    )


def match_step(
    width: int = WIDTH, batch: int = BATCH, candidates: int = CANDIDATES, private: bool = False, noise: bool = False
) -> bytes:
    """The gradient of the conditional logit, by hand; ``private`` adds an own parameter, ``noise`` noise."""
    float_ = TensorProto.FLOAT
    own = ["bias"] if private else []
    inputs = [
        helper.make_tensor_value_info(f"{prefix}.{name}", float_, [width])
        for name in [*own, "weights"]
        for prefix in "pd"
    ]
    inputs += [
        helper.make_tensor_value_info("c.features", float_, [batch, candidates, width]),
        helper.make_tensor_value_info("c.label", TensorProto.INT64, [batch]),
        helper.make_tensor_value_info("c.logq", float_, [batch, candidates]),
        helper.make_tensor_value_info("mask", TensorProto.BOOL, [batch]),
        helper.make_tensor_value_info("learning_rate", float_, []),
    ]
    constants = [
        helper.make_tensor("k", TensorProto.INT64, [], [candidates]),
        helper.make_tensor("onoff", float_, [2], [0.0, 1.0]),
        helper.make_tensor("one", float_, [], [1.0]),
        helper.make_tensor("last", TensorProto.INT64, [1], [-1]),
        helper.make_tensor("rows", TensorProto.INT64, [2], [0, 1]),
    ]
    node = helper.make_node
    summed = ["p.weights", "d.weights", *(["p.bias", "d.bias"] if private else [])]
    nodes = [
        node("Sum", summed, ["w"]),
        node("MatMul", ["c.features", "w"], ["utility"]),
        node("Sub", ["utility", "c.logq"], ["logits"]),
        node("Softmax", ["logits"], ["share"], axis=-1),
        node("OneHot", ["c.label", "k", "onoff"], ["hot"], axis=-1),
        node("Sub", ["share", "hot"], ["error"]),
        node("Cast", ["mask"], ["counts"], to=float_),
        node("ReduceSum", ["counts"], ["total"], keepdims=0),
        node("Max", ["total", "one"], ["divisor"]),
        node("Div", ["counts", "divisor"], ["share_of_row"]),
        node("Unsqueeze", ["share_of_row", "last"], ["by_row"]),
        node("Mul", ["error", "by_row"], ["weighted"]),
        node("Unsqueeze", ["weighted", "last"], ["by_feature"]),
        node("Mul", ["by_feature", "c.features"], ["products"]),
        node("ReduceSum", ["products", "rows"], ["gradient"], keepdims=0),
        node("Mul", ["gradient", "learning_rate"], ["change"]),
    ]
    if noise:
        inputs.append(helper.make_tensor_value_info("n.weights", float_, [width]))
        nodes += [node("Add", ["change", "n.weights"], ["noisy"])]
    changed = "noisy" if noise else "change"
    nodes += [node("Sub", [f"d.{name}", changed], [f"next.{name}"]) for name in [*own, "weights"]]
    outputs = [helper.make_tensor_value_info(f"next.{name}", float_, [width]) for name in [*own, "weights"]]
    return model_bytes(nodes, inputs, outputs, constants)


def match_infer(width: int = WIDTH) -> bytes:
    float_ = TensorProto.FLOAT
    return model_bytes(
        [helper.make_node("MatMul", ["features", "p.weights"], ["scores"])],
        [
            helper.make_tensor_value_info("p.weights", float_, [width]),
            helper.make_tensor_value_info("features", float_, ["N", width]),
        ],
        [helper.make_tensor_value_info("scores", float_, ["N"])],
        [],
    )


def model_bytes(nodes: list, inputs: list, outputs: list, constants: list) -> bytes:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, constants)
    made = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    onnx.checker.check_model(made)
    return made.SerializeToString(deterministic=True)


def with_learning_rate(plan: DevicePlan, learning_rate: float) -> DevicePlan:
    return replace(plan, training=replace(plan.training, learning_rate=learning_rate))

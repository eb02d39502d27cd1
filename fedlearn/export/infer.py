"""``infer.onnx``: scores of all items on one occasion, for as many items as there are.

Written node by node, so that equal items tie bit for bit wherever they stand. A matrix product does not do that, nor
does a sum along rows (onnxruntime adds up a row in an order that follows from its address): products are summed column
by column instead, which treats every row alike on any runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from fedlearn.errors import BundleRefused, MissingDependency
from fedlearn.export.graph import INSTALL, IR_VERSION, OPSET, finished
from fedlearn.models.base import Model, Parameters

Dim = int | str
Node = tuple[str, tuple[str, ...], str]
_WHAT: Final = "infer.onnx"


def infer_onnx(model: Model) -> bytes:
    """Return the ranking graph of a shipped model.

    Inputs ``p.<name>`` for every parameter and, by model: match ``features`` f32[N, d]; two_tower ``terms`` i64[T] and
    ``term_weight`` f32[T] (0 pads). Output ``scores`` f32[N]; N and T are whatever they are. Higher is better, and
    equal items get equal bits.

    Raises:
        MissingDependency: onnx is not installed.
        BundleRefused: no ranking graph is known for the model.
    """
    build = _BUILDERS.get(model.name)
    if build is None:
        raise BundleRefused(
            f"{_WHAT}: no ranking graph for model {model.name!r}; there is one for {sorted(_BUILDERS)}."
        )
    return finished(build(model.initial(0)), _WHAT)


def _match(initial: Parameters) -> Any:
    (width,) = initial["weights"].shape
    return _model(
        nodes=(("Mul", ("features", "p.weights"), "products"), *_row_sums(width)),
        inputs={"p.weights": ("f", (width,)), "features": ("f", ("N", width))},
        integers=_places(width),
    )


def _two_tower(initial: Parameters) -> Any:
    shapes: dict[str, tuple[Dim, ...]] = {name: array.shape for name, array in initial.items()}
    width = initial["item_rows"].shape[1]
    shapes["item_rows"] = ("N", width)
    return _model(
        nodes=(
            ("Gather", ("p.term_rows", "terms"), "rows"),
            ("Unsqueeze", ("term_weight", "last"), "weight"),
            ("Mul", ("rows", "weight"), "weighted"),
            ("ReduceSum", ("weighted", "first"), "total"),
            ("ReduceSum", ("weight", "first"), "count"),
            ("Max", ("count", "least"), "divisor"),
            ("Div", ("total", "divisor"), "mean"),
            ("MatMul", ("mean", "p.hidden_weight"), "inner"),
            ("Add", ("inner", "p.hidden_bias"), "biased"),
            ("Relu", ("biased",), "hidden"),
            ("MatMul", ("hidden", "p.output_weight"), "outer"),
            ("Add", ("outer", "p.output_bias"), "user"),
            ("Mul", ("p.item_rows", "user"), "products"),
            *_row_sums(width),
        ),
        inputs={
            **{f"p.{name}": ("f", shape) for name, shape in sorted(shapes.items())},
            "terms": ("i", ("T",)),
            "term_weight": ("f", ("T",)),
        },
        integers={"first": (0,), "last": (-1,), **_places(width)},
        floats={"least": 1e-6},
    )


_BUILDERS: Final[Mapping[str, Callable[[Parameters], Any]]] = {"match": _match, "two_tower": _two_tower}


def _row_sums(width: int) -> list[Node]:
    """``products`` [N, width] -> ``scores`` [N]: one column after the other."""
    columns = [("Gather", ("products", place), f"column {place}") for place in _places(width)]
    return [*columns, ("Sum", tuple(name for _, _, name in columns), "scores")]


def _places(width: int) -> dict[str, int]:
    return {f"place {i}": i for i in range(width)}


def _model(
    nodes: Sequence[Node],
    inputs: Mapping[str, tuple[str, Sequence[Dim]]],
    integers: Mapping[str, int | Sequence[int]],
    floats: Mapping[str, float] | None = None,
) -> Any:
    """Return an ``onnx.ModelProto``: ``ReduceSum`` drops its axis, and ``Gather`` takes columns of ``products``."""
    try:
        import onnx  # noqa: PLC0415 - optional
    except ModuleNotFoundError as error:
        raise MissingDependency(INSTALL) from error
    kinds = {"f": onnx.TensorProto.FLOAT, "i": onnx.TensorProto.INT64}
    helper = onnx.helper
    options = {"ReduceSum": {"keepdims": 0}, "Gather products": {"axis": 1}}
    made = [
        helper.make_node(
            kind, given, [name], **dict[str, Any](options.get(kind, options.get(f"{kind} {given[0]}", {})))
        )
        for kind, given, name in nodes
    ]
    constants = [
        helper.make_tensor(name, kinds["i"], *(([], [value]) if isinstance(value, int) else ([len(value)], value)))
        for name, value in integers.items()
    ]
    constants += [helper.make_tensor(name, kinds["f"], [], [value]) for name, value in (floats or {}).items()]
    graph = helper.make_graph(
        made,
        "graph",
        [helper.make_tensor_value_info(name, kinds[kind], shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info("scores", kinds["f"], ["N"])],
        constants,
    )
    return helper.make_model(graph, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)])

"""Turns a torch function of flat tensors into a small ONNX graph whose bytes follow from the function alone.

torch writes its own version, stack traces and tables of zeros into a graph; all of that is taken out here, and every
name but those of inputs and outputs is replaced by a number, so that two exports of a model are equal byte for byte.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor

from fedlearn.device.operators import ALLOWED_OPERATORS, operators_of
from fedlearn.errors import BundleRefused, MissingDependency

OPSET: Final = 20
IR_VERSION: Final = 10
LARGEST_CONSTANT: Final = 256
"""Elements of a constant that may be stored; a larger one is computed in the graph, from its shape."""

INSTALL: Final = "Exporting needs onnx and onnxscript: pip install 'fedlearn[export]'."

Function = Callable[..., tuple[Tensor, ...]]


def onnx_graph(function: Function, inputs: Mapping[str, Tensor], outputs: Sequence[str], what: str) -> bytes:
    """Return the ONNX graph of a function of tensors.

    Args:
        function: takes the inputs in order, returns a tuple of the outputs in order; out-of-place torch operations,
            ``torch.func`` transforms included. Shapes are fixed to those of the inputs.
        inputs: name -> an example of it.
        outputs: their names.
        what: what to call it in messages.

    Raises:
        MissingDependency: onnx or onnxscript is not installed.
        BundleRefused: the function needs an operator that a phone does not run.
    """
    example = tuple(inputs.values())
    with _quiet_exporter():
        module = traced(function, example)
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            optimize=False,  # torch would fold zeros into tables; _smaller does it with a limit
            verbose=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
        )
        if program is None:
            raise BundleRefused(f"{what}: torch could not export it.")
        model = _smaller(program.model)
    return finished(model, what)


def finished(model: Any, what: str) -> bytes:
    """Return an ``onnx.ModelProto`` as bytes that hold nothing but the graph.

    Raises:
        BundleRefused: an operator that a phone does not run, or no graph that a phone reads.
    """
    _require_onnx()
    import onnx  # noqa: PLC0415 - optional

    clean = onnx.ModelProto()
    clean.ir_version = IR_VERSION
    clean.opset_import.add(domain="", version=OPSET)
    clean.graph.CopyFrom(model.graph)
    _strip(clean.graph, what)
    onnx.checker.check_model(clean, full_check=True)
    data = bytes(clean.SerializeToString(deterministic=True))
    surplus = sorted(operators_of(data, what) - ALLOWED_OPERATORS)
    if surplus:
        raise BundleRefused(
            f"{what}: needs the operators {', '.join(surplus)}, which no phone runs; write the model without them, or "
            "add them to fedlearn.device.operators in review."
        )
    return data


def traced(function: Function, example: tuple[Tensor, ...]) -> torch.nn.Module:
    """Gradients, vmap and in-place steps become a flat graph of core operations; ``torch.export`` alone cannot."""
    from torch._decomp import core_aten_decompositions  # noqa: PLC0415 - private to torch, used here only
    from torch.fx.experimental.proxy_tensor import make_fx  # noqa: PLC0415

    pure = torch.func.functionalize(function, remove="mutations")
    table: Any = core_aten_decompositions()
    module: torch.nn.Module = make_fx(pure, decomposition_table=table)(*example)
    return module.eval()


def _smaller(model: Any) -> Any:
    """Fold small constants, drop what is computed twice or not used; return an ``onnx.ModelProto``."""
    import onnx_ir  # noqa: PLC0415 - optional
    from onnx_ir.passes import common  # noqa: PLC0415
    from onnxscript import optimizer  # noqa: PLC0415

    optimizer.optimize(
        model,
        onnx_shape_inference=False,
        input_size_limit=LARGEST_CONSTANT,
        output_size_limit=LARGEST_CONSTANT,
    )
    for simplify in (
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.TopologicalSortPass(),
    ):
        simplify(model)
    return onnx_ir.serde.serialize_model(model)


def _strip(graph: Any, what: str) -> None:
    """Number every inner value and drop words, positions in source files, and shapes that follow from the inputs."""
    graph.name = "graph"
    graph.doc_string = ""
    for field in ("value_info", "metadata_props", "quantization_annotation"):
        graph.ClearField(field)
    outer = [value.name for value in (*graph.input, *graph.output)]
    names = {name: name for name in outer}
    for value in (*graph.input, *graph.output):
        value.doc_string = ""
        value.ClearField("metadata_props")
    for tensor in graph.initializer:
        if tensor.ByteSize() > 64 + 8 * LARGEST_CONSTANT:
            raise BundleRefused(f"{what}: stores a constant of {tensor.ByteSize()} bytes; compute it in the model.")
        tensor.doc_string = ""
        tensor.ClearField("metadata_props")
        tensor.name = names.setdefault(tensor.name, f"c{len(names) - len(outer)}")
    for node in graph.node:
        node.name = node.doc_string = ""
        node.ClearField("metadata_props")
        node.input[:] = [name and names[name] for name in node.input]
        node.output[:] = [name and names.setdefault(name, f"v{len(names) - len(outer)}") for name in node.output]


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Torch's exporter warns about its own insides and about packages that a graph of ours does not need."""
    _require_onnx()
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*treespec.*LeafSpec", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401, PLC0415 - optional
        import onnxscript  # noqa: F401, PLC0415
    except ModuleNotFoundError as error:
        raise MissingDependency(INSTALL) from error

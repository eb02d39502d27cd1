"""Runs the golden vectors of a bundle (``golden.json``, docs/export.md) with this runtime's own code and graphs.

Integers, bytes and rankings must be equal; features, scores and deltas agree up to the file's tolerance.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedlearn.clip import clip_l2
from fedlearn.device.catalogue_file import catalogue_from_bytes
from fedlearn.device.plan import DevicePlan, Scope
from fedlearn.errors import BundleRefused, ContributionRejected
from fedlearn.features.index import CatalogueIndex
from fedlearn.features.ingest import make_query_from, read_message
from fedlearn.features.query import Query
from fedlearn.features.said import said_bytes, said_from_bytes
from fedlearn.policy.canonical import parse_strict
from fedlearn.privacy.grid import to_grid
from fedlearn.proto import worker_pb2 as pb
from fedlearn.signals import Choice
from fedlearn_client.worker.columns import Known, features_of, terms_of
from fedlearn_client.worker.documents import F32, read_parameters, read_plan
from fedlearn_client.worker.frames import MAX_FRAME_BYTES
from fedlearn_client.worker.graphs import StepGraph
from fedlearn_client.worker.rank import Ranker, load_ranker, order_of, scores_of
from fedlearn_client.worker.train import flat, spread

SCHEMA: Final = "fedlearn.golden/1"
_PRIVATE_SCALE: Final = 0.1

Case = tuple[str, Callable[[], str]]


@dataclass(frozen=True, slots=True)
class _Bundle:
    """What the vectors are run against."""

    request: pb.GoldenRequest
    plan: DevicePlan
    parameters: Mapping[str, F32]
    ranker: Ranker
    index: CatalogueIndex
    tolerance: float
    texts: Sequence[Mapping[str, Any]]


def run(request: pb.GoldenRequest) -> pb.GoldenReply:
    """Return a JSON report: name of each case -> "" or what differed.

    Raises:
        BundleRefused: the vectors, the plan or a graph cannot be read.
    """
    body = parse_strict(request.vectors, MAX_FRAME_BYTES, "golden.json")
    if not isinstance(body, dict) or body.get("schema") != SCHEMA:
        raise BundleRefused(f"golden.json: schema must be {SCHEMA}; update the runtime, or export again.")
    report = {}
    for name, check in _cases(body, request) if "catalogue" in body else ():
        try:
            report[name] = check()
        except Exception as error:  # noqa: BLE001 - a case that cannot be run is a case that differs
            report[name] = f"raised {type(error).__name__}"
    return pb.GoldenReply(report=json.dumps(report, sort_keys=True))


def fill(count: int, salt: int) -> F32:
    """Return f32[count] in [-1, 1): value k is ``((k * 2654435761 + salt * 40503) mod 2^32) / 2^31 - 1``."""
    k = np.arange(count, dtype=np.uint64)
    mixed = (k * np.uint64(2654435761) + np.uint64(salt * 40503)) % np.uint64(2**32)
    return (mixed.astype(np.float64) / 2.0**31 - 1.0).astype(np.float32)


def _cases(body: Mapping[str, Any], request: pb.GoldenRequest) -> Iterator[Case]:
    bundle = _read(body, request)
    yield "index", partial(_index, body, bundle)
    for number, text in enumerate(bundle.texts):
        yield f"text/{number}", partial(_text, text, bundle.index)
    for number, session in enumerate(body.get("sessions", ())):
        yield f"session/{number}/query", partial(_query_case, session, bundle)
        for use in session["uses"]:
            name = f"session/{number}/{'+'.join(use['sources'])}"
            yield name, partial(_use, session, use, bundle)
    if "training" in body:
        yield "training", partial(_training, body["training"], bundle)
    for number, case in enumerate(body.get("clip", ())):
        yield f"clip/{number}", partial(_clip, case, bundle.plan)


def _read(body: Mapping[str, Any], request: pb.GoldenRequest) -> _Bundle:
    plan, _ = read_plan(request.plan)
    own = {
        spec.name: (_PRIVATE_SCALE * fill(math.prod(spec.shape), place)).astype(np.float32).reshape(spec.shape)
        for place, spec in enumerate(plan.parameters)
        if spec.scope is Scope.PRIVATE
    }
    ranker = load_ranker(
        pb.LoadRanker(
            plan=request.plan,
            infer=request.infer,
            weights=request.weights,
            private_parameters=flat(plan.private, own).astype("<f4").tobytes() if own else b"",
        )
    )
    index = CatalogueIndex.build(catalogue_from_bytes(body["catalogue"].encode("ascii"), MAX_FRAME_BYTES))
    shared = read_parameters(plan.shared, request.weights, "weights")
    return _Bundle(request, plan, shared | own, ranker, index, float(body["tolerance"]), body.get("texts", ()))


def _index(body: Mapping[str, Any], bundle: _Bundle) -> str:
    return "" if bundle.index.digest == body["index_digest"] else "another digest"


def _text(case: Mapping[str, Any], index: CatalogueIndex) -> str:
    said = read_message(case["text"], [(a, b) for a, b in case["foreign_spans"]], index)
    return "" if (b"" if said is None else said_bytes(said)).hex() == case["said"] else "another Said"


def _query(session: Mapping[str, Any], bundle: _Bundle) -> Query:
    stored = [bytes.fromhex(bundle.texts[i]["said"]) for i in session["texts"]]
    earlier = [Choice(item, app) for item, app in session["earlier"]]
    return make_query_from([said_from_bytes(body) for body in stored if body], earlier, bundle.index)


def _query_case(session: Mapping[str, Any], bundle: _Bundle) -> str:
    return "" if _query(session, bundle).flat().tolist() == session["query"] else "another Query"


def _use(session: Mapping[str, Any], use: Mapping[str, Any], bundle: _Bundle) -> str:
    """What one Query gives with only some sources granted: what the model reads of it, scores and ranking."""
    query = Query.from_flat(np.array(session["query"], np.int32), bundle.index.digest)
    known = Known(bundle.plan, bundle.index, frozenset(use["sources"]))
    if "features" in use:
        differs = _apart(features_of(known, query, None), _array(use["features"]), bundle.tolerance, "features")
    else:
        made = terms_of(known, query)
        differs = "" if made["terms"][made["term_weight"] > 0].tolist() == use["terms"] else "terms differ"
    scores = scores_of(bundle.ranker, known, query)
    differs = differs or _apart(scores, np.array(use["scores"]), bundle.tolerance, "scores")
    keys = list(bundle.index.keys)
    ranking = [keys[i] for i in order_of(scores)][: len(use["ranking"])]
    return differs or ("" if ranking == use["ranking"] else "another ranking")


def _training(case: Mapping[str, Any], bundle: _Bundle) -> str:
    columns = {name: _array(column) for name, column in case["columns"].items()}
    graph = StepGraph(bundle.request.step, bundle.plan, bundle.parameters)
    size = bundle.plan.training.batch_size
    for step, rows in enumerate(case["batches"]):
        places = np.array([*rows, *[0] * size][:size])
        graph.mask[...] = np.arange(size) < len(rows)
        for name, buffer in graph.batch.items():
            np.take(columns[name], places, axis=0, out=buffer)
        if graph.noise:
            spread(graph.noise, fill(case["size"], step + 1))
        graph.run()
    delta = flat(bundle.plan.parameters, graph.delta)
    if delta.size != case["size"]:
        return f"{delta.size} parameters, expected {case['size']}"
    norm = np.array([np.linalg.norm(delta.astype(np.float64))])
    return _apart(delta[case["index"]], _array(case["delta"]), bundle.tolerance, "delta") or _apart(
        norm, np.array([case["l2_norm"]]), bundle.tolerance, "norm"
    )


def _clip(case: Mapping[str, Any], plan: DevicePlan) -> str:
    try:
        clipped = clip_l2(_array(case["values"]), plan.mechanism.l2_clip_norm)
    except ContributionRejected:
        return "" if case["grid"] is None else "refused"
    found = to_grid(clipped.values, plan.mechanism.grid_step).tolist()
    return "" if found == case["grid"] else "another vector on the grid"


def _apart(found: NDArray[Any], expected: NDArray[Any], tolerance: float, what: str) -> str:
    """Return "" or by how much two arrays differ; a difference counts against numbers of order one."""
    if found.shape != expected.shape:
        return f"{what}: shape {found.shape}, expected {expected.shape}"
    worst = np.abs(found.astype(np.float64) - expected) / np.maximum(np.abs(expected), 1.0)
    most = float(worst.max(initial=0.0))
    return "" if most <= tolerance else f"{what}: off by {most:.3g}"


def _array(body: Mapping[str, Any]) -> NDArray[Any]:
    return np.frombuffer(base64.b64decode(body["data"]), np.dtype(body["dtype"])).reshape(body["shape"])

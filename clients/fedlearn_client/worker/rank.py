"""The ranking of a catalogue for one present wish."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedlearn.device.plan import DevicePlan
from fedlearn.errors import BundleRefused, WorkerFailed
from fedlearn.features.index import CatalogueIndex
from fedlearn.features.ingest import make_query_from
from fedlearn.features.query import Query
from fedlearn.proto import device_pb2
from fedlearn.proto import worker_pb2 as pb
from fedlearn_client.worker.columns import Known, features_of, query_of, terms_of
from fedlearn_client.worker.documents import F32, read_parameters, read_plan
from fedlearn_client.worker.graphs import Interface, aligned, open_graph, require_interface


@dataclass(frozen=True, slots=True)
class Ranker:
    """A loaded ``infer.onnx`` with its weights."""

    plan: DevicePlan
    digest: str
    session: Any
    parameters: dict[str, F32]


def load_ranker(request: pb.LoadRanker) -> Ranker:
    """Return a ranker.

    Raises:
        BundleRefused: graph or weights do not fit the plan.
    """
    plan, digest = read_plan(request.plan)
    parameters = read_parameters(plan.shared, request.weights, "weights")
    parameters |= read_parameters(plan.private, request.private_parameters, "private_parameters")
    session = open_graph(request.infer, "infer")
    wanted = infer_inputs(plan)
    read = {node.name for node in session.get_inputs()}
    # a ranking need not read every parameter, and an exporter may leave out those it does not
    require_interface(session.get_inputs(), {n: v for n, v in wanted.items() if n[:2] != "p." or n in read}, "infer")
    require_interface(session.get_outputs(), {"scores": ("tensor(float)", (None,))}, "infer: outputs")
    return Ranker(plan, digest, session, {name: aligned(a) for name, a in parameters.items() if f"p.{name}" in read})


def infer_inputs(plan: DevicePlan) -> Interface:
    """Return what ``infer.onnx`` must take: weights, and what is known of the occasion, for any number of items."""
    inputs: Interface = {f"p.{spec.name}": ("tensor(float)", spec.shape) for spec in plan.parameters}
    if plan.examples == "match":
        return inputs | {"features": ("tensor(float)", (None, len(plan.features)))}
    if plan.examples == "two_tower":
        rows = next((spec.shape for spec in plan.parameters if spec.name == "item_rows"), ())
        return inputs | {
            "p.item_rows": ("tensor(float)", (None, *rows[1:])),
            "terms": ("tensor(int64)", (None,)),
            "term_weight": ("tensor(float)", (None,)),
        }
    raise BundleRefused(f"plan.examples={plan.examples!r}: this runtime cannot rank with it.")


def rank(ranker: Ranker, index: CatalogueIndex, request: pb.RankRequest) -> pb.RankReply:
    """Return the ``count`` best items: by score, highest first, then by position in the catalogue.

    An occasion that was stored under another catalogue ranks as an empty one.

    Raises:
        WorkerFailed: a score is not finite.
    """
    known = Known(ranker.plan, index, frozenset(request.sources))
    query = query_of(request.occasion, index) or make_query_from((), (), index)
    scores = scores_of(ranker, known, query)
    best = order_of(scores)[: request.count]
    keys = list(index.keys)  # the index numbers items in the order of its keys
    return pb.RankReply(items=[device_pb2.RankedItem(item=keys[i], score=float(scores[i])) for i in best])


def scores_of(ranker: Ranker, known: Known, query: Query) -> F32:
    """Return the score of every item, f32[n], in catalogue order."""
    if ranker.plan.examples == "match":
        given: dict[str, Any] = {"features": aligned(features_of(known, query, None))}
    elif ranker.plan.examples == "two_tower":
        given = dict(terms_of(known, query))
    else:
        raise BundleRefused(f"plan.examples={ranker.plan.examples!r}: this runtime cannot rank with it.")
    weights = {f"p.{name}": array for name, array in ranker.parameters.items()}
    scores: F32 = ranker.session.run(["scores"], weights | given)[0]
    if len(scores) < known.index.n:
        raise BundleRefused(f"infer: {len(scores)} scores for {known.index.n} items.")
    if not np.isfinite(scores[: known.index.n]).all():
        raise WorkerFailed("ranking: a score is not finite; these weights cannot rank.")
    return scores[: known.index.n]


def order_of(scores: F32) -> Sequence[int]:
    """Return positions, best first; equal scores keep the catalogue's order."""
    order: list[int] = np.argsort(-scores, kind="stable").tolist()
    return order

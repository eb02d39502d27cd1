"""Answers conformance cases: the numbers of a port, one by one. In test builds only.

The texts and weights come from whoever asks, so a worker takes these requests only when it was started for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from fedlearn.clip import clip_l2
from fedlearn.device.catalogue_file import catalogue_from_bytes
from fedlearn.errors import ContributionRejected, WorkerFailed
from fedlearn.features.index import CatalogueIndex
from fedlearn.features.ingest import make_query_from, read_message
from fedlearn.features.match import match
from fedlearn.features.query import Query
from fedlearn.privacy.grid import to_grid
from fedlearn.proto import conformance_pb2 as cases
from fedlearn.proto import device_pb2
from fedlearn.proto import worker_pb2 as pb
from fedlearn.signals import Choice
from fedlearn_client.worker.columns import Known
from fedlearn_client.worker.documents import read_columns, read_parameters, read_plan
from fedlearn_client.worker.frames import MAX_FRAME_BYTES
from fedlearn_client.worker.graphs import StepGraph
from fedlearn_client.worker.rank import load_ranker, order_of, scores_of
from fedlearn_client.worker.train import Shuffle, flat, run_steps


class Numerics:
    """Keeps the catalogue of the case before."""

    def __init__(self) -> None:
        self._index: CatalogueIndex | None = None
        self._answers: Final[dict[str, Callable[[cases.Case], cases.Reply]]] = {
            "load_catalogue": self._load,
            "make_query": lambda case: cases.Reply(query=_numbers(self._query(case.make_query))),
            "match_rows": self._match_rows,
            "local_update": _local_update,
            "contribute": _contribute,
            "rank": self._rank,
        }

    def answer(self, data: bytes) -> bytes:
        """Return the Reply to one Case, both of ``fedlearn.conformance.v1``.

        Raises:
            WorkerFailed: a case that is not a worker's: the daemon answers verdicts.
        """
        case = cases.Case.FromString(data)
        kind = case.WhichOneof("body") or ""
        if kind not in self._answers:
            raise WorkerFailed(f"numerics: a worker does not answer {kind or 'an empty case'}.")
        return self._answers[kind](case).SerializeToString()

    @property
    def _catalogue(self) -> CatalogueIndex:
        if self._index is None:
            raise WorkerFailed("numerics: load a catalogue first.")
        return self._index

    def _load(self, case: cases.Case) -> cases.Reply:
        self._index = CatalogueIndex.build(catalogue_from_bytes(case.load_catalogue, MAX_FRAME_BYTES))
        return cases.Reply(index_digest=self._index.digest)

    def _query(self, known: cases.MakeQuery) -> Query:
        index = self._catalogue
        read = [
            read_message(message.text, [(span.start, span.end) for span in message.foreign_spans], index)
            for message in known.messages
            if message.direction == device_pb2.DIRECTION_OUTGOING
        ]
        earlier = [Choice(choice.item, choice.app) for choice in known.earlier]
        return make_query_from([said for said in read if said is not None], earlier, index)

    def _match_rows(self, case: cases.Case) -> cases.Reply:
        query = Query.from_flat(np.array(case.match_rows.query, np.int32), self._catalogue.digest)
        rows = match(query, self._catalogue, np.array(case.match_rows.candidates, np.int64))
        return cases.Reply(rows=cases.Floats(values=rows.ravel().tolist()))

    def _rank(self, case: cases.Case) -> cases.Reply:
        asked = case.rank
        ranker = load_ranker(pb.LoadRanker(plan=asked.plan, infer=asked.infer, weights=asked.weights))
        known = Known(ranker.plan, self._catalogue, frozenset(asked.sources))
        scores = scores_of(ranker, known, self._query(asked.occasion))
        keys = list(self._catalogue.keys)
        return cases.Reply(ranking=cases.Ranking(items=[keys[i] for i in order_of(scores)[: asked.count]]))


def _local_update(case: cases.Case) -> cases.Reply:
    asked = case.local_update
    plan, _ = read_plan(asked.plan)
    if plan.private:
        raise WorkerFailed("numerics: a case has no private parameters.")
    graph = StepGraph(asked.step, plan, read_parameters(plan.shared, asked.weights, "weights"))
    columns = read_columns(plan.columns, asked.columns)
    delta = run_steps(graph, plan.training, columns, Shuffle(asked.shuffle_seed, asked.mechanism_step))
    return cases.Reply(delta=cases.Floats(values=flat(plan.shared, delta).tolist()))


def _contribute(case: cases.Case) -> cases.Reply:
    asked = case.contribute
    try:
        clipped = clip_l2(np.array(asked.delta, np.float64), asked.l2_clip_norm)
    except ContributionRejected as error:
        return cases.Reply(grid=cases.Grid(refusal=error.reason.value))
    return cases.Reply(grid=cases.Grid(values=to_grid(clipped.values, asked.grid_step).tolist()))


def _numbers(query: Query) -> cases.Numbers:
    return cases.Numbers(values=query.flat().tolist())

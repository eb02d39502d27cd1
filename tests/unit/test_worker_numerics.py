"""Conformance cases: a worker built for them answers with its own numbers; any other refuses."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedlearn.clip import clip_l2
from fedlearn.errors import BundleRefused, WorkerFailed
from fedlearn.features import CatalogueIndex, make_query, match
from fedlearn.privacy.grid import grid_step, to_grid
from fedlearn.proto import conformance_pb2 as cases
from fedlearn.proto import device_pb2
from fedlearn.signals import Choice, Direction, Message, Session
from fedlearn_client.worker.numerics import Numerics
from fedlearn_client.workers import Workers

_spec = importlib.util.spec_from_file_location("worker_examples", Path(__file__).with_name("worker_examples.py"))
assert _spec
assert _spec.loader
made = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(made)

INDEX = CatalogueIndex.build(made.CATALOGUE)
SESSION = Session(
    (Message("sichuan noodles below 40", Direction.OUTGOING), Message("rather curry", Direction.INCOMING)),
    (Choice("book:a novel", "reader"), Choice("restaurant:place 2", "maps")),
    0,
    "g",
)
SPOKEN = cases.MakeQuery(
    messages=[
        device_pb2.MessageSignal(text=message.text, direction=1 if message.direction is Direction.OUTGOING else 2)
        for message in SESSION.messages
    ],
    earlier=[cases.Choice(item=choice.item, app=choice.app) for choice in SESSION.earlier],
)


@pytest.fixture
def numerics() -> Numerics:
    found = Numerics()
    reply = cases.Reply.FromString(found.answer(cases.Case(load_catalogue=made.CATALOGUE_BYTES).SerializeToString()))
    assert reply.index_digest == INDEX.digest
    return found


def answer(numerics: Numerics, **case: object) -> cases.Reply:
    return cases.Reply.FromString(numerics.answer(cases.Case(**case).SerializeToString()))  # type: ignore[arg-type]


def test_queries_and_features(numerics: Numerics) -> None:
    query = make_query(SESSION, INDEX)
    assert list(answer(numerics, make_query=SPOKEN).query.values) == query.flat().tolist()
    asked = cases.MatchRows(query=query.flat().tolist(), candidates=[3, 0, 23])
    rows = np.array(answer(numerics, match_rows=asked).rows.values, np.float32).reshape(3, -1)
    np.testing.assert_array_equal(rows, match(query, INDEX, np.array([3, 0, 23])))


def test_a_local_update_is_what_training_clips(numerics: Numerics) -> None:
    from fedlearn.wire import decode_contribution
    from fedlearn_client.worker.train import train

    plan = made.match_plan(clip=64.0)
    columns, zeros = made.columns_for(plan, 9), np.zeros(made.WIDTH, np.float32)
    task = made.task_for(plan)
    reply = answer(
        numerics,
        local_update=cases.LocalUpdate(
            plan=made.plan_bytes(plan),
            step=made.match_step(),
            weights=zeros.tobytes(),
            columns=[
                cases.Column(name=name, dtype=array.dtype.str, shape=array.shape, data=array.tobytes())
                for name, array in columns.items()
            ],
            shuffle_seed=task.shuffle_seed,
            mechanism_step=task.step,
        ),
    )
    delta = np.array(reply.delta.values, np.float32)
    sent = decode_contribution(train(made.train_request(plan, made.match_step(), columns, zeros)).contribution)
    assert to_grid(delta, sent.scale).tolist() == sent.values.tolist()


def test_clip_and_grid(numerics: Numerics) -> None:
    step = grid_step(0.5)
    for vector in ([3.0, -4.0], [0.1, 0.2], [0.0, 0.0]):
        asked = cases.Contribute(delta=vector, l2_clip_norm=0.5, grid_step=step)
        expected = to_grid(clip_l2(np.array(vector), 0.5).values, step).tolist()
        assert list(answer(numerics, contribute=asked).grid.values) == expected
    asked = cases.Contribute(delta=[float("nan")], l2_clip_norm=0.5, grid_step=step)
    assert answer(numerics, contribute=asked).grid.refusal == "not_finite"


def test_ranking(numerics: Numerics) -> None:
    weights = np.zeros(made.WIDTH, np.float32)
    weights[made.NAMES.index("dish")] = 1.0
    asked = cases.Rank(
        plan=made.plan_bytes(made.match_plan()),
        infer=made.match_infer(),
        weights=weights.tobytes(),
        occasion=SPOKEN,
        sources=["chat"],
        count=3,
    )
    assert list(answer(numerics, rank=asked).ranking.items) == [f"restaurant:place {i}" for i in (0, 5, 10)]
    asked.sources[:] = ["catalogue"]
    assert answer(numerics, rank=asked).ranking.items[1] == "restaurant:place 1"


def test_what_is_not_a_workers_case_is_refused(numerics: Numerics) -> None:
    with pytest.raises(WorkerFailed, match="verdict"):
        answer(numerics, verdict=cases.Verdict(situation="{}"))
    with pytest.raises(WorkerFailed, match="empty"):
        answer(numerics)
    with pytest.raises(WorkerFailed, match="load a catalogue"):
        answer(Numerics(), make_query=SPOKEN)
    plan = made.match_plan(private=True)
    with pytest.raises(WorkerFailed, match="private"):
        answer(numerics, local_update=cases.LocalUpdate(plan=made.plan_bytes(plan)))
    with pytest.raises(BundleRefused):
        answer(numerics, load_catalogue=b"{}")


class Clock:
    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def random_bytes(self, count: int) -> bytes:
        return bytes(count)


@pytest.fixture(params=[True, False])
def workers(request: pytest.FixtureRequest) -> Iterator[tuple[Workers, bool]]:
    found = Workers(Clock(), numerics=request.param)
    yield found, request.param
    found.close()


def test_only_a_worker_built_for_it_answers(workers: tuple[Workers, bool]) -> None:
    asked = cases.Case(load_catalogue=made.CATALOGUE_BYTES).SerializeToString()
    if workers[1]:
        assert cases.Reply.FromString(workers[0].numerics(asked)).index_digest == INDEX.digest
    else:
        with pytest.raises(WorkerFailed, match="not one that this worker answers"):
            workers[0].numerics(asked)

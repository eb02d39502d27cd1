"""Golden vectors: all hold for what was exported, and each kind of altered port fails the right case."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlearn.device.plan import DevicePlan
from fedlearn.device.plan_codec import plan_bytes
from fedlearn.errors import BundleRefused, PolicyInvalid
from fedlearn.models import MatchModel, flatten
from fedlearn.policy.canonical import canonical_bytes
from fedlearn.proto import worker_pb2 as pb
from fedlearn.terms import TrainingTerms
from fedlearn_client.worker import golden

_spec = importlib.util.spec_from_file_location("worker_examples", Path(__file__).with_name("worker_examples.py"))
assert _spec
assert _spec.loader
made = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(made)

pytest.importorskip("fedlearn.export.golden")


@lru_cache
def request() -> pb.GoldenRequest:
    """Of the hand-written graphs: what they compute is the match model."""
    from fedlearn.export.golden import golden_bytes
    from fedlearn.export.plan import Trained

    plan: DevicePlan = made.match_plan(learning_rate=0.5)
    weights = {"weights": np.random.default_rng(6).standard_normal(made.WIDTH).astype(np.float32)}
    terms = TrainingTerms(2, made.BATCH, 0.5, True, made.CANDIDATES)
    trained = Trained(
        plan.name, MatchModel(made.WIDTH), weights, "match", (), made.NAMES, terms, plan.mechanism, made.CATALOGUE
    )
    return pb.GoldenRequest(
        vectors=golden_bytes(trained, plan),
        step=made.match_step(),
        infer=made.match_infer(),
        plan=plan_bytes(plan),
        weights=flatten(weights).tobytes(),
    )


def report(**changes: Any) -> dict[str, str]:
    asked = pb.GoldenRequest()
    asked.CopyFrom(request())
    for name, value in changes.items():
        setattr(asked, name, value)
    found: dict[str, str] = json.loads(golden.run(asked).report)
    return found


def failing(**changes: Any) -> set[str]:
    """Kinds of cases that differ."""
    return {name.split("/")[0] for name, differs in report(**changes).items() if differs}


def altered(path: tuple[str | int, ...], value: Any) -> bytes:
    body = json.loads(request().vectors)
    inner = body
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value(inner[path[-1]])
    return canonical_bytes(body)


def test_every_case_holds() -> None:
    found = report()
    assert {name: differs for name, differs in found.items() if differs} == {}
    assert {name.split("/")[0] for name in found} == {"index", "text", "session", "training", "clip"}
    assert len(found) > 40


@pytest.mark.parametrize(
    ("path", "value", "kind"),
    [
        (("index_digest",), lambda digest: digest[::-1], "index"),
        (("texts", 2, "foreign_spans"), lambda spans: [[0, 8]], "text"),
        (("sessions", 1, "query"), lambda numbers: [numbers[0] + 1, *numbers[1:]], "session"),
        (("sessions", 1, "uses", 0, "sources"), lambda sources: ["catalogue"], "session"),
        (("sessions", 1, "uses", 0, "ranking"), lambda keys: keys[::-1], "session"),
        (("training", "l2_norm"), lambda norm: norm * 1.001, "training"),
        (("training", "batches"), lambda batches: batches[:-1], "training"),
        (("clip", 3, "grid"), lambda grid: [grid[0] + 1, *grid[1:]], "clip"),
        (("clip", 6, "grid"), lambda grid: [0] * 8, "clip"),
    ],
)
def test_a_difference_is_found_where_it_is(path: tuple[str | int, ...], value: Any, kind: str) -> None:
    assert failing(vectors=altered(path, value)) == {kind}


def test_another_graph_or_weights_are_found() -> None:
    weights = np.frombuffer(request().weights, "<f4").copy()
    weights[0] += 0.01
    assert failing(weights=weights.tobytes()) >= {"session"}
    plan = made.match_plan(learning_rate=0.5)
    slower = replace(plan, training=replace(plan.training, learning_rate=0.4999))
    assert failing(plan=plan_bytes(slower)) == {"training"}


def test_a_missing_clip_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedlearn.types import ClippedDelta

    monkeypatch.setattr(golden, "clip_l2", lambda values, bound: ClippedDelta(values.astype(np.float64), bound))
    assert failing() == {"clip"}


def test_what_is_not_a_vector_file_is_refused() -> None:
    with pytest.raises(BundleRefused, match="schema"):
        report(vectors=b'{"schema":"other"}')
    with pytest.raises(PolicyInvalid):
        report(vectors=b"{")
    assert report(vectors=b'{"schema":"fedlearn.golden/1"}') == {}

"""Ranking: by score, then by the catalogue's order; and only for graphs that fit their plan."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedlearn.device.plan import ParameterSpec, Scope
from fedlearn.errors import BundleRefused, WorkerFailed
from fedlearn.features import CatalogueIndex
from fedlearn.models import flatten
from fedlearn.proto import worker_pb2 as pb
from fedlearn_client.worker.columns import Known, query_of, terms_of
from fedlearn_client.worker.ingest import derive
from fedlearn_client.worker.rank import Ranker, load_ranker, order_of, rank

_spec = importlib.util.spec_from_file_location("worker_examples", Path(__file__).with_name("worker_examples.py"))
assert _spec
assert _spec.loader
made = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(made)

INDEX = CatalogueIndex.build(made.CATALOGUE)
KEYS = [item.key for item in made.CATALOGUE.items]


def ranker(values: np.ndarray, **changes: object) -> Ranker:
    request = pb.LoadRanker(
        plan=made.plan_bytes(made.match_plan()), infer=made.match_infer(), weights=values.astype("<f4").tobytes()
    )
    for name, value in changes.items():
        setattr(request, name, value)
    return load_ranker(request)


def ranked(loaded: Ranker, occasion: pb.Occasion, *sources: str, count: int = 24) -> list[tuple[str, float]]:
    request = pb.RankRequest(plan_digest=loaded.digest, occasion=occasion, sources=sources, count=count)
    return [(item.item, item.score) for item in rank(loaded, INDEX, request).items]


def said(text: str) -> pb.Occasion:
    from fedlearn.proto import device_pb2

    signal = device_pb2.Signal(id="x", message=device_pb2.MessageSignal(text=text, direction=1))
    return pb.Occasion(said=[derive([signal], INDEX).derived[0].body])


def test_equal_scores_keep_the_catalogues_order() -> None:
    assert order_of(np.array([1.0, 3.0, 1.0, 3.0, -0.0, 0.0], np.float32)) == [1, 3, 0, 2, 4, 5]
    everything = ranked(ranker(np.zeros(made.WIDTH)), pb.Occasion(), "catalogue")
    assert everything == [(key, 0.0) for key in KEYS]
    weights = np.zeros(made.WIDTH)
    weights[made.NAMES.index("dish")] = 2.0
    best = ranked(ranker(weights), said("curry tonight"), "chat", count=5)
    assert [key for key, _ in best] == [f"restaurant:place {i}" for i in (2, 7, 12, 17, 22)]


def test_the_ranking_without_a_grant_is_bit_identical_whatever_was_said() -> None:
    loaded = ranker(np.random.default_rng(0).standard_normal(made.WIDTH))
    without = ranked(loaded, pb.Occasion(), "catalogue")
    assert ranked(loaded, said("curry tonight"), "catalogue") == without
    assert ranked(loaded, said("curry tonight"), "catalogue", "chat") != without, "the negative control"


def test_what_was_read_with_another_catalogue_counts_as_nothing() -> None:
    loaded = ranker(np.random.default_rng(0).standard_normal(made.WIDTH))
    assert ranked(loaded, pb.Occasion(said=[b"\xff"]), "chat") == ranked(loaded, pb.Occasion(), "chat")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights": bytes(4)}, "weights: 4 bytes"),
        ({"private_parameters": bytes(4)}, "private_parameters"),
        ({"infer": made.match_step()}, "differs from the plan"),
        ({"infer": made.match_infer(width=3)}, "the plan needs"),
        ({"infer": b"x"}, "cannot load"),
        ({"plan": b"x"}, "plan.json"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(BundleRefused, match=words):
        ranker(np.zeros(made.WIDTH), **changes)


def test_a_score_that_is_not_finite_ranks_nothing() -> None:
    with pytest.raises(WorkerFailed, match="not finite"):
        ranked(ranker(np.full(made.WIDTH, 3e38)), pb.Occasion(), "catalogue")


def test_two_tower_ranks_as_its_model_says() -> None:
    from fedlearn.models.two_tower import TwoTowerModel

    infer = pytest.importorskip("fedlearn.export.infer")
    model = TwoTowerModel(terms=50, items=30, width=8, hidden=16)
    initial = model.initial(4)
    plan = replace(
        made.match_plan(),
        model="two_tower",
        examples="two_tower",
        example_options=(("rows", 50), ("terms", 6)),
        features=(),
        parameters=tuple(ParameterSpec(n, a.shape, Scope.SHARED) for n, a in sorted(initial.items())),
    )
    loaded = load_ranker(
        pb.LoadRanker(plan=made.plan_bytes(plan), infer=infer.infer_onnx(model), weights=flatten(initial).tobytes())
    )
    for text, sources in (("sichuan noodles or curry", ("chat",)), ("sichuan noodles or curry", ("catalogue",))):
        occasion = said(text)
        query = query_of(occasion, INDEX)
        assert query is not None
        columns = terms_of(Known(plan, INDEX, frozenset(sources)), query)
        expected = model.scores(initial, columns["terms"][columns["term_weight"] > 0])[: INDEX.n]
        found = dict(ranked(loaded, occasion, *sources))
        np.testing.assert_allclose([found[key] for key in KEYS], expected, atol=1e-6)

"""Golden vectors: the phone's own code passes them, and a phone that computes otherwise does not."""

from __future__ import annotations

import base64
import importlib.util
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlearn.device.plan_codec import plan_from_bytes
from fedlearn.export.files import task_files
from fedlearn.export.golden import certain_ranking, fill, small_catalogue
from fedlearn.export.golden_texts import occasions, spoken
from fedlearn.export.plan import PlanOptions
from fedlearn.features import CatalogueIndex, read_message
from fedlearn.policy.canonical import canonical_bytes
from fedlearn.proto import worker_pb2 as pb
from fedlearn_client.worker import golden

_spec = importlib.util.spec_from_file_location("export_town", Path(__file__).with_name("export_town.py"))
assert _spec is not None
assert _spec.loader is not None
town: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(town)

RUNS = ("match", "two_tower, private steps and table")


@lru_cache
def files_of(name: str) -> Mapping[str, bytes]:
    trained = town.match_run() if name.startswith("match") else town.tower_run()
    if "private steps" in name:
        trained = town.private_steps(trained)
    private = ("term_rows",) if "table" in name else ()
    return task_files(trained, town.policy(), PlanOptions(private=private))[1]


def differences(files: Mapping[str, bytes]) -> dict[str, str]:
    step = files.get("private_step.onnx", files["step.onnx"])
    request = pb.GoldenRequest(
        vectors=files["golden.json"],
        step=step,
        infer=files["infer.onnx"],
        plan=files["plan.json"],
        weights=files["weights.bin"],
    )
    report = json.loads(golden.run(request).report)
    assert len(report) > 30
    return {case: text for case, text in report.items() if text}


@pytest.mark.parametrize("name", RUNS)
def test_the_phones_own_code_passes(name: str) -> None:
    assert differences(files_of(name)) == {}


def test_files_of_a_run_with_private_steps_and_a_private_parameter() -> None:
    files = files_of("two_tower, private steps and table")
    names = {"plan.json", "step.onnx", "private_step.onnx", "infer.onnx", "weights.bin", "private.bin", "golden.json"}
    assert set(files) == names
    plan = plan_from_bytes(files["plan.json"])
    assert [spec.name for spec in plan.private] == ["term_rows"]
    assert files["private.bin"] == town.tower_run().parameters["term_rows"].tobytes()


def _shift(array: dict[str, Any], by: float) -> None:
    values = np.frombuffer(base64.b64decode(array["data"]), array["dtype"]).copy()
    values[np.argmax(np.abs(values))] += by
    array["data"] = base64.b64encode(values.tobytes()).decode()


def _spoil_query(body: Any) -> None:
    body["sessions"][1]["query"][5] += 1


def _spoil_features(body: Any) -> None:
    _shift(body["sessions"][1]["uses"][0]["features"], 1e-3)


def _spoil_ranking(body: Any) -> None:
    ranking = body["sessions"][3]["uses"][0]["ranking"]
    ranking[0], ranking[1] = ranking[1], ranking[0]


def _spoil_delta(body: Any) -> None:
    _shift(body["training"]["delta"], 1e-3)


def _spoil_clip(body: Any) -> None:
    body["clip"][3]["grid"][0] += 1


def _spoil_refusal(body: Any) -> None:
    body["clip"][-1]["grid"] = [0] * 8


@pytest.mark.parametrize(
    "spoil",
    [_spoil_query, _spoil_features, _spoil_ranking, _spoil_delta, _spoil_clip, _spoil_refusal],
)
def test_control_another_expectation_is_seen(spoil: Any) -> None:
    files = dict(files_of("match"))
    body = json.loads(files["golden.json"])
    spoil(body)
    files["golden.json"] = canonical_bytes(body)
    assert len(differences(files)) == 1


def test_control_another_said_is_seen_in_the_queries_made_of_it_too() -> None:
    files = dict(files_of("match"))
    body = json.loads(files["golden.json"])
    body["texts"][2]["said"] = body["texts"][3]["said"]
    files["golden.json"] = canonical_bytes(body)
    assert set(differences(files)) == {"text/2", "session/1/query", "session/3/query", "session/6/query"}


def test_control_weights_of_another_model_are_seen() -> None:
    files = dict(files_of("match"))
    files["weights.bin"] = np.linspace(-1, 1, 23).astype("<f4").tobytes()
    found = differences(files)
    assert "training" in found
    assert any(case.startswith("session") for case in found)


def test_the_texts_hold_what_they_should_in_any_catalogue() -> None:
    catalogue = small_catalogue(town.features_town.TOWN)
    index = CatalogueIndex.build(catalogue)
    said = [read_message(text, spans, index) for text, spans in spoken(catalogue)]
    assert said[0] is None
    assert said[1] is None
    assert said[10] is not None
    assert said[10].empty
    assert any(s is not None and s.renews_rest for s in said)
    assert any(s is not None and s.names for s in said)
    polarities = {polarity for s in said if s is not None for _, polarity in s.values}
    assert polarities in ({-1, 1}, {-1, 0, 1})
    assert sum(session.every_subset for session in occasions(catalogue)) == 2
    assert all(i < len(said) for session in occasions(catalogue) for i in session.texts)


def test_fill_is_the_documented_rule() -> None:
    expected = [((2654435761 * k + 40503 * 3) % 2**32) / 2**31 - 1 for k in range(5)]
    assert fill(5, 3).tolist() == [float(np.float32(value)) for value in expected]
    assert float(np.abs(fill(10_000, 1)).max()) <= 1.0
    assert abs(float(fill(10_000, 1).mean())) < 0.02


def test_a_ranking_ends_where_rounding_could_turn_it_round() -> None:
    keys = ["a", "b", "c", "d"]
    assert certain_ranking(np.array([1.0, 3.0, 2.0, 2.0]), keys) == ["b", "c", "d", "a"]
    assert certain_ranking(np.array([1.0, 3.0, 2.0, 2.0 + 1e-6]), keys) == ["b"]
    assert certain_ranking(np.array([1.0]), ["a"]) == ["a"]


def test_a_small_catalogue_is_cut_from_the_real_one() -> None:
    small = small_catalogue(town.features_town.TOWN)
    kept = {item.key for item in (*small.items, *small.context)}
    assert all(set(item.nearby) <= kept for item in (*small.items, *small.context))
    assert [item.key for item in small.items] == [item.key for item in town.features_town.TOWN.items]

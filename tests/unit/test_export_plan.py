"""From a trained model to a plan: what is in it, and what is refused with its fix."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlearn.device.plan import ColumnSpec, Scope
from fedlearn.device.plan_codec import plan_bytes, plan_from_bytes
from fedlearn.errors import BundleRefused, OutOfRange, UnknownSetting
from fedlearn.export.infer import infer_onnx
from fedlearn.export.plan import PlanOptions, Trained, make_plan, weights_of
from fedlearn.models import MatchModel
from fedlearn.policy.document import Policy
from fedlearn.privacy.factorization import INDEPENDENT

_spec = importlib.util.spec_from_file_location("export_town", Path(__file__).with_name("export_town.py"))
assert _spec is not None
assert _spec.loader is not None
town: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(town)


def plan_of(trained: Trained, policy: Policy | None = None, **options: Any) -> Any:
    graphs = {"infer.onnx": infer_onnx(trained.model)}
    return make_plan(trained, policy or town.policy(), PlanOptions(**options), graphs)


def test_a_plan_says_what_the_run_and_the_policy_say() -> None:
    trained = town.match_run()
    plan = plan_of(trained)
    assert plan_from_bytes(plan_bytes(plan)) == plan
    assert (plan.population, plan.purpose, plan.recipient) == ("city", "restaurants-training", "city-operator")
    assert plan.serves == "restaurants"
    assert plan.mechanism == trained.mechanism
    assert plan.columns == (
        ColumnSpec("features", "<f4", (8, 23)),
        ColumnSpec("label", "<i8", ()),
        ColumnSpec("logq", "<f4", (8,)),
    )
    assert plan.operators == ("Gather", "Mul", "Sum")
    assert plan.training.learning_rate == 0.3
    assert plan.catalogue.attributes == ("cuisine", "dish", "facility", "theme")
    assert (plan.catalogue.name, plan.catalogue.domain, plan.catalogue.max_bytes) == ("town", "restaurant", 5_000_000)


def test_a_two_tower_plan_keeps_its_private_table_out_of_the_shared_weights() -> None:
    trained = town.tower_run()
    plan = plan_of(trained, private=("term_rows",))
    assert [spec.name for spec in plan.private] == ["term_rows"]
    assert {spec.scope for spec in plan.shared} == {Scope.SHARED}
    shared = weights_of(trained.parameters, plan.shared)
    assert len(shared) == 4 * (20 * 6 + 8 + 6 * 8 + 6 + 8 * 6)
    assert trained.parameters["term_rows"].tobytes() not in shared
    assert [column.name for column in plan.columns] == ["items", "label", "logq", "term_weight", "terms"]
    assert plan_from_bytes(plan_bytes(plan)) == plan


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"mechanism": ("kind", "gaussian", "factorization", INDEPENDENT)}, {}, "privacy=blt"),
        ({"mechanism": ("min_separation", 19)}, {}, "min_separation=19: under mechanism.min_separation=20"),
        ({"mechanism": ("noise_multiplier", 0.1)}, {}, "noise_multiplier=0.1"),
        ({"mechanism": ("l2_clip_norm", 60.0)}, {}, "l2_clip_norm=60"),
        ({"mechanism": ("kind", "tree")}, {}, "does not fit the factorization"),
        ({}, {"purpose": "restaurants"}, "no training purpose"),
        ({}, {"recipient": "maps"}, "not an operator"),
        ({}, {"serves": "restaurants-training"}, "no recommend purpose"),
        ({}, {"private": ("weight",)}, "--private weight"),
        ({}, {"max_catalogue_bytes": 100}, "over 100"),
        ({}, {"max_catalogue_bytes": 6_000_000}, "over device.max_catalogue_bytes"),
        ({"features": ("words", "secret")}, {}, "'secret' is not among the policy's features"),
        ({"examples": "pictures"}, {}, "examples='pictures'"),
        ({"parameters": {"weights": np.zeros(22, np.float32)}}, {}, "not those of model match"),
        ({"parameters": {"weights": np.full(23, np.nan, np.float32)}}, {}, "NaN or infinity"),
    ],
)
def test_what_may_not_be_exported_is_named(changes: dict[str, Any], options: dict[str, Any], message: str) -> None:
    if "mechanism" in changes:
        pairs = changes["mechanism"]
        given = dict(zip(pairs[::2], pairs[1::2], strict=True))
        changes = {"mechanism": replace(town.MECHANISM, **given)}
    if "features" in changes:
        width = len(changes["features"])
        changes |= {"model": MatchModel(width), "parameters": {"weights": np.zeros(width, np.float32)}}
    with pytest.raises((OutOfRange, UnknownSetting), match=message):
        plan_of(town.match_run(**changes), **options)


def test_an_operator_with_a_placeholder_for_a_key_is_refused() -> None:
    with pytest.raises(OutOfRange, match="placeholder as task_key"):
        plan_of(town.match_run(), town.policy("0" * 64))


def test_a_model_whose_every_weight_is_private_is_refused() -> None:
    with pytest.raises(BundleRefused, match="none is shared"):
        plan_bytes(plan_of(town.match_run(), private=("weights",)))

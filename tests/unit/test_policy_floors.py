"""Floors and caps: the value at the limit is let through, the one beyond it is not, and the message names both."""

from __future__ import annotations

import importlib.util
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedlearn.device.mechanism import MechanismTerms
from fedlearn.device.plan import CatalogueSpec, ColumnSpec, DevicePlan, ParameterSpec, Scope, TrainingSpec
from fedlearn.policy.document import PopulationKind
from fedlearn.policy.floors import breaches, plan_breaches
from fedlearn.policy.keys import PLACEHOLDER_KEY
from fedlearn.privacy.factorization import INDEPENDENT, Blt, Toeplitz, Tree

_spec = importlib.util.spec_from_file_location("policy_papers", Path(__file__).with_name("policy_papers.py"))
assert _spec is not None
assert _spec.loader is not None
p: Any = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = p
_spec.loader.exec_module(p)

TERMS = MechanismTerms("blt", Blt((0.9,), (0.4,)), 4.0, 0.5, 2.0**-40, 100, 20, 5)
WHO: dict[str, Any] = {"population": "town", "purpose": "places-training", "recipient": "operator"}
PLAN = DevicePlan(
    name="run",
    population="town",
    purpose="places-training",
    recipient="operator",
    serves="places",
    model="match",
    examples="match",
    example_options=(),
    parameters=(ParameterSpec("bias", (1000,), Scope.PRIVATE), ParameterSpec("weights", (2,), Scope.SHARED)),
    columns=(ColumnSpec("features", "<f4", (64, 2)), ColumnSpec("label", "<i8", ())),
    features=("words", "rating"),
    training=TrainingSpec(1, 16, 64, 0.5, True, 1000, None),
    mechanism=TERMS,
    catalogue=CatalogueSpec("town", "restaurant", ("price",), 5_000_000),
    operators=("MatMul",),
    minimum_runtime="0.1",
)
SIMULATED = replace(
    p.POLICY,
    population=replace(p.POLICY.population, kind=PopulationKind.SIMULATED),
    mechanism=replace(p.POLICY.mechanism, kinds=("gaussian", *p.POLICY.mechanism.kinds)),
)


def found(terms: MechanismTerms = TERMS, *, policy: Any = p.POLICY, round_size: int = 1000, **who: str) -> Any:
    return breaches(policy, mechanism=terms, round_size=round_size, **{**WHO, **who})


def test_a_training_at_every_limit_is_let_through() -> None:
    assert found() == ()
    assert plan_breaches(p.POLICY, PLAN) == ()


@pytest.mark.parametrize(
    ("change", "field", "limit"),
    [
        ({"noise_multiplier": math.nextafter(4.0, 0.0)}, "noise_multiplier=", "min_noise_multiplier=4"),
        ({"noise_multiplier": math.nan}, "noise_multiplier=nan", "min_noise_multiplier"),
        ({"noise_multiplier": math.inf}, "noise_multiplier=inf", "min_noise_multiplier"),
        ({"l2_clip_norm": math.nextafter(0.5, 1.0)}, "l2_clip_norm=", "max_l2_clip_norm=0.5"),
        ({"l2_clip_norm": math.nan}, "l2_clip_norm=nan", "max_l2_clip_norm"),
        ({"l2_clip_norm": 0.0}, "l2_clip_norm=0", "max_l2_clip_norm"),
        ({"steps": 101}, "steps=101", "max_steps=100"),
        ({"steps": 0}, "steps=0", "max_steps"),
        ({"min_separation": 19}, "min_separation=19", "min_separation=20"),
        ({"max_participations": 6}, "max_participations=6", "max_participations=5"),
        ({"max_participations": 0}, "max_participations=0", "max_participations"),
        ({"kind": "gaussian", "factorization": INDEPENDENT}, "kind='gaussian'", "mechanism.kinds"),
        ({"kind": "laplace"}, "kind='laplace'", "mechanism.kinds"),
        ({"kind": "independent"}, "kind='independent'", "factorization"),
        ({"kind": "tree"}, "kind='tree'", "factorization"),
        ({"kind": "banded"}, "kind='banded'", "factorization"),
        ({"factorization": Tree()}, "kind='blt'", "factorization"),
    ],
    ids=str,
)
def test_one_step_beyond_a_limit_is_named(change: dict[str, Any], field: str, limit: str) -> None:
    (message,) = found(replace(TERMS, **change))
    assert message.startswith(field), message
    assert limit in message


def test_kinds_and_what_they_are() -> None:
    for kind, factorization in (
        ("independent", INDEPENDENT),
        ("banded", Toeplitz((1.0, 0.5))),
        ("tree", Tree()),
        ("blt", TERMS.factorization),
    ):
        assert found(replace(TERMS, kind=kind, factorization=factorization)) == ()
    only = replace(p.POLICY, mechanism=replace(p.POLICY.mechanism, kinds=("tree",)))
    assert found(policy=only)[0].startswith("kind='blt'")


def test_sampled_cohorts_are_for_simulations_and_have_no_separation() -> None:
    sampled = replace(TERMS, kind="gaussian", factorization=INDEPENDENT, min_separation=1, max_participations=100)
    assert found(sampled, policy=SIMULATED) == ()
    assert len(found(replace(sampled, kind="independent"), policy=SIMULATED)) == 2
    # a document that the loader would refuse: the floors do not lean on it
    forged = replace(SIMULATED, population=p.POLICY.population)
    assert found(sampled, policy=forged)[0].startswith("kind='gaussian': for simulated")


def test_a_plan_for_phones_counts_on_no_sampling() -> None:
    sampled = replace(TERMS, kind="gaussian", factorization=INDEPENDENT)
    assert plan_breaches(SIMULATED, replace(PLAN, mechanism=sampled))[0].startswith("mechanism.kind='gaussian'")


def test_a_round_of_too_few_phones() -> None:
    assert found(round_size=999)[0].startswith("round_size=999: under mechanism.min_round_size=1000")


@pytest.mark.parametrize(
    ("who", "words"),
    [
        ({"population": "village"}, "population='village'"),
        ({"purpose": "places"}, "purpose='places': no training purpose"),
        ({"purpose": "adverts"}, "purpose='adverts'"),
        ({"recipient": "surface"}, "recipient='surface': not an operator"),
        ({"recipient": "nobody"}, "recipient='nobody'"),
    ],
)
def test_who_trains_for_whom(who: dict[str, str], words: str) -> None:
    (message,) = found(**who)
    assert message.startswith(words)


def test_an_operator_of_another_purpose_is_not_this_ones() -> None:
    other = replace(p.POLICY.recipients[2], id="other-operator")
    policy = replace(p.POLICY, recipients=(*p.POLICY.recipients, other))
    assert found(policy=policy, recipient="other-operator")[0].startswith("recipient='other-operator'")


def test_a_placeholder_key_signs_no_task() -> None:
    nobody = replace(p.POLICY.recipients[2], task_key=PLACEHOLDER_KEY)
    policy = replace(SIMULATED, recipients=(*p.POLICY.recipients[:2], nobody))
    (message,) = found(policy=policy)
    assert "placeholder" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"features": ("words", "charisma")}, "features: 'charisma' is not among"),
        ({"features": ("words", "near_own")}, "features: 'near_own' needs choice"),
        ({"features": ("words",)}, "columns: features has the shape (64, 2)"),
        ({"columns": PLAN.columns[1:]}, "columns: features has the shape None"),
        ({"training": replace(PLAN.training, candidates=32)}, "columns: features"),
        ({"serves": "places-training"}, "serves='places-training'"),
        ({"serves": "adverts"}, "serves='adverts'"),
        ({"catalogue": replace(PLAN.catalogue, max_bytes=5_000_001)}, "catalogue.max_bytes=5000001"),
        ({"population": "village"}, "population='village'"),
        ({"mechanism": replace(TERMS, noise_multiplier=1.0)}, "noise_multiplier=1"),
        ({"parameters": (ParameterSpec("weights", (3, 4000), Scope.SHARED),)}, "parameters: an upload of 12000"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_plan_that_the_policy_does_not_allow(change: dict[str, Any], words: str) -> None:
    messages = plan_breaches(p.POLICY, replace(PLAN, **change))
    assert any(message.startswith(words) for message in messages), messages


def test_uploads_count_shared_weights_only() -> None:
    at_the_cap = (100_000 - 4096) // 8
    fits = replace(PLAN, parameters=(ParameterSpec("weights", (at_the_cap,), Scope.SHARED),))
    assert plan_breaches(p.POLICY, fits) == ()
    over = replace(PLAN, parameters=(ParameterSpec("weights", (at_the_cap + 1,), Scope.SHARED),))
    assert len(plan_breaches(p.POLICY, over)) == 1
    private = replace(PLAN, parameters=(*PLAN.parameters, ParameterSpec("z", (10**6,), Scope.PRIVATE)))
    assert plan_breaches(p.POLICY, private) == ()


def test_a_disputed_or_unlisted_source_gives_nothing() -> None:
    disputed = replace(p.POLICY, sources=(replace(p.POLICY.sources[0], disputed=True), p.POLICY.sources[1]))
    messages = plan_breaches(disputed, PLAN)
    assert [message.partition(":")[0] for message in messages] == ["features", "serves"]
    only_ranking = replace(p.POLICY, sources=(replace(p.POLICY.sources[0], purposes=("places",)), p.POLICY.sources[1]))
    assert plan_breaches(only_ranking, PLAN)[0].startswith("features: 'words' needs message_content")


def test_a_plan_without_features_has_no_width() -> None:
    towers = replace(PLAN, features=(), columns=(ColumnSpec("terms", "<i8", (24,)),), serves="")
    assert plan_breaches(p.POLICY, towers) == ()

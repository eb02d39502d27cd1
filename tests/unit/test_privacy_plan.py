from __future__ import annotations

import math
from pathlib import Path

import pytest

from fedlearn.errors import CannotCalibrate, OutOfRange
from fedlearn.privacy import PrivacyPlan, PrivacySettings, make_plan
from fedlearn.privacy import plan as plan_module
from fedlearn.privacy.accountants import epsilon


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLEARN_CACHE", str(tmp_path))


def given_noise(population: int = 1000, delta: float = 1e-4) -> PrivacyPlan:
    settings = PrivacySettings(delta=delta, l2_clip_norm=0.5, noise_multiplier=1.5)
    return make_plan(settings, population=population, rounds=10, cohort=population / 10)


def test_noise_given() -> None:
    plan = given_noise()
    assert plan.epsilon == plan.certified_epsilon == epsilon([(plan.event, 10)], 1e-4)
    assert (plan.denominator, plan.sampling_probability, plan.steps) == (100.0, 0.1, 10)
    assert (plan.unit, plan.neighboring_relation, plan.mechanism) == ("device", "add_or_remove", "gaussian")


def test_epsilon_given() -> None:
    settings = PrivacySettings(delta=1e-4, l2_clip_norm=0.5, epsilon=0.2)
    plan = make_plan(settings, population=1000, rounds=10, cohort=100)
    assert plan.epsilon == 0.2
    assert 0.199 < plan.certified_epsilon <= 0.2


@pytest.mark.parametrize("name", ["epsilon", "noise_multiplier"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_epsilon_and_noise_out_of_range(name: str, value: float) -> None:
    chosen = {"epsilon": None, "noise_multiplier": None} | {name: value}
    with pytest.raises(OutOfRange, match=f"privacy.{name}={value}"):
        make_plan(PrivacySettings(delta=1e-4, l2_clip_norm=1.0, **chosen), population=1000, rounds=1, cohort=10)


@pytest.mark.parametrize("chosen", [{}, {"epsilon": 1.0, "noise_multiplier": 1.0}])
def test_exactly_one_of_epsilon_and_noise(chosen: dict[str, float]) -> None:
    with pytest.raises(OutOfRange, match="exactly one"):
        make_plan(PrivacySettings(delta=1e-4, l2_clip_norm=1.0, **chosen), population=1000, rounds=1, cohort=10)


@pytest.mark.parametrize("delta", [1e-3, 2e-3, 1.0, 0.0, -1e-5, math.nan])
def test_delta_must_be_below_one_over_population(delta: float) -> None:
    with pytest.raises(OutOfRange, match=r"privacy.delta=.*use e.g. 0.0001"):
        given_noise(delta=delta)


@pytest.mark.parametrize("clip", [0.0, -1.0, math.nan, math.inf])
def test_clip_out_of_range(clip: float) -> None:
    settings = PrivacySettings(delta=1e-4, l2_clip_norm=clip, noise_multiplier=1.0)
    with pytest.raises(OutOfRange, match=r"privacy\.l2_clip_norm"):
        make_plan(settings, population=1000, rounds=1, cohort=10)


@pytest.mark.parametrize(
    ("population", "rounds", "cohort", "word"),
    [
        (1000, 1, 1001, "cohort"),
        (1000, 1, 0, "cohort"),
        (1000, 1, math.nan, "cohort"),
        (0, 1, 1, "population"),
        (-5, 1, 1, "population"),
        (1000, 0, 10, "rounds"),
        (1000, 1.5, 10, "rounds"),
    ],
)
def test_sizes_out_of_range(population: int, rounds: int, cohort: float, word: str) -> None:
    settings = PrivacySettings(delta=1e-4, l2_clip_norm=1.0, noise_multiplier=1.0)
    with pytest.raises(OutOfRange, match=word):
        make_plan(settings, population=population, rounds=rounds, cohort=cohort)


def test_noise_that_guarantees_nothing_is_refused() -> None:
    settings = PrivacySettings(delta=1e-4, l2_clip_norm=1.0, noise_multiplier=1e-3)
    with pytest.raises(OutOfRange, match="no figure means anything"):
        make_plan(settings, population=1000, rounds=100, cohort=1000)


def test_an_infinite_epsilon_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "epsilon", lambda *_: math.inf)
    with pytest.raises(CannotCalibrate, match="no finite epsilon"):
        given_noise()

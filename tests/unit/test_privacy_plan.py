from __future__ import annotations

import math
from pathlib import Path

import pytest

from fedlearn.errors import CannotCalibrate, OutOfRange, UnknownSetting
from fedlearn.privacy import plan as plan_module
from fedlearn.privacy.accountants import epsilon
from fedlearn.privacy.events import MatrixGaussian, NeighboringRelation, PoissonGaussian
from fedlearn.privacy.factorization import INDEPENDENT
from fedlearn.privacy.gaussian import gaussian_epsilon
from fedlearn.privacy.plan import PrivacyPlan, PrivacySettings, make_plan


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
    assert (plan.event, plan.count) == (PoissonGaussian(1.5, 0.1), 10)
    assert (plan.participation, plan.rho, plan.mu, plan.sensitivity) == (None, None, None, 1.0)


def test_everyone_in_every_round_is_a_plain_gaussian() -> None:
    settings = PrivacySettings(delta=1e-6, l2_clip_norm=1.0, noise_multiplier=10.0)
    plan = make_plan(settings, population=1000, rounds=100, cohort=1000)
    assert plan.mu == pytest.approx(1.0, rel=1e-12)
    assert plan.rho == pytest.approx(0.5, rel=1e-12)
    # mu = 1 at delta 1e-6: 4.88655 (Balle and Wang 2018, theorem 8)
    assert plan.certified_epsilon == pytest.approx(4.88655, abs=1e-3)


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
    monkeypatch.setattr(plan_module, "epsilon", lambda *_, **__: math.inf)
    with pytest.raises(CannotCalibrate, match="no finite epsilon"):
        given_noise()


def bounded(mechanism: str = "gaussian", **changed: object) -> PrivacyPlan:
    sizes = {"population": 20_000, "rounds": 100, "cohort": 1000.0} | {
        name: changed.pop(name) for name in ("population", "rounds", "cohort") if name in changed
    }
    given = {"delta": 1e-6, "l2_clip_norm": 0.5, "epsilon": 3.0, "mechanism": mechanism, "min_separation": 20} | changed
    return make_plan(PrivacySettings(**given), **sizes)  # type: ignore[arg-type]


@pytest.mark.parametrize("mechanism", ["gaussian", "blt", "banded", "tree"])
def test_participation_bounded(mechanism: str) -> None:
    plan = bounded(mechanism)
    assert isinstance(plan.event, MatrixGaussian)
    assert (plan.count, plan.sampling_probability, plan.neighboring_relation) == (1, None, "zero_out")
    assert (plan.participation.min_separation, plan.participation.max_participations) == (20, 5)
    assert plan.epsilon == 3.0 >= plan.certified_epsilon > 2.999
    assert plan.certified_epsilon == epsilon([(plan.event, 1)], 1e-6, neighboring_relation=NeighboringRelation.ZERO_OUT)
    assert plan.certified_epsilon == pytest.approx(gaussian_epsilon(plan.mu, 1e-6), rel=1e-12)
    assert plan.mu == pytest.approx(plan.sensitivity / plan.noise_multiplier, rel=1e-12)
    assert plan.rho == pytest.approx(plan.mu**2 / 2, rel=1e-12)


@pytest.mark.parametrize("mechanism", ["gaussian", "blt", "banded", "tree"])
def test_noise_of_five_digits_and_not_one_more_than_needed(mechanism: str) -> None:
    plan = bounded(mechanism)
    unit = 10.0 ** (math.floor(math.log10(plan.noise_multiplier)) - 4)
    assert plan.noise_multiplier == float(f"{plan.noise_multiplier:.5g}")
    assert bounded(mechanism, epsilon=None, noise_multiplier=plan.noise_multiplier - unit).certified_epsilon > 3.0


def test_independent_noise_without_sampling() -> None:
    plan = bounded()
    assert plan.event.factorization == INDEPENDENT
    assert plan.sensitivity == pytest.approx(math.sqrt(5), rel=1e-12)
    with_sampling = make_plan(
        PrivacySettings(delta=1e-6, l2_clip_norm=0.5, epsilon=3.0), population=20_000, rounds=100, cohort=1000
    )
    assert with_sampling.noise_multiplier < plan.noise_multiplier


def test_gboard_es_es_2022() -> None:
    # google-research/federated, dp_ftrl notebook: tree, no restart, noise 7, 2000 rounds, at least 313 rounds between
    # participations (b = 314), at most 6 of them, delta 1e-10: rho .81; exact Gaussian 8.526; squared sensitivity 79.
    changed = {"rounds": 2000, "min_separation": 314, "max_participations": 6, "population": 4_000_000, "cohort": 6500}
    noise = {"noise_multiplier": 7.0, "epsilon": None, "delta": 1e-10}
    plan = bounded("tree", participations_enforced=True, **changed, **noise)
    assert plan.sensitivity**2 == pytest.approx(79, rel=1e-12)
    assert plan.rho == pytest.approx(0.8061, abs=5e-5)
    assert plan.certified_epsilon == pytest.approx(8.526, abs=5e-4)


def test_fewer_participations_only_where_they_are_counted() -> None:
    with pytest.raises(OutOfRange, match="counted per credential on the phone and at the gateway"):
        bounded("blt", max_participations=4, cohort=500.0)
    counted = bounded("blt", max_participations=4, cohort=500.0, participations_enforced=True)
    assert counted.participation.max_participations == 4
    with pytest.raises(OutOfRange, match=r"max_participations=6: .* room for 5 at most"):
        bounded("blt", max_participations=6, participations_enforced=True)
    with pytest.raises(OutOfRange, match=r"need 100000 participations.*have 80000.*max_participations=5"):
        bounded("blt", max_participations=4, participations_enforced=True)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"cohort": 1001.0}, r"cohort.size=1001.*cohort\.size=1000, min_separation=19, a population of 20020"),
        ({"min_separation": 21}, r"cohort\.size=952, min_separation=20, a population of 21000"),
        ({"population": 19_999}, r"cohort\.size=999, min_separation=19, a population of 20000"),
        ({"population": 15, "cohort": 10.0, "delta": 1e-4}, r"min_separation=1, a population of 200"),
    ],
)
def test_a_cohort_that_cannot_be_filled_names_the_nearest_plans(changed: dict[str, object], words: str) -> None:
    with pytest.raises(OutOfRange, match=words):
        bounded("blt", **changed)


def test_a_cohort_of_exactly_all_that_is_free_is_feasible_in_floating_point() -> None:
    assert bounded("gaussian", population=60, cohort=0.05 * 60 * (1 + 1e-15), delta=1e-3).cohort > 3.0


@pytest.mark.parametrize("value", [0, -1, 2.0, True])
@pytest.mark.parametrize("name", ["min_separation", "max_participations"])
def test_participation_bounds_out_of_range(name: str, value: object) -> None:
    with pytest.raises(OutOfRange, match=f"privacy.{name}={value!r}: must be an integer >= 1"):
        bounded("blt", **{name: value})


@pytest.mark.parametrize("mechanism", ["blt", "banded", "tree"])
def test_correlated_noise_needs_a_separation(mechanism: str) -> None:
    with pytest.raises(OutOfRange, match=rf"privacy\.min_separation: {mechanism} needs it"):
        bounded(mechanism, min_separation=None)


@pytest.mark.parametrize("changed", [{"max_participations": 3}, {"participations_enforced": True}])
def test_poisson_sampling_bounds_no_participations(changed: dict[str, object]) -> None:
    with pytest.raises(OutOfRange, match="means nothing under Poisson sampling"):
        bounded(min_separation=None, **changed)


def test_an_unknown_mechanism_lists_the_known() -> None:
    with pytest.raises(UnknownSetting, match="gaussian, blt, banded, tree"):
        bounded("laplace")


def test_noise_far_below_the_sensitivity_is_refused() -> None:
    with pytest.raises(OutOfRange, match=r"times the mechanism's sensitivity 2\.236.*use at least 0\.112"):
        bounded(epsilon=None, noise_multiplier=0.1)

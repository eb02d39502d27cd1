"""The audit of the project's own path, and of faulty ones: a sound path raises no alarm, every fault is noticed."""

from __future__ import annotations

import importlib.util
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedlearn.errors import ChargeMismatch, FedlearnError, OutOfRange
from fedlearn.lab.audit import AuditConfig, Pipeline, Verdict, audit
from fedlearn.lab.audit.pipeline import InMemoryCharges, PhoneUpdates
from fedlearn.lab.audit.probes import run_probes
from fedlearn.lab.audit.simulation import (
    L2_CLIP_NORM,
    SoftmaxPhones,
    canary_directions,
    new_path,
    released_mean,
    simulate,
)
from fedlearn.privacy.events import PoissonGaussian
from fedlearn.privacy.grid import grid_step
from fedlearn.types import BoundedSum, Charge, NoisyMean

_spec = importlib.util.spec_from_file_location("audit_faults", Path(__file__).with_name("audit_faults.py"))
assert _spec is not None
assert _spec.loader is not None
faults = importlib.util.module_from_spec(_spec)
sys.modules["audit_faults"] = faults
_spec.loader.exec_module(faults)

SMALL = AuditConfig(noise_multiplier=1.0, canaries=200, rounds=10, parameters=2000)
EXPECTED_PROBE = {
    "no noise": "noise_as_declared",
    "noise halved": "noise_as_declared",
    "noise misses a coordinate": "noise_as_declared",
    "noise uniform": "noise_as_declared",
    "noise is NaN": "noise_as_declared",
    "noise reused": "fresh_noise",
    "no clip": "oversize_clipped",
    "no clip, fold careless": "oversize_clipped",
    "clip doubled": "oversize_clipped",
    "clip doubled, fold careless": "oversize_clipped",
    "clip per layer": "oversize_clipped",
    "clip per layer, fold careless": "oversize_clipped",
    "weight by examples": "one_unit_a_phone",
    "weight by examples, fold careless": "one_unit_a_phone",
    "divided by the count": "public_denominator",
    "NaN passes as zero": "not_finite_refused",
    "NaN goes on": "not_finite_refused",
    "count unaccounted": "numbers_are_paid",
    "mean uncharged": "numbers_are_paid",
    "two releases, one charge": "charge_pays_once",
    "charge of another sum": "charge_pays_its_own",
    "count coordinate too long": "fit_bounded",
    "published twice": "numbers_are_paid",
    "adaptive clip of wrong sign": "clip_adapts",
}


def test_sound_path_raises_no_alarm() -> None:
    result = audit(SMALL)
    assert result.alarms == ()
    assert result.verdict in {Verdict.FINE, Verdict.WARNING}  # a warning comes in about 3 of 100 audits
    every_round, final = result.views
    # six standard errors of a mean of about 100 scores; interference of the other phones lowers it by about 2 %
    assert every_round.estimate.mu == pytest.approx(1.0, abs=0.65)
    assert final.estimate.mu == pytest.approx(1 / math.sqrt(10), abs=0.65)
    assert every_round.bound.epsilon < result.analytic_epsilon == pytest.approx(4.377, abs=1e-3)


@pytest.mark.parametrize("name", sorted(faults.FAULTS))
def test_fault_is_an_alarm_that_names_its_probe(name: str) -> None:
    result = audit(SMALL, faults.FAULTS[name])
    assert result.verdict is Verdict.ALARM
    assert any(alarm.startswith(f"{EXPECTED_PROBE[name]}: ") for alarm in result.alarms), result.alarms


@pytest.mark.parametrize("name", faults.LEAKS)
def test_leak_is_seen_by_canaries_alone(name: str) -> None:
    result = audit(SMALL, faults.FAULTS[name])
    assert any(warning.startswith("every round") for warning in result.warnings)


def test_bound_itself_alarms_when_noise_is_missing() -> None:
    config = replace(SMALL, canaries=600, noise_multiplier=2.0)
    result = audit(config, faults.FAULTS["no noise"])
    assert any(alarm.startswith("every round: the lower bound") for alarm in result.alarms)


@pytest.mark.parametrize("error", [ChargeMismatch("never"), ZeroDivisionError("a bug")])
def test_breakdown_is_an_alarm_and_no_crash(error: Exception) -> None:
    class Refuses:
        def __init__(self, z: float, denominator: float) -> None:
            pass

        def release(self, bounded: BoundedSum, charge: Charge) -> NoisyMean:
            raise error

    result = audit(SMALL, Pipeline(new_mechanism=Refuses))
    assert result.views == ()
    assert result.verdict is Verdict.ALARM
    assert any(alarm.startswith(f"training: a stage broke down: {type(error).__name__}") for alarm in result.alarms)


def test_noiseless_path_releases_the_mean_of_clipped_updates() -> None:
    """A slow oracle of the whole path: plain numpy, row by row."""
    path = new_path(faults.FAULTS["no noise"], SMALL)
    updates = SoftmaxPhones(SMALL).updates(np.zeros(SMALL.parameters), 0)
    expected = np.zeros(SMALL.parameters)
    for row in updates.values:
        norm = math.sqrt(math.fsum(value * value for value in row))
        expected += row * min(1.0, L2_CLIP_NORM / norm) / SMALL.denominator
    released = released_mean(path.run_round(updates))
    assert np.linalg.norm(updates.values, axis=1).max() > L2_CLIP_NORM  # the clip has something to do
    np.testing.assert_allclose(released, expected, atol=len(updates.values) * grid_step(L2_CLIP_NORM))


def test_score_is_the_scaled_cosine_of_the_canarys_own_round() -> None:
    seen = simulate(SMALL, Pipeline())
    for canary in (0, 7, 123, 199):
        number = canary % SMALL.rounds
        direction = canary_directions(SMALL, number)[canary // SMALL.rounds]
        mean = released_mean(seen.path.publications[number])
        cosine = sum(float(a) * float(b) for a, b in zip(direction, mean, strict=True)) / float(np.linalg.norm(mean))
        assert seen.round_scores[canary] == pytest.approx(math.sqrt(SMALL.parameters) * cosine, rel=1e-9)
    total = np.sum([released_mean(publication) for publication in seen.path.publications], axis=0)
    direction = canary_directions(SMALL, 3)[5]
    cosine = float(direction @ total / np.linalg.norm(total))
    assert seen.final_scores[53] == pytest.approx(math.sqrt(SMALL.parameters) * cosine, rel=1e-9)


def test_seed_decides_canaries_and_coins_but_not_noise() -> None:
    first, again, other = (simulate(config, Pipeline()) for config in (SMALL, SMALL, replace(SMALL, seed=1)))
    assert np.array_equal(first.included, again.included)
    assert not np.array_equal(first.included, other.included)
    assert np.array_equal(canary_directions(SMALL, 0), canary_directions(SMALL, 0))
    assert not np.array_equal(first.round_scores, again.round_scores)


def test_null_scores_are_standard_normal() -> None:
    seen = simulate(replace(SMALL, canaries=2000), Pipeline())
    null = seen.round_scores[~seen.included]
    assert abs(null.mean()) < 6 / math.sqrt(len(null))
    assert null.std() == pytest.approx(1.0, abs=6 / math.sqrt(2 * len(null)))


def test_every_probe_has_a_fault_that_it_must_see() -> None:
    assert set(EXPECTED_PROBE) == set(faults.FAULTS)
    assert {probe.name for probe in run_probes(Pipeline(), SMALL)} == set(EXPECTED_PROBE.values())


def test_charges_refuse_a_sum_twice() -> None:
    charges = InMemoryCharges(PoissonGaussian(1.0, 1.0))
    bounded = BoundedSum(np.zeros(3), 1.0, 2.0**-30, 0, 1)
    charges.charge(bounded)
    with pytest.raises(ChargeMismatch, match="step 0"):
        charges.charge(bounded)


def test_path_counts_what_it_leaves_out() -> None:
    path = new_path(Pipeline(), SMALL)
    values = np.ones((3, SMALL.parameters))
    values[1, 0] = math.nan
    bounded = path.bounded_sum(PhoneUpdates(values, np.ones(3, dtype=np.int64)))
    assert (bounded.count, path.rejected) == (2, 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"noise_multiplier": 0.0},
        {"noise_multiplier": 0.04},
        {"noise_multiplier": 2e6},
        {"noise_multiplier": math.nan},
        {"delta": 0.0},
        {"delta": 1.0},
        {"rounds": 0},
        {"canaries": 19},
        {"parameters": 999},
        {"parameters": 2001},
    ],
)
def test_config_refuses_what_is_out_of_range(wrong: dict[str, float]) -> None:
    (field,) = wrong
    with pytest.raises(OutOfRange, match=f"^{field}=") as caught:
        replace(SMALL, **wrong)
    assert isinstance(caught.value, FedlearnError)

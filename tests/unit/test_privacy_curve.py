from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from fedlearn.privacy import curve as module
from fedlearn.privacy.curve import prefix, spend_curve
from fedlearn.privacy.gaussian import gaussian_epsilon
from fedlearn.privacy.plan import PrivacyPlan, PrivacySettings, make_plan
from fedlearn.privacy.sensitivity import first_column


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLEARN_CACHE", str(tmp_path))


def plan(mechanism: str = "gaussian", rounds: int = 9, **changed: object) -> PrivacyPlan:
    given = {"delta": 1e-5, "l2_clip_norm": 1.0, "noise_multiplier": 2.0, "mechanism": mechanism} | changed
    return make_plan(PrivacySettings(**given), population=1000, rounds=rounds, cohort=100)  # type: ignore[arg-type]


@pytest.mark.parametrize("mechanism", ["blt", "banded"])
def test_prefixes_against_every_participation_set(mechanism: str) -> None:
    # slow oracle: the sensitivity of the first t rows of C, over all sets of steps at least b apart
    whole = plan(mechanism, min_separation=3)
    column = first_column(whole.event.factorization, 9)
    matrix = np.array([[column[row - col] if row >= col else 0.0 for col in range(9)] for row in range(9)])
    for t, value in enumerate(spend_curve(whole, range(1, 10)), start=1):
        sets = [
            chosen
            for size in range(1, 4)
            for chosen in itertools.combinations(range(9), size)
            if all(later - earlier >= 3 for earlier, later in itertools.pairwise(chosen))
        ]
        worst = max(float(np.linalg.norm(matrix[:t, list(chosen)].sum(axis=1))) for chosen in sets)
        assert value == pytest.approx(gaussian_epsilon(worst / 2.0, 1e-5), rel=1e-9)


@pytest.mark.parametrize("changed", [{}, {"min_separation": 4}, {"min_separation": 4, "mechanism": "tree"}])
def test_the_curve_rises_from_nothing_to_the_certified_epsilon(changed: dict[str, object]) -> None:
    made = plan(rounds=40, **changed)
    values = spend_curve(made, range(41))
    assert values[0] == 0.0
    assert values[-1] == made.certified_epsilon
    assert all(earlier <= later for earlier, later in itertools.pairwise(values))


def test_fewer_points_only_raise_the_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan("tree", rounds=40, min_separation=7)
    full = spend_curve(made, range(41))
    monkeypatch.setattr(module, "_MAX_ANCHORS", 6)
    coarse = spend_curve(made, range(41))
    assert all(rough >= fine for rough, fine in zip(coarse, full, strict=True))
    assert any(rough > fine for rough, fine in zip(coarse, full, strict=True))
    assert coarse[-1] == full[-1]


def test_order_and_repetition_of_counts_do_not_matter() -> None:
    made = plan("blt", min_separation=3)
    values = dict(zip(range(10), spend_curve(made, range(10)), strict=True))
    assert spend_curve(made, [9, 0, 4, 4]) == (values[9], 0.0, values[4], values[4])
    assert spend_curve(made, []) == ()


def test_a_prefix_has_no_more_participations_than_it_has_room_for() -> None:
    event = plan("banded", min_separation=4).event
    short = prefix(event, 5)
    assert (short.steps, short.max_participations) == (5, 2)
    assert len(prefix(event, 2).factorization.coefficients) <= 2
    assert math.isclose(short.noise_multiplier, event.noise_multiplier)

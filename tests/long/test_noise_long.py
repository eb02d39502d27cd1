"""Exact noise at full size: millions of draws, fifty kills, and a model of a million parameters."""

from __future__ import annotations

import importlib.util
import logging
import math
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kstest

from fedlearn.privacy.correlated import CorrelatedMechanism
from fedlearn.privacy.events import MatrixGaussian
from fedlearn.privacy.exact_normal import CsprngStream, rounded_normal
from fedlearn.privacy.factorization import Blt
from fedlearn.privacy.grid import grid_step
from fedlearn.types import BoundedSum, Charge

_UNIT = Path(__file__).parents[1] / "unit"
KILLS = 50
ALPHA = 1e-6
BLTS = {
    (100, 21): Blt((0.98822650, 0.61265134), (0.23558205, 0.27022327)),
    (400, 6): Blt((0.99586201, 0.80867818), (0.12404838, 0.33325889)),
}


def _load(name: str):
    spec = importlib.util.spec_from_file_location(name, _UNIT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.long
def test_a_tenth_of_a_percent_is_noticed_in_many_draws() -> None:
    scale, count, rounds = Fraction(5, 3) * 2**33, 10_000_000, 10
    squares = fourths = 0.0
    for _ in range(rounds):
        values = rounded_normal(count, scale, CsprngStream()) / float(scale)
        assert kstest(values, "norm").pvalue > ALPHA
        squares += float((values**2).sum())
        fourths += float((values**4).sum())
    total = count * rounds
    error = math.sqrt(2 / total)
    assert abs(squares / total - 1) < 6 * error  # 0.085 %
    assert abs(squares / total * 1.001**2 - 1) > 6 * error
    assert abs(fourths / total - 3) < 6 * math.sqrt(96 / total)  # Var g^4 = 105 - 9


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["blt", "banded", "tree"])
def test_killed_fifty_times(tmp_path: Path, name: str) -> None:
    kill = _load("test_privacy_noise_kill")
    kills = number = 0
    while kills < KILLS:
        # a run that reached its end before the fiftieth kill is followed by another
        number += 1
        directory = tmp_path / str(number)
        directory.mkdir()
        kills += kill.run_killer(directory, name, steps=48, size=20_000, kills=KILLS - kills, seed=number)
    logging.info("%s: %d kills in %d runs", name, kills, number)
    assert kills >= KILLS


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("min_separation", "most"), list(BLTS))
def test_a_million_parameters(tmp_path: Path, min_separation: int, most: int) -> None:
    """Covariance over the first steps at full size; the printed figures are those of the decisions."""
    size, steps, step = 1_000_000, 8, grid_step(1.0)
    factorization = BLTS[min_separation, most]
    spent = MatrixGaussian(factorization, 2048, min_separation, most, 8.35)
    mechanism = CorrelatedMechanism.open(
        "run", spent, 1.0, l2_sensitivity=1.0, grid_step=step, dimension=size, next_step=0, directory=tmp_path
    )
    rows, seconds = [], []
    for number in range(steps):
        bounded = BoundedSum(np.zeros(size), 1.0, step, number, 0)
        charge = Charge(number, number, 8.35, bounded.digest)
        began = time.perf_counter()
        rows.append(mechanism.release(bounded, charge).values)
        seconds.append(time.perf_counter() - began)
    town = _load("noise_town")
    noise = np.array(rows)
    assert town.misfit(noise, town.noise_map(factorization, steps), 8.35 * (1 + mechanism.slack)) < 7
    assert town.misfit(noise, np.eye(steps), 8.35) > 7
    stored = max(path.stat().st_size for path in (tmp_path / "noise").iterdir())
    assert stored < 12_001_000
    assert mechanism.slack < 1e-4
    logging.info("%d,%d: release %.3f s, state %d bytes", min_separation, most, min(seconds), stored)
    logging.info("slack %.2e", mechanism.slack)

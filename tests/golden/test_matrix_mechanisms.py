"""Published and measured figures of matrix mechanisms."""

from __future__ import annotations

import math

import pytest

from fedlearn.privacy.banded_optimizer import optimize_banded
from fedlearn.privacy.blt_optimizer import optimize_blt
from fedlearn.privacy.error import max_error
from fedlearn.privacy.factorization import INDEPENDENT, Blt, Factorization, Tree
from fedlearn.privacy.participation import separation_of_gap
from fedlearn.privacy.sensitivity import squared_sensitivity

ROWS = [(2048, 100, 21), (2048, 400, 6)]


def error(factorization: Factorization, bounds: tuple[int, int, int]) -> float:
    return max_error(factorization, bounds[0], squared_sensitivity(factorization, *bounds))


def test_gboard_spanish_2022() -> None:
    """google-research/federated, dp_ftrl notebook: tree without restart, z = 7, 2,000 rounds, a gap of 313, 6
    participations: rho .81."""
    sens2 = squared_sensitivity(Tree(), 2000, separation_of_gap(313), 6)
    assert sens2 == 79
    assert sens2 / (2 * 7**2) == pytest.approx(0.8061, abs=5e-5)


@pytest.mark.parametrize(("bounds", "independent", "tree"), [(ROWS[0], 207, 105), (ROWS[1], 111, 36)])
def test_largest_error_of_the_baselines(bounds: tuple[int, int, int], independent: int, tree: int) -> None:
    """sqrt(k n) and sqrt(11 sens2): 2,047 is the prefix of most blocks, eleven."""
    assert error(INDEPENDENT, bounds) == pytest.approx(independent, abs=0.5)
    assert error(INDEPENDENT, bounds) == pytest.approx(math.sqrt(bounds[2] * bounds[0]), rel=1e-12)
    assert error(Tree(), bounds) == pytest.approx(tree, abs=0.6)


@pytest.mark.parametrize(
    ("bounds", "blt", "sens2", "largest"),
    [
        (ROWS[0], Blt((0.98822650, 0.61265134), (0.23558205, 0.27022327)), 126.180, 27.81),
        (ROWS[1], Blt((0.99586201, 0.80867818), (0.12404838, 0.33325889)), 24.659, 10.16),
    ],
)
def test_two_buffers(bounds: tuple[int, int, int], blt: Blt, sens2: float, largest: float) -> None:
    """Parameters that another optimiser, of dense matrices, had found: the figures are theirs, ours is no worse."""
    assert squared_sensitivity(blt, *bounds) == pytest.approx(sens2, abs=5e-4)
    assert error(blt, bounds) == pytest.approx(largest, abs=5e-3)
    assert error(optimize_blt(*bounds), bounds) <= error(blt, bounds) * (1 + 1e-6)


@pytest.mark.parametrize(("bounds", "at_most"), [(ROWS[0], 26.7), (ROWS[1], 9.96)])
def test_banded(bounds: tuple[int, int, int], at_most: float) -> None:
    assert error(optimize_banded(*bounds, bands=bounds[1]), bounds) <= at_most

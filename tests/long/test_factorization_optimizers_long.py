"""Optimised factorizations over the whole range of sizes; tests/unit runs the same at a few percent."""

from __future__ import annotations

import pytest

from fedlearn.privacy.banded_optimizer import optimize_banded
from fedlearn.privacy.blt_optimizer import optimize_blt
from fedlearn.privacy.error import max_error
from fedlearn.privacy.factorization import INDEPENDENT, Factorization
from fedlearn.privacy.participation import most_participations
from fedlearn.privacy.sensitivity import squared_sensitivity
from fedlearn.privacy.shipped import MOST_BANDS

# A Blt's scales are above zero, so where no correlation is best it comes only this close to it.
NEARLY = 1 + 1e-7
SMALL = [(steps, separation) for steps in (10, 25, 40, 60) for separation in (1, 2, 5, 10, 20)]
LARGE = [(10_000, separation) for separation in (1, 30, 1000, 10_000)]

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]


def error(factorization: Factorization, steps: int, separation: int, most: int) -> float:
    return max_error(factorization, steps, squared_sensitivity(factorization, steps, separation, most))


@pytest.mark.parametrize(("steps", "separation"), [*SMALL, *LARGE])
def test_never_worse_than_independent_noise(steps: int, separation: int) -> None:
    densest = most_participations(steps, separation)
    for most in sorted({1, -(-densest // 2), densest}):
        independent = error(INDEPENDENT, steps, separation, most)
        for buffers in (2, 3):
            blt = error(optimize_blt(steps, separation, most, buffers), steps, separation, most)
            assert blt <= independent * NEARLY
        bands = min(separation, steps, MOST_BANDS)
        assert error(optimize_banded(steps, separation, most, bands), steps, separation, most) <= independent

"""The phone's own arithmetic: never below the library's, and close to it."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from itertools import pairwise

import pytest

from fedlearn.device.mechanism import MechanismTerms
from fedlearn.errors import InvalidSpend
from fedlearn.privacy import sensitivity
from fedlearn.privacy.events import MatrixGaussian
from fedlearn.privacy.factorization import INDEPENDENT, Blt, Factorization, Toeplitz, Tree
from fedlearn.privacy.gaussian import gaussian_epsilon, zcdp_epsilon, zcdp_of
from fedlearn.privacy.participation import most_participations
from fedlearn_client import zcdp

LONG_BLT = Blt((0.98822650, 0.61265134), (0.23558205, 0.27022327))


def terms(factorization: Factorization, noise: float = 2.0, steps: int = 100, b: int = 10) -> MechanismTerms:
    return MechanismTerms("any", factorization, noise, 1.0, 2.0**-30, steps, b, most_participations(steps, b))


def any_factorization(chance: random.Random, steps: int) -> Factorization:
    kind = chance.choice(["toeplitz", "whole", "blt", "independent"])
    if kind == "toeplitz":
        rest = sorted((chance.random() for _ in range(chance.randint(0, steps - 1))), reverse=True)
        return Toeplitz((1.0, *rest))
    if kind == "whole":
        return Toeplitz((1.0,) * chance.randint(1, steps))
    if kind == "blt":
        buffers = chance.randint(1, 4)
        scale = [chance.random() + 1e-6 for _ in range(buffers)]
        total = sum(scale) * (1 + 1e-9 if chance.random() < 0.5 else 3)
        return Blt(tuple(chance.sample([i / 20 for i in range(1, 20)], buffers)), tuple(s / total for s in scale))
    return INDEPENDENT


class TestSensitivity:
    def test_never_below_the_library_and_close_to_it(self) -> None:
        chance = random.Random(1)
        for _ in range(700):
            steps = chance.randint(1, 200)
            b = chance.randint(1, steps)
            j = chance.randint(1, most_participations(steps, b))
            factorization = any_factorization(chance, steps)
            ours = zcdp.squared_sensitivity(factorization, steps, b, j)
            library = sensitivity.squared_sensitivity(factorization, steps, b, j)
            assert library <= ours <= library * (1 + 1e-9), (factorization, steps, b, j)

    def test_published_settings(self) -> None:
        """FACTS: BLT of 2048 steps; Gboard's tables give squared sensitivity 2 for two independent participations."""
        ours = zcdp.squared_sensitivity(LONG_BLT, 2048, 100, 21)
        assert ours == pytest.approx(126.180, abs=5e-4)
        other = Blt((0.99586201, 0.80867818), (0.12404838, 0.33325889))
        assert zcdp.squared_sensitivity(other, 2048, 400, 6) == pytest.approx(24.659, abs=5e-4)
        assert zcdp.squared_sensitivity(INDEPENDENT, 2048, 100, 21) == 21.0

    def test_against_exact_fractions(self) -> None:
        chance = random.Random(2)
        for _ in range(60):
            steps = chance.randint(1, 12)
            b = chance.randint(1, steps)
            j = chance.randint(1, most_participations(steps, b))
            factorization = any_factorization(chance, steps)
            if isinstance(factorization, Toeplitz):
                column = [Fraction(value) for value in factorization.coefficients]
                column += [Fraction(0)] * (steps - len(column))
            else:
                pairs = [
                    (Fraction(d), Fraction(s)) for d, s in zip(factorization.decay, factorization.scale, strict=True)
                ]
                column = [Fraction(1)] + [sum(s * d**power for d, s in pairs) for power in range(steps - 1)]
            moved = [sum(column[t - i * b] for i in range(j) if t >= i * b) for t in range(steps)]
            exact = sum(value * value for value in moved)
            assert Fraction(zcdp.squared_sensitivity(factorization, steps, b, j)) >= exact

    def test_the_tree_s_bound_is_never_below_the_exact_value(self) -> None:
        chance = random.Random(3)
        loose = []
        for _ in range(150):
            steps = chance.randint(1, 130)
            b = chance.randint(1, steps)
            j = chance.randint(1, most_participations(steps, b))
            ours = zcdp.squared_sensitivity(Tree(), steps, b, j)
            exact = sensitivity.squared_sensitivity(Tree(), steps, b, j)
            assert ours >= exact, (steps, b, j)
            loose.append(ours / exact)
        assert sum(loose) / len(loose) < 1.5

    def test_the_tree_of_gboard(self) -> None:
        """es-ES 2022: 2000 steps, gap 313 (b = 314), 6 participations; exactly 79 (FACTS, section 3)."""
        assert sensitivity.squared_sensitivity(Tree(), 2000, 314, 6) == 79.0
        assert 79.0 <= zcdp.squared_sensitivity(Tree(), 2000, 314, 6) <= 100.0

    @pytest.mark.parametrize(
        ("factorization", "steps", "b", "j"),
        [
            (INDEPENDENT, 0, 1, 1),
            (INDEPENDENT, 10, 0, 1),
            (INDEPENDENT, 10, 1, 0),
            (INDEPENDENT, 10, 5, 3),
            (INDEPENDENT, 10, True, 1),
            (Tree(), 10, 5, 3),
            (Toeplitz((1.0, 0.5)), 1, 1, 1),
            (LONG_BLT, zcdp.MOST_STEPS + 1, 100, 1),
        ],
    )
    def test_refuses_what_describes_no_mechanism(self, factorization, steps, b, j) -> None:
        with pytest.raises(InvalidSpend):
            zcdp.squared_sensitivity(factorization, steps, b, j)

    def test_a_tree_of_any_length(self) -> None:
        assert zcdp.squared_sensitivity(Tree(), 2**31 - 1, 100, 1) == 31.0


class TestRho:
    @pytest.mark.parametrize("factorization", [INDEPENDENT, LONG_BLT, Toeplitz((1.0, 0.5, 0.25)), Tree()])
    def test_rises_with_every_participation_and_is_never_below_the_library(self, factorization) -> None:
        asked = terms(factorization, noise=1.7, steps=200, b=7)
        figures = [zcdp.rho(asked, j) for j in range(asked.max_participations + 1)]
        assert figures[0] == 0.0
        assert all(later > earlier for earlier, later in pairwise(figures))
        for j, ours in enumerate(figures[1:], start=1):
            library = zcdp_of(MatrixGaussian(factorization, 200, 7, j, 1.7))
            assert library <= ours
            assert isinstance(factorization, Tree) or ours <= library * (1 + 1e-9)

    def test_more_than_the_sum_of_single_ones(self) -> None:
        """Correlated noise makes participations cost more together than apart: counting them singly would be wrong."""
        asked = terms(LONG_BLT, steps=2048, b=100)
        assert zcdp.rho(asked, 21) > 1.5 * 21 * zcdp.rho(asked, 1)

    @pytest.mark.parametrize("noise", [0.0, -1.0, math.nan, math.inf, 1e-9, 5e-324])
    def test_refuses_noise_that_is_none(self, noise) -> None:
        with pytest.raises(InvalidSpend):
            zcdp.rho(terms(INDEPENDENT, noise=noise), 1)

    def test_a_sum_is_rounded_up(self) -> None:
        parts = [0.1, 0.2, 0.3, 1e-17]
        assert Fraction(zcdp.total(parts)) >= sum(map(Fraction, parts))
        assert zcdp.total([]) == zcdp.total([0.0]) == 0.0
        for bad in ([math.nan], [-1.0]):
            with pytest.raises(InvalidSpend):
                zcdp.total(bad)


class TestEpsilon:
    def test_never_below_the_library_nor_the_exact_gaussian(self) -> None:
        chance = random.Random(4)
        for _ in range(600):
            rho = 10 ** chance.uniform(-10, 5)
            delta = 10 ** chance.choice([chance.uniform(-300, -12), chance.uniform(-12, -0.5)])
            ours, library = zcdp.epsilon(rho, delta), zcdp_epsilon(rho, delta)
            assert library <= ours <= library * (1 + 1e-6) + 1e-12, (rho, delta)
            assert ours >= gaussian_epsilon(math.sqrt(2 * rho), delta) * (1 - 1e-12), (rho, delta)

    def test_rises_with_rho_and_falls_with_delta(self) -> None:
        figures = [zcdp.epsilon(rho / 10, 1e-6) for rho in range(1, 50)]
        assert figures == sorted(figures)
        assert zcdp.epsilon(1.0, 1e-9) > zcdp.epsilon(1.0, 1e-6)

    def test_edges(self) -> None:
        assert zcdp.epsilon(0.0, 1e-6) == 0.0
        assert zcdp.epsilon(math.inf, 1e-6) == math.inf
        for rho, delta in ((-1.0, 0.1), (math.nan, 0.1), (1.0, 0.0), (1.0, 1.0), (1.0, math.nan)):
            with pytest.raises(InvalidSpend):
                zcdp.epsilon(rho, delta)

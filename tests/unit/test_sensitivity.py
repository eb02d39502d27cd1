"""The squared sensitivity: never below what brute force over all participation sets finds, and no more than rounding
above it."""

from __future__ import annotations

import importlib.util
import math
import sys
from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from fedlearn.errors import InvalidSpend
from fedlearn.privacy.factorization import INDEPENDENT, Blt, Factorization, Toeplitz, Tree
from fedlearn.privacy.participation import Participation
from fedlearn.privacy.sensitivity import first_column, squared_sensitivity, sum_of_columns
from fedlearn.privacy.tree_sensitivity import MOST_STEPS, tree_squared_sensitivity

_spec = importlib.util.spec_from_file_location("sensitivity_oracle", Path(__file__).with_name("sensitivity_oracle.py"))
assert _spec is not None
assert _spec.loader is not None
oracle = importlib.util.module_from_spec(_spec)
sys.modules["sensitivity_oracle"] = oracle
_spec.loader.exec_module(oracle)

LONG_BLT = Blt((0.9882265, 0.61265134), (0.23558205, 0.27022327))


@pytest.mark.parametrize("kind", ["toeplitz", "banded", "blt", "tree"])
def test_equals_brute_force(kind: str) -> None:
    """tests/long has the full number of cases."""
    fractional = oracle.check(kind, cases=40, longest=14, seed=1)
    assert (fractional > 20) == (kind != "tree")  # cases worth the name, not identities


@pytest.mark.parametrize("kind", ["toeplitz", "blt", "tree"])
def test_equals_brute_force_where_participations_are_few(kind: str) -> None:
    oracle.check(kind, cases=4, longest=40, seed=2, draw_bounds=oracle.sparse_bounds)


def test_every_small_tree() -> None:
    for steps in range(1, 12):
        matrix = oracle.strategy(Tree(), steps)
        for separation in range(1, steps + 1):
            for most in range(1, -(-steps // separation) + 1):
                assert tree_squared_sensitivity(steps, separation, most) == oracle.brute_force(matrix, separation, most)


def test_tree_of_one_participation_and_of_all() -> None:
    assert tree_squared_sensitivity(2000, 2000, 1) == 11  # one node of each size up to 1024
    # every step: a node counts its whole size, steps // size nodes of each
    assert tree_squared_sensitivity(MOST_STEPS, 1, MOST_STEPS) == sum(
        4**height << (14 - height) for height in range(15)
    )
    assert tree_squared_sensitivity(300, 1, 300) == sum(4**height * (300 >> height) for height in range(9))


@pytest.mark.parametrize("steps", [7, 64, 100, 1000])
def test_independent_noise_is_an_exact_count(steps: int) -> None:
    for separation in (1, 3, 7):
        most = -(-steps // separation)
        assert squared_sensitivity(INDEPENDENT, steps, separation, most) == most
        assert squared_sensitivity(INDEPENDENT, steps, separation, 1) == 1


def test_fewer_participations_than_there_is_room_for_and_columns_cut_off_at_the_end() -> None:
    c = Toeplitz((1.0, 0.5, 0.25))
    column = 1 + 0.25 + 0.0625
    assert squared_sensitivity(c, 12, 4, 1) == pytest.approx(column, rel=1e-13)
    assert squared_sensitivity(c, 12, 4, 2) == pytest.approx(2 * column, rel=1e-13)
    assert squared_sensitivity(c, 9, 4, 3) == pytest.approx(2 * column + 1, rel=1e-13)  # the third begins at step 8


@pytest.mark.parametrize(("steps", "separation", "most"), [(2048, 100, 21), (2048, 100, 5), (2048, 1, 2048)])
def test_the_float_is_at_least_the_true_value_at_full_length(steps: int, separation: int, most: int) -> None:
    with localcontext() as context:
        context.prec = 50
        column = [Decimal(1)] + [Decimal(0)] * (steps - 1)
        for decay, scale in zip(LONG_BLT.decay, LONG_BLT.scale, strict=True):
            power = Decimal(scale)
            for step in range(1, steps):
                column[step] += power
                power *= Decimal(decay)
        starts = range(0, most * separation, separation)
        moved = [sum(column[step - start] for start in starts if start <= step) for step in range(steps)]
        truth = sum(value * value for value in moved)
        ours = Decimal(squared_sensitivity(LONG_BLT, steps, separation, most))
        assert truth <= ours <= truth * (1 + Decimal("1e-11"))


def test_equal_directions_are_the_worst() -> None:
    """Updates of norm 1 in random directions of three dimensions move C's output no farther than the bound."""
    random = np.random.default_rng(2)
    for _ in range(50):
        steps, separation, most = oracle.bounds(random, 14)
        factorization = oracle.draw("toeplitz", random, steps)
        matrix = np.array([[float(value) for value in row] for row in oracle.strategy(factorization, steps)])
        sets = list(oracle.participation_sets(steps, separation, most))
        updates = np.zeros((steps, 3))
        chosen = list(sets[random.integers(len(sets))])
        updates[chosen] = random.normal(size=(len(chosen), 3))
        updates[chosen] /= np.linalg.norm(updates[chosen], axis=1, keepdims=True)
        bound = squared_sensitivity(factorization, steps, separation, most)
        assert np.linalg.norm(matrix @ updates) ** 2 <= bound * (1 + 1e-12)


def test_negative_entries_would_need_another_bound() -> None:
    """Control: with them, opposite directions move more than equal ones, and the oracle's columns are not the worst."""
    matrix = np.array([[1.0, 0.0], [-0.5, 1.0]])
    equal, opposite = matrix @ np.array([1.0, 1.0]), matrix @ np.array([1.0, -1.0])
    assert opposite @ opposite > equal @ equal


class TestControls:
    """Mistakes that the comparison with brute force must notice."""

    matrix = oracle.strategy(Toeplitz((1.0, 0.75, 0.5, 0.25)), 10)

    def test_a_wrong_set(self) -> None:
        worst = oracle.brute_force(self.matrix, 3, 4)
        assert oracle.moved_by(self.matrix, (0, 3, 6, 9)) == worst
        for wrong in ((0, 4, 8), (1, 4, 7), (0, 3, 6), (3, 6, 9), (0, 3, 7)):
            assert oracle.moved_by(self.matrix, wrong) < worst

    def test_one_participation_too_few_or_a_gap_taken_for_a_separation(self) -> None:
        worst = oracle.brute_force(self.matrix, 3, 4)
        c = Toeplitz((1.0, 0.75, 0.5, 0.25))
        assert squared_sensitivity(c, 10, 3, 3) < worst
        assert squared_sensitivity(c, 10, 4, 3) < worst
        assert squared_sensitivity(Tree(), 10, 3, 4) < oracle.brute_force(oracle.strategy(Tree(), 10), 2, 4)

    @pytest.mark.parametrize("kind", ["toeplitz", "banded", "blt", "tree"])
    @pytest.mark.parametrize("wrong", ["separation", "participations", "rounding"])
    def test_the_comparison_notices(self, monkeypatch: pytest.MonkeyPatch, kind: str, wrong: str) -> None:
        def mistaken(factorization: Factorization, steps: int, separation: int, most: int) -> float:
            if wrong == "separation" and -(-steps // (separation + 1)) >= most:
                separation += 1
            if wrong == "participations":
                most = max(most - 1, 1)
            value = squared_sensitivity(factorization, steps, separation, most)
            return math.nextafter(value / (1 + 1e-12), 0) if wrong == "rounding" else value

        monkeypatch.setattr("fedlearn.privacy.sensitivity.squared_sensitivity", mistaken)
        with pytest.raises(AssertionError):
            oracle.check(kind, cases=40, longest=14, seed=1)

    def test_rising_coefficients_have_another_worst_set(self) -> None:
        """Why Toeplitz refuses them: 0, b, 2b, ... would give 3 where 5 is true."""
        column = np.array([1.0, 0.0, 1.0])
        moved = sum_of_columns(column, Participation(1, 2))
        matrix = [
            [Fraction(column[row - step]) if row >= step else Fraction(0) for step in range(3)] for row in range(3)
        ]
        assert moved @ moved == 3
        assert oracle.brute_force(matrix, 1, 2) == 5
        with pytest.raises(InvalidSpend, match="increase"):
            Toeplitz(tuple(column))

    def test_without_rounding_up_the_float_is_too_small_at_times(self) -> None:
        random = np.random.default_rng(3)
        below = 0
        for _ in range(40):
            c = oracle.draw("toeplitz", random, 12)
            column = first_column(c, 12)
            moved = sum_of_columns(column, Participation(4, 3))
            below += Fraction(float(moved @ moved)) < oracle.moved_by(oracle.strategy(c, 12), (0, 4, 8))
        assert below > 5


def test_scales_whose_sum_rounds_to_one_are_bounded() -> None:
    """Their true c_1 is above c_0 = 1 by less than an ulp, so the theorem does not apply to the letter."""
    blt = Blt((0.9, 0.5), (0.5 + 2**-53, 0.5))
    assert oracle.exact_column(blt, 6)[1] > 1
    exact = oracle.brute_force(oracle.strategy(blt, 6), 2, 3)
    assert exact <= Fraction(squared_sensitivity(blt, 6, 2, 3)) <= exact * (1 + Fraction(1, 10**12))


def test_first_column() -> None:
    assert first_column(Toeplitz((1.0, 0.5)), 4).tolist() == [1.0, 0.5, 0.0, 0.0]
    assert first_column(Blt((0.5, 0.25), (0.5, 0.25)), 4).tolist() == [1.0, 0.75, 0.3125, 0.140625]
    assert first_column(Blt((0.5,), (0.5,)), 1).tolist() == [1.0]
    tiny = first_column(Blt((0.5, 1e-300), (0.25, 0.5)), 2000)
    assert math.isfinite(tiny.sum())
    assert (np.diff(tiny) <= 0).all()


@pytest.mark.parametrize("factorization", [INDEPENDENT, LONG_BLT, Tree()])
@pytest.mark.parametrize(
    ("steps", "separation", "most"),
    [
        (0, 1, 1),
        (10, 0, 1),
        (10, -1, 1),
        (10, 2, 0),
        (10, 2, 6),
        (10, 10, 2),
        (10.0, 1, 1),
        (10, 1.0, 1),
        (10, 1, True),
    ],
)
def test_bounds_out_of_range_are_refused(factorization: Factorization, steps: int, separation: int, most: int) -> None:
    with pytest.raises(InvalidSpend, match=r"steps=|min_separation=|max_participations="):
        squared_sensitivity(factorization, steps, separation, most)


def test_more_coefficients_than_steps_are_refused() -> None:
    with pytest.raises(InvalidSpend, match="only 2 steps"):
        squared_sensitivity(Toeplitz((1.0, 0.5, 0.25)), 2, 1, 1)


def test_a_tree_that_would_take_hours_is_refused() -> None:
    with pytest.raises(InvalidSpend, match="use blt"):
        squared_sensitivity(Tree(), MOST_STEPS + 1, 1, 1)

"""Whatever the coefficients: the stated sensitivity is at least the true one, exactly."""

from __future__ import annotations

import importlib.util
import sys
from fractions import Fraction
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.privacy.factorization import Toeplitz
from fedlearn.privacy.sensitivity import squared_sensitivity

_path = Path(__file__).parents[1] / "unit" / "sensitivity_oracle.py"
_spec = importlib.util.spec_from_file_location("sensitivity_oracle", _path)
assert _spec is not None
assert _spec.loader is not None
oracle = importlib.util.module_from_spec(_spec)
sys.modules["sensitivity_oracle"] = oracle
_spec.loader.exec_module(oracle)

COEFFICIENTS = st.lists(st.floats(0, 1), max_size=8).map(lambda rest: (1.0, *sorted(rest, reverse=True)))


@given(COEFFICIENTS, st.integers(0, 3), st.integers(1, 5), st.data())
@settings(derandomize=True, deadline=None, max_examples=150)
def test_at_least_brute_force(
    coefficients: tuple[float, ...], longer: int, separation: int, data: st.DataObject
) -> None:
    c = Toeplitz(coefficients)
    steps = len(coefficients) + longer
    most = data.draw(st.integers(1, -(-steps // separation)))
    exact = oracle.brute_force(oracle.strategy(c, steps), separation, most)
    assert exact <= Fraction(squared_sensitivity(c, steps, separation, most)) <= exact * (1 + Fraction(1, 10**12))


@given(COEFFICIENTS, st.integers(1, 4), st.data())
@settings(derandomize=True, deadline=None, max_examples=100)
def test_larger_coefficients_never_have_a_smaller_sensitivity(
    coefficients: tuple[float, ...], separation: int, data: st.DataObject
) -> None:
    """The lemma behind rounding up."""
    steps = len(coefficients)
    raised = [1.0] + [data.draw(st.floats(value, 1)) for value in coefficients[1:]]
    larger = Toeplitz(tuple(max(raised[index:]) for index in range(steps)))
    most = -(-steps // separation)
    exact = oracle.brute_force(oracle.strategy(Toeplitz(coefficients), steps), separation, most)
    assert oracle.brute_force(oracle.strategy(larger, steps), separation, most) >= exact

"""The clip bound in exact rational arithmetic, for any bits that come in."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fedlearn.clip import clip_rows

anything = arrays(np.float64, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.floats())
finite = st.floats(allow_nan=False, allow_infinity=False)
bounds = st.floats(min_value=2.3e-308, max_value=1e308) | st.floats(min_value=1e-3, max_value=1e3)
quiet = settings(derandomize=True, deadline=None, max_examples=300)


def _exact_square(values: np.ndarray) -> Fraction:
    return sum((Fraction(float(value)) ** 2 for value in values), Fraction(0))


@quiet
@given(anything, bounds)
def test_exact_norm_never_exceeds_the_bound(deltas: np.ndarray, bound: float) -> None:
    rows = clip_rows(deltas, bound)
    assert rows.finite.tolist() == np.isfinite(deltas).all(axis=1).tolist()
    for row, good in zip(rows.values, rows.finite, strict=True):
        assert _exact_square(row) <= Fraction(bound) ** 2
        assert good or not row.any()
    assert np.isfinite(rows.norms).all()


@quiet
@given(st.lists(st.floats(min_value=-1e6, max_value=1e6, width=32), min_size=1, max_size=40), st.floats(1e-3, 1e3))
def test_ordinary_vectors_reach_the_bound_and_keep_direction(entries: list[float], bound: float) -> None:
    values = np.array([entries], np.float32)
    rows = clip_rows(values, bound)
    norm = np.linalg.norm(values[0].astype(np.float64))
    np.testing.assert_allclose(rows.values[0], values[0] * min(1.0, bound / max(norm, 1e-300)), rtol=1e-12)
    assert _exact_square(rows.values[0]) <= Fraction(bound) ** 2


@quiet
@given(arrays(np.float64, (3, 5), elements=finite), bounds)
def test_clipping_twice_changes_nothing(deltas: np.ndarray, bound: float) -> None:
    once = clip_rows(deltas, bound).values
    assert clip_rows(once, bound).values.tobytes() == once.tobytes()


@quiet
@given(arrays(np.float64, (4, 6), elements=st.floats()), st.floats(1e-3, 1e3))
def test_rows_do_not_depend_on_each_other(deltas: np.ndarray, bound: float) -> None:
    together = clip_rows(deltas, bound)
    for position in range(4):
        alone = clip_rows(deltas[position : position + 1], bound)
        assert alone.values[0].tobytes() == together.values[position].tobytes()
        assert alone.norms[0] == together.norms[position]


def test_the_textbook_formula_breaks_the_bound() -> None:
    """Negative control: values * (bound / norm) is too long, in exact arithmetic, about every other time."""
    rng = np.random.Generator(np.random.Philox(1))
    deltas = 10.0 * rng.standard_normal((100, 50))
    textbook = deltas * (0.7 / np.linalg.norm(deltas, axis=1))[:, None]
    assert sum(_exact_square(row) > Fraction(0.7) ** 2 for row in textbook) > 20
    assert all(_exact_square(row) <= Fraction(0.7) ** 2 for row in clip_rows(deltas, 0.7).values)

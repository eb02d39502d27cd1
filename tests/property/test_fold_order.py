"""A fold's result does not depend on the order or the grouping in which contributions arrive."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedlearn.errors import Reason
from fedlearn.fold import Fold, FoldTerms
from fedlearn.types import BoundedSum, Contribution, Level

DIGEST = bytes(32)
CLIP = 0.7
STEP = 2.0**-31
DIM = 4
UNITS = int(CLIP / STEP / 2)


def terms(level: Level, grid: bool) -> FoldTerms:
    return FoldTerms(DIGEST, DIM, CLIP, STEP if grid else None, level)


def fold_of(
    vectors: list[np.ndarray], order: list[int], level: Level, grid: bool, counts: list[int]
) -> tuple[Fold, BoundedSum]:
    fold = Fold(terms(level, grid))
    for place in order:
        made = Contribution(
            "grid64" if grid else "f64",
            STEP if grid else 1.0,
            level,
            counts[place],
            counts[place] * CLIP,
            DIGEST,
            place.to_bytes(16, "big"),
            vectors[place],
        )
        fold.offer(lambda made=made: made, reserved=10**6)
    return fold, fold.bounded_sum(0, CLIP)


grids = st.lists(hnp.arrays("<i8", DIM, elements=st.integers(-UNITS, UNITS)), min_size=1, max_size=9)
floats = st.lists(hnp.arrays("<f8", DIM, elements=st.floats(-CLIP / 2, CLIP / 2)), min_size=1, max_size=9)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.data(), grids)
def test_grid_is_exact_in_any_order(data: st.DataObject, vectors: list[np.ndarray]) -> None:
    order = data.draw(st.permutations(range(len(vectors))))
    ones = [1] * len(vectors)
    _, forward = fold_of(vectors, list(range(len(vectors))), Level.PHONE, True, ones)
    _, shuffled = fold_of(vectors, order, Level.PHONE, True, ones)
    assert forward.values.tobytes() == shuffled.values.tobytes()
    exact = [sum(int(vector[i]) for vector in vectors) * Fraction(STEP) for i in range(DIM)]
    assert [Fraction(value) for value in forward.values.tolist()] == exact


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.data(), floats)
def test_f64_agrees_to_rounding_in_any_order(data: st.DataObject, vectors: list[np.ndarray]) -> None:
    order = data.draw(st.permutations(range(len(vectors))))
    ones = [1] * len(vectors)
    _, shuffled = fold_of(vectors, order, Level.PHONE, False, ones)
    exact = [float(sum(Fraction(float(vector[i])) for vector in vectors)) for i in range(DIM)]
    np.testing.assert_allclose(shuffled.values, exact, rtol=0, atol=1e-12)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.data(), grids)
def test_grouping_into_cohorts_changes_nothing(data: st.DataObject, vectors: list[np.ndarray]) -> None:
    """A phone is a cohort of one: any split into shards gives the bits of the phones' own sum."""
    shards = data.draw(st.integers(1, 4))
    cohorts = [np.zeros(DIM, "<i8") for _ in range(shards)]
    counts = [0] * shards
    for place, vector in enumerate(vectors):
        cohorts[place % shards] = cohorts[place % shards] + vector
        counts[place % shards] += 1
    _, phones = fold_of(vectors, list(range(len(vectors))), Level.PHONE, True, [1] * len(vectors))
    fold, sharded = fold_of(cohorts, list(range(shards)), Level.COHORT, True, counts)
    assert fold.accepted == shards
    assert sharded.count == phones.count == len(vectors)
    assert sharded.values.tobytes() == phones.values.tobytes()


@settings(derandomize=True, deadline=None, max_examples=200)
@given(hnp.arrays("<i8", DIM, elements=st.integers(-3 * UNITS, 3 * UNITS)), st.integers(1, 3))
def test_accepted_exactly_when_within_the_bound(vector: np.ndarray, count: int) -> None:
    within = sum(int(v) ** 2 for v in vector) * Fraction(STEP) ** 2 <= (count * Fraction(CLIP)) ** 2
    fold = Fold(terms(Level.COHORT, True))
    made = Contribution("grid64", STEP, Level.COHORT, count, count * CLIP, DIGEST, bytes(16), vector)
    assert (fold.offer(lambda: made, reserved=3) is not None) is within
    assert fold.rejected == ({} if within else {Reason.OVER_NORM: 1})

"""Bounds on participation, and the two ways in which papers count a separation."""

from __future__ import annotations

import pytest

from fedlearn.errors import InvalidSpend
from fedlearn.privacy.participation import (
    Participation,
    gap_of_separation,
    most_participations,
    separation_of_gap,
)


def test_most_participations_is_the_size_of_the_densest_set() -> None:
    for steps in range(1, 30):
        for separation in range(1, steps + 3):
            assert most_participations(steps, separation) == len(range(0, steps, separation))


def test_a_gap_counts_the_steps_between() -> None:
    assert separation_of_gap(313) == 314
    assert separation_of_gap(0) == 1
    for separation in range(1, 5):
        between = range(1, separation)  # the steps between a participation in 0 and the next in ``separation``
        assert gap_of_separation(separation) == len(between)
        assert separation_of_gap(gap_of_separation(separation)) == separation


def test_bounds_that_fit() -> None:
    Participation(3, 4).check_fits(10)
    with pytest.raises(InvalidSpend, match="leave room for 3 at most"):
        Participation(3, 4).check_fits(9)


@pytest.mark.parametrize("bad", [0, -1, 1.0, True, None, "2"])
def test_what_is_no_positive_integer_is_refused(bad: int) -> None:
    with pytest.raises(InvalidSpend, match="min_separation="):
        Participation(bad, 1)
    with pytest.raises(InvalidSpend, match="max_participations="):
        Participation(1, bad)
    with pytest.raises(InvalidSpend, match="steps="):
        most_participations(bad, 1)
    with pytest.raises(InvalidSpend, match="min_separation="):
        gap_of_separation(bad)


def test_a_negative_gap_is_refused() -> None:
    with pytest.raises(InvalidSpend, match="gap=-1"):
        separation_of_gap(-1)

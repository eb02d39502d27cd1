"""How long a node waits after an empty pull: soon in a quick rhythm, seldom where SuperLink has many to serve."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlearn_server.node_pace import Pace, Rhythm

PACE = Pace()


def waits(rhythm: Rhythm, count: int, *, took: float = 0.01, now: float = 0.0) -> list[float]:
    return [rhythm.empty(took, now) for _ in range(count)]


def after_rounds_of(period: float, started: float = 0.0) -> Rhythm:
    rhythm = Rhythm(PACE, started)
    for round_ in range(3):
        rhythm.question(started + round_ * period, started + round_ * period + 0.01)
    return rhythm


def test_it_doubles_up_to_the_longest() -> None:
    assert waits(Rhythm(PACE, 0.0), 6) == [0.05, 0.1, 0.2, 0.4, 0.5, 0.5]


def test_a_question_begins_anew() -> None:
    rhythm = after_rounds_of(1.0)
    waits(rhythm, 6)
    rhythm.question(3.0, 3.1)
    assert waits(rhythm, 2, now=3.2) == [0.05, 0.1]


def test_a_quick_round_is_waited_for_as_before_and_a_long_one_a_quarter_of_its_time() -> None:
    assert max(waits(after_rounds_of(0.7), 12, now=2.0)) == PACE.longest
    assert max(waits(after_rounds_of(10.0), 12, now=21.0)) == 2.5
    assert max(waits(after_rounds_of(60.0), 12, now=121.0)) == PACE.busiest


def test_in_a_rhythm_a_slow_superlink_is_not_waited_for_longer() -> None:
    """Its slowness may be this round's own requests: three nodes would wait for each other."""
    rhythm = after_rounds_of(0.7)
    waits(rhythm, 1, took=0.001, now=2.0)
    assert waits(rhythm, 3, took=0.2, now=2.0) == [0.1, 0.2, 0.4]


def test_without_a_rhythm_it_waits_as_long_as_superlink_is_slow() -> None:
    rhythm = Rhythm(PACE, 0.0)
    rhythm.empty(0.01, 0.0)
    assert rhythm.empty(0.06, 0.0) == pytest.approx(32 * 0.05)
    assert rhythm.empty(9.0, 0.0) == PACE.busiest


def test_where_there_was_nothing_for_long_it_asks_once_a_second() -> None:
    rhythm = after_rounds_of(60.0)
    assert max(waits(rhythm, 12, now=121.0 + PACE.idle_after)) == PACE.idle


@given(
    st.lists(st.tuples(st.booleans(), st.floats(0.0, 30.0), st.floats(0.0, 1e4)), max_size=50),
)
def test_a_wait_is_always_within_the_bounds(steps: list[tuple[bool, float, float]]) -> None:
    rhythm, now = Rhythm(PACE, 0.0), 0.0
    for work, took, passed in steps:
        now += passed
        if work:
            rhythm.question(now, now + took)
        else:
            assert PACE.shortest <= rhythm.empty(took, now) <= PACE.busiest


def test_waits_never_shrink_until_there_is_a_question() -> None:
    found = waits(after_rounds_of(10.0), 12, now=21.0)
    assert all(former <= latter for former, latter in pairwise(found))

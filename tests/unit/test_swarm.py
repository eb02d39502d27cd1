"""A swarm says what a phone says, and lies only where it is told to."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlearn.device.padding import SIZE_CLASSES
from fedlearn.device.requests import is_signed
from fedlearn.errors import ContributionRejected, FedlearnError, OutOfRange, WireError
from fedlearn.fold import FoldTerms, checked
from fedlearn.lab.swarm.habits import LIES, Habit, Habits, lie
from fedlearn.lab.swarm.phone import Fleet, SwarmPhone
from fedlearn.lab.swarm.updates import Canaries
from fedlearn.proto import gateway_pb2 as pb
from fedlearn.types import Level
from fedlearn.wire import decode_contribution

CLIP, STEP, WIDTH = 0.5, 2.0**-20, 8
TASK = SimpleNamespace(
    digest=bytes(range(32)), step=3, mechanism=SimpleNamespace(grid_step=STEP, l2_clip_norm=CLIP, steps=9)
)
TERMS = FoldTerms(TASK.digest, WIDTH, CLIP, STEP, Level.PHONE)


def phone(position: int = 0) -> SwarmPhone:
    return SwarmPhone(position, b"credential", Fleet("city", "train", bytes(32), "00" * 32, lambda: 1.8e9))


@pytest.mark.parametrize("kind", ["enrol", "check_in"])
def test_its_requests_are_signed_and_of_a_size_class(kind: str) -> None:
    data = getattr(phone(), kind)()
    message = pb.EnrolRequest.FromString(data) if kind == "enrol" else pb.CheckInRequest.FromString(data)
    assert len(data) in SIZE_CLASSES
    assert is_signed(message)
    changed = type(message)()
    changed.CopyFrom(message)
    changed.time_ms += 1
    assert not is_signed(changed)


def test_an_honest_contribution_is_accepted() -> None:
    values = Canaries(WIDTH, unit=5).of(2, TASK, b"")
    data = phone(2).contribution(TASK, values)
    found = checked(lambda: decode_contribution(data), TERMS)
    assert found.values.tolist() == [0, 0, 5, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("name", sorted(LIES))
def test_a_lie_is_refused(name: str) -> None:
    true = decode_contribution(phone().contribution(TASK, np.ones(WIDTH, np.int64)))
    told = LIES[name](true)
    with pytest.raises((ContributionRejected, WireError)):
        checked(lambda: decode_contribution(told), TERMS)


def test_lies_are_drawn_from_all_kinds() -> None:
    honest = phone().contribution(TASK, np.ones(WIDTH, np.int64))
    told = {len(lie(honest, position, 0, seed=1)) for position in range(60)}
    assert len(told) >= 4


@given(st.integers(0, 500), st.integers(0, 500))
def test_a_habit_is_the_same_in_every_run(position: int, step: int) -> None:
    habits = Habits(0.2, 0.2, 0.2, 0.2, seed=7)
    assert habits.of(position, step) is Habits(0.2, 0.2, 0.2, 0.2, seed=7).of(position, step)


def test_shares_are_kept() -> None:
    habits = Habits(drop_out=0.3, liar=0.05)
    drawn = [habits.of(position, step) for position in range(100) for step in range(20)]
    assert abs(drawn.count(Habit.DROP_OUT) / 2000 - 0.3) < 0.05
    assert abs(drawn.count(Habit.LIAR) / 2000 - 0.05) < 0.02
    assert Habit.TWICE not in drawn


@pytest.mark.parametrize("wrong", [{"drop_out": 1.1}, {"liar": -0.1}, {"drop_out": 0.6, "twice": 0.6}])
def test_impossible_shares_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(OutOfRange, match=next(iter(wrong))):
        replace(Habits(), **wrong)
    assert issubclass(OutOfRange, FedlearnError)

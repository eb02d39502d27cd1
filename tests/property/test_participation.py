"""Whatever the seed, separation and availability: a phone's steps keep their distance, on any layout."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chi2, norm

from fedlearn.engine.participation import phases, takes_part
from fedlearn.errors import OutOfRange
from fedlearn.terms import CohortSchedule

IDS = [f"phone-{number}" for number in range(40)]


def table(schedule: CohortSchedule, seed: int, steps: int, ids: list[str]) -> NDArray[np.bool_]:
    """Return bool[steps, phones]."""
    return np.stack([takes_part(schedule, seed, step, ids) for step in range(steps)])


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    min_separation=st.integers(1, 30),
    availability=st.floats(0.0, 1.0, exclude_min=True),
    seed=st.integers(-(2**63), 2**63 - 1),
    steps=st.integers(1, 60),
)
def test_separation_and_participations(min_separation: int, availability: float, seed: int, steps: int) -> None:
    schedule = CohortSchedule(min_separation, availability)
    part = table(schedule, seed, steps, IDS)
    for mine in part.T:
        taken = np.flatnonzero(mine)
        assert (np.diff(taken) >= min_separation).all()
        assert len(taken) <= math.ceil(steps / min_separation)
    if availability == 1.0:
        assert (part.sum(axis=0) >= steps // min_separation).all()


@settings(derandomize=True, deadline=None, max_examples=25)
@given(shards=st.integers(1, 9), step=st.integers(0, 10**6), seed=st.integers(-(2**63), 2**63 - 1))
def test_layout_does_not_matter(shards: int, step: int, seed: int) -> None:
    schedule = CohortSchedule(3, 0.5)
    whole = dict(zip(IDS, takes_part(schedule, seed, step, IDS), strict=True))
    for shard in range(shards):
        mine = IDS[shard::shards][::-1]
        assert takes_part(schedule, seed, step, mine).tolist() == [whole[name] for name in mine]


def test_equals_the_rule_written_out() -> None:
    """The oracle: one phone and one step at a time, in plain integers."""

    def draw(text: str) -> int:
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")

    schedule = CohortSchedule(4, 0.3)
    for step in range(9):
        expected = [
            draw(f"-5\x1fphase\x1f{name}") % 4 == step % 4
            and draw(f"-5\x1f{step}\x1favailability\x1f{name}") < 0.3 * 2**64
            for name in IDS
        ]
        assert takes_part(schedule, -5, step, IDS).tolist() == expected


def test_frozen_draws() -> None:
    # Any port must reproduce these; made by this code once, the rule is the oracle's above.
    assert phases(7, IDS[:12], 5).tolist() == [1, 1, 0, 3, 4, 3, 1, 1, 4, 3, 2, 0]
    assert np.flatnonzero(takes_part(CohortSchedule(2, 0.5), 7, 3, IDS)).tolist() == [
        0,
        1,
        5,
        7,
        12,
        20,
        23,
        25,
        29,
        31,
        35,
        39,
    ]


def suspicion(part: NDArray[np.bool_], b: int, availability: float) -> float:
    """Return the smallest p-value over: uniform phases, share of available turns, their independence over steps."""
    steps, phones = part.shape
    turns = steps // b
    taken = part.reshape(turns, b, phones).sum(axis=1)  # turns x phones, 0 or 1
    seen = part.reshape(turns, b, phones).any(axis=0)
    counts = seen[:, seen.any(axis=0)].sum(axis=1)
    uniform = chi2.sf(((counts - counts.mean()) ** 2 / counts.mean()).sum(), b - 1)
    total = (taken.sum() - turns * phones * availability) / math.sqrt(
        turns * phones * availability * (1 - availability)
    )
    spread = ((taken.sum(axis=1) - phones * availability) ** 2).sum() / (phones * availability * (1 - availability))
    return float(
        min(uniform, 2 * norm.sf(abs(total)), 2 * min(chi2.sf(spread, turns), chi2.cdf(spread, turns))),
    )


def test_phases_are_uniform_and_turns_are_taken_as_often_as_said() -> None:
    ids = [str(number) for number in range(2000)]
    part = table(CohortSchedule(5, 0.7), 3, 200, ids)
    assert suspicion(part, 5, 0.7) > 1e-3
    assert suspicion(part, 5, 0.72) < 1e-6
    assert suspicion(np.tile(part[:5], (40, 1)), 5, 0.7) < 1e-6, "a turn's draw that depends on the phone alone"
    assert suspicion(part[:, phases(3, ids, 5) != 4], 5, 0.7) < 1e-6, "a phase that nobody has"


@pytest.mark.parametrize("min_separation", [0, -1, True, 2.0])
def test_separation_out_of_range(min_separation: int) -> None:
    with pytest.raises(OutOfRange, match=r"cohort\.min_separation"):
        CohortSchedule(min_separation, 0.5)


@pytest.mark.parametrize("availability", [0.0, -0.1, 1.1, math.nan])
def test_availability_out_of_range(availability: float) -> None:
    with pytest.raises(OutOfRange, match=r"cohort\.availability"):
        CohortSchedule(2, availability)

"""What phones of a swarm do wrong: who drops out, comes late, sends twice or lies, by a seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np

from fedlearn.errors import OutOfRange
from fedlearn.rng import simulation_rng
from fedlearn.types import Contribution, Level
from fedlearn.wire import decode_contribution, encode_contribution


class Habit(StrEnum):
    """What a phone does with a task."""

    HONEST = "honest"
    DROP_OUT = "drop_out"  # takes a task and is not heard of again
    STRAGGLER = "straggler"  # sends when its task has expired
    TWICE = "twice"  # sends the same bytes twice
    LIAR = "liar"


@dataclass(frozen=True, slots=True)
class Habits:
    """Shares of the phones that do something else than they should, drawn for each phone and step anew.

    Args:
        drop_out, straggler, twice, liar: each in [0, 1], their sum at most 1.
        seed: of the draw.

    Raises:
        OutOfRange: names the share.
    """

    drop_out: float = 0.0
    straggler: float = 0.0
    twice: float = 0.0
    liar: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, share in self.shares.items():
            if not 0.0 <= share <= 1.0:
                raise OutOfRange(f"{name}={share}: must be in [0, 1].")
        if sum(self.shares.values()) > 1.0:
            raise OutOfRange(f"{', '.join(self.shares)}: add up to {sum(self.shares.values()):g}, at most 1.")

    @property
    def shares(self) -> Mapping[str, float]:
        """Habit -> share."""
        return {
            Habit.DROP_OUT: self.drop_out,
            Habit.STRAGGLER: self.straggler,
            Habit.TWICE: self.twice,
            Habit.LIAR: self.liar,
        }

    def of(self, position: int, step: int) -> Habit:
        """Return what one phone does in one step: the same in every run with this seed."""
        drawn = float(simulation_rng(self.seed, step, str(position), "habit").random())
        for habit, share in self.shares.items():
            if drawn < share:
                return Habit(habit)
            drawn -= share
        return Habit.HONEST


def _changed(**fields: object) -> Callable[[Contribution], bytes]:
    return lambda true: encode_contribution(dataclasses.replace(true, **fields))  # type: ignore[arg-type]


def _longer(true: Contribution) -> bytes:
    """Ten times the bound in one coordinate."""
    values = np.zeros_like(true.values)
    values[0] = round(10.0 * true.l2_bound / true.scale)
    return encode_contribution(dataclasses.replace(true, values=values))


def _shorter(true: Contribution) -> bytes:
    return encode_contribution(dataclasses.replace(true, values=true.values[:-1]))


def _not_finite(true: Contribution) -> bytes:
    values = np.full(true.values.shape, np.nan, dtype="<f4")
    return encode_contribution(dataclasses.replace(true, codec="f32", scale=1.0, values=values))


LIES: Final[Mapping[str, Callable[[Contribution], bytes]]] = {
    "over_norm": _longer,
    "claims_more": lambda true: encode_contribution(dataclasses.replace(true, l2_bound=10.0 * true.l2_bound)),
    "other_task": _changed(task_digest=bytes(32)),
    "wrong_shape": _shorter,
    "not_finite": _not_finite,
    "many_phones": _changed(count=1000),
    "a_cohort": _changed(level=Level.COHORT),
    "other_grid": lambda true: encode_contribution(dataclasses.replace(true, scale=2.0 * true.scale)),
    "no_message": lambda true: b"\xff" * len(encode_contribution(true)),
    "half": lambda true: encode_contribution(true)[: len(true.values) * 4],
    "empty": lambda _: b"",
}
"""Name -> what is sent instead; a gateway must refuse all of them."""


def lie(contribution: bytes, position: int, step: int, seed: int) -> bytes:
    """Return one of ``LIES`` about an honest contribution, drawn by the seed."""
    names = sorted(LIES)
    drawn = simulation_rng(seed, step, str(position), "lie").integers(len(names))
    return LIES[names[int(drawn)]](decode_contribution(contribution))

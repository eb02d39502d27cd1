"""How often, and how far apart, one unit may take part: the promise a matrix mechanism's guarantee rests on.

A participation set lists the steps in which a unit's update entered the sum. Papers count the distance of two of them
in two ways. Here ``min_separation`` b is y - x for participations in steps x < y, as in jax-privacy; the ``gap`` of
Gboard's tables and of TensorFlow Privacy is the number of steps between, y - x - 1. Functions below convert.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedlearn.errors import InvalidSpend


@dataclass(frozen=True, slots=True)
class Participation:
    """Bounds on one unit's participation set.

    Args:
        min_separation: b >= 1: a unit that took part in step x takes part again in step x + b at the earliest. At 1
            it may take part in every step.
        max_participations: k >= 1: most steps in which a unit takes part.

    Raises:
        InvalidSpend: a bound is not an integer >= 1.
    """

    min_separation: int
    max_participations: int

    def __post_init__(self) -> None:
        _at_least("min_separation", self.min_separation, 1)
        _at_least("max_participations", self.max_participations, 1)

    def check_fits(self, steps: int) -> None:
        """Refuse more participations than ``steps`` steps leave room for: a larger k would describe no mechanism.

        Raises:
            InvalidSpend: steps < 1, or max_participations > ceil(steps / min_separation).
        """
        most = most_participations(steps, self.min_separation)
        if self.max_participations > most:
            raise InvalidSpend(
                f"max_participations={self.max_participations}: {steps} steps with min_separation "
                f"{self.min_separation} leave room for {most} at most."
            )


def most_participations(steps: int, min_separation: int) -> int:
    """Return the size of the largest participation set, ceil(steps / min_separation): steps 0, b, 2b, ...

    Raises:
        InvalidSpend: an argument is not an integer >= 1.
    """
    _at_least("steps", steps, 1)
    _at_least("min_separation", min_separation, 1)
    return -(-steps // min_separation)


def separation_of_gap(gap: int) -> int:
    """Return the min_separation, y - x, of a gap: the least number of steps between two participations, y - x - 1.

    Raises:
        InvalidSpend: gap is not an integer >= 0.
    """
    _at_least("gap", gap, 0)
    return gap + 1


def gap_of_separation(min_separation: int) -> int:
    """Return the gap, y - x - 1, of a min_separation, y - x.

    Raises:
        InvalidSpend: min_separation is not an integer >= 1.
    """
    _at_least("min_separation", min_separation, 1)
    return min_separation - 1


def _at_least(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidSpend(f"{name}={value!r}: must be an integer >= {least}.")

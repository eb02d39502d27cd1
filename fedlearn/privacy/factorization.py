"""Factorizations of the prefix-sum matrix: which noise of one step is taken back in later steps.

A mechanism with a lower-triangular strategy matrix C releases ``x_t + [C^-1 Z]_t`` for independent Gaussian rows Z.
Only what C is belongs here; its sensitivity is in ``sensitivity``, its noise recurrence in ``correlated``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from fedlearn.errors import InvalidSpend


def _finite(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidSpend(f"{name}: {value!r} is not a finite number.")
    return float(value)


@dataclass(frozen=True, slots=True)
class Toeplitz:
    """C is lower-triangular Toeplitz with ``coefficients`` on its first diagonals and zero on the others.

    Args:
        coefficients: c_0 = 1 >= c_1 >= ... >= 0, at least one. ``(1.0,)`` is independent noise.

    Raises:
        InvalidSpend: they do not begin with 1, increase, are negative or not finite.
    """

    coefficients: tuple[float, ...]

    def __post_init__(self) -> None:
        values = tuple(_finite("coefficients", value) for value in self.coefficients)
        if not values or values[0] != 1.0:
            raise InvalidSpend(f"coefficients={values[:3]}: must begin with c_0 = 1.")
        if any(value < 0 for value in values):
            raise InvalidSpend(f"coefficients: {min(values)} is negative; the sensitivity bound needs c_i >= 0.")
        if any(later > earlier for earlier, later in pairwise(values)):
            raise InvalidSpend("coefficients: they increase; the sensitivity bound needs c_0 >= c_1 >= ...")
        object.__setattr__(self, "coefficients", values)


@dataclass(frozen=True, slots=True)
class Blt:
    """C is a buffered linear Toeplitz matrix: c_0 = 1 and c_i = sum_j scale_j * decay_j^(i-1) (McMahan et al. 2024).

    Args:
        decay: per buffer, in (0, 1), distinct.
        scale: per buffer, > 0, with a sum of at most 1: then no coefficient is negative or above the one before it.

    Raises:
        InvalidSpend: the lengths differ, there is no buffer, or a value is out of range.
    """

    decay: tuple[float, ...]
    scale: tuple[float, ...]

    def __post_init__(self) -> None:
        decay = tuple(_finite("decay", value) for value in self.decay)
        scale = tuple(_finite("scale", value) for value in self.scale)
        if not decay or len(decay) != len(scale):
            raise InvalidSpend(f"blt: {len(decay)} decays and {len(scale)} scales; need as many, at least one of each.")
        if any(not 0 < value < 1 for value in decay) or len(set(decay)) != len(decay):
            raise InvalidSpend(f"decay={decay}: must be distinct and in (0, 1).")
        if any(value <= 0 for value in scale):
            raise InvalidSpend(f"scale={scale}: must be > 0; a negative one can make coefficients negative.")
        if math.fsum(scale) > 1:
            raise InvalidSpend(f"scale={scale}: the sum is c_1 and must be <= c_0 = 1, or coefficients increase.")
        object.__setattr__(self, "decay", decay)
        object.__setattr__(self, "scale", scale)


@dataclass(frozen=True, slots=True)
class Tree:
    """C adds up aligned blocks of 1, 2, 4, ... steps: one row per node of the binary trees over all steps, no restart
    and no variance reduction (Kairouz et al. 2021). Not square: what is released are differences of its prefix sums."""


Factorization = Toeplitz | Blt | Tree

INDEPENDENT: Final = Toeplitz((1.0,))
"""Independent noise in every step: C is the identity."""


def state_floats(factorization: Factorization, steps: int) -> int:
    """Return the floats per parameter that the noise of later steps depends on.

    Those of earlier noise that bands still reach, of buffers, or of one open block for each size up to ``steps``.
    """
    match factorization:
        case Toeplitz():
            return len(factorization.coefficients) - 1
        case Blt():
            return len(factorization.decay)
        case Tree():
            return steps.bit_length()


def factorization_to_json(factorization: Factorization) -> dict[str, object]:
    """Return the factorization as a JSON object with its kind."""
    match factorization:
        case Toeplitz():
            return {"kind": "toeplitz", "coefficients": list(factorization.coefficients)}
        case Blt():
            return {"kind": "blt", "decay": list(factorization.decay), "scale": list(factorization.scale)}
        case Tree():
            return {"kind": "tree"}


def factorization_from_json(body: object) -> Factorization:
    """Read a factorization back.

    Raises:
        InvalidSpend: an unknown kind, missing or surplus fields, or a value out of range.
    """
    if not isinstance(body, Mapping):
        raise InvalidSpend("factorization: not a JSON object.")
    kind, rest = body.get("kind"), {key: value for key, value in body.items() if key != "kind"}
    if kind == "toeplitz" and set(rest) == {"coefficients"}:
        return Toeplitz(_numbers(rest["coefficients"]))
    if kind == "blt" and set(rest) == {"decay", "scale"}:
        return Blt(_numbers(rest["decay"]), _numbers(rest["scale"]))
    if kind == "tree" and not rest:
        return Tree()
    raise InvalidSpend(f"factorization kind {kind!r} with {sorted(rest)}: not one of toeplitz, blt, tree.")


def _numbers(values: object) -> tuple[float, ...]:
    if not isinstance(values, list):
        raise InvalidSpend(f"factorization: {values!r} is not a list of numbers.")
    return tuple(values)

"""Spend as data: what was released, never what it "costs".

A ledger stores events; an accountant turns them into epsilon. Only kinds on the allow-list below are ever read back.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from fedlearn.errors import InvalidSpend

KIND_POISSON_GAUSSIAN: Final = "poisson_gaussian"


class Unit(StrEnum):
    """Whose participation a guarantee hides."""

    DEVICE = "device"


class NeighboringRelation(StrEnum):
    """Which two populations must be hard to tell apart."""

    ADD_OR_REMOVE = "add_or_remove"
    """One unit is present or absent. The relation of sampled cohorts."""

    ZERO_OUT = "zero_out"
    """One unit's updates are replaced by zeros. The relation of participation-bounded mechanisms."""


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidSpend(f"{name}={value!r}: must be a number.")
    return float(value)


@dataclass(frozen=True, slots=True)
class PoissonGaussian:
    """One sum over a Poisson-sampled cohort, released with Gaussian noise.

    Args:
        noise_multiplier: std of the noise over the sum's L2 sensitivity; finite, > 0.
        sampling_probability: chance, in (0, 1], with which each unit joins the cohort, drawn independently per unit
            and step and kept secret. At 1 the event is the plain Gaussian mechanism.

    Raises:
        InvalidSpend: a parameter is outside its range.
    """

    noise_multiplier: float
    sampling_probability: float

    def __post_init__(self) -> None:
        z = _number("noise_multiplier", self.noise_multiplier)
        q = _number("sampling_probability", self.sampling_probability)
        if not (math.isfinite(z) and z > 0):
            raise InvalidSpend(f"noise_multiplier={z}: must be finite and > 0; without noise there is no epsilon.")
        if not 0 < q <= 1:
            raise InvalidSpend(f"sampling_probability={q}: must be in (0, 1].")
        object.__setattr__(self, "noise_multiplier", z)
        object.__setattr__(self, "sampling_probability", q)


def event_to_json(event: PoissonGaussian) -> str:
    """Return the event as canonical JSON: sorted keys, no spaces, floats by their shortest exact form."""
    return json.dumps(
        {
            "kind": KIND_POISSON_GAUSSIAN,
            "noise_multiplier": event.noise_multiplier,
            "sampling_probability": event.sampling_probability,
        },
        sort_keys=True,
        separators=(",", ":"),
        allow_nan=False,
    )


def event_from_json(text: str) -> PoissonGaussian:
    """Read an event back.

    Raises:
        InvalidSpend: not JSON, a kind off the allow-list, missing or surplus fields, or a value out of range.
    """
    try:
        body = json.loads(text)
    except ValueError as error:
        raise InvalidSpend("event: not JSON.") from error
    if not isinstance(body, dict) or body.get("kind") != KIND_POISSON_GAUSSIAN:
        kind = body.get("kind") if isinstance(body, dict) else None
        raise InvalidSpend(f"event kind {kind!r} is unknown: only {KIND_POISSON_GAUSSIAN!r} can be accounted for.")
    if set(body) != {"kind", "noise_multiplier", "sampling_probability"}:
        raise InvalidSpend(f"event fields {sorted(body)}: need exactly kind, noise_multiplier, sampling_probability.")
    return PoissonGaussian(body["noise_multiplier"], body["sampling_probability"])

"""Spend as data: what was released, never what it "costs".

A ledger stores events; an accountant turns them into epsilon. Only kinds on the allow-list below are ever read back.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from fedlearn.errors import InvalidSpend
from fedlearn.privacy.factorization import Factorization, Toeplitz, factorization_from_json, factorization_to_json


class Unit(StrEnum):
    """Whose participation a guarantee hides."""

    DEVICE = "device"


class NeighboringRelation(StrEnum):
    """Which two populations must be hard to tell apart. A budget scope has one; no event is converted to another."""

    ADD_OR_REMOVE = "add_or_remove"
    """One unit is present or absent. The relation of Poisson-sampled cohorts."""

    ZERO_OUT = "zero_out"
    """One unit's updates are replaced by zeros. The relation of participation-bounded mechanisms."""

    REPLACE_ONE = "replace_one"
    """One unit is replaced by another. The relation of cohorts of a fixed size, whose sensitivity is twice the clip."""


@dataclass(frozen=True, slots=True)
class PoissonGaussian:
    """One sum over a Poisson-sampled cohort, released with Gaussian noise. Relation: add-or-remove.

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
        object.__setattr__(self, "noise_multiplier", _noise(self.noise_multiplier))
        object.__setattr__(self, "sampling_probability", _probability(self.sampling_probability))


@dataclass(frozen=True, slots=True)
class TruncatedPoissonGaussian:
    """A Poisson-sampled cohort of which, if it is over the cap, a uniformly random subset of that size is kept.
    Relation: add-or-remove.

    The subset must be drawn at random and in secret. Keeping the first to arrive is not this event: whoever is early
    then pushes others out, and no bound here holds.

    Args:
        noise_multiplier: std of the noise over the clip norm; finite, > 0.
        sampling_probability: in (0, 1].
        population: units, >= 1; public.
        cohort_cap: most units that are kept, in [1, population].

    Raises:
        InvalidSpend: a parameter is outside its range.
    """

    noise_multiplier: float
    sampling_probability: float
    population: int
    cohort_cap: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_multiplier", _noise(self.noise_multiplier))
        object.__setattr__(self, "sampling_probability", _probability(self.sampling_probability))
        _at_least_one("population", self.population)
        _at_least_one("cohort_cap", self.cohort_cap)
        if self.cohort_cap > self.population:
            raise InvalidSpend(f"cohort_cap={self.cohort_cap}: must be <= population={self.population}.")


@dataclass(frozen=True, slots=True)
class FixedSizeGaussian:
    """A cohort of exactly ``cohort`` units drawn without replacement. Relation: replace-one.

    Args:
        noise_multiplier: std of the noise over the sensitivity under replace-one, which is TWICE the clip norm (one
            update leaves, another enters): noise of std s on updates clipped to C has noise_multiplier s / (2 C).
        population: units, >= 1; public.
        cohort: units drawn, in [1, population].

    Raises:
        InvalidSpend: a parameter is outside its range.
    """

    noise_multiplier: float
    population: int
    cohort: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_multiplier", _noise(self.noise_multiplier))
        _at_least_one("population", self.population)
        _at_least_one("cohort", self.cohort)
        if self.cohort > self.population:
            raise InvalidSpend(f"cohort={self.cohort}: must be <= population={self.population}.")


@dataclass(frozen=True, slots=True)
class MatrixGaussian:
    """All steps of one matrix mechanism in which a unit takes part rarely and seldom. Relation: zero-out.

    One event for the whole sequence of releases, however many were made: nothing is amplified by sampling.

    Args:
        factorization: the strategy matrix C.
        steps: releases that were analysed, >= 1; none may follow.
        min_separation: b >= 1: a unit that took part in step x takes part again in step x + b at the earliest (y - x,
            not the number of steps between).
        max_participations: k in [1, ceil(steps / b)].
        noise_multiplier: std of the i.i.d. rows of Z over the clip norm, before C's sensitivity; finite, > 0.

    Raises:
        InvalidSpend: a parameter is outside its range.
    """

    factorization: Factorization
    steps: int
    min_separation: int
    max_participations: int
    noise_multiplier: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_multiplier", _noise(self.noise_multiplier))
        _at_least_one("steps", self.steps)
        _at_least_one("min_separation", self.min_separation)
        _at_least_one("max_participations", self.max_participations)
        most = -(-self.steps // self.min_separation)
        if self.max_participations > most:
            raise InvalidSpend(
                f"max_participations={self.max_participations}: {self.steps} steps with min_separation "
                f"{self.min_separation} leave room for {most} at most."
            )
        if isinstance(self.factorization, Toeplitz) and len(self.factorization.coefficients) > self.steps:
            raise InvalidSpend(
                f"coefficients: there are {len(self.factorization.coefficients)}, but only {self.steps} steps."
            )


@dataclass(frozen=True, slots=True)
class MetricRelease:
    """Counts or sums of metrics, released once with Gaussian noise. Relation: add-or-remove or zero-out (not
    replace-one, which would double its sensitivity).

    Args:
        noise_multiplier: std of the noise over the L2 sensitivity to one unit of all released figures together;
            finite, > 0.

    Raises:
        InvalidSpend: it is outside its range.
    """

    noise_multiplier: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_multiplier", _noise(self.noise_multiplier))


@dataclass(frozen=True, slots=True)
class RepeatAndSelect:
    """A whole training repeated a random number of times of which only the best is shown (Papernot and Steinke 2022).

    Valid only if the number of repetitions was drawn from this distribution before the first one, and nothing about the
    losers is ever published. The relation is the repeated event's.

    Args:
        event: what one repetition spends per step; itself no repeat-and-select.
        count: steps of one repetition, >= 1.
        mean: mean number of repetitions, >= 1.
        shape: of the truncated negative binomial, >= 0: 1 is geometric, 0 logarithmic, ``inf`` is Poisson.

    Raises:
        InvalidSpend: a parameter is outside its range.
    """

    event: SingleEvent
    count: int
    mean: float
    shape: float

    def __post_init__(self) -> None:
        if isinstance(self.event, RepeatAndSelect):
            raise InvalidSpend("repeat_and_select: of a repeat_and_select has no accountant here.")
        _at_least_one("count", self.count)
        mean, shape = _number("mean", self.mean), _number("shape", self.shape)
        if not (math.isfinite(mean) and mean >= 1):
            raise InvalidSpend(f"mean={mean}: must be finite and >= 1.")
        if not shape >= 0:
            raise InvalidSpend(f"shape={shape}: must be >= 0, or inf for a Poisson number of repetitions.")
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "shape", shape)


SingleEvent = PoissonGaussian | TruncatedPoissonGaussian | FixedSizeGaussian | MatrixGaussian | MetricRelease
Event = SingleEvent | RepeatAndSelect

_KINDS: Final[dict[str, type[Event]]] = {
    "poisson_gaussian": PoissonGaussian,
    "truncated_poisson_gaussian": TruncatedPoissonGaussian,
    "fixed_size_gaussian": FixedSizeGaussian,
    "matrix_gaussian": MatrixGaussian,
    "metric_release": MetricRelease,
    "repeat_and_select": RepeatAndSelect,
}


def kind_of(event: Event) -> str:
    """Return the event's kind as it is stored."""
    return next(name for name, cls in _KINDS.items() if type(event) is cls)


def event_to_json(event: Event) -> str:
    """Return the event as canonical JSON: sorted keys, no spaces, floats by their shortest exact form, inf as text."""
    return json.dumps(_body(event), sort_keys=True, separators=(",", ":"), allow_nan=False)


def event_from_json(text: str) -> Event:
    """Read an event back.

    Raises:
        InvalidSpend: not JSON, a kind off the allow-list, missing or surplus fields, or a value out of range.
    """
    try:
        body = json.loads(text)
    except ValueError as error:
        raise InvalidSpend("event: not JSON.") from error
    return _event(body)


def _body(event: Event) -> dict[str, object]:
    body: dict[str, object] = {name: getattr(event, name) for name in event.__slots__}
    body["kind"] = kind_of(event)
    if isinstance(event, MatrixGaussian):
        body["factorization"] = factorization_to_json(event.factorization)
    if isinstance(event, RepeatAndSelect):
        body["event"] = _body(event.event)
        if math.isinf(event.shape):
            body["shape"] = "inf"
    return body


def _event(body: object) -> Event:
    kind = body.get("kind") if isinstance(body, Mapping) else None
    if not isinstance(body, Mapping) or not isinstance(kind, str) or kind not in _KINDS:
        raise InvalidSpend(f"event kind {kind!r} is unknown: only {', '.join(_KINDS)} can be accounted for.")
    cls = _KINDS[kind]
    fields: dict[str, object] = {name: value for name, value in body.items() if name != "kind"}
    if set(fields) != set(cls.__slots__):
        raise InvalidSpend(f"event fields {sorted(fields)}: {kind} needs exactly {', '.join(cls.__slots__)}.")
    if cls is MatrixGaussian:
        fields["factorization"] = factorization_from_json(fields["factorization"])
    if cls is RepeatAndSelect:
        fields["event"] = _event(fields["event"])
        fields["shape"] = math.inf if fields["shape"] == "inf" else fields["shape"]
    build: Callable[..., Event] = cls
    return build(**fields)


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidSpend(f"{name}={value!r}: must be a number.")
    return float(value)


def _noise(value: object) -> float:
    z = _number("noise_multiplier", value)
    if not (math.isfinite(z) and z > 0):
        raise InvalidSpend(f"noise_multiplier={z}: must be finite and > 0; without noise there is no epsilon.")
    return z


def _probability(value: object) -> float:
    q = _number("sampling_probability", value)
    if not 0 < q <= 1:
        raise InvalidSpend(f"sampling_probability={q}: must be in (0, 1].")
    return q


def _at_least_one(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidSpend(f"{name}={value!r}: must be an integer >= 1.")

"""From a target epsilon to the least noise that certifiably meets it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Final

from scipy.optimize import brentq

from fedlearn.errors import CannotCalibrate, InvalidSpend
from fedlearn.files import cache_directory
from fedlearn.privacy.accountants import REPORTED, SEARCHING, accounting_version, epsilon
from fedlearn.privacy.events import Event, MatrixGaussian, NeighboringRelation, PoissonGaussian, event_to_json
from fedlearn.privacy.factorization import Factorization
from fedlearn.privacy.gaussian import gaussian_epsilon
from fedlearn.privacy.sensitivity import squared_sensitivity
from fedlearn.privacy.settings import LEAST_NOISE

MIN_NOISE_MULTIPLIER: Final = LEAST_NOISE
MAX_NOISE_MULTIPLIER: Final = 1e6
_DIGITS: Final = 5
_CACHE_VERSION: Final = 2
_CLOSE: Final = 2e-6
"""Relative distance between noise multipliers at which the search on the coarse grid stops."""

Figure = Callable[[float, float], float]
"""(noise multiplier, discretization) -> epsilon."""


def calibrate(
    target_epsilon: float,
    delta: float,
    sampling_probability: float,
    steps: int,
    *,
    discretization: float = REPORTED,
) -> float:
    """Return the noise multiplier of ``steps`` Poisson-sampled releases; see ``least_noise``.

    Args:
        target_epsilon: finite, > 0.
        delta: in (0, 1).
        sampling_probability: in (0, 1].
        steps: releases, >= 1.
        discretization: ``REPORTED``, or ``SEARCHING`` for a sooner answer with more noise: by 0.1 %
            at epsilon 1, twice as much at 0.05.

    Raises:
        CannotCalibrate: an input is out of range, or no noise multiplier in [0.05, 1e6] meets the target.
        MissingDependency: dp-accounting is not installed.
    """

    def event(noise_multiplier: float) -> PoissonGaussian:
        return PoissonGaussian(noise_multiplier, sampling_probability)

    return least_noise(event, steps, target_epsilon, delta, discretization=discretization)


def least_noise(
    event: Callable[[float], Event],
    count: int,
    target_epsilon: float,
    delta: float,
    *,
    neighboring_relation: NeighboringRelation = NeighboringRelation.ADD_OR_REMOVE,
    discretization: float = REPORTED,
) -> float:
    """Return a noise multiplier with which ``count`` events spend at most ``target_epsilon``.

    The answer has five significant digits and is the least such number that was found: rounded up, never down. It is
    verified on the asked grid before it is returned, also one from the cache, which is keyed by every input.

    Args:
        event: from a noise multiplier to the event.
        count: of the event, >= 1.
        target_epsilon: finite, > 0.
        delta: in (0, 1).
        neighboring_relation: the event's own.
        discretization: of the figure that must meet the target, ``REPORTED`` or ``SEARCHING``.

    Raises:
        CannotCalibrate: an input is out of range, or no noise multiplier in [0.05, 1e6] meets the target.
        MissingDependency: dp-accounting is not installed.
    """
    _check(target_epsilon, count)

    @lru_cache(maxsize=128)
    def figure(noise_multiplier: float, grid: float) -> float:
        spend = [(event(noise_multiplier), count)]
        return epsilon(spend, delta, discretization=grid, neighboring_relation=neighboring_relation)

    try:
        key = [event_to_json(event(1.0)), count, float(target_epsilon), float(delta), neighboring_relation.value]
        path = _cache_path([*key, discretization])
        answer = _read(path)
        if answer is None or figure(answer, discretization) > target_epsilon:
            answer = _search(figure, target_epsilon, discretization)
            _write(path, answer)
    except InvalidSpend as error:
        raise CannotCalibrate(f"no noise multiplier can be certified: {error}") from error
    return answer


def calibrate_matrix(
    target_epsilon: float,
    delta: float,
    factorization: Factorization,
    *,
    steps: int,
    min_separation: int,
    max_participations: int,
) -> float:
    """Return the noise multiplier of a matrix mechanism: std of the i.i.d. Z over the clip norm.

    Closed form, no search over distributions: the largest mu with gaussian_epsilon(mu, delta) <= target (Balle and Wang
    2018), then z = sqrt(sens2) / mu, rounded up to five digits and verified with the accountant of record.

    Args:
        target_epsilon: finite, > 0.
        delta: in (0, 1).
        factorization: the strategy matrix.
        steps: releases, >= 1.
        min_separation: b >= 1.
        max_participations: k in [1, ceil(steps / b)].

    Raises:
        CannotCalibrate: an input is out of range, or no noise up to 1e6 times the sensitivity meets the target.
    """
    _check(target_epsilon, steps)

    def figure(noise_multiplier: float) -> float:
        event = MatrixGaussian(factorization, steps, min_separation, max_participations, noise_multiplier)
        return epsilon([(event, 1)], delta, neighboring_relation=NeighboringRelation.ZERO_OUT)

    try:
        mu = _largest_mu(target_epsilon, delta)
        sensitivity = math.sqrt(squared_sensitivity(factorization, steps, min_separation, max_participations))
        index, unit = _above(sensitivity / mu)
        while figure(_on_grid(index, unit)) > target_epsilon:
            index += 1
    except InvalidSpend as error:
        raise CannotCalibrate(f"no noise multiplier can be certified: {error}") from error
    return _on_grid(index, unit)


def _check(target_epsilon: float, count: int) -> None:
    if not (math.isfinite(target_epsilon) and target_epsilon > 0):
        raise CannotCalibrate(f"epsilon={target_epsilon}: must be finite and > 0, e.g. 3.0.")
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise CannotCalibrate(f"steps={count!r}: must be an integer >= 1.")


def _largest_mu(target: float, delta: float) -> float:
    """Return mu of Gaussian DP, within [1 / 1e6, 1 / 0.05], that meets the target; the largest but for 1e-12."""
    low, high = 1 / MAX_NOISE_MULTIPLIER, 1 / MIN_NOISE_MULTIPLIER
    if gaussian_epsilon(low, delta) > target:
        raise _unreachable(target)
    if gaussian_epsilon(high, delta) <= target:
        return high
    while high / low > 1 + 1e-12:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if gaussian_epsilon(middle, delta) <= target else (low, middle)
    return low


def _search(figure: Figure, target: float, discretization: float = REPORTED) -> float:
    low, high = _bracket(figure, target)
    if low == MIN_NOISE_MULTIPLIER and figure(low, discretization) <= target:
        return low
    guess = _near(figure, target, low, high)
    if discretization < SEARCHING:
        # The finer grid is tighter by about this much; allowing for it lands within a few points of the answer.
        excess = max(figure(guess, SEARCHING) - figure(guess, discretization), 0.0)
        guess = _near(figure, target + excess, low, guess)
    return _tighten(figure, target, guess, discretization)


def _bracket(figure: Figure, target: float) -> tuple[float, float]:
    """Return (low, high), a factor of two apart at most: high meets the target on the searching grid, low need not."""
    noise = 1.0
    while noise / 2 >= MIN_NOISE_MULTIPLIER and figure(noise, SEARCHING) <= target:
        noise /= 2
    while figure(noise, SEARCHING) > target:
        noise *= 2
        if noise > MAX_NOISE_MULTIPLIER:
            raise _unreachable(target)
    return max(noise / 2, MIN_NOISE_MULTIPLIER), noise


def _unreachable(target: float) -> CannotCalibrate:
    return CannotCalibrate(
        f"epsilon={target}: not met by any noise multiplier up to {MAX_NOISE_MULTIPLIER:g}; "
        "ask for a larger epsilon, fewer rounds or a smaller cohort."
    )


def _near(figure: Figure, target: float, low: float, high: float) -> float:
    """Return a noise multiplier in [low, high] whose epsilon on the searching grid is about ``target``.

    Log epsilon is nearly straight over log noise, so that Brent's method needs a third of the steps of bisection.
    """

    def distance(log_noise: float) -> float:
        value = figure(math.exp(log_noise), SEARCHING)
        return min(math.log(value / target), 50.0) if value > 0 else -50.0

    left, right = math.log(low), math.log(high)
    if distance(left) <= 0 or distance(right) >= 0:
        return low if distance(left) <= 0 else high
    return math.exp(float(brentq(distance, left, right, xtol=_CLOSE, rtol=_CLOSE)))


def _tighten(figure: Figure, target: float, guess: float, discretization: float) -> float:
    """Return the least point near ``guess``, of five significant digits, that meets the target on the asked grid."""
    high, unit = _above(guess)
    least = math.ceil(MIN_NOISE_MULTIPLIER / unit)

    def meets(index: int) -> bool:
        return figure(_on_grid(index, unit), discretization) <= target

    high, stride = max(high, least), 1
    low = least - 1
    while not meets(high):
        low, high, stride = high, high + stride, 2 * stride
    stride = 1
    while high - stride > low and meets(high - stride):
        high, stride = high - stride, 2 * stride
    low = max(low, high - stride)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if meets(middle) else (middle, high)
    return _on_grid(high, unit)


def _above(value: float) -> tuple[int, float]:
    """Return (index, unit) of the least number of five significant digits that is at least ``value``."""
    unit = 10.0 ** (math.floor(math.log10(value)) + 1 - _DIGITS)
    return math.ceil(value / unit), unit


def _on_grid(index: int, unit: float) -> float:
    """Return index * unit as the float nearest to its decimal, so that it prints as it was certified."""
    return float(f"{index * unit:.{_DIGITS}g}")


def _cache_path(key: list[object]) -> Path:
    text = json.dumps([_CACHE_VERSION, accounting_version(), *key])
    return cache_directory() / "calibrate" / f"{hashlib.sha256(text.encode()).hexdigest()}.json"


def _read(path: Path) -> float | None:
    """Return the cached answer, or None when there is none or the file is not what was written."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))["noise_multiplier"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return value if isinstance(value, float) and MIN_NOISE_MULTIPLIER <= value <= MAX_NOISE_MULTIPLIER else None


def _write(path: Path, value: float) -> None:
    """Put the answer in place atomically; a cache that cannot be written costs time, not correctness."""
    text = json.dumps({"noise_multiplier": value})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".calibrate-")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).replace(path)
    except OSError:
        return

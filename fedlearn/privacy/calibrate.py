"""From a target epsilon to the least noise that certifiably meets it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fedlearn.errors import CannotCalibrate, InvalidSpend
from fedlearn.files import cache_directory
from fedlearn.privacy.accountants import REPORTED, SEARCHING, accounting_version, epsilon
from fedlearn.privacy.events import PoissonGaussian

MIN_NOISE_MULTIPLIER: Final = 0.05
MAX_NOISE_MULTIPLIER: Final = 1e6
_DIGITS: Final = 5
_CACHE_VERSION: Final = 1

Figure = Callable[[float, float], float]
"""(noise multiplier, discretization) -> epsilon."""


def calibrate(target_epsilon: float, delta: float, sampling_probability: float, steps: int) -> float:
    """Return a noise multiplier whose reported epsilon over ``steps`` releases is at most ``target_epsilon``.

    The answer has five significant digits and is the least such number that was found: rounded up, never down. It is
    verified on the grid that reports use before it is returned or cached; a cached answer is keyed by every input and
    by dp-accounting's version.

    Args:
        target_epsilon: finite, > 0.
        delta: in (0, 1).
        sampling_probability: in (0, 1].
        steps: releases, >= 1.

    Raises:
        CannotCalibrate: an input is out of range, or no noise multiplier in [0.05, 1e6] meets the target.
        MissingDependency: dp-accounting is not installed.
    """
    if not (math.isfinite(target_epsilon) and target_epsilon > 0):
        raise CannotCalibrate(f"epsilon={target_epsilon}: must be finite and > 0, e.g. 3.0.")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise CannotCalibrate(f"steps={steps!r}: must be an integer >= 1.")
    path = _cache_path(target_epsilon, delta, sampling_probability, steps)
    cached = _read(path)
    if cached is not None:
        return cached

    def figure(noise_multiplier: float, discretization: float) -> float:
        spend = [(PoissonGaussian(noise_multiplier, sampling_probability), steps)]
        return epsilon(spend, delta, discretization=discretization)

    try:
        answer = _search(figure, target_epsilon)
    except InvalidSpend as error:
        raise CannotCalibrate(f"no noise multiplier can be certified: {error}") from error
    _write(path, answer)
    return answer


def _search(figure: Figure, target: float) -> float:
    low, high = _bracket(figure, target)
    if low == MIN_NOISE_MULTIPLIER and figure(low, REPORTED) <= target:
        return low
    coarse = _bisect(figure, target, low, high)
    # The reported grid is tighter by about this much; allowing for it lands within a few points of the answer.
    excess = max(figure(coarse, SEARCHING) - figure(coarse, REPORTED), 0.0)
    return _tighten(figure, target, _bisect(figure, target + excess, low, coarse))


def _bracket(figure: Figure, target: float) -> tuple[float, float]:
    """Return (low, high), a factor of two apart at most: high meets the target on the searching grid, low need not."""
    noise = 1.0
    while noise / 2 >= MIN_NOISE_MULTIPLIER and figure(noise, SEARCHING) <= target:
        noise /= 2
    while figure(noise, SEARCHING) > target:
        noise *= 2
        if noise > MAX_NOISE_MULTIPLIER:
            raise CannotCalibrate(
                f"epsilon={target}: not met by any noise multiplier up to {MAX_NOISE_MULTIPLIER:g}; "
                "ask for a larger epsilon, fewer rounds or a smaller cohort."
            )
    return max(noise / 2, MIN_NOISE_MULTIPLIER), noise


def _bisect(figure: Figure, target: float, low: float, high: float) -> float:
    """Return a noise multiplier that meets ``target`` on the searching grid, within 1e-5 of the least in range."""
    while high / low > 1 + 1e-5:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if figure(middle, SEARCHING) <= target else (middle, high)
    return high


def _tighten(figure: Figure, target: float, guess: float) -> float:
    """Return the least point near ``guess``, of five significant digits, that meets the target on the reported grid."""
    unit = 10.0 ** (math.floor(math.log10(guess)) + 1 - _DIGITS)
    least = math.ceil(MIN_NOISE_MULTIPLIER / unit)

    def meets(index: int) -> bool:
        return figure(_on_grid(index, unit), REPORTED) <= target

    high, stride = max(math.ceil(guess / unit), least), 1
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


def _on_grid(index: int, unit: float) -> float:
    """Return index * unit as the float nearest to its decimal, so that it prints as it was certified."""
    return float(f"{index * unit:.{_DIGITS}g}")


def _cache_path(target_epsilon: float, delta: float, sampling_probability: float, steps: int) -> Path:
    key = [
        _CACHE_VERSION,
        accounting_version(),
        SEARCHING,
        REPORTED,
        float(target_epsilon),
        float(delta),
        float(sampling_probability),
        steps,
    ]
    return cache_directory() / "calibrate" / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()}.json"


def _read(path: Path) -> float | None:
    """Return the cached answer, or None when there is none or the file is not what was written."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        value, check = body["noise_multiplier"], body["check"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    in_range = isinstance(value, float) and MIN_NOISE_MULTIPLIER <= value <= MAX_NOISE_MULTIPLIER
    return value if in_range and check == _check(path, value) else None


def _check(path: Path, value: float) -> str:
    return hashlib.sha256(f"{path.stem}:{value!r}".encode()).hexdigest()


def _write(path: Path, value: float) -> None:
    """Put the answer in place atomically; a cache that cannot be written costs time, not correctness."""
    text = json.dumps({"noise_multiplier": value, "check": _check(path, value)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".calibrate-")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).replace(path)
    except OSError:
        return

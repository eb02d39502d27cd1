"""The buffered linear Toeplitz matrix of least error for given participation bounds (McMahan et al. 2024)."""

from __future__ import annotations

import itertools
import math
from typing import Final

import numpy as np
from scipy.optimize import minimize

from fedlearn.errors import InvalidSpend
from fedlearn.privacy.error import max_error
from fedlearn.privacy.factorization import Blt
from fedlearn.privacy.participation import Participation
from fedlearn.privacy.sensitivity import squared_sensitivity
from fedlearn.types import F64

MOST_BUFFERS: Final = 4
_DIGITS: Final = 10
# Logits of decays and log-odds of scales stay within: decays in (1e-6, 1 - 1e-6), scales above 1e-9 with a sum of at
# most 1 - 1e-9. Written with ten digits they are still valid.
_DECAY_LOGIT: Final = 14.0
_SCALE_LOG_ODDS: Final = 20.0
_SHORTEST_MEMORY: Final = 1.5


def optimize_blt(steps: int, min_separation: int, max_participations: int, buffers: int = 2) -> Blt:
    """Return a Blt whose ``max_error``, at its own sensitivity, is the least that was found.

    Deterministic: quasi-Newton descent from a fixed set of starts, one of them the best Blt of a buffer fewer. It never
    does worse than independent noise by more than a few parts in 1e8, which is the best there is where a unit may take
    part in every step: a Blt comes as close to independent noise as one likes.

    Every result is a valid Blt, so whatever the search does, its sensitivity is bounded by ``squared_sensitivity``.

    Args:
        steps: n >= 1.
        min_separation: b >= 1, y - x.
        max_participations: k in [1, ceil(n / b)].
        buffers: floats of noise state per parameter, in [1, 4].

    Raises:
        InvalidSpend: an argument is out of range.
    """
    Participation(min_separation, max_participations).check_fits(steps)
    if isinstance(buffers, bool) or not isinstance(buffers, int) or not 1 <= buffers <= MOST_BUFFERS:
        raise InvalidSpend(f"buffers={buffers!r}: must be an integer in [1, {MOST_BUFFERS}].")

    def log_error(point: F64) -> float:
        return math.log(_error(_blt(point), steps, min_separation, max_participations))

    best = np.empty(0)
    for count in range(1, buffers + 1):
        starts = _starts(count, steps, min_separation, best)
        found = [minimize(log_error, start, method="L-BFGS-B", bounds=_bounds(count)) for start in starts]
        best = min(found, key=lambda result: float(result.fun)).x
    return _rounded(_blt(best))


def _error(blt: Blt, steps: int, min_separation: int, max_participations: int) -> float:
    return max_error(blt, steps, squared_sensitivity(blt, steps, min_separation, max_participations))


def _starts(buffers: int, steps: int, min_separation: int, fewer: F64) -> list[F64]:
    """Return the points to descend from.

    Memories from a few steps up to the separation, the whole run, or between; noise that is nearly independent; and
    the best of one buffer fewer, with one more that is short and almost unused.
    """
    longest = max(float(min(min_separation, steps)), 2 * _SHORTEST_MEMORY)
    starts = []
    for memory, total in itertools.product((longest, math.sqrt(longest), max(float(steps), longest)), (0.5, 0.05)):
        memories = np.geomspace(memory, _SHORTEST_MEMORY, buffers)
        starts.append(_point(np.exp(-1 / memories), np.full(buffers, total / buffers)))
    starts.append(np.concatenate([np.linspace(1.0, -1.0, buffers), np.full(buffers, -_SCALE_LOG_ODDS)]))
    if fewer.size:
        blt = _blt(fewer)
        starts.extend(
            _point(np.array([*blt.decay, short]), np.array([*blt.scale, min(0.01, (1 - sum(blt.scale)) / 2)]))
            for short in (0.1, 0.5)
        )
    return starts


def _point(decay: F64, scale: F64) -> F64:
    """Return the free parameters of a Blt: its decays' logits, and its scales' log-odds against what 1 leaves."""
    rest = 1 - float(scale.sum())
    logits = np.clip(np.log(decay / (1 - decay)), -_DECAY_LOGIT, _DECAY_LOGIT)
    log_odds = np.clip(np.log(scale / rest), -_SCALE_LOG_ODDS, _SCALE_LOG_ODDS)
    return np.concatenate([logits, log_odds])


def _blt(point: F64) -> Blt:
    """Return the Blt of free parameters: whatever they are, its scales sum up to less than 1."""
    logits, log_odds = np.split(point, 2)
    odds = np.exp(log_odds)
    scale = odds / (1 + odds.sum())
    return Blt(_distinct(1 / (1 + np.exp(-logits))), tuple(map(float, scale)))


def _distinct(decay: F64) -> tuple[float, ...]:
    """Return the decays, moved apart by a millionth where two coincide, as they do at a bound."""
    values: list[float] = []
    for value in map(float, decay):
        while value in values:
            value -= 1e-6 * value  # noqa: PLW2901
        values.append(value)
    return tuple(values)


def _bounds(buffers: int) -> list[tuple[float, float]]:
    return [(-_DECAY_LOGIT, _DECAY_LOGIT)] * buffers + [(-_SCALE_LOG_ODDS, _SCALE_LOG_ODDS)] * buffers


def _rounded(blt: Blt) -> Blt:
    """Return the Blt in decimals that can be read and compared, by falling decay."""
    pairs = sorted(zip(blt.decay, blt.scale, strict=True), reverse=True)
    decay = _distinct(np.array([float(f"{value:.{_DIGITS}g}") for value, _ in pairs]))
    return Blt(decay, tuple(float(f"{value:.{_DIGITS}g}") for _, value in pairs))

"""From canary scores to epsilon: an estimate that can be wrong, and a lower bound that cannot (at its confidence)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fedlearn.errors import OutOfRange
from fedlearn.privacy.gaussian import gaussian_epsilon
from fedlearn.types import F64

CONFIDENCE: Final = 0.95
GUESSED_PARTS: Final = (0.1, 0.3, 1.0)
"""Parts of the canaries that are guessed, clearest scores first. Fixed before any score is seen; the best of the
three bounds is taken, each at a third of the error (Bonferroni)."""

_HIGHEST_EPSILON: Final = 64.0
_BISECTIONS: Final = 40
_NORMAL_QUANTILE: Final = float(stats.norm.ppf((1 + CONFIDENCE) / 2))


@dataclass(frozen=True, slots=True)
class GaussianEstimate:
    """Epsilon of the Gaussian mechanism that would give such scores.

    Args:
        mu: how many standard deviations a canary's taking part moves its score.
        epsilon: at the audit's delta.
        low: lower end of the 95 % interval of ``epsilon``.
        high: upper end.
    """

    mu: float
    epsilon: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class LowerBound:
    """A bound that holds with 95 % confidence, whatever the mechanism.

    Args:
        epsilon: no mechanism with less is (epsilon, delta)-DP and guessed so well; 0 where nothing was shown.
        guesses: canaries guessed at, of the best threshold.
        correct: correct guesses.
    """

    epsilon: float
    guesses: int
    correct: int


def gaussian_estimate(scores_of_included: F64, delta: float) -> GaussianEstimate:
    """Estimate epsilon by the distance of two normal distributions of equal variance.

    Scores are scaled so that a canary that took no part scores N(0, 1), which holds by symmetry of random directions
    whatever was released (Andrew et al. 2023); that is why no variance is fitted. The estimate is consistent where the
    mechanism is Gaussian and the signal of the other phones is small beside the noise; it is no bound.

    Args:
        scores_of_included: f64[n], n >= 2, scores of the canaries that took part.
        delta: in (0, 1).

    Raises:
        OutOfRange: fewer than two scores.
    """
    count = len(scores_of_included)
    if count < 2:
        raise OutOfRange(f"canaries: {count} took part; an interval needs two, use more canaries.")
    mu = float(scores_of_included.mean())
    margin = _NORMAL_QUANTILE * float(scores_of_included.std(ddof=1)) / math.sqrt(count)
    low, middle, high = (gaussian_epsilon(max(value, 0.0), delta) for value in (mu - margin, mu, mu + margin))
    return GaussianEstimate(mu, middle, low, high)


def lower_bound(scores: F64, included: NDArray[np.bool_], delta: float) -> LowerBound:
    """Return the best of the bounds over ``GUESSED_PARTS``.

    Guarantee: if each canary took part by its own fair coin, and flipping one coin changes the distribution of what
    the auditor sees by at most (epsilon, delta), then the bound exceeds epsilon with probability at most 5 %. Nothing
    is assumed about the mechanism, the scores, or other phones.

    Args:
        scores: f64[m], higher where the canary is more likely to have taken part; made without knowing ``included``.
        included: bool[m], the coins.
        delta: in (0, 1).
    """
    # Midway between the two quartiles: between the two groups, wherever they lie, and made without the coins.
    side = scores - np.quantile(scores, (0.25, 0.75)).mean()
    right = (side > 0) == included
    order = np.argsort(-np.abs(side), kind="stable")
    level = (1.0 - CONFIDENCE) / len(GUESSED_PARTS)
    best = LowerBound(0.0, 0, 0)
    for part in GUESSED_PARTS:
        guesses = int(part * len(scores))
        correct = int(right[order[:guesses]].sum())
        shown = one_run_bound(len(scores), guesses, correct, delta, level)
        if shown >= best.epsilon:
            best = LowerBound(shown, guesses, correct)
    return best


def one_run_bound(canaries: int, guesses: int, correct: int, delta: float, level: float) -> float:
    """Return the largest epsilon that ``correct`` of ``guesses`` refutes at ``level`` (0 if none), by bisection.

    Valid though the p-value need not be monotone in epsilon: a mechanism that is (epsilon, delta)-DP is so for every
    larger epsilon too, and for each of these the count must reach a critical value that it reaches with probability at
    most ``level``; the least of the critical values bounds them all.
    """

    def refuted(epsilon: float) -> bool:
        return one_run_p_value(canaries, guesses, correct, epsilon, delta) <= level

    return _largest(refuted)


def one_run_p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Bound the probability of so many correct guesses under (epsilon, delta)-DP (Steinke et al. 2023, cor. 5.4).

    With F(v) = P[Binomial(guesses, e^epsilon / (1 + e^epsilon)) >= v] it is
    F(correct) + 2 canaries delta max_i (F(correct - i) - F(correct)) / i.

    Args:
        canaries: m, each included by its own fair coin.
        guesses: r <= m, how many coins were guessed; the others were left open.
        correct: right guesses, <= r.
        epsilon: >= 0.
        delta: in [0, 1).

    Raises:
        OutOfRange: not 0 <= correct <= guesses <= canaries.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise OutOfRange(f"correct={correct}: need 0 <= correct <= guesses={guesses} <= canaries={canaries}.")
    accuracy = 1.0 / (1.0 + math.exp(-epsilon))
    tail = float(stats.binom.sf(correct - 1, guesses, accuracy))
    if correct == 0:
        return tail
    below = np.cumsum(stats.binom.pmf(np.arange(correct - 1, -1, -1), guesses, accuracy))
    steepest = float((below / np.arange(1, correct + 1)).max())
    return min(1.0, tail + 2.0 * canaries * delta * steepest)


def _largest(refuted: Callable[[float], bool]) -> float:
    low, high = 0.0, _HIGHEST_EPSILON
    if not refuted(low):
        return 0.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low

"""Full ranking, ranking metrics, and intervals by bootstrap over users.

Ties count against the positive: an item with the same score as the chosen one ranks before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import UnknownSetting
from fedlearn.rng import simulation_rng
from fedlearn.types import F64, I64

Metric = Callable[[I64], F64]
"""1-based ranks i64[n] -> value of each session, f64[n]."""

MetricBuilder = Callable[[int | None], Metric]
"""Cutoff k (None for a metric without one) -> metric. Found through the entry point group ``fedlearn.metrics``."""

LOW, HIGH = 2.5, 97.5


def ranks(scores: NDArray[np.floating], labels: I64) -> I64:
    """Return the 1-based rank of each label.

    Args:
        scores: [n, N], higher is better; NaN ranks as a tie, hence against the positive.
        labels: i64[n], the chosen item's position.
    """
    chosen = scores[np.arange(len(labels)), labels][:, None]
    # every item that is not strictly worse stands before the chosen one, itself included
    not_worse: I64 = (~(scores < chosen)).sum(axis=1).astype(np.int64)
    return not_worse


def hit_rate(cutoff: int | None) -> Metric:
    """HR@k: 1 where the chosen item is among the first k."""
    k = _cutoff("HR", cutoff)
    return lambda rank: (rank <= k).astype(np.float64)


def ndcg(cutoff: int | None) -> Metric:
    """NDCG@k with one relevant item: 1 / log2(rank + 1) within the first k (Järvelin & Kekäläinen 2002)."""
    k = _cutoff("NDCG", cutoff)
    return lambda rank: np.where(rank <= k, 1.0 / np.log2(rank + 1.0), 0.0)


def reciprocal_rank(cutoff: int | None) -> Metric:
    """MRR: 1 / rank, or 0 beyond the cutoff if there is one."""
    return lambda rank: np.where(rank <= (cutoff or np.inf), 1.0 / rank, 0.0)


def _cutoff(name: str, cutoff: int | None) -> int:
    if cutoff is None:
        raise UnknownSetting(f"evaluation.metrics: {name} needs a cutoff, e.g. {name}@10.")
    return cutoff


@dataclass(frozen=True)
class UserBootstrap:
    """Resamples of the users, shared by everything that is compared, so that differences are paired.

    Users are resampled, not sessions: a user's sessions are not independent (Efron & Tibshirani 1993, ch. 8).

    Args:
        users: i64[n], the user of each session.
        draws: number of resamples, >= 100.
    """

    users: I64 = field(repr=False)
    draws: int

    def __post_init__(self) -> None:
        _, inverse = np.unique(self.users, return_inverse=True)
        count = int(inverse.max(initial=-1)) + 1
        rng = simulation_rng(0, -1, "", "bootstrap")
        weights = rng.multinomial(count, np.full(count, 1.0 / max(count, 1)), size=self.draws).astype(np.float64)
        object.__setattr__(self, "_inverse", inverse)
        object.__setattr__(self, "_weights", weights)

    @property
    def user_count(self) -> int:
        """Distinct users."""
        return int(self._weights.shape[1])

    def means(self, values: F64) -> F64:
        """Return the resampled means f64[draws] of per-session values f64[n]."""
        sums = np.bincount(self._inverse, weights=values, minlength=self.user_count)
        sizes = np.bincount(self._inverse, minlength=self.user_count)
        resampled: F64 = (self._weights @ sums) / np.maximum(self._weights @ sizes, 1.0)
        return resampled

    def interval(self, values: F64) -> tuple[float, float]:
        """Return the 95 % percentile interval of the mean."""
        return percentile_interval(self.means(values))

    _inverse: I64 = field(init=False, repr=False)
    _weights: F64 = field(init=False, repr=False)


def percentile_interval(resampled: F64) -> tuple[float, float]:
    """Return the 2.5th and 97.5th percentiles."""
    low, high = np.percentile(resampled, [LOW, HIGH])
    return float(low), float(high)

"""A token bucket per app: short bursts pass, a steady flood does not."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from fedlearn.errors import OutOfRange, RateLimited

_APPS: Final = 256
"""Remembered at a time; one that is forgotten has been idle longest, and its bucket is full again anyway."""


class Buckets:
    """Lets each app call ``rate`` times a second on average, and ``burst`` times at once.

    Args:
        rate: tokens a second, finite, > 0.
        burst: tokens a full bucket holds, >= 1.
        clock: monotonic seconds.

    Raises:
        OutOfRange: rate or burst.
    """

    def __init__(self, rate: float, burst: int, clock: Callable[[], float]) -> None:
        if not (math.isfinite(rate) and rate > 0.0):
            raise OutOfRange(f"recommend_rate={rate}: must be finite and > 0, e.g. 10.")
        if burst < 1:
            raise OutOfRange(f"recommend_burst={burst}: must be >= 1, e.g. 20.")
        self._rate = rate
        self._burst = float(burst)
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens: OrderedDict[str, tuple[float, float]] = OrderedDict()  # app -> tokens, when counted

    def take(self, app: str) -> None:
        """Take one token of ``app``.

        Raises:
            RateLimited: there is none; says in how many seconds there will be.
        """
        now = self._clock()
        with self._lock:
            tokens, counted = self._tokens.pop(app, (self._burst, now))
            tokens = min(self._burst, tokens + max(0.0, now - counted) * self._rate)
            allowed = tokens >= 1.0
            self._tokens[app] = (tokens - 1.0 if allowed else tokens, now)
            if len(self._tokens) > _APPS:
                self._tokens.popitem(last=False)
        if not allowed:
            raise RateLimited(f"too many calls; ask again in {(1.0 - tokens) / self._rate:.1f} s.")

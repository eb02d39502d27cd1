"""How often a resident node asks, and how long it waits."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a node does what; all in seconds.

    Args:
        shortest: wait after an empty pull; twice as long each time,
        longest: but no longer than this,
        idle: or than this where there was nothing to do for ``idle_after``.
        idle_after: see ``idle``.
        retry: longest wait for a SuperLink that is silent.
        refused: wait for one that refuses.
        heartbeat: between heartbeats.
        polite: where there is no rhythm, wait this many times longer than an empty pull took beyond the quickest,
        busiest: but no longer than this, nor than this between two rounds.
    """

    shortest: float = 0.05
    longest: float = 0.5
    idle: float = 1.0
    idle_after: float = 120.0
    retry: float = 2.0
    refused: float = 5.0
    heartbeat: float = 8.0
    polite: float = 32.0
    busiest: float = 4.0


class Rhythm:
    """How long a node waits after an empty pull.

    SuperLink is one Python process: 64 nodes that ask twice a second whatever it is doing take all of it, and no round
    ends. So the longest wait grows with what a round takes (a quarter of the time between the last two questions),
    and where there are no rounds, with how long an empty pull takes, which is what each node sees of the others.

    Args:
        pace: bounds.
        now: monotonic seconds.
    """

    def __init__(self, pace: Pace, now: float) -> None:
        self._pace = pace
        self._worked = now
        self._period: float | None = None
        self._asked: float | None = None
        self._wait = pace.shortest
        self._quickest = math.inf

    def question(self, asked: float, answered: float) -> None:
        """A question arrived at ``asked`` and was answered at ``answered`` (monotonic seconds)."""
        self._period = None if self._asked is None else asked - self._asked
        self._asked, self._worked = asked, answered
        self._wait = self._pace.shortest

    def empty(self, took: float, now: float) -> float:
        """Return the seconds to wait after an empty pull that took ``took`` and ended at ``now`` (monotonic)."""
        pace = self._pace
        self._quickest = min(self._quickest, took)
        wait, idle = self._wait, now - self._worked > pace.idle_after
        if idle or self._period is None:
            longest = pace.idle if idle else pace.longest
            wait = max(wait, min(pace.busiest, pace.polite * (took - self._quickest)))
        else:
            longest = max(pace.longest, min(pace.busiest, self._period / 4.0))
        self._wait = min(2.0 * self._wait, longest)
        return wait

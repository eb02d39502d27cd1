"""How often a resident node asks, and how long it waits."""

from __future__ import annotations

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
    """

    shortest: float = 0.05
    longest: float = 0.5
    idle: float = 1.0
    idle_after: float = 120.0
    retry: float = 2.0
    refused: float = 5.0
    heartbeat: float = 3.0

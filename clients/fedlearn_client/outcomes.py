"""How a local round ended, and when to try again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from fedlearn.errors import (
    ContributionRejected,
    FedlearnError,
    StoreFailed,
    TaskRefused,
    TransportFailed,
    TrustError,
    WireError,
    WorkerFailed,
)


class Retry(StrEnum):
    """When a round may be tried again, if the gateway says nothing else."""

    TRANSIENT = "transient"  # 15 minutes
    PERMANENT = "permanent"  # 4 hours


@dataclass(frozen=True, slots=True)
class Outcome:
    """One ending.

    Args:
        words: stable; as ``LocalRun.outcome``.
        retry: when to try again.
        retry_after_s: what the gateway asked for, 0 where it did not.
        asked: whether a request was made; if none was, there is nothing to wait for but the obstacle.
    """

    words: str
    retry: Retry
    retry_after_s: float = 0.0
    asked: bool = True

    def after(self, seconds: float) -> Outcome:
        """Return this outcome with what the gateway asked for."""
        return replace(self, retry_after_s=seconds)


_ENDINGS: Final[tuple[tuple[type[FedlearnError], str, Retry], ...]] = (
    (TrustError, "refused: status", Retry.PERMANENT),
    (TransportFailed, "abandoned: transport", Retry.TRANSIENT),
    (StoreFailed, "abandoned: store", Retry.TRANSIENT),
    (WorkerFailed, "abandoned: worker", Retry.PERMANENT),
    (ContributionRejected, "abandoned: contribution", Retry.PERMANENT),
    (WireError, "abandoned: contribution", Retry.PERMANENT),
)


def ending_of(error: FedlearnError) -> Outcome:
    """Return the outcome of a round that ended with ``error``. The words name a kind, never the owner's data."""
    if isinstance(error, TaskRefused):
        return Outcome(f"refused: {error.reason}", Retry.PERMANENT)
    for kind, words, retry in _ENDINGS:
        if isinstance(error, kind):
            return Outcome(words, retry)
    return Outcome(f"abandoned: {error.code}", Retry.PERMANENT)

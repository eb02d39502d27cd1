"""What was known on which occasion: a pure rule over rows, and nothing else.

An *occasion* of training is a choice of an item of the target domain, at time t. Known on it are

- the owner's messages with a time after the previous such choice (or after t - 24 h, if that is later) and before t,
  the newest 200 of them: what bounds the time of a ranking;
- the newest 50 choices of any domain before t.

*Present* is the same with t = now and nothing chosen. All bounds are exclusive; equal times are in row order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from fedlearn_client.hooks import EarlierChoice, Occasion

MESSAGES_S: Final = 24 * 3_600.0
MESSAGES: Final = 200
EARLIER: Final = 50


@dataclass(frozen=True, slots=True)
class ChoiceRow:
    """A stored choice: time, catalogue key, reporting app."""

    time: float
    item: str = field(repr=False)
    app: str


MessagesBetween = Callable[[float, float], Sequence[bytes]]
"""Bodies of the newest ``MESSAGES`` granted messages with a time strictly between the two, by time and row."""


def is_of(domain: str, item: str) -> bool:
    """Whether the catalogue key ``item`` is of ``domain``; none is of the domain ""."""
    return bool(domain) and item.startswith(f"{domain}:")


def occasion_at(
    time: float, chosen: str, domain: str, before: Sequence[ChoiceRow], messages: MessagesBetween
) -> Occasion:
    """Return what was known at ``time``.

    Args:
        time: seconds since the Unix epoch.
        chosen: catalogue key, "" for a present wish.
        domain: the target domain.
        before: granted choices before this one, by time and row; those of the same time come first in row order.
        messages: reads granted messages.
    """
    previous = next((row.time for row in reversed(before) if is_of(domain, row.item)), -float("inf"))
    known = [row for row in before if row.time < time][-EARLIER:]
    return Occasion(
        said=tuple(messages(max(previous, time - MESSAGES_S), time)),
        earlier=tuple(EarlierChoice(row.item, row.app) for row in known),
        chosen=chosen,
    )


def training_positions(choices: Sequence[ChoiceRow], domain: str, limit: int) -> list[int]:
    """Return where in ``choices`` the newest ``limit`` occasions are, oldest first."""
    found = [position for position, row in enumerate(choices) if is_of(domain, row.item)]
    return found[max(0, len(found) - limit) :]

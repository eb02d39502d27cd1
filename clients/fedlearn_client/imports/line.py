"""One message that the owner wrote."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class OwnLine:
    """One message that the owner wrote.

    Args:
        text: the words; hidden from repr because a traceback must not carry them.
        time: seconds since the Unix epoch.
        foreign_spans: half-open code-point ranges of ``text`` that are quoted.
    """

    text: str = field(repr=False)
    time: float
    foreign_spans: tuple[tuple[int, int], ...] = ()

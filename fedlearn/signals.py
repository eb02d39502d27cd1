"""What a phone sees before features are made: the owner's messages and choices.

These types exist on a phone during ingest, and in the simulator. They never go over the wire and are never stored;
what is kept is a ``fedlearn.features`` Query.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Direction(StrEnum):
    """Who wrote a message. Only what the owner wrote may become a feature."""

    OUTGOING = "outgoing"
    INCOMING = "incoming"


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message.

    Args:
        text: the words; repr is hidden because a traceback must not carry them.
        direction: who wrote it.
        time: seconds since the session's start, any monotone integer.
        foreign_spans: half-open code-point ranges of ``text`` that are quoted or forwarded, declared by the producer.
    """

    text: str
    direction: Direction
    time: int = 0
    foreign_spans: tuple[tuple[int, int], ...] = ()

    def __repr__(self) -> str:
        return f"Message(<{len(self.text)} code points>, {self.direction}, time={self.time})"


@dataclass(frozen=True, slots=True)
class Choice:
    """Something the owner chose earlier, in this app or another.

    Args:
        item: the chosen item's catalogue key (``domain:name``).
        app: the app that reports it, e.g. ``"maps"``.
        time: seconds on the same clock as the messages.
    """

    item: str
    app: str
    time: int = 0


@dataclass(frozen=True, slots=True)
class Session:
    """One occasion on which the owner chose an item of the target domain: one training example.

    Args:
        messages: what was said strictly before the turn that names the item, oldest first, both directions.
        earlier: what the owner chose before, oldest first.
        chosen: position of the chosen item in the catalogue (the label).
        group: the dialogue the session belongs to; folds by dialogue never split a group.
    """

    messages: tuple[Message, ...]
    earlier: tuple[Choice, ...]
    chosen: int
    group: str


@dataclass(frozen=True, slots=True)
class Device:
    """One phone of a simulated population: the unit of privacy.

    Args:
        id: stable name, unique in the population; keys all per-device randomness.
        sessions: oldest first; may be empty.
    """

    id: str
    sessions: tuple[Session, ...]

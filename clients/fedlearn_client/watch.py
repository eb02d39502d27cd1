"""Looks, while a round runs, whether it may go on, and ends it where it may not."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from fedlearn_client.outcomes import Outcome, Retry
from fedlearn_client.readiness import Obstacle

if TYPE_CHECKING:
    import threading

    from fedlearn.device.bundle import Bundle
    from fedlearn_client.rooms import Rooms


class Over(Exception):
    """The round ends here."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.words)
        self.outcome = outcome


class Watch:
    """Looks each second whether a round may go on. What it looks at does not depend on what the owner's data say."""

    def __init__(self, rooms: Rooms, bundle: Bundle, ending: threading.Event) -> None:
        self._rooms = rooms
        self._ending = ending
        self._bundle = bundle
        self._generation = rooms.consent.generation

    def __call__(self) -> bool:
        return self._obstacle() is not None

    def require(self) -> None:
        """End the round if it may not go on."""
        obstacle = self._obstacle()
        if obstacle is not None:
            abandon(obstacle)

    def require_consent(self) -> None:
        """End the round if consent is no longer what it was; inside a transaction, it can not change until the end."""
        if self._rooms.consent.generation != self._generation:
            abandon(Obstacle.CONSENT_CHANGED)

    def _obstacle(self) -> Obstacle | None:
        if self._ending.is_set():
            return Obstacle.STOPPING
        # before consent: what is stopped serves nothing, granted or not
        trust = self._rooms.readiness.trust(self._bundle)
        if trust is None and self._rooms.consent.generation != self._generation:
            return Obstacle.CONSENT_CHANGED
        return trust or self._rooms.readiness.going_on(self._bundle)


def refuse(obstacle: Obstacle, *, asked: bool = True) -> NoReturn:
    """End a round before it has a task; ``asked``: whether a request was made."""
    retry = Retry.PERMANENT if obstacle in {Obstacle.STOPPED, Obstacle.EXPIRED} else Retry.TRANSIENT
    raise Over(Outcome(f"refused: {obstacle}", retry, asked=asked))


def abandon(obstacle: Obstacle) -> NoReturn:
    """End a round that has a task."""
    raise Over(Outcome(f"abandoned: {obstacle}", Retry.TRANSIENT))

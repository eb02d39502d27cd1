"""The owner of the demonstration's phone: one inhabitant of the simulated city, as their apps know them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from fedlearn.lab.city.config import CityConfig
from fedlearn.lab.city.generator import City
from fedlearn.proto import device_pb2 as pb
from fedlearn.signals import Direction, Message, Session

_DAY_S: Final = 86_400
_DIRECTIONS: Final = {Direction.OUTGOING: pb.DIRECTION_OUTGOING, Direction.INCOMING: pb.DIRECTION_INCOMING}
POSITION: Final = 34  # writes English, and changes their mind in the last session


@dataclass(frozen=True, slots=True)
class Owner:
    """What the apps of one phone hold.

    Args:
        chat: both sides of the conversation.
        choices: app -> items chosen in it.
        said_last: the owner's newest messages, for the story.
        will_choose: what the owner goes to in the end: what a good ranking has near its top.
    """

    chat: tuple[pb.Signal, ...] = field(repr=False)
    choices: dict[str, tuple[pb.Signal, ...]] = field(repr=False)
    said_last: tuple[str, ...] = field(repr=False)
    will_choose: str = field(repr=False)


def make_owner(config: CityConfig, now: float, position: int = POSITION) -> Owner:
    """Return one inhabitant; their last session is the present one, and what they chose in it is not in any app yet.

    Args:
        config: the city the model was trained for.
        now: seconds since the Unix epoch; the sessions are laid on the days before.
        position: which inhabitant.
    """
    city = City(config)
    sessions = city.device(position).sessions
    chat: list[pb.Signal] = []
    choices: dict[str, list[pb.Signal]] = {}
    for number, session in enumerate(sessions):
        # sessions a day apart; the last one began a quarter of an hour ago
        begin = now - 900 - _DAY_S * (len(sessions) - 1 - number)
        chat += [_message(message, f"{number}-{place}", begin) for place, message in enumerate(session.messages)]
        for place, choice in enumerate(_new_choices(session, sessions[:number])):
            item, app, age = choice
            choices.setdefault(app, []).append(_choice(item, f"{number}-{place}", begin - 3600 * age))
        if number < len(sessions) - 1:
            chosen = city.catalogue.items[session.chosen].key
            choices.setdefault("dining", []).append(_choice(chosen, f"{number}", begin + 1800))
    last = sessions[-1]
    return Owner(
        chat=tuple(chat),
        choices={app: tuple(signals) for app, signals in choices.items()},
        said_last=tuple(m.text for m in last.messages if m.direction is Direction.OUTGOING),
        will_choose=city.catalogue.items[last.chosen].key,
    )


def _new_choices(session: Session, before: tuple[Session, ...]) -> list[tuple[str, str, int]]:
    """Return (item, app, hours before the session) of choices that no earlier session knew; dining is told apart."""
    known = {choice.item for earlier in before for choice in earlier.earlier}
    fresh = [choice for choice in session.earlier if choice.item not in known and choice.app != "dining"]
    return [(choice.item, choice.app, len(fresh) - place) for place, choice in enumerate(fresh)]


def _message(message: Message, name: str, begin: float) -> pb.Signal:
    signal = pb.Signal(id=name, time_ms=int((begin + message.time) * 1000))
    signal.message.text = message.text
    signal.message.direction = _DIRECTIONS[message.direction]
    return signal


def _choice(item: str, name: str, time: float) -> pb.Signal:
    signal = pb.Signal(id=name, time_ms=int(time * 1000))
    signal.choice.item = item
    return signal

"""The simulated city: its catalogue, and its phones one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fedlearn.catalogue import Catalogue
from fedlearn.errors import OutOfRange
from fedlearn.lab.city.config import CityConfig
from fedlearn.lab.city.people import (
    APPS,
    DINING,
    ChoiceModel,
    Content,
    Floats,
    Intent,
    Tastes,
    draw_content,
    draw_intent,
    draw_tastes,
    pick,
    softmax,
)
from fedlearn.lab.city.places import Places, build_places
from fedlearn.lab.city.sentences import Speaker
from fedlearn.lab.city.tables import CONTENT_APPS
from fedlearn.rng import simulation_rng
from fedlearn.signals import Choice, Device, Session

DAY = 86_400
APP_NAMES = ("maps", *(kind.app for kind in CONTENT_APPS), "dining")
CONTENT_PROB = (0.8, 1.0, 0.8)
"""Chance that a session's days saw one choice in each content app (a second one has half that chance)."""


@dataclass(frozen=True, slots=True)
class Episode:
    """One session as a device could know it: what was said, chosen, and chosen elsewhere before.

    Args:
        content: what the outgoing messages say.
        sight: today's sight, visited just before.
        picks: (content app 1.., item) of the days before.
        chosen: the chosen restaurant.
        day: days since the phone's first session.
    """

    content: Content
    sight: int
    picks: tuple[tuple[int, int], ...]
    chosen: int
    day: int


@dataclass(frozen=True)
class Life:
    """A person with the truth: tastes and intents are what no device sees.

    Args:
        tastes: the hidden state.
        intents: true intent of each session.
        episodes: the visible part, oldest first.
        chinese: writes Chinese, else English.
    """

    tastes: Tastes
    intents: tuple[Intent, ...]
    episodes: tuple[Episode, ...]
    chinese: bool


class City:
    """A simulated city (CrossApp-Sim): a function of its config, with no state that grows.

    Args:
        config: settings; see ``CityConfig``.
    """

    def __init__(self, config: CityConfig) -> None:
        self.config = config
        self.places: Places = build_places(config)
        self.model = ChoiceModel(self.places, config.rho)

    @property
    def catalogue(self) -> Catalogue:
        """The public catalogue: ranked restaurants; sights, books, clips and products as context."""
        return self.places.catalogue

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over the settings and the generator's version."""
        return self.config.digest

    def __len__(self) -> int:
        return self.config.devices

    def device(self, position: int) -> Device:
        """Return phone ``position``, 0..devices-1: a function of the settings and the position alone.

        Raises:
            OutOfRange: no such phone.
        """
        life = self.life(position)
        speaker = Speaker(self._rng(position, "words"), life.chinese)
        name = device_id(position)
        earlier: list[tuple[int, str, str]] = []
        sessions = []
        for number, episode in enumerate(life.episodes):
            now = episode.day * DAY
            earlier += self._context(episode, now)
            choices = tuple(Choice(key, app, when - now) for when, app, key in sorted(earlier, key=lambda row: row[0]))
            messages = speaker.dialogue(episode.content)
            sessions.append(Session(messages, choices, episode.chosen, f"{name}/{number}"))
            earlier.append((now + 600, APP_NAMES[DINING], self.catalogue.items[episode.chosen].key))
        return Device(name, tuple(sessions))

    def devices(self, start: int = 0, stop: int | None = None) -> Iterator[Device]:
        """Yield the phones ``start`` .. ``stop - 1`` (default: all), one in memory at a time."""
        for position in range(start, self.config.devices if stop is None else stop):
            yield self.device(position)

    def life(self, position: int) -> Life:
        """Return the whole truth about phone ``position``; only the generator and the oracle may look.

        Raises:
            OutOfRange: no such phone.
        """
        if not 0 <= position < self.config.devices:
            raise OutOfRange(f"device position {position}: must be in 0..data.devices-1={self.config.devices - 1}.")
        rng, config = self._rng(position, "life"), self.config
        tastes = draw_tastes(rng, config.rho)
        count = int(rng.integers(config.sessions_min, config.sessions_max + 1))
        chinese = config.language == "zh" or (config.language == "mixed" and bool(rng.random() < 0.5))
        menus = self._menus(tastes)
        intents, episodes, day = [], [], 0
        for _ in range(count):
            day += int(rng.integers(2, 9))
            intent = draw_intent(rng, self.model, tastes.theta[DINING])
            episodes.append(self._episode(rng, tastes, intent, menus, day))
            intents.append(intent)
        return Life(tastes, tuple(intents), tuple(episodes), chinese)

    def _menus(self, tastes: Tastes) -> list[Floats]:
        """Choice probabilities of each app but dining."""
        content = [self.model.app_phi[app] @ tastes.theta[app] for app in range(1, APPS - 1)]
        return [softmax(self.model.sight_utility(tastes)), *(softmax(utility) for utility in content)]

    def _episode(
        self, rng: np.random.Generator, tastes: Tastes, intent: Intent, menus: list[Floats], day: int
    ) -> Episode:
        content = draw_content(rng, intent)
        u = rng.random(2 + 4 * len(CONTENT_PROB))
        sight = pick(menus[0], u[0])
        picks = []
        for app, chance in enumerate(CONTENT_PROB, start=1):
            first = 2 + 4 * (app - 1)
            if u[first] < chance:
                picks.append((app, pick(menus[app], u[first + 1])))
            if u[first + 2] < chance / 2:
                picks.append((app, pick(menus[app], u[first + 3])))
        chosen = pick(softmax(self.model.utility(tastes, intent, sight)), u[1])
        return Episode(content, sight, tuple(picks), chosen, day)

    def _context(self, episode: Episode, now: int) -> list[tuple[int, str, str]]:
        """(time, app, key) of what was chosen elsewhere before this session; today's sight comes last."""
        rows = []
        for number, (app, item) in enumerate(episode.picks):
            rows.append((now - DAY + 3600 * number, APP_NAMES[app], self._context_key(app, item)))
        return [*rows, (now - 1800, APP_NAMES[0], self._context_key(0, episode.sight))]

    def _context_key(self, app: int, item: int) -> str:
        return self.catalogue.context[self.places.context_position(app, item)].key

    def _rng(self, position: int, purpose: str) -> np.random.Generator:
        return simulation_rng(self.config.seed, -1, device_id(position), purpose)


def device_id(position: int) -> str:
    """Return the stable name of phone ``position``."""
    return f"city-{position:07d}"

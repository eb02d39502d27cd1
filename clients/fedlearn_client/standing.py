"""How this phone stands with its gateway: why it was denied work, and how long it asks no more.

A phone that was revoked, or whose credential was refused, would be denied again each time: it asks once a day, or after
its settings, its credential or its runtime have changed. Everything else waits as the schedule says.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fedlearn.device.credential import MOST_BYTES
from fedlearn.device.requests import Denial
from fedlearn.errors import ConfigError
from fedlearn.policy.canonical import canonical_bytes
from fedlearn_client import __version__
from fedlearn_client.hooks import ClockAndRng
from fedlearn_client.outcomes import Outcome, Retry
from fedlearn_client.readiness import Obstacle

if TYPE_CHECKING:
    from fedlearn_client.settings import Settings
    from fedlearn_client.store.facts import Facts

DAY_S: Final = 86_400.0
JITTER: Final = 0.2
_FACT: Final = "standing:"
_OBSTACLES: Final = {
    Denial.UNKNOWN: Obstacle.NOT_ENROLLED,
    Denial.CREDENTIAL: Obstacle.CREDENTIAL,
    Denial.REVOKED: Obstacle.REVOKED,
    Denial.VERSION: Obstacle.OLD_RUNTIME,
    Denial.BUNDLE: Obstacle.OLD_BUNDLE,
    Denial.CLOCK: Obstacle.CLOCK,
}
_BARRING: Final = frozenset({Denial.UNKNOWN, Denial.CREDENTIAL, Denial.REVOKED, Denial.VERSION})
_PASSING: Final = frozenset(
    {Denial.CLOCK, Denial.REPLAYED, Denial.RATE, Denial.SEPARATION, Denial.NO_TASK, Denial.BUSY}
)


@dataclass(frozen=True, slots=True)
class Uplink:
    """What the settings say of the gateway.

    Args:
        mark: changes with the gateway's addresses and CA, the credential and the runtime's version.
        credential: as the phone maker issued it; b"" where there is none.
    """

    mark: str
    credential: bytes


NO_UPLINK: Final = Uplink("", b"")


def uplink_of(settings: Settings) -> Uplink:
    """Return what the settings say.

    Raises:
        ConfigError: the credential or the CA cannot be read.
    """
    credential = b"" if settings.credential is None else read_setting("credential", settings.credential, MOST_BYTES)
    ca = b"" if settings.gateway_ca is None else read_setting("gateway_ca", settings.gateway_ca)
    parts = [__version__.encode(), *(address.encode() for address in settings.gateway), ca, credential]
    digests = [hashlib.sha256(part).hexdigest() for part in parts]
    return Uplink(hashlib.sha256("".join(digests).encode()).hexdigest(), credential)


def read_setting(name: str, path: Path, most: int = 256 * 1024) -> bytes:
    """Return the content of a file that a setting names; raise ConfigError where there is none, or too much."""
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise ConfigError(f"{name}={path}: cannot be read ({error.strerror}).") from error
    if not 0 < len(data) <= most:
        raise ConfigError(f"{name}={path}: has {len(data)} bytes or more; must have 1 to {most}.")
    return data


def denial_of(reason: str) -> Denial:
    """Return the denial; one that a newer gateway invented says no more than that there is no task."""
    return Denial(reason) if reason in set(Denial) else Denial.NO_TASK


def outcome_of(denial: Denial) -> Outcome:
    """Return the outcome of a round that ended with a denial."""
    retry = Retry.TRANSIENT if denial in _PASSING else Retry.PERMANENT
    return Outcome(f"refused: {_OBSTACLES.get(denial, denial)}", retry)


class Standing:
    """What the gateway said last, by purpose; durable.

    Args:
        facts: of the store.
        clock_rng: the time, and the chance that spreads phones.
        mark: see ``Uplink``.
    """

    def __init__(self, facts: Facts, clock_rng: ClockAndRng, mark: str) -> None:
        self._facts = facts
        self._clock_rng = clock_rng
        self._mark = mark

    def note(self, purpose: str, denial: Denial | None) -> None:
        """Write what a check-in was answered; None: nothing that stands against another one.

        Raises:
            StoreFailed: it could not be written.
        """
        if denial not in _OBSTACLES:
            if self._read(purpose) is not None:
                self._facts.set(_FACT + purpose, b"")
            return
        chance = int.from_bytes(self._clock_rng.random_bytes(8), "big") / 2.0**64
        until = self._clock_rng.now() + DAY_S * (1.0 + JITTER * chance)
        body = {"denial": denial, "mark": self._mark, "until": until}
        self._facts.set(_FACT + purpose, canonical_bytes(body))

    def bars(self, purpose: str) -> Obstacle | None:
        """Return why the phone does not even ask: it was denied for good, a day ago at most, and nothing changed."""
        body = self._read(purpose)
        if body is None or body["denial"] not in _BARRING or body["mark"] != self._mark:
            return None
        left = body["until"] - self._clock_rng.now()
        # a time further off than any wait is of a clock that was ahead
        return _OBSTACLES[body["denial"]] if 0.0 < left <= DAY_S * (1.0 + JITTER) else None

    def says(self, purpose: str) -> Obstacle | None:
        """Return what stood against the last check-in: for whoever asks why the phone waits."""
        body = self._read(purpose)
        return None if body is None else _OBSTACLES[body["denial"]]

    def _read(self, purpose: str) -> dict[str, Any] | None:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            body = json.loads(self._facts.get(_FACT + purpose) or b"")
            denial, mark, until = Denial(body["denial"]), str(body["mark"]), float(body["until"])
            if denial in _OBSTACLES:
                return {"denial": denial, "mark": mark, "until": until}
        return None

"""The settings of a simulated city."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from fedlearn.errors import EmptyPopulation, OutOfRange, UnknownSetting

GENERATOR_VERSION = 1
"""Goes up whenever the same config would give another city, other people or other words."""

LANGUAGES = ("mixed", "zh", "en")


@dataclass(frozen=True, slots=True)
class CityConfig:
    """A simulated city and its people.

    Args:
        seed: any integer; another seed is another city.
        devices: phones, >= 1.
        rho: correlation of a person's tastes and home between apps, 0..1. 0: apps know nothing of each other.
        restaurants: size of the ranked catalogue, 500..5000.
        language: ``"zh"``, ``"en"``, or ``"mixed"``: half the phones write each.
        sessions_min: fewest sessions of a phone, >= 1.
        sessions_max: most sessions of a phone, >= sessions_min, at most 20.

    Raises:
        EmptyPopulation: ``devices`` < 1.
        OutOfRange: another number is outside its range.
        UnknownSetting: an unknown language.
    """

    seed: int = 0
    devices: int = 1000
    rho: float = 0.6
    restaurants: int = 600
    language: str = "mixed"
    sessions_min: int = 3
    sessions_max: int = 6

    def __post_init__(self) -> None:
        """Refuse what cannot be simulated."""
        if self.devices < 1:
            raise EmptyPopulation(f"data.devices={self.devices}: a city needs at least one phone, e.g. 1000.")
        if not 0.0 <= self.rho <= 1.0:
            raise OutOfRange(f"data.rho={self.rho}: must be in 0..1, e.g. 0.6.")
        if not 500 <= self.restaurants <= 5000:
            raise OutOfRange(f"data.restaurants={self.restaurants}: must be in 500..5000, e.g. 600.")
        if self.language not in LANGUAGES:
            raise UnknownSetting(f"data.language={self.language!r}: choose one of {', '.join(LANGUAGES)}.")
        if not 1 <= self.sessions_min <= 20:
            raise OutOfRange(f"data.sessions_min={self.sessions_min}: must be in 1..20, e.g. 3.")
        if not self.sessions_min <= self.sessions_max <= 20:
            raise OutOfRange(
                f"data.sessions_max={self.sessions_max}: must be in data.sessions_min={self.sessions_min}..20, e.g. 6."
            )

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over the settings and the generator's version."""
        text = json.dumps({"generator": GENERATOR_VERSION, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

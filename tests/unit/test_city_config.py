"""The settings of the simulated city refuse what cannot be simulated, by field and fix."""

from __future__ import annotations

import dataclasses

import pytest

from fedlearn.errors import EmptyPopulation, FedlearnError, OutOfRange, UnknownSetting
from fedlearn.lab.city import City, CityConfig


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"devices": 0}, EmptyPopulation),
        ({"devices": -3}, EmptyPopulation),
        ({"rho": -0.01}, OutOfRange),
        ({"rho": 1.01}, OutOfRange),
        ({"rho": float("nan")}, OutOfRange),
        ({"restaurants": 499}, OutOfRange),
        ({"restaurants": 5001}, OutOfRange),
        ({"language": "fr"}, UnknownSetting),
        ({"sessions_min": 0}, OutOfRange),
        ({"sessions_max": 2}, OutOfRange),
        ({"sessions_max": 21}, OutOfRange),
    ],
)
def test_bad_setting_names_its_field(setting: dict[str, object], error: type[FedlearnError]) -> None:
    with pytest.raises(error, match=f"data.{next(iter(setting))}="):
        CityConfig(**setting)  # type: ignore[arg-type]


def test_digest_follows_every_setting() -> None:
    base = CityConfig()
    other = {
        "seed": 1,
        "devices": 7,
        "rho": 0.5,
        "restaurants": 501,
        "language": "zh",
        "sessions_min": 2,
        "sessions_max": 9,
    }
    digests = {dataclasses.replace(base, **{name: value}).digest for name, value in other.items()}  # type: ignore[arg-type]
    assert len(digests | {base.digest}) == len(other) + 1
    assert City(base).digest == base.digest
    assert len(base.digest) == 64


def test_no_phone_outside_the_city() -> None:
    city = City(CityConfig(devices=2))
    for position in (-1, 2):
        with pytest.raises(OutOfRange, match=r"data\.devices-1=1"):
            city.device(position)

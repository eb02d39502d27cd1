"""The simulated city: its catalogue, and phones that do not depend on how they are asked for."""

from __future__ import annotations

import numpy as np
import pytest

from fedlearn.lab.city import City, CityConfig
from fedlearn.signals import Direction, Session


@pytest.fixture(scope="module")
def city() -> City:
    return City(CityConfig(devices=300))


def test_catalogue_is_complete(city: City) -> None:
    catalogue = city.catalogue
    keys = [item.key for item in (*catalogue.items, *catalogue.context)]
    assert len(set(keys)) == len(keys)
    assert len(catalogue) == 600
    assert {item.domain for item in catalogue.context} == {"attraction", "book", "clip", "product"}
    for item in catalogue.items:
        assert {"cuisine", "dish", "theme", "type"} <= set(item.attributes)
        assert item.price is not None
        assert item.rating is not None
        assert item.price > 0
        assert 3.0 <= item.rating <= 5.0
        assert item.key not in item.nearby
        assert {key.split(":")[0] for key in item.nearby} == {"restaurant", "attraction"}
        assert set(item.nearby) <= set(keys)


def test_nearness_is_mutual(city: City) -> None:
    near = {item.key: set(item.nearby) for item in (*city.catalogue.items, *city.catalogue.context)}
    assert all(key in near[other] for key, others in near.items() for other in others)


def test_values_are_said_in_both_languages(city: City) -> None:
    for item in city.catalogue.items:
        for values in item.attributes.values():
            ascii_values = [value for value in values if value.isascii()]
            assert 2 * len(ascii_values) == len(values)


def test_phone_is_a_function_of_settings_and_position(city: City) -> None:
    again = City(CityConfig(devices=300))
    backwards = [again.device(i) for i in reversed(range(40))]
    assert backwards[::-1] == list(city.devices(0, 40))
    assert list(city.devices(10, 13)) == [city.device(10), city.device(11), city.device(12)]
    larger = City(CityConfig(devices=5000))
    assert larger.device(17) == city.device(17)
    assert larger.catalogue.digest == city.catalogue.digest


def test_words_never_move_choices() -> None:
    chinese, english = (City(CityConfig(devices=20, language=language)) for language in ("zh", "en"))
    for left, right in zip(chinese.devices(), english.devices(), strict=True):
        assert [s.chosen for s in left.sessions] == [s.chosen for s in right.sessions]
        assert [s.earlier for s in left.sessions] == [s.earlier for s in right.sessions]


def test_seed_makes_another_city(city: City) -> None:
    other = City(CityConfig(seed=1, devices=300))
    assert other.catalogue.digest != city.catalogue.digest
    assert other.device(0) != city.device(0)


def _sessions(city: City) -> list[Session]:
    return [session for device in city.devices() for session in device.sessions]


def test_no_message_names_the_chosen_item(city: City) -> None:
    for session in _sessions(city):
        name = city.catalogue.items[session.chosen].name
        chinese, latin = name.split(" ", 1)
        for message in session.messages:
            assert not any(part in message.text for part in (name, chinese, latin))


def test_messages_are_well_formed(city: City) -> None:
    incoming = quoted = 0
    for session in _sessions(city):
        own = [m for m in session.messages if m.direction is Direction.OUTGOING]
        assert own
        assert [m.time for m in session.messages] == sorted(m.time for m in session.messages)
        incoming += len(session.messages) > len(own)
        for message in session.messages:
            for start, end in message.foreign_spans:
                quoted += 1
                assert 0 <= start < end <= len(message.text)
    share = incoming / len(_sessions(city))
    assert 0.5 < share < 0.9
    assert quoted > 20


def test_earlier_choices_are_known_and_in_order(city: City) -> None:
    keys = {item.key for item in (*city.catalogue.items, *city.catalogue.context)}
    for device in city.devices(0, 50):
        for number, session in enumerate(device.sessions):
            times = [choice.time for choice in session.earlier]
            assert times == sorted(times)
            assert times[-1] < 0
            assert session.earlier[-1].app == "maps"
            assert {choice.item for choice in session.earlier} <= keys
            dined = [choice.item for choice in session.earlier if choice.app == "dining"]
            assert dined == [city.catalogue.items[s.chosen].key for s in device.sessions[:number]]


def test_languages_are_kept() -> None:
    for language, chinese in (("zh", True), ("en", False)):
        for device in City(CityConfig(devices=15, language=language)).devices():
            for session in device.sessions:
                for message in session.messages:
                    assert any("\u4e00" <= char <= "\u9fff" for char in message.text) is chinese


@pytest.mark.parametrize(
    "config",
    [
        CityConfig(devices=1),
        CityConfig(devices=3, rho=0.0),
        CityConfig(devices=3, rho=1.0),
        CityConfig(devices=3, restaurants=500),
        CityConfig(devices=3, restaurants=2000, seed=-5),
        CityConfig(devices=3, sessions_min=1, sessions_max=1),
        CityConfig(devices=3, sessions_min=4, sessions_max=4),
    ],
)
def test_every_corner_generates(config: CityConfig) -> None:
    city = City(config)
    devices = list(city.devices())
    assert len(devices) == config.devices
    for device in devices:
        assert config.sessions_min <= len(device.sessions) <= config.sessions_max
        assert all(0 <= session.chosen < config.restaurants for session in device.sessions)


def test_tastes_and_homes_correlate_by_rho() -> None:
    for rho in (0.0, 0.6, 1.0):
        city = City(CityConfig(devices=600, rho=rho))
        tastes = [city.life(i).tastes for i in range(600)]
        theta = np.array([t.theta for t in tastes])
        found = np.corrcoef(theta[:, 1].ravel(), theta[:, -1].ravel())[0, 1]
        # 600 x 19 pairs: standard error below .01; 600 homes: below .021, and 1/20 of the strangers agree by chance.
        assert found == pytest.approx(rho, abs=0.04)
        same = np.mean([t.home == t.maps_home for t in tastes])
        assert same == pytest.approx(rho + (1 - rho) / 20, abs=0.07)

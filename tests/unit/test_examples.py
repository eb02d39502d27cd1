"""Occasions: what was known when something was chosen, from granted streams and from nothing else."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest

from fedlearn_client.hooks import EarlierChoice, Occasion
from fedlearn_client.occasions import ChoiceRow, occasion_at, training_positions


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


world, oracle = _load("store_world"), _load("occasion_oracle")
NOW, CHAT, CHOICE, SOURCES, USES = world.NOW, world.CHAT, world.CHOICE, world.SOURCES, world.USES
RANK, MAPS, TRAIN = USES
NOTHING = Occasion((), (), "")


@pytest.fixture
def phone(tmp_path: Path):
    phone = world.open_phone(tmp_path)
    for app, _ in SOURCES:
        phone.stream(app)
    phone.grant_all()
    yield phone
    phone.close()


def _all(phone, use=TRAIN, limit: int = 1_000) -> list[Occasion]:
    return list(phone.examples.occasions(*use, limit))


def test_an_occasion_by_hand(phone) -> None:
    day = 86_400.0
    phone.push(
        "chat",
        [
            ("a", NOW - 2 * day, b"two days ago"),
            ("b", NOW - 500, b"before the first"),
            ("c", NOW - 400, b"with the first"),
            ("d", NOW - 300, b"between"),
            ("e", NOW - 100, b"with the second"),
            ("f", NOW - 50, b"after"),
            ("g", NOW, b"now itself"),
            ("h", NOW + 60, b"ahead of the phone's clock"),
        ],
    )
    phone.push("dining", [("1", NOW - 400, b"restaurant:x"), ("2", NOW - 100, b"restaurant:y")])
    phone.push("maps", [("3", NOW - 200, b"museum:m"), ("4", NOW - 400, b"museum:n"), ("5", NOW + 9, b"restaurant:z")])
    x, y = EarlierChoice("restaurant:x", "dining"), EarlierChoice("restaurant:y", "dining")
    m, n = EarlierChoice("museum:m", "maps"), EarlierChoice("museum:n", "maps")
    assert _all(phone) == [
        Occasion((b"before the first",), (), "restaurant:x"),
        Occasion((b"between",), (x, n, m), "restaurant:y"),
    ]
    assert _all(phone, limit=1) == _all(phone)[1:]
    assert _all(phone, limit=0) == []
    assert phone.examples.present(*RANK) == Occasion((b"after",), (x, n, m, y), "")
    assert phone.examples.sources(*RANK) == {"catalogue", "chat", "choices"}


def test_nothing_without_grants(tmp_path: Path) -> None:
    phone = world.open_phone(tmp_path)
    assert _all(phone) == []
    assert phone.examples.present(*RANK) == NOTHING
    assert phone.examples.sources(*RANK) == {"catalogue"}
    phone.close()


@pytest.mark.parametrize("edge", [86_399.0, 86_400.0, 86_401.0])
def test_a_day_back_and_no_longer(phone, edge: float) -> None:
    phone.push("chat", [("a", NOW - 1_000 - edge, b"said")])
    phone.push("dining", [("1", NOW - 1_000, b"restaurant:x")])
    assert [len(one.said) for one in _all(phone)] == [int(edge < 86_400)]


def test_another_domain_ends_no_occasion(phone) -> None:
    phone.push("chat", [("a", NOW - 90, b"said")])
    phone.push("maps", [("1", NOW - 80, b"museum:restaurant:x"), ("2", NOW - 70, b"restaurants:y")])
    phone.push("dining", [("3", NOW - 60, b"restaurant:x")])
    assert [one.said for one in _all(phone)] == [(b"said",)]


@pytest.mark.parametrize("count", [49, 50, 51, 400])
def test_the_newest_fifty_choices(phone, count: int) -> None:
    phone.push("maps", [(str(number), NOW - 1_000 + number, f"museum:{number}".encode()) for number in range(count)])
    expected = [f"museum:{number}" for number in range(count)][-50:]
    assert [one.item for one in phone.examples.present(*RANK).earlier] == expected


@pytest.mark.parametrize("count", [199, 200, 201, 450])
def test_the_newest_two_hundred_messages(phone, count: int) -> None:
    phone.push("chat", [(str(number), NOW - 1_000 + number, f"said {number}".encode()) for number in range(count)])
    expected = [f"said {number}".encode() for number in range(count)][-200:]
    assert list(phone.examples.present(*RANK).said) == expected


def test_without_a_catalogue_there_is_no_occasion(phone) -> None:
    phone.push("dining", [("1", NOW - 60, b"restaurant:x"), ("2", NOW - 50, b":odd")])
    phone.examples._domain = lambda: ""
    assert _all(phone) == []


def test_withdrawn_while_reading_ends_the_examples(phone) -> None:
    phone.push("dining", [(str(number), NOW - 60 + number, b"restaurant:x") for number in range(4)])
    reading = phone.examples.occasions(*TRAIN, 10)
    next(reading)
    phone.withdrawals.withdraw("chat", CHAT, *TRAIN)
    assert list(reading) == []
    assert len(_all(phone)) == 4


@pytest.mark.parametrize("seed", range(9))
def test_equals_the_slow_oracle(phone, seed: int) -> None:
    """Dense, sparse and tied times; more rows than one page of choices."""
    chance = random.Random(seed)
    span = chance.choice([30, 3_000, 400_000])
    rows = []
    for number in range((12, 120, 500)[seed % 3]):
        app, kind = chance.choice(SOURCES)
        time = NOW - chance.randrange(-3, span)
        rare = chance.random() < 0.04
        domain = "restaurant" if rare or seed not in (5, 8) else "museum"
        body = f"said-{number}" if kind is CHAT else f"{domain}:{number}"
        rows.append(oracle.Row(number, time, app, "message" if kind is CHAT else "choice", body.encode()))
    rows = world.push_rows(phone, rows)
    for limit in (1, 5, 1_000):
        assert _all(phone, limit=limit) == oracle.training(rows, "restaurant", NOW, limit)
    assert phone.examples.present(*RANK) == oracle.present(rows, "restaurant", NOW)


def test_a_wrong_oracle_is_noticed(phone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of the comparison: inclusive instead of exclusive bounds differ."""
    rows = [
        oracle.Row(0, NOW - 100, "chat", "message", b"with the choice"),
        oracle.Row(1, NOW - 100, "dining", "choice", b"restaurant:x"),
    ]
    rows = world.push_rows(phone, rows)
    assert oracle.training([world.replace(rows[0], time=NOW - 100.5), rows[1]], "restaurant", NOW, 9) != _all(phone)


def test_the_pure_rule_alone() -> None:
    asked: list[tuple[float, float]] = []

    def messages(after: float, before: float) -> list[bytes]:
        asked.append((after, before))
        return [b"said"]

    before = [ChoiceRow(10.0, "museum:m", "maps"), ChoiceRow(20.0, "restaurant:x", "dining")]
    assert occasion_at(50.0, "restaurant:y", "restaurant", before, messages).said == (b"said",)
    assert occasion_at(20.0, "restaurant:y", "restaurant", before, messages).earlier == (
        EarlierChoice("museum:m", "maps"),
    )
    assert occasion_at(50.0, "", "museum", [], messages) == Occasion((b"said",), (), "")
    assert asked == [(20.0, 50.0), (20.0, 20.0), (50.0 - 86_400.0, 50.0)]
    assert training_positions(before, "restaurant", 5) == [1]
    assert training_positions(before, "restaurant", 0) == []
    assert "museum" not in repr(before)

"""Ingest: polarity, change of mind, the present wish, names, and what leaves no trace."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from fedlearn.errors import OutOfRange
from fedlearn.features import Query, make_query
from fedlearn.features.ingest import app_tag
from fedlearn.signals import Choice, Direction, Message, Session

_path = Path(__file__).parents[1] / "unit" / "features_town.py"
_spec = importlib.util.spec_from_file_location("features_town", _path)
assert _spec is not None
assert _spec.loader is not None
town = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(town)


def same(a: Query, b: Query) -> bool:
    return np.array_equal(a.flat(), b.flat())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("想吃麻辣火锅", {"麻辣火锅": 1}),
        ("不要麻辣火锅", {"麻辣火锅": -1}),
        ("别是川菜就行", {"川菜": -1}),
        ("不想吃川菜,想吃意餐", {"川菜": -1, "意餐": 1}),
        ("不吃川菜想吃意餐", {"川菜": -1, "意餐": 1}),
        ("除了川菜都可以", {"川菜": -1}),
        ("川菜就算了,意餐吧", {"川菜": -1, "意餐": 1}),
        ("毛肚不要了", {"毛肚": -1}),
        ("有没有毛肚呀", {"毛肚": 1}),
        ("能不能找个有毛肚的", {"毛肚": 1}),
        ("既然没有,就在别处找毛肚", {"毛肚": 1}),
        ("要不吃毛肚", {"毛肚": 1}),
        ("不错,毛肚特别好", {"毛肚": 1}),
        ("no Sichuan please", {"sichuan": -1}),
        ("anything but Italian", {"italian": -1}),
        ("not Sichuan, but Italian", {"sichuan": -1, "italian": 1}),
        ("I don't want roast duck", {"roast duck": -1}),
        ("不想要吃毛肚", {"毛肚": -1}),
        ("不推荐川菜", {"川菜": -1}),
        ("a place with wifi and without outdoor seating", {"wifi": 1, "outdoor seating": -1}),
        ("no problem, Italian", {"italian": 1}),
        ("Italian rather than Sichuan", {"italian": 1, "sichuan": -1}),
    ],
)
def test_negation_covers_its_clause(text: str, expected: dict[str, int]) -> None:
    assert town.values(town.query(text)) == expected


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (("想吃麻辣火锅", "算了,还是吃经典烤鸭吧"), {"麻辣火锅": 0, "经典烤鸭": 1}),
        (("想吃麻辣火锅,不了,改成经典烤鸭",), {"麻辣火锅": 0, "经典烤鸭": 1}),
        (("roast duck", "actually, tiramisu instead"), {"roast duck": 0, "tiramisu": 1}),
        (("roast duck", "tiramisu instead, with wifi"), {"roast duck": 0, "tiramisu": 1, "wifi": 1}),
        (("roast duck with wifi", "never mind, let's have tiramisu"), {"roast duck": 0, "wifi": 1, "tiramisu": 1}),
        (("roast duck", "and tiramisu"), {"roast duck": 1, "tiramisu": 1}),
        (("no roast duck", "actually, tiramisu"), {"roast duck": -1, "tiramisu": 1}),
        (("想吃麻辣火锅", "算了,换成烤鸭"), {"麻辣火锅": 0}),
        (("要有wifi", "tiramisu instead, with outdoor seating"), {"wifi": 1, "tiramisu": 1, "outdoor seating": 1}),
    ],
)
def test_change_of_mind_withdraws_what_it_replaces(texts: tuple[str, ...], expected: dict[str, int]) -> None:
    assert town.values(town.query(*texts)) == expected


def test_words_of_a_withdrawn_wish_are_forgotten() -> None:
    assert town.column("words", "麻辣火锅", "算了,换成烤鸭") == town.column("words", "烤鸭")


def test_later_price_takes_the_place_of_the_earlier_one() -> None:
    assert town.query("100元以下", "200元以下").wishes[:2].tolist() == [0.0, 200.0]


def test_values_match_whole_words_only() -> None:
    assert town.values(town.query("margherita pizzas, wifis")) == {"margherita pizza": 1, "wifi": 1}
    assert town.values(town.query("wifirouter")) == {}


def test_a_name_is_a_place_and_no_wish() -> None:
    found = town.query("便宜坊烤鸭附近有什么")
    assert len(found.names) == 1
    assert town.values(found) == {}
    assert not len(found.terms)
    assert np.isnan(found.wishes[2])  # "cheap" inside the name is not a wish


def test_the_present_wish_begins_where_the_domain_is_named_again() -> None:
    found = town.query("推荐一家川菜餐馆", "景点要免费的", "再找一家意餐餐馆", "要有wifi")
    names = {i: value for value, i in town.INDEX.values.ids.items()}
    ages = {names[int(i)]: int(age) for i, _, age in found.values}
    assert ages == {"川菜": 2, "意餐": 0, "wifi": 0}
    assert np.isnan(found.wishes[3])  # free was about an attraction


def test_messages_that_say_nothing_leave_no_trace() -> None:
    assert same(town.query("哈哈", "想吃川菜", "好的", "ok", "13812345678"), town.query("想吃川菜"))


def test_incoming_and_foreign_words_leave_no_trace() -> None:
    plain = town.said("想吃川菜")
    mixed = Session(
        (
            Message("要不吃意餐? 100元以下", Direction.INCOMING, 0),
            Message("想吃川菜", Direction.OUTGOING, 1),
            Message("「tiramisu」", Direction.OUTGOING, 2, ((1, 9),)),
        ),
        (),
        3,
        "other",
    )
    assert same(make_query(plain, town.INDEX), make_query(mixed, town.INDEX))


def test_bad_span_fails_closed() -> None:
    bad = Session((Message("想吃川菜", Direction.OUTGOING, 0, ((2, 99),)),), (), 0, "g")
    with pytest.raises(OutOfRange, match="foreign_spans"):
        make_query(bad, town.INDEX)


def test_choices_come_latest_first_and_unknown_items_are_dropped() -> None:
    earlier = (
        Choice("attraction:青山公园", "maps"),
        Choice("attraction:nowhere", "maps"),
        Choice("book:川菜入门", "books"),
    )
    found = make_query(Session((), earlier, 0, "g"), town.INDEX)
    assert found.choices.tolist() == [[7, app_tag("books"), 0], [5, app_tag("maps"), 1]]


@pytest.mark.parametrize("text", ["算了,毛肚,", " ", "one two ", "hundred ", "百", "12-", "不要", "离", "price ", "1"])
def test_a_very_long_message_is_read_in_linear_time(text: str) -> None:
    town.query(text * (40_000 // len(text)))  # quadratic patterns run into the suite's time limit


def test_empty_session_gives_an_empty_query() -> None:
    found = make_query(Session((), (), 0, "g"), town.INDEX)
    assert [len(x) for x in (found.terms, found.values, found.names, found.choices)] == [0, 0, 0, 0]
    assert np.isnan(found.wishes).all()

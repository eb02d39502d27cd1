"""What sentences ask for: tables of Chinese and English patterns, and of look-alikes that ask for nothing."""

from __future__ import annotations

import math

import pytest

from fedlearn.features.numbers import in_digits
from fedlearn.features.patterns import Wishes, read_wishes
from fedlearn.features.text import normalise

PRICES = [
    ("人均100-150元", 100, 150),
    ("人均消费在100 - 150 元的餐馆", 100, 150),
    ("价格400到500元", 400, 500),
    ("人均一百到两百", 100, 200),
    ("100块以下", 0, 100),
    ("100以下的", 0, 100),
    ("三百块以内", 0, 300),
    ("不超过50元", 0, 50),
    ("别超过80块", 0, 80),
    ("预算200", 0, 200),
    ("预算200左右", 160, 240),
    ("250块以上", 250, math.inf),
    ("人均250元以上", 250, math.inf),
    ("100元左右,算了,200元左右", 160, 240),
    ("有什么推荐吗,人均50块以内", 0, 50),
    ("under 30", 0, 30),
    ("below 50 yuan", 0, 50),
    ("less than 50 per head", 0, 50),
    ("50 dollars or less", 0, 50),
    ("between 20 and 40 dollars", 20, 40),
    ("$20-40", 20, 40),
    ("20 to 40 each", 20, 40),
    ("50-100 yuan per head", 50, 100),
    ("my budget is 50", 0, 50),
    ("thirty dollars per person", 24, 36),
    ("around $30", 24, 36),
    ("over 250 yuan", 250, math.inf),
    ("more than 250 per head", 250, math.inf),
]


@pytest.mark.parametrize(("text", "low", "high"), PRICES)
def test_price_patterns(text: str, low: float, high: float) -> None:
    assert read_wishes(normalise(text)).price == pytest.approx((low, high))


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("评分4.5分以上", 4.5),
        ("4分以上的", 4.0),
        ("至少4.5分", 4.5),
        ("评分要4.5以上", 4.5),
        ("rated 4.5 or higher", 4.5),
        ("at least 4 stars", 4.0),
        ("rating above 4.5", 4.5),
        ("4+ stars", 4.0),
        ("4.2 or above", 4.2),
        ("口碑好的", 4.5),
        ("something highly rated", 4.5),
        ("4.5分以下", None),
        ("五星级", None),
        ("4分钟", None),
        ("第4分店", None),
    ],
)
def test_rating_patterns(text: str, rating: float | None) -> None:
    found = read_wishes(normalise(text))
    assert found.rating == rating
    assert found.price is None


@pytest.mark.parametrize(
    ("text", "hours"),
    [
        ("3小时 - 4小时", (3, 4)),
        ("玩3-4个小时", (3, 4)),
        ("两个小时", (2, 2)),
        ("半小时到1小时", (0.5, 1)),
        ("12小时 - 3天", (12, 72)),
        ("半天", (4, 4)),
        ("2 to 3 hours", (2, 3)),
        ("half an hour", (0.5, 0.5)),
        ("90 minutes", (1.5, 1.5)),
    ],
)
def test_duration_patterns(text: str, hours: tuple[float, float]) -> None:
    assert read_wishes(normalise(text)).hours == pytest.approx(hours)


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("便宜点的", -1),
        ("别太贵", -1),
        ("nothing pricey", -1),
        ("not too expensive", -1),
        ("keep it affordable", -1),
        ("要上档次", 1),
        ("贵点也行", 1),
        ("somewhere fancy", 1),
        ("便宜的,算了,还是高档一点", 1),
        ("随便", None),
    ],
)
def test_price_level_words(text: str, level: float | None) -> None:
    assert read_wishes(normalise(text)).price_level == level


@pytest.mark.parametrize("text", ["门票免费", "免门票的", "free entry", "something free to do", "is it free?"])
def test_free_is_read(text: str) -> None:
    assert read_wishes(normalise(text)).free


@pytest.mark.parametrize("text", ["附近", "离这儿近点", "周边", "close to here", "nearby", "within walking distance"])
def test_nearness_is_read(text: str) -> None:
    assert read_wishes(normalise(text)).near


@pytest.mark.parametrize(
    "text",
    [
        "电话13812345678",
        "call 138-1234-5678",
        "朝阳路88号302室",
        "12 Baker Street, room 302",
        "2023年5月1日",
        "at 7:30 pm for 4 people",
        "400-500",
        "order #12345",
        "feel free",
        "are you free tonight",
        "免费wifi",
        "我叫张伟",
        "v1.2.3",
        "100",
    ],
)
def test_numbers_without_a_unit_ask_for_nothing(text: str) -> None:
    assert read_wishes(normalise(text)) == Wishes()


@pytest.mark.parametrize(
    ("text", "digits"),
    [
        ("一百五", "150"),
        ("两百元", "200元"),
        ("十五块", "15块"),
        ("一千零五十元", "1050元"),
        ("twenty-five dollars", "25 dollars"),
        ("two hundred yuan", "200 yuan"),
        ("one night", "one night"),
    ],
)
def test_number_words(text: str, digits: str) -> None:
    assert in_digits(text) == digits

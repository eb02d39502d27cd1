"""What a sentence asks for besides words: price, rating, duration, free entry and nearness, in Chinese and English.

A number counts only inside one of these patterns, which all need a unit or a cue word. Everything works on text that
``text.normalise`` returned.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fedlearn.features.numbers import in_digits


def _any(*alternatives: str) -> str:
    return f"(?:{'|'.join(alternatives)})"


# A number that is not part of a longer one: of a telephone number, a clock time, a date or an address with digits.
_N = r"(?<![\d.:/#@-])(?<!\d,)(\d{1,5}(?:\.\d{1,2})?)(?![\d:@])(?!\.\d)(?!-\d+-)"
_N2 = r"(\d{1,5}(?:\.\d{1,2})?)(?![\d:@])(?![.\-]\d)"
_GAP = r"[^\d,，。;；!！?？\n]{0,12}?"

_CURRENCY = _any("元", "块钱", "块", "圆", "rmb", "cny", "yuan", "dollars?", "bucks?", "usd", "euros?", "pounds?")
_CURRENCY = _any(_CURRENCY, r"\$", "¥", "€", "£")
_PREFIX = _any(r"\$", "¥", "€", "£", "usd ?", "rmb ?", "cny ?")
_PER = _any(
    "/人|/位|每人|一人|一位|一个人|一晚|每晚",
    " ?per (?:person|head|night)| ?a (?:head|person|night)| ?each| ?pp",
)
_CUE = _any(
    "人均(?:消费)?|均价|价格|价位|价钱|消费|花费|花销|预算|门票|票价|房价|房费",
    "budget|prices?|priced|pricing|costs?|costing|spend(?:ing)?|pay(?:ing)?|per person|per head|per night|a head",
)
_DASH = r" ?(?:元|块钱|块|dollars?|yuan)? ?(?:-|~|到|至|and|to) ?"
_OTHER_UNIT = _any(
    r"\+|分|星|个|小时|钟|天|日|公里|千米|米|岁|人(?!均)|点|号|路|楼|室|层",
    r"km|miles?|m\b|min|hours?|hrs?|days?|people|persons|guests|stars?|%|years?|am\b|pm\b|o'clock",
)
_NOT_OTHER = rf"(?! ?{_OTHER_UNIT})"
_UNDER = _any(
    "不要超过|不能超过|别超过|不超过|不要高于|低于|少于|不高于|最多|小于|不到|顶多",
    "no more than|not more than|less than|not over|under|below|at most|up to|within|cheaper than|max(?:imum)?(?: of)?",
)
_OVER = _any(
    "不低于|不少于|不要低于|高于|(?<!不)(?<!不要)(?<!不能)(?<!别)超过|至少|大于",
    "no less than|not less than|more than|over|above|at least|starting at|min(?:imum)?(?: of)?",
)
_OR_LESS = _any("以下|以内|之内|之下|封顶", "(?:or|and) (?:less|under|below|cheaper)", r"max\b|tops\b")
_OR_MORE = _any("以上|起|往上", "(?:or|and) (?:more|up|over|above)")
_ROUGHLY = _any("左右|上下")

_BAND, _CEILING, _FLOOR, _ABOUT = range(4)
_PRICES = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        (_BAND, rf"{_CUE}{_GAP}{_PREFIX}?{_N}{_DASH}{_PREFIX}?{_N2}"),
        (_BAND, rf"{_PREFIX}{_N}{_DASH}{_PREFIX}?{_N2}"),
        (_BAND, rf"{_N}{_DASH}{_PREFIX}?{_N2} ?{_any(_CURRENCY, _PER)}"),
        (_CEILING, rf"{_N} ?{_any(_CURRENCY, _PER)}* ?{_OR_LESS}"),
        (_CEILING, rf"{_UNDER} ?{_PREFIX}?{_N}{_NOT_OTHER}"),
        (_CEILING, rf"(?:预算|budget){_GAP}{_PREFIX}?{_N}{_NOT_OTHER}(?! ?{_any(_OR_MORE, _ROUGHLY)})"),
        (_FLOOR, rf"{_N} ?{_CURRENCY}+ ?{_PER}? ?{_OR_MORE}"),
        (_FLOOR, rf"{_OVER} ?{_any(_PREFIX + _N, f'{_N} ?{_any(_CURRENCY, _PER)}')}"),
        (_FLOOR, rf"{_CUE}{_GAP}{_N} ?{_OR_MORE}"),
        (_FLOOR, rf"{_CUE}{_GAP}{_OVER} ?{_N}{_NOT_OTHER}"),
        (_ABOUT, rf"{_N} ?{_CURRENCY} ?{_ROUGHLY}"),
        (_ABOUT, rf"{_CUE}{_GAP}{_N} ?{_any(_ROUGHLY, _CURRENCY)}"),
        (_ABOUT, rf"{_any(_PREFIX + _N, f'{_N} ?{_CURRENCY}')} ?{_PER}"),
        (_ABOUT, rf"(?:around|about|roughly) {_any(_PREFIX + _N, f'{_N} ?{_CURRENCY}')}"),
    )
)
"""Tried in order; a number counts once, for the first pattern that reads it."""

_R = r"(?<![\d.$¥€£-])([1-5](?:\.\d)?)(?![\d.]|[元块])"
_TENTH = r"(?<![\d.$¥€£-])([1-4]\.\d)(?!\d)"
_NOT_STARS = _any(_CURRENCY, "km|miles|hours|小时|公里")
_RATINGS = tuple(
    re.compile(pattern)
    for pattern in (
        rf"(?:评分|打分|得分|评价|rat(?:ing|ed)s?|scor(?:e|ed|ing))[^\d,，。;；!！?？\n]{{0,14}}?{_R}",
        rf"{_R} ?分(?![钟店之])",
        rf"{_R} ?\+? ?-?stars?\b",
        rf"{_R} ?星 ?(?:以上|及以上|好评|评)",
        rf"{_TENTH} ?(?:以上|及以上|\+|or (?:higher|above|better|more|up)|and (?:up|above|higher))",
        rf"(?:at least|above|over|minimum|不低于|高于|至少) ?(?:a )?{_TENTH}(?! ?{_NOT_STARS})",
    )
)
_DIGIT = re.compile(r"\d")
_RATING_CEILING = re.compile(r" ?(?:分|stars?)? ?(?:以下|以内|or (?:lower|below|less))")
_WELL_RATED = re.compile(
    _any(
        "(?:评分|评价|口碑)(?:要|得|比较|最好|都)?(?:很|最|较|更)?(?:高|好)|好评",
        "(?:highly|top|best|well)[- ](?:rated|reviewed)|(?:good|great|high) (?:reviews|ratings?)",
    )
)
_HOURS = {"分": 1 / 60, "m": 1 / 60, "小": 1.0, "钟": 1.0, "h": 1.0, "天": 24.0, "d": 24.0}
_TIME_UNIT = r"(?:个?(小时|钟头|分钟|天|hours?\b|hrs?\b|minutes?\b|mins?\b|days?\b))"
_DURATION = re.compile(rf"{_N} ?{_TIME_UNIT}?(?: ?(?:-|~|到|至|to) ?{_N2} ?{_TIME_UNIT})?")

_NOT_FREE_ENTRY = _any(
    "wi-?fi|parking|breakfast|internet|cancellation|range|time|day|night|evening|weekend|later|now|today|tonight",
    "tomorrow|on|at|this|next|after|before|for (?:dinner|lunch)",
)
_FREE = re.compile(
    _any(
        "免门票|不要门票|不收门票|不用门票|不要钱|不花钱|不收费|不用花钱",
        "免费(?! ?(?:停车|wi-?fi|无线|上网|早餐|接送|取消|洗衣|宽带|提供|使用|市内|国内))",
        rf"(?<!feel )(?<!feeling )(?<!i'm )(?<!am )(?<!are )(?<!you )(?<!-)\bfree\b(?! {_NOT_FREE_ENTRY}\b)",
    )
)
_CHEAP = re.compile(
    _any(
        "便宜|实惠|划算|省钱|省着点?花?|平价|性价比|(?:不|别)(?:要|用|能|想)?(?:太|很|那么)?(?:贵|高档|豪华)",
        r"\bcheap(?:er|ly)?\b|inexpensive|affordabl[ey]|budget-friendly|low[- ]cost|economical|bargain|good value",
        r"\bon a (?:tight )?budget\b|shoestring|frugal|break(?:ing)? the bank",
        r"\b(?:not|no|nothing|isn't|don't want)(?: (?:too|so|very|that|an?|anything|something))* (?:expensive|pricey)",
        r"\b(?:not|no|nothing|isn't|don't want)(?: (?:too|so|very|that|an?|anything|something))* (?:fancy|posh)",
    )
)
_DEAR = re.compile(
    _any(
        "高档|高端|豪华|奢华|贵一?点|上档次|吃顿好的|不差钱",
        r"\bexpensive|\bpricey|upscale|\bfancy\b|fine dining|luxur|high[- ]end|\bposh\b|splurge|money is no object",
    )
)
_NEAR = re.compile(
    _any(
        "附近|周边|旁边|周围|边上|就近|离[^,，。\n]{0,12}近|不远|走路|步行",
        r"\bnearby\b|\bnear\b|close (?:to|by)|\bclosest\b|nearest|next to|walking distance|vicinity|not (?:too )?far",
        "around (?:here|there|the corner)|round the corner",
    )
)

WELL_RATED = 4.5
"""Rating floor that "well rated" without a number stands for."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What one message asks for. None where it says nothing.

    Args:
        price: lower and upper price, in the catalogue's currency.
        price_level: -1 for cheap, +1 for expensive.
        free: whether it asks for something that costs nothing.
        rating: lowest rating that will do, 1..5.
        hours: shortest and longest duration.
        near: whether it asks for something close to something else.
    """

    price: tuple[float, float] | None = None
    price_level: float | None = None
    free: bool = False
    rating: float | None = None
    hours: tuple[float, float] | None = None
    near: bool = False

    @property
    def any(self) -> bool:
        """Whether the message asks for anything at all."""
        return self != Wishes()


def read_wishes(text: str) -> Wishes:
    """Read a normalised text; where it names a thing twice, the later one counts (people change their minds)."""
    plain = in_digits(text)
    numbers = _DIGIT.search(plain) is not None  # without a digit most patterns need not be tried
    return Wishes(
        price=_price(plain) if numbers else None,
        price_level=_price_level(plain),
        free=_FREE.search(plain) is not None,
        rating=_rating(plain, numbers),
        hours=read_hours(plain) if numbers else None,
        near=_NEAR.search(plain) is not None,
    )


def read_hours(text: str) -> tuple[float, float] | None:
    """Return (shortest, longest) hours of the last duration in a normalised text, or None."""
    found: tuple[float, float] | None = None
    for low, low_unit, high, high_unit in _DURATION.findall(in_digits(text)):
        if high_unit:
            last = _HOURS[high_unit[0]]
            first = float(low) * (_HOURS[low_unit[0]] if low_unit else last)
            found = (first, max(first, float(high) * last))
        elif low_unit:
            hours = float(low) * _HOURS[low_unit[0]]
            found = (hours, hours)
    return found


def _price(text: str) -> tuple[float, float] | None:
    """The price band whose number stands last in the text."""
    taken: list[tuple[int, int]] = []
    last, price = -1, None
    for kind, pattern in _PRICES:
        for m in pattern.finditer(text):
            spans = [m.span(i) for i in range(1, (m.lastindex or 0) + 1) if m[i]]
            start, end = spans[0][0], spans[-1][1]
            if any(start < e and s < end for s, e in taken):
                continue
            taken.append((start, end))
            if start > last:
                last, price = start, _band(kind, [float(text[a:b]) for a, b in spans])
    return price


def _band(kind: int, numbers: list[float]) -> tuple[float, float]:
    if kind == _BAND:
        return min(numbers), max(numbers)
    if kind == _CEILING:
        return 0.0, numbers[0]
    if kind == _FLOOR:
        return numbers[0], float("inf")
    return 0.8 * numbers[0], 1.2 * numbers[0]


def _price_level(text: str) -> float | None:
    cheap = [m.span() for m in _CHEAP.finditer(text)]
    dear = [m.start() for m in _DEAR.finditer(text) if not any(a <= m.start() < b for a, b in cheap)]
    found = [(a, -1.0) for a, _ in cheap] + [(a, 1.0) for a in dear]
    return max(found)[1] if found else None


def _rating(text: str, numbers: bool) -> float | None:
    found = [
        (m.start(1), float(m[1]))
        for pattern in (_RATINGS if numbers else ())
        for m in pattern.finditer(text)
        if not _RATING_CEILING.match(text, m.end(1)) and float(m[1]) <= 5.0
    ]
    if found:
        return max(found)[1]
    return WELL_RATED if _WELL_RATED.search(text) else None

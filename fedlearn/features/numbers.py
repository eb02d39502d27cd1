"""Number words that stand before a unit, written in digits: Chinese below 10,000 and English below 1,000."""

from __future__ import annotations

import re

_CN_DIGITS = {c: i for i, c in enumerate("零一二三四五六七八九")} | {"两": 2}
_CN_UNITS = {"十": 10, "百": 100, "千": 1000}
_CN_NUMBER = re.compile(
    "[一二两三四五六七八九]?[十百千][一二两三四五六七八九十百千零]{0,7}"
    "|[一二两三四五六七八九](?=(?:元|块|分(?![店钟之])|个?小时|个?钟头|天|-|到|至))"
)
_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_EN_WORDS = {w: i for i, w in enumerate(_SMALL.split())} | {w: 10 * i for i, w in enumerate(_TENS.split(), 2)}
_EN_WORD = "|".join(sorted((*_EN_WORDS, "hundred"), key=len, reverse=True))
_EN_UNIT = r"(?:dollars?|bucks?|yuan|rmb|euros?|pounds?|hours?|days?|minutes?|stars?|and|to|or|per|a head|each)"
_EN_NUMBER = re.compile(rf"\b((?:{_EN_WORD})(?:[ -](?:{_EN_WORD})){{0,4}})(?=[ -]{_EN_UNIT}\b)")
_FRACTIONS = (
    ("半个小时", "0.5小时"),
    ("半小时", "0.5小时"),
    ("一整天", "8小时"),
    ("整天", "8小时"),
    ("半天", "4小时"),
    ("half an hour", "0.5 hours"),
    ("half a day", "4 hours"),
)


def in_digits(text: str) -> str:
    """Return a normalised text with number words before a unit in digits; half a day is 4 hours, a whole one 8."""
    for words, digits in _FRACTIONS:
        text = text.replace(words, digits)
    text = _CN_NUMBER.sub(lambda m: str(_chinese(m[0])), text)
    return _EN_NUMBER.sub(lambda m: str(_english(m[0])), text)


def _chinese(word: str) -> int:
    """A bare last digit takes the next lower place: yi bai wu is 150."""
    total, digit, place = 0, 0, 1
    for char in word:
        if char in _CN_UNITS:
            place = _CN_UNITS[char]
            total += (digit or 1) * place
            digit = 0
        else:
            digit = _CN_DIGITS[char]
            place = 10 if char == "零" else place
    return total + digit * (place // 10 if place >= 100 else 1)


def _english(words: str) -> int:
    total = 0
    for word in re.split(r"[ -]", words):
        total = max(total, 1) * 100 if word == "hundred" else total + _EN_WORDS[word]
    return total

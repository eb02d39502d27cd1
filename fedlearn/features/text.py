"""Normalisation and tokens: the part of the features that every port must reproduce code point by code point."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

from fedlearn.errors import OutOfRange

BREAK = "\n"
"""Hard boundary inside a normalised text: a removed span or a line break. No token and no phrase crosses it."""

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003134f"
_LINE_END = re.compile(r"\r\n?|[\x85\u2028\u2029]")
_SPACES = re.compile(r"[^\S\n]+")
_LINES = re.compile(r" ?\n[\n ]*")
_CJK_SPACE = re.compile(rf" (?=[{_CJK}])|(?<=[{_CJK}]) ")
_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "`": "'", "\u2013": "-", "\u2014": "-", "\u2212": "-"})
_RUNS = re.compile(rf"[{_CJK}]+|[^\W_{_CJK}]+")
_IS_CJK = re.compile(rf"[{_CJK}]")

GRAMS = (2, 3)
"""Lengths of the character n-grams taken from CJK runs. Single characters say too little and match everyone's name."""

_STOP = (
    "a about after all am an and any are as at be been but by can could did do does for from get good had has have he "
    "her his house how i if in is it its just let like me my no not of off on one or our out place please road she "
    "shop so some something st street that the their them there they this to up us very want was we were what when "
    "where which who will with would you your"
)
STOP_WORDS = frozenset(_STOP.split())
"""Latin words that are never terms: function words, and words of addresses."""


def normalise(text: str) -> str:
    """Return the canonical form of a text; idempotent.

    NFKC, casefold, NFKC; curly quotes and dashes become ``'`` and ``-``; a line break becomes ``BREAK``; other white
    space becomes one space, and none at all beside a CJK character; ends are trimmed.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).translate(_QUOTES)
    lines = _LINES.sub(BREAK, _SPACES.sub(" ", _LINE_END.sub(BREAK, folded)))
    return _CJK_SPACE.sub("", lines).strip()


def own_text(text: str, foreign_spans: Sequence[tuple[int, int]]) -> str:
    """Return the normalised text with every foreign span replaced by one ``BREAK``, whatever it held.

    Args:
        text: raw message.
        foreign_spans: half-open code-point ranges of quoted or forwarded text.

    Raises:
        OutOfRange: a span that is reversed or outside the text; guessing could let foreign words through.
    """
    if not foreign_spans:
        return normalise(text)
    pieces: list[str] = []
    position = 0
    for start, end in sorted(foreign_spans):
        if not 0 <= start <= end <= len(text):
            raise OutOfRange(f"message.foreign_spans=({start}, {end}): must lie in 0..{len(text)}, start <= end.")
        if start >= position:
            pieces.append(text[position:start])
        position = max(position, end)
    pieces.append(text[position:])
    return BREAK.join(normalise(piece) for piece in pieces)


def is_cjk(char: str) -> bool:
    """Say whether a character is Han, kana or hangul."""
    return _IS_CJK.match(char) is not None


def stem(word: str) -> str:
    """Drop an English plural ending: the only stemming there is."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("ches", "shes", "sses", "xes", "oes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def terms(text: str) -> Iterator[tuple[str, int]]:
    """Yield (term, start) for a normalised text: 2- and 3-grams of CJK runs, stemmed words of all other runs.

    Words of one character, stop words and words that hold a digit are no terms: a number alone never counts.
    """
    for run in _RUNS.finditer(text):
        word, start = run.group(), run.start()
        if is_cjk(word[0]):
            for n in GRAMS:
                for i in range(len(word) - n + 1):
                    yield word[i : i + n], start + i
        elif len(word) > 1 and word not in STOP_WORDS and not any(c.isdigit() for c in word):
            yield stem(word), start

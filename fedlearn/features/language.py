"""What words do to the words beside them, in Chinese and English: negation, a change of mind, and the subject.

Everything works on text that ``text.normalise`` returned.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable

NEGATIVE = (
    r"(?<![要能是会可好去吃用])不(?:想要?|要|吃|喝|去|喜欢|爱|能有|能|含|带|用|需要|考虑|推荐)(?:吃|喝|去|看|有)?|除了|无需|拒绝|避开|讨厌|忌口|受不了|吃腻"
    r"|(?<![特区分级性个告类识离])别(?![的人墅致名克说管处家样])"
    r"|(?<!有)没有|(?<!有)没(?![有问关事想])"
    r"|\bno\b(?! (?:problem|matter|worries|doubt|rush|idea|need to|more than|less than))"
    r"|\bnot\b(?! (?:only|just|sure|too|so|very|far|more than|less than|over))"
    r"|n't\b(?! (?:mind|care|matter|wait|know|worry))|\b(?:dont|cannot)\b"
    r"|\b(?:without|except|never(?! ?mind)|nothing|avoid|hate|skip|dislike)\b"
    r"|\b(?:other than|anything but|instead of|rather than|tired of|sick of|bored of|fed up with|allergic to)\b"
)
"""Openers: what follows in the clause is not wanted, up to the next word of ``POSITIVE``."""

POSITIVE = (
    r"想吃|想要|想去|想喝|想看|要吃|要去|换|改成|改吃|改去|来点|来个|推荐|而是|只要|最好|希望|还是(?![不别没])"
    r"|(?<!n't )(?<!not )\b(?:want|prefer|would like|i'd like|let's|give me|find|how about)\b"
    r"|\b(?:actually|instead(?! of)|rather(?! than))\b"
)
STOP = r"[,，。;；!！?？\n]|\.(?!\d)|但|不过|可是|\bbut\b(?<!anything but)"
"""Ends of a clause."""

AFTER = r"就?算了|(?:就|还是)?不要了|就?免了|不行|吃腻了|不吃了|不去了|不考虑了?|除外|以外|之外"
"""Closers: what stands before them in the clause is not wanted."""

CHANGE = (
    r"算了|(?<!不)换(?!乘|车|个人)|改成|改吃|改去|改主意|还是(?![不别没])|不如"
    r"|\b(?:actually|instead(?! of)|rather(?! than)|on second thought|changed my mind|scratch that|never ?mind|forget)"
    r"\b"
)
"""A change of mind: what is named after it takes the place of what was named before."""

SUBJECTS = {
    "restaurant": r"餐馆|餐厅|饭店|饭馆|\brestaurants?\b",
    "attraction": r"景点|景区|游玩|\b(?:attractions?|sights?|sightseeing)\b",
    "hotel": r"酒店|宾馆|旅馆|住宿|\b(?:hotels?|guest ?houses?|hostels?|accommodation)\b",
}
"""Domain -> what it is called in a sentence. A domain that is not listed is never the subject."""

_EVENTS = re.compile(f"(?P<stop>{STOP})|(?P<neg>{NEGATIVE})|(?P<pos>{POSITIVE})")
_STOPS = re.compile(STOP)
_CHANGES = re.compile(CHANGE)
_AFTERS = re.compile(f"(?:{AFTER})(?=$|[,，。;；!！?？\n吧啦])")


def negated(text: str) -> list[bool]:
    """Say for each position of a text (and its end) whether a negation covers it."""
    scope = [False] * (len(text) + 1)
    negative, last = False, 0
    for event in _EVENTS.finditer(text):
        if negative:
            scope[last : event.start()] = [True] * (event.start() - last)
        negative, last = event.lastgroup == "neg", event.end()
    if negative:
        scope[last:] = [True] * (len(scope) - last)
    stops = [0, *(m.end() for m in _STOPS.finditer(text))]
    for after in _AFTERS.finditer(text):
        start = stops[bisect_right(stops, after.start()) - 1]
        scope[start : after.start()] = [True] * (after.start() - start)
    return scope


def changes(text: str) -> tuple[int, ...]:
    """Return where the text announces a change of mind."""
    return tuple(m.start() for m in _CHANGES.finditer(text))


def subject(text: str, target: str, others: Iterable[str]) -> int:
    """Say what a text is about: +1 the target's domain (also beside others), -1 only another domain, 0 no domain."""

    def named(domain: str) -> bool:
        return domain in SUBJECTS and re.search(SUBJECTS[domain], text) is not None

    return 1 if named(target) else -1 if any(map(named, others)) else 0

"""A slow oracle: a session read in one walk, message by message and word by word, as fedlearn 0.3 did."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedlearn.features.index import FACILITY, CatalogueIndex
from fedlearn.features.language import changes, negated, subject
from fedlearn.features.patterns import Wishes, read_wishes
from fedlearn.features.query import Query
from fedlearn.features.text import BREAK, own_text, terms
from fedlearn.signals import Choice, Direction, Session

I32 = NDArray[np.int32]
F32 = NDArray[np.float32]

MAX_AGE = 255
MAX_COUNT = 255


class _Heard(NamedTuple):
    """A catalogue value in a text, or a place where terms stand outside every value.

    ``value`` is -1 for the latter; ``words`` are its term ids; ``renewed`` says that a change of mind was announced
    right before it.
    """

    at: int
    value: int
    words: tuple[int, ...]
    polarity: int
    renewed: bool


class _Said(NamedTuple):
    """What one message said about the catalogue; ``subject`` as in ``language.subject``."""

    heard: tuple[_Heard, ...]
    names: tuple[int, ...]
    wishes: Wishes
    subject: int

    @property
    def empty(self) -> bool:
        return not (self.heard or self.names or self.wishes.any)


def slow_query(session: Session, index: CatalogueIndex) -> Query:
    """What ``make_query`` must return, bit for bit."""
    own = (m for m in session.messages if m.direction is Direction.OUTGOING)
    said = _aged(_read(own_text(m.text, m.foreign_spans), index) for m in own)
    values, words = _settle(said, index)
    return Query(
        digest=index.digest,
        terms=_table({(t, min(n, MAX_COUNT), p, a) for (t, p, a), n in words.items()}, 4),
        values=_table(values, 3),
        names=_table({(n, a) for a, s in said for n in s.names}, 2),
        choices=_choice_rows(session.earlier, index),
        wishes=_wish_row([s.wishes for a, s in said if a == 0]),
    )


def app_tag(app: str) -> int:
    """Number under which an app's choices are kept."""
    return int.from_bytes(hashlib.blake2b(app.encode(), digest_size=4).digest(), "big") >> 1


def _aged(messages: Iterable[_Said]) -> list[tuple[int, _Said]]:
    """Keep the messages that said something, each with its age, latest first."""
    run, about, kept = 0, 1, []
    for said in messages:
        if said.subject and (said.subject != about or (said.subject > 0 and not said.empty)):
            run, about = run + 1, said.subject
        if not said.empty:
            kept.append((run, said))
    kept.reverse()
    present = sum(r == kept[0][0] for r, _ in kept)
    return [(min(max(0, i - present + 1), MAX_AGE), said) for i, (_, said) in enumerate(kept)]


def _read(text: str, index: CatalogueIndex) -> _Said:
    names = index.names.find(text)
    # A name is taken out before words are matched: "near the Noodle Museum" is no wish for noodles.
    text = _without(text, [(start, end) for start, end, _ in names])
    spans = index.values.find(text)
    return _Said(
        heard=_heard(text, spans, index),
        names=tuple(sorted({n for _, _, n in names})),
        wishes=read_wishes(text),
        subject=subject(_without(text, [(a, b) for a, b, _ in spans]), index.domain, index.other_domains),
    )


def _without(text: str, spans: Iterable[tuple[int, int]]) -> str:
    for start, end in spans:
        text = text[:start] + BREAK * (end - start) + text[end:]
    return text


def _heard(text: str, spans: Sequence[tuple[int, int, int]], index: CatalogueIndex) -> tuple[_Heard, ...]:
    """What a text names, by position."""
    places: dict[int, list[int]] = {start: [] for start, _, _ in spans}
    for term, at in terms(text):
        if term in index.terms:
            places.setdefault(next((a for a, b, _ in spans if a <= at < b), at), []).append(index.terms[term])
    values = {start: value for start, _, value in spans}
    scope, renewing = negated(text), _renewing(text, spans, sorted(places))
    return tuple(
        _Heard(at, values.get(at, -1), tuple(places[at]), -1 if scope[at] else 1, at in renewing)
        for at in sorted(places)
    )


def _renewing(text: str, spans: Sequence[tuple[int, int, int]], places: Sequence[int]) -> set[int]:
    """Places of the first thing named after each change of mind; "X instead" renews with X."""
    ends = {end: start for start, end, _ in spans}
    found: set[int] = set()
    for cue in changes(text):
        if text.startswith("instead", cue) and cue - 1 in ends:
            found.add(ends[cue - 1])
        else:
            found.update(next(([at] for at in places if at > cue), []))
    return found


def _settle(
    said: Sequence[tuple[int, _Said]], index: CatalogueIndex
) -> tuple[set[tuple[int, ...]], Counter[tuple[int, int, int]]]:
    """Walk from the latest word back: once a change of mind is passed, older wishes of the same slot are withdrawn.

    Returns:
        rows (value id, polarity, age), and (term id, polarity, age) -> count. Words of a withdrawn wish are left out.
    """
    rows: set[tuple[int, ...]] = set()
    words: Counter[tuple[int, int, int]] = Counter()
    renewed: set[bool] = set()  # slots (is it a facility?) that were named anew
    for age, message in said:
        for heard in reversed(message.heard):
            slot = heard.value >= 0 and bool(index.value_groups[heard.value] == FACILITY)
            withdrawn = slot in renewed and heard.polarity > 0
            if heard.value >= 0:
                rows.add((heard.value, 0 if withdrawn else heard.polarity, age))
            if not withdrawn:
                words.update((term, heard.polarity, age) for term in heard.words)
            if heard.polarity > 0 and heard.renewed:
                renewed.add(slot)
    return rows, words


def _table(rows: Iterable[tuple[int, ...]], width: int) -> I32:
    return np.array(sorted(rows), dtype=np.int32).reshape(-1, width)


def _wish_row(wishes: Sequence[Wishes]) -> F32:
    """Of each thing the latest word counts; ``wishes`` come latest first."""
    row = np.full(8, np.nan, dtype=np.float32)
    for wish in reversed(wishes):
        if wish.price is not None:
            row[0:2] = wish.price
        if wish.price_level is not None:
            row[2] = wish.price_level
        if wish.free:
            row[3] = 1.0
        if wish.rating is not None:
            row[4] = wish.rating
        if wish.hours is not None:
            row[5:7] = wish.hours
        if wish.near:
            row[7] = 1.0
    return row


def _choice_rows(earlier: Sequence[Choice], index: CatalogueIndex) -> I32:
    known = [(index.keys[c.item], app_tag(c.app)) for c in reversed(earlier) if c.item in index.keys]
    rows = [(item, app, min(age, MAX_AGE)) for age, (item, app) in enumerate(known)]
    return np.array(rows, dtype=np.int32).reshape(-1, 3)

"""Ingest: the owner's words become a Said, message by message, and the text ends here. Saids become a Query."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import CatalogueMismatch
from fedlearn.features.index import FACILITY, CatalogueIndex
from fedlearn.features.language import changes, negated, subject
from fedlearn.features.patterns import Wishes, read_wishes
from fedlearn.features.query import Query
from fedlearn.features.said import MAX_COUNT, Said, Word, round_wishes
from fedlearn.features.text import BREAK, own_text, terms
from fedlearn.signals import Choice, Direction, Session

I32 = NDArray[np.int32]
F32 = NDArray[np.float32]

MAX_AGE = 255


@dataclass(frozen=True, slots=True)
class _Heard:
    """A catalogue value in a text, or a place where terms stand outside every value.

    ``value`` is -1 for the latter; ``words`` are its term ids; ``renewed`` says that a change of mind was announced
    right before it.
    """

    value: int
    words: Sequence[int]
    polarity: int
    renewed: bool


def make_query(session: Session, index: CatalogueIndex) -> Query:
    """Turn a session into a Query. Only outgoing messages count, minus their foreign spans.

    Args:
        session: messages and earlier choices; ``chosen`` and ``group`` are not read.
        index: index of the catalogue.

    Returns:
        A Query that names catalogue terms, values and items only. Words, numbers and names that match nothing in the
        catalogue, and messages made of nothing else, leave no trace: not even in the ages of what was said before.

    Raises:
        OutOfRange: a foreign span outside its message.
    """
    own = (m for m in session.messages if m.direction is Direction.OUTGOING)
    said = (read_message(m.text, m.foreign_spans, index) for m in own)
    return make_query_from([s for s in said if s is not None], session.earlier, index)


def read_message(text: str, foreign_spans: Sequence[tuple[int, int]], index: CatalogueIndex) -> Said | None:
    """Read one message of the owner; its text is needed no longer.

    Args:
        text: raw message, written by the owner.
        foreign_spans: half-open code-point ranges of quoted or forwarded text.
        index: index of the catalogue.

    Returns:
        What it said, or None for a message that names nothing of the catalogue, asks for nothing, and names no domain
        (``language.SUBJECTS``). One that only names a domain is kept: it says what the messages around it are about.

    Raises:
        OutOfRange: a foreign span outside the message.
    """
    plain = own_text(text, foreign_spans)
    names = index.names.find(plain)
    # A name is taken out before words are matched: "near the Noodle Museum" is no wish for noodles.
    plain = _without(plain, names)
    spans = index.values.find(plain)
    values, words, renewed = _settled(_heard(plain, spans, index), index)
    said = Said(
        values=values,
        words=words,
        names=tuple(sorted({n for _, _, n in names})),
        wishes=round_wishes(read_wishes(plain)),
        renews_facilities=True in renewed,
        renews_rest=False in renewed,
        subject=subject(_without(plain, spans), index.domain, index.other_domains),
    )
    return None if said.empty and said.subject == 0 else said


def make_query_from(said: Sequence[Said], earlier: Sequence[Choice], index: CatalogueIndex) -> Query:
    """Turn what messages said, oldest first, and earlier choices, oldest first, into a Query.

    Raises:
        CatalogueMismatch: a Said names an id that the index does not have: it was made with another one.
    """
    _refuse_foreign(said, index)
    aged = _aged(said)
    values, words = _withdraw(aged, index)
    return Query(
        digest=index.digest,
        terms=_table({(t, min(n, MAX_COUNT), p, a) for (t, p, a), n in words.items()}, 4),
        values=_table(values, 3),
        names=_table({(n, a) for a, s in aged for n in s.names}, 2),
        choices=_choice_rows(earlier, index),
        wishes=_wish_row([s.wishes for a, s in aged if a == 0]),
    )


def app_tag(app: str) -> int:
    """Number under which an app's choices are kept: the first 31 bits of BLAKE2b of its name."""
    return int.from_bytes(hashlib.blake2b(app.encode(), digest_size=4).digest(), "big") >> 1


def _refuse_foreign(said: Sequence[Said], index: CatalogueIndex) -> None:
    """Ids rise, so the last of each kind is the largest."""
    value = max((s.values[-1][0] for s in said if s.values), default=-1)
    term = max((s.words[-1].term for s in said if s.words), default=-1)
    name = max((s.names[-1] for s in said if s.names), default=-1)
    if value >= len(index.value_groups) or term >= len(index.terms) or name >= len(index.names.ids):
        raise CatalogueMismatch("a message was read with another catalogue: read it again, or leave it out.")


def _aged(said: Iterable[Said]) -> list[tuple[int, Said]]:
    """Keep the messages that named something, each with its age, latest first."""
    run, about, kept = 0, 1, []
    for message in said:
        if message.subject and (message.subject != about or (message.subject > 0 and not message.empty)):
            run, about = run + 1, message.subject
        if not message.empty:
            kept.append((run, message))
    kept.reverse()
    present = sum(r == kept[0][0] for r, _ in kept)
    return [(min(max(0, i - present + 1), MAX_AGE), message) for i, (_, message) in enumerate(kept)]


def _without(text: str, spans: Iterable[tuple[int, int, int]]) -> str:
    """Blank out spans that follow one another."""
    pieces, last = [], 0
    for start, end, _ in spans:
        pieces += [text[last:start], BREAK * (end - start)]
        last = end
    return "".join([*pieces, text[last:]]) if pieces else text


def _heard(text: str, spans: Sequence[tuple[int, int, int]], index: CatalogueIndex) -> list[_Heard]:
    """What a text names, in its order; a term that starts inside a value belongs to the value."""
    places: dict[int, list[int]] = {start: [] for start, _, _ in spans}
    owner = {at: start for start, end, _ in spans for at in range(start, end)}
    for term, at in terms(text):
        number = index.terms.get(term)
        if number is not None:
            places.setdefault(owner.get(at, at), []).append(number)
    if not places:
        return []
    values = {start: value for start, _, value in spans}
    order = sorted(places)
    scope, renewing = negated(text), _renewing(text, spans, order)
    return [_Heard(values.get(at, -1), places[at], -1 if scope[at] else 1, at in renewing) for at in order]


def _renewing(text: str, spans: Sequence[tuple[int, int, int]], places: Sequence[int]) -> set[int]:
    """Places of the first thing named after each change of mind; "X instead" renews with X."""
    ends = {end: start for start, end, _ in spans}
    found: set[int] = set()
    for cue in changes(text):
        if text.startswith("instead", cue) and cue - 1 in ends:
            found.add(ends[cue - 1])
        else:
            found.update(places[bisect_right(places, cue) :][:1])
    return found


def _settled(
    heard: Sequence[_Heard], index: CatalogueIndex
) -> tuple[tuple[tuple[int, int], ...], tuple[Word, ...], set[bool]]:
    """Walk a message from its last word back: once a change of mind is passed, earlier wishes of a slot are withdrawn.

    Returns:
        values and words as a Said has them, and the slots (is it a facility?) that were named anew.
    """
    values: set[tuple[int, int]] = set()
    words: Counter[tuple[int, bool, int]] = Counter()
    renewed: set[bool] = set()
    for thing in reversed(heard):
        slot = thing.value >= 0 and bool(index.value_groups[thing.value] == FACILITY)
        withdrawn = slot in renewed and thing.polarity > 0
        if thing.value >= 0:
            values.add((thing.value, 0 if withdrawn else thing.polarity))
        if not withdrawn:
            words.update((term, slot, thing.polarity) for term in thing.words)
        if thing.polarity > 0 and thing.renewed:
            renewed.add(slot)
    table = tuple(Word(t, p, slot, min(words[t, slot, p], MAX_COUNT)) for t, slot, p in sorted(words))
    return tuple(sorted(values)), table, renewed


def _withdraw(
    said: Sequence[tuple[int, Said]], index: CatalogueIndex
) -> tuple[set[tuple[int, ...]], Counter[tuple[int, int, int]]]:
    """Walk from the latest message back: what a later one renewed is withdrawn from older ones.

    Returns:
        rows (value id, polarity, age), and (term id, polarity, age) -> count. Words of a withdrawn wish are left out.
    """
    rows: set[tuple[int, ...]] = set()
    words: Counter[tuple[int, int, int]] = Counter()
    renewed: set[bool] = set()
    for age, message in said:
        for value, polarity in message.values:
            gone = polarity > 0 and bool(renewed) and bool(index.value_groups[value] == FACILITY) in renewed
            rows.add((value, 0 if gone else polarity, age))
        for word in message.words:
            if word.polarity < 0 or word.facility not in renewed:
                words[word.term, word.polarity, age] += word.count
        renewed |= {slot for slot in (False, True) if message.renews(slot)}
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

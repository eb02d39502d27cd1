"""Ingest: the owner's words become a Query, and the text ends here."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class _Mention:
    """A catalogue value in a text. ``renewed``: a change of mind was announced right before (or after) it."""

    id: int
    polarity: int
    renewed: bool


@dataclass(frozen=True, slots=True)
class _Said:
    """What one message said about the catalogue; ``subject`` as in ``language.subject``."""

    terms: Counter[tuple[int, int]]
    values: tuple[_Mention, ...]
    names: tuple[int, ...]
    wishes: Wishes
    subject: int

    @property
    def empty(self) -> bool:
        return not (self.terms or self.values or self.names or self.wishes.any)


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
    said = _aged(_read(own_text(m.text, m.foreign_spans), index) for m in own)
    return Query(
        digest=index.digest,
        terms=_table({(t, min(n, MAX_COUNT), p, a) for a, s in said for (t, p), n in s.terms.items()}, 4),
        values=_value_rows(said, index),
        names=_table({(n, a) for a, s in said for n in s.names}, 2),
        choices=_choice_rows(session.earlier, index),
        wishes=_wish_row([s.wishes for a, s in said if a == 0]),
    )


def app_tag(app: str) -> int:
    """Number under which an app's choices are kept: the first 31 bits of BLAKE2b of its name."""
    return int.from_bytes(hashlib.blake2b(app.encode(), digest_size=4).digest(), "big") >> 1


def _aged(messages: Iterable[_Said]) -> list[tuple[int, _Said]]:
    """Keep the messages that said something, each with its age, latest first."""
    run, about, kept = 0, 1, []
    for said in messages:
        if said.subject == 1 and not said.empty or said.subject and said.subject != about:
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
    scope = negated(text)
    values = index.values.find(text)
    return _Said(
        terms=Counter((index.terms[t], -1 if scope[at] else 1) for t, at in terms(text) if t in index.terms),
        values=_mentions(text, values, scope),
        names=tuple(sorted({n for _, _, n in names})),
        wishes=read_wishes(text),
        subject=subject(_without(text, [(a, b) for a, b, _ in values]), index.domain, index.other_domains),
    )


def _without(text: str, spans: Iterable[tuple[int, int]]) -> str:
    for start, end in spans:
        text = text[:start] + BREAK * (end - start) + text[end:]
    return text


def _mentions(text: str, values: Sequence[tuple[int, int, int]], scope: Sequence[bool]) -> tuple[_Mention, ...]:
    cues, found, before = changes(text), [], 0
    for start, end, value in values:
        closing = text.startswith(" instead", end)
        renewed = closing or any(before <= cue < start for cue in cues)
        found.append(_Mention(value, -1 if scope[start] else 1, renewed))
        before = end + len(" instead") * closing
    return tuple(found)


def _value_rows(said: Sequence[tuple[int, _Said]], index: CatalogueIndex) -> I32:
    """Walk from the latest word back: once a change of mind is passed, older wishes of the same slot are withdrawn."""
    rows: set[tuple[int, ...]] = set()
    renewed: set[bool] = set()  # slots (is it a facility?) that were named anew
    for age, message in said:
        for mention in reversed(message.values):
            slot = bool(index.value_groups[mention.id] == FACILITY)
            withdrawn = slot in renewed and mention.polarity > 0
            rows.add((mention.id, 0 if withdrawn else mention.polarity, age))
            if mention.polarity > 0 and mention.renewed:
                renewed.add(slot)
    return _table(rows, 3)


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

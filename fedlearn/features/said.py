"""What one message said about the catalogue, and its bytes: all that a phone keeps of a message.

Layout (version 1; integers are varints of at most 5 bytes, floats little-endian f32)::

    u8 version   u8 flags   u8 wishes   f32[0, 1, 2, ...] of the wishes that are set, in this order:
                                        price low, price high, rating, hours low, hours high
    count, keys of the values: 3 * value id + polarity + 1
    count, keys of the words:  4 * term id + 2 * (of a facility) + (polarity is +1), each with a u8 count after it
    count, name ids

    flags   bits 0-1 subject (0 none, 1 the target's domain, 2 another), 2 facilities renewed, 3 the rest renewed,
            4 free, 5 near           wishes  bit 0 price, 1 cheap, 2 expensive, 3 rating, 4 hours

Keys rise: the first is written as it is, each later one as its distance to the one before, less 1. So a Said has one
form only, and the reader refuses every other.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from fedlearn.errors import DataCorrupt
from fedlearn.features.patterns import Wishes

MAX_COUNT: Final = 255
MAX_SAID_BYTES: Final = 1 << 18
"""A text of 16 KiB cannot say as much."""

_VERSION = 1
_MAX_ID = (1 << 28) - 1
_SUBJECTS = (0, 1, -1)
_PRICE, _CHEAP, _DEAR, _RATING, _HOURS = 1, 2, 4, 8, 16


@dataclass(frozen=True, slots=True)
class Word:
    """A catalogue term.

    Args:
        term: term id.
        polarity: -1 or +1.
        facility: whether it stands inside the name of a facility: a slot of its own.
        count: how often, 1..255.
    """

    term: int
    polarity: int
    facility: bool
    count: int


@dataclass(frozen=True, slots=True)
class Said:
    """What one message said about the catalogue: ids and the numbers of wishes, in no order, and no text.

    A change of mind inside the message is settled: what it withdrew has polarity 0 (values) or is absent (words).

    Args:
        values: (value id, polarity), rising; polarity -1, 0 (withdrawn) or +1.
        words: rising by term, facility, polarity; one of each.
        names: ids of items named, rising.
        wishes: price, rating and so on; every number is one of f32.
        renews_facilities: whether a change of mind replaces older wishes for facilities.
        renews_rest: the same for everything else.
        subject: as ``language.subject`` says: +1 the target's domain, -1 another, 0 none.
    """

    values: tuple[tuple[int, int], ...] = field(repr=False)
    words: tuple[Word, ...] = field(repr=False)
    names: tuple[int, ...] = field(repr=False)
    wishes: Wishes = field(repr=False)
    renews_facilities: bool = field(repr=False)
    renews_rest: bool = field(repr=False)
    subject: int = field(repr=False)

    @property
    def empty(self) -> bool:
        """Whether it names nothing; its subject may still tell what older messages were about."""
        return not (self.values or self.words or self.names or self.wishes.any)

    def renews(self, facility: bool) -> bool:
        """Whether a change of mind replaces older wishes of a slot."""
        return self.renews_facilities if facility else self.renews_rest


def said_bytes(said: Said) -> bytes:
    """Return the one form of a Said in bytes."""
    w = said.wishes
    flags = (
        _SUBJECTS.index(said.subject)
        | said.renews_facilities << 2
        | said.renews_rest << 3
        | bool(w.free) << 4
        | bool(w.near) << 5
    )
    wishes, numbers = 0, []
    if w.price is not None:
        wishes, numbers = _PRICE, [*w.price]
    if w.price_level is not None:
        wishes |= _CHEAP if w.price_level < 0 else _DEAR
    if w.rating is not None:
        wishes, numbers = wishes | _RATING, [*numbers, w.rating]
    if w.hours is not None:
        wishes, numbers = wishes | _HOURS, [*numbers, *w.hours]
    out = bytearray((_VERSION, flags, wishes))
    out += struct.pack(f"<{len(numbers)}f", *numbers)
    _write_keys(out, [3 * value + polarity + 1 for value, polarity in said.values])
    _write_keys(out, [_word_key(word) for word in said.words], [word.count for word in said.words])
    _write_keys(out, said.names)
    return bytes(out)


def said_from_bytes(data: bytes) -> Said:
    """Read what ``said_bytes`` wrote.

    Raises:
        DataCorrupt: too long, cut short, with something behind it, of another version, or not in the one form.
    """
    if len(data) > MAX_SAID_BYTES:
        raise DataCorrupt(f"a stored message has {len(data)} bytes: must be at most {MAX_SAID_BYTES}.")
    reader = _Reader(data)
    version, flags, wishes = reader.byte(), reader.byte(), reader.byte()
    if version != _VERSION:
        raise DataCorrupt(f"a stored message has version {version}: must be {_VERSION}; this is another runtime's.")
    if flags >> 6 or flags & 3 == 3 or wishes >> 5 or wishes & (_CHEAP | _DEAR) == _CHEAP | _DEAR:
        raise DataCorrupt("a stored message has flags that mean nothing.")
    found = reader.wishes(flags, wishes)
    values = tuple((key // 3, key % 3 - 1) for key, _ in reader.keys(3))
    words = tuple(Word(key >> 2, 1 if key & 1 else -1, bool(key & 2), n) for key, n in reader.keys(4, counted=True))
    names = tuple(key for key, _ in reader.keys(1))
    reader.end()
    said = Said(values, words, names, found, bool(flags & 4), bool(flags & 8), _SUBJECTS[flags & 3])
    if said.empty and said.subject == 0:
        raise DataCorrupt("a stored message says nothing: such a message leaves no trace.")
    return said


def round_wishes(wishes: Wishes) -> Wishes:
    """Return wishes whose numbers are of f32: what a Query and a Said keep."""
    return Wishes(
        price=None if wishes.price is None else (_f32(wishes.price[0]), _f32(wishes.price[1])),
        price_level=wishes.price_level,
        free=wishes.free,
        rating=None if wishes.rating is None else _f32(wishes.rating),
        hours=None if wishes.hours is None else (_f32(wishes.hours[0]), _f32(wishes.hours[1])),
        near=wishes.near,
    )


def _f32(value: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def _word_key(word: Word) -> int:
    return word.term << 2 | word.facility << 1 | (word.polarity > 0)


def _write_keys(out: bytearray, keys: Sequence[int], counts: Sequence[int] = ()) -> None:
    _write_varint(out, len(keys))
    last = -1
    for i, key in enumerate(keys):
        _write_varint(out, key - last - 1)
        last = key
        if counts:
            out.append(counts[i])


def _write_varint(out: bytearray, value: int) -> None:
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


class _Reader:
    """Strict: every byte is asked for once, and what is not there is refused."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def byte(self) -> int:
        if self._at >= len(self._data):
            raise DataCorrupt("a stored message is cut short.")
        self._at += 1
        return self._data[self._at - 1]

    def varint(self) -> int:
        value = 0
        for shift in range(0, 35, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if byte == 0 and shift:
                    break
                return value
        raise DataCorrupt("a stored message has a number that is not in its shortest form.")

    def keys(self, per_id: int, counted: bool = False) -> Iterable[tuple[int, int]]:
        """Yield (key, count), keys rising. ``per_id`` keys belong to one id."""
        count = self.varint()
        if count > len(self._data) - self._at:
            raise DataCorrupt("a stored message names more than it has bytes for.")
        key = -1
        for _ in range(count):
            key += self.varint() + 1
            if key // per_id > _MAX_ID:
                raise DataCorrupt("a stored message names an id over the largest there can be.")
            repeats = self.byte() if counted else 1
            if repeats == 0:
                raise DataCorrupt("a stored message counts a word 0 times.")
            yield key, repeats

    def wishes(self, flags: int, wishes: int) -> Wishes:
        price = self._span("price") if wishes & _PRICE else None
        rating = self._float() if wishes & _RATING else None
        hours = self._span("hours") if wishes & _HOURS else None
        if rating is not None and not 1.0 <= rating <= 5.0:
            raise DataCorrupt("a stored message has a rating outside 1..5.")
        level = -1.0 if wishes & _CHEAP else 1.0 if wishes & _DEAR else None
        return Wishes(price, level, bool(flags & 16), rating, hours, bool(flags & 32))

    def end(self) -> None:
        if self._at != len(self._data):
            raise DataCorrupt("a stored message has bytes behind its end.")

    def _span(self, name: str) -> tuple[float, float]:
        low, high = self._float(), self._float()
        if not (math.isfinite(low) and 0.0 <= low <= high) or math.copysign(1.0, low) < 0.0:
            raise DataCorrupt(f"a stored message has a span of {name} that is not one: 0 <= low <= high.")
        return low, high

    def _float(self) -> float:
        if self._at + 4 > len(self._data):
            raise DataCorrupt("a stored message is cut short.")
        self._at += 4
        return float(struct.unpack_from("<f", self._data, self._at - 4)[0])

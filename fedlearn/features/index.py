"""Everything that features need from the public catalogue, worked out once. No statistic from users enters here."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn.catalogue import Catalogue, Item
from fedlearn.errors import EmptyPopulation
from fedlearn.features.patterns import read_hours
from fedlearn.features.text import is_cjk, normalise, terms

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

SPEC_VERSION = 1
"""Version of the specification (docs/features.md). Part of the index digest: a change expires stored Queries."""

K1, B = 1.2, 0.75
"""BM25 constants (Robertson & Zaragoza 2009, sec. 3.5: k1 in 1.2..2, b in .5...8)."""

DISH, FACILITY, KIND = 0, 1, 2
GROUPS: Mapping[str, int] = {"dish": DISH, "facility": FACILITY}
"""Attribute name -> mention group; every other attribute (cuisine, type, tags, genre, ...) is ``KIND``."""


@dataclass(frozen=True, slots=True)
class Postings:
    """Sparse rows in CSR form: row r holds ``columns[offsets[r]:offsets[r + 1]]`` with the weights beside them."""

    offsets: I64
    columns: I32
    weights: F64

    @staticmethod
    def build(rows: Sequence[Mapping[int, float]]) -> Postings:
        """Build from one mapping (column -> weight) a row; columns are sorted."""
        sizes = np.array([len(r) for r in rows], dtype=np.int64)
        columns = [c for r in rows for c in sorted(r)]
        weights = [r[c] for r in rows for c in sorted(r)]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        return Postings(offsets, np.array(columns, dtype=np.int32), np.array(weights, dtype=np.float64))

    def row(self, r: int) -> I32:
        """Columns of one row."""
        return self.columns[self.offsets[r] : self.offsets[r + 1]]

    def total(self, rows: NDArray[np.integer[Any]], width: int, scale: NDArray[np.floating[Any]] | None = None) -> F64:
        """Sum the named rows (each times its scale) into a dense f64[width], one after the other in f64."""
        starts = self.offsets[rows]
        sizes = self.offsets[rows + 1] - starts
        ends = np.cumsum(sizes)
        count = int(ends[-1]) if len(ends) else 0
        if count == 0:
            return np.zeros(width)
        where = np.repeat(starts - ends + sizes, sizes) + np.arange(count)
        weights = self.weights[where]
        if scale is not None:
            weights *= np.repeat(scale, sizes)
        return np.asarray(np.bincount(self.columns[where], weights=weights, minlength=width), dtype=np.float64)


@dataclass(frozen=True)
class Phrases:
    """Longest-match lookup of whole catalogue values in a normalised text."""

    ids: Mapping[str, int]
    lengths: Mapping[str, tuple[int, ...]] = field(repr=False)

    @staticmethod
    def build(ids: Mapping[str, int]) -> Phrases:
        """Index phrases by their first two characters; phrases of one character are left out."""
        lengths: dict[str, set[int]] = defaultdict(set)
        for phrase in ids:
            if len(phrase) > 1:
                lengths[phrase[:2]].add(len(phrase))
        return Phrases(ids, {k: tuple(sorted(v, reverse=True)) for k, v in lengths.items()})

    def find(self, text: str) -> list[tuple[int, int, int]]:
        """Return (start, end, id) of non-overlapping phrases, leftmost first, longest at each place.

        A phrase that begins or ends with a letter or digit of an alphabetic script must stand as a whole word (a
        plural ``s`` may follow).
        """
        found: list[tuple[int, int, int]] = []
        i = 0
        while i < len(text) - 1:
            for length in self.lengths.get(text[i : i + 2], ()):
                end = i + length
                phrase = self.ids.get(text[i:end])
                if phrase is not None and len(text) >= end and _whole(text, i, end):
                    found.append((i, end, phrase))
                    i = end - 1
                    break
            i += 1
        return found


def _whole(text: str, start: int, end: int) -> bool:
    if start > 0 and _wordy(text[start]) and _wordy(text[start - 1]):
        return False
    if end < len(text) and _wordy(text[end - 1]) and _wordy(text[end]):
        after = text[end + 1] if end + 1 < len(text) else " "
        return text[end] == "s" and not _wordy(after)
    return True


def _wordy(char: str) -> bool:
    return char.isalnum() and not is_cjk(char)


@dataclass(frozen=True)
class CatalogueIndex:
    """What ``make_query`` and ``match`` look up. Item ids: 0..n-1 are ``catalogue.items``, then ``catalogue.context``.

    Args:
        catalogue_digest: the catalogue's own digest.
        digest: SHA-256 (hex) over the catalogue's digest and the feature specification's version.
        n: items of the target domain.
        keys: item key -> item id, target and context.
        terms: term -> term id.
        term_items: term id -> target items, BM25 weights.
        values: attribute values of target items, for whole-phrase mentions.
        value_groups: i32[values], mention group of each value.
        value_items: value id -> target items that have it, weight 1.
        names: item names of any domain, for whole-phrase mentions; phrase id -> row of ``name_items``.
        name_items: name id -> item ids that bear it, weight 1.
        tags: item id (any) -> attribute values of target items, weights that sum to 1.
        domain: the target's domain. other_domains: those of the context.
        near: item id (any) -> target items close to it: .5 for each direction in which one lists the other.
        domains: i32[all], number of each item's domain; 0 is the target's.
        log_price: f64[n], log2(1 + price), nan where unknown.
        free: bool[n].
        rating: f32[n], nan where unknown.
        hours: f32[n, 2], nan where unknown.
        price_level: f32[all], rank of the price inside its own domain, 0..1, nan where unknown.
    """

    catalogue_digest: str
    digest: str
    n: int
    domain: str
    other_domains: tuple[str, ...]
    keys: Mapping[str, int] = field(repr=False)
    terms: Mapping[str, int] = field(repr=False)
    term_items: Postings = field(repr=False)
    values: Phrases = field(repr=False)
    value_groups: I32 = field(repr=False)
    value_items: Postings = field(repr=False)
    names: Phrases = field(repr=False)
    name_items: Postings = field(repr=False)
    tags: Postings = field(repr=False)
    near: Postings = field(repr=False)
    domains: I32 = field(repr=False)
    log_price: F64 = field(repr=False)
    free: NDArray[np.bool_] = field(repr=False)
    rating: F32 = field(repr=False)
    hours: F32 = field(repr=False)
    price_level: F32 = field(repr=False)

    @cached_property
    def rating_share(self) -> F32:
        """f32[n]: rating over 5, 0 where unknown."""
        return np.where(np.isnan(self.rating), np.float32(0), self.rating / np.float32(5))

    @cached_property
    def price_share(self) -> F32:
        """f32[n]: price level of the target items, 0 where unknown."""
        return np.where(np.isnan(self.price_level[: self.n]), np.float32(0), self.price_level[: self.n])

    @staticmethod
    def build(catalogue: Catalogue) -> CatalogueIndex:
        """Derive the index from a catalogue; a pure function of its digest and of ``SPEC_VERSION``.

        Raises:
            EmptyPopulation: the catalogue has no item to rank.
        """
        if not catalogue.items:
            raise EmptyPopulation(f"catalogue {catalogue.name!r} has no item of domain {catalogue.domain!r} to rank.")
        everything = (*catalogue.items, *catalogue.context)
        n = len(catalogue.items)
        vocabulary, term_items = _bm25(catalogue.items)
        values, groups, value_items = _values(catalogue.items)
        names, name_items = _names(everything)
        keys = {item.key: i for i, item in enumerate(everything)}
        order = {catalogue.domain: 0}
        domains = [order.setdefault(item.domain, len(order)) for item in everything]
        price = _floats(item.price for item in catalogue.items)
        head = f"fedlearn.features/{SPEC_VERSION}/{catalogue.digest}"
        return CatalogueIndex(
            catalogue_digest=catalogue.digest,
            digest=hashlib.sha256(head.encode()).hexdigest(),
            n=n,
            domain=catalogue.domain,
            other_domains=tuple(d for d in order if d != catalogue.domain),
            keys=keys,
            terms=vocabulary,
            term_items=term_items,
            values=values,
            value_groups=groups,
            value_items=value_items,
            names=names,
            name_items=name_items,
            tags=_tags(everything, values.ids, value_items, n),
            near=_near(everything, keys, n),
            domains=np.array(domains, dtype=np.int32),
            log_price=np.log2(price.astype(np.float64) + 1.0),
            free=price == 0,
            rating=_floats(item.rating for item in catalogue.items),
            hours=_hours(catalogue.items),
            price_level=_price_levels(everything, domains),
        )


def _floats(values: Iterable[float | None]) -> F32:
    return np.array([np.nan if v is None else v for v in values], dtype=np.float32)


def _texts(item: Item) -> list[str]:
    return [text for values in item.attributes.values() for text in map(normalise, values) if text]


def _bm25(items: Sequence[Item]) -> tuple[dict[str, int], Postings]:
    """Robertson's BM25 (Robertson & Zaragoza 2009, eq. 3.15) with idf = ln(1 + (n - df + .5) / (df + .5))."""
    counts = [Counter(term for text in _texts(item) for term, _ in terms(text)) for item in items]
    lengths = [sum(c.values()) for c in counts]
    mean = max(sum(lengths) / len(lengths), 1.0)
    frequency = Counter(term for c in counts for term in c)
    vocabulary = {term: i for i, term in enumerate(sorted(frequency))}
    rows: list[dict[int, float]] = [{} for _ in vocabulary]
    for i, (count, length) in enumerate(zip(counts, lengths, strict=True)):
        for term, tf in count.items():
            df = frequency[term]
            idf = float(np.log(1 + (len(items) - df + 0.5) / (df + 0.5)))
            rows[vocabulary[term]][i] = idf * tf * (K1 + 1) / (tf + K1 * (1 - B + B * length / mean))
    return vocabulary, Postings.build(rows)


def _values(items: Sequence[Item]) -> tuple[Phrases, I32, Postings]:
    """A value that several attributes share takes the lowest group number."""
    groups: dict[str, int] = {}
    bearers: dict[str, dict[int, float]] = defaultdict(dict)
    for i, item in enumerate(items):
        for name, values in item.attributes.items():
            for value in filter(None, map(normalise, values)):
                groups[value] = min(GROUPS.get(name, KIND), groups.get(value, KIND))
                bearers[value][i] = 1.0
    ordered = sorted(groups)
    ids = {value: i for i, value in enumerate(ordered)}
    numbers = np.array([groups[v] for v in ordered], dtype=np.int32)
    return Phrases.build(ids), numbers, Postings.build([bearers[v] for v in ordered])


def _names(everything: Sequence[Item]) -> tuple[Phrases, Postings]:
    bearers: dict[str, dict[int, float]] = defaultdict(dict)
    for i, item in enumerate(everything):
        bearers[normalise(item.name)][i] = 1.0
    ordered = sorted(bearers)
    return Phrases.build({name: i for i, name in enumerate(ordered)}), Postings.build([bearers[v] for v in ordered])


def _tags(everything: Sequence[Item], ids: Mapping[str, int], bearers: Postings, n: int) -> Postings:
    """What a choice says about taste: each of its attributes weighs the same, each value in it by its IDF."""
    idf = np.log((n + 1) / np.diff(bearers.offsets))
    rows: list[dict[int, float]] = []
    for item in everything:
        sets = [sorted({ids[v] for v in map(normalise, values) if v in ids}) for values in item.attributes.values()]
        known = [s for s in sets if s]
        row: dict[int, float] = defaultdict(float)
        for values in known:
            total = float(idf[values].sum()) * len(known)
            for value in values:
                row[value] += float(idf[value]) / total
        rows.append(row)
    return Postings.build(rows)


def _near(everything: Sequence[Item], keys: Mapping[str, int], n: int) -> Postings:
    rows: list[dict[int, float]] = [defaultdict(float) for _ in everything]
    for i, item in enumerate(everything):
        for j in {keys[key] for key in item.nearby if key in keys}:
            if j < n:
                rows[i][j] += 0.5
            if i < n:
                rows[j][i] += 0.5
    return Postings.build(rows)


def _hours(items: Sequence[Item]) -> F32:
    found = [read_hours(normalise(item.duration)) for item in items]
    return np.array([(np.nan, np.nan) if f is None else f for f in found], dtype=np.float32)


def _price_levels(everything: Sequence[Item], domains: Sequence[int]) -> F32:
    levels = np.full(len(everything), np.nan, dtype=np.float32)
    prices = _floats(item.price for item in everything)
    numbers = np.array(domains)
    for domain in range(int(numbers.max()) + 1):
        where = np.flatnonzero((numbers == domain) & ~np.isnan(prices))
        ordered = np.sort(prices[where])
        below = np.searchsorted(ordered, prices[where], side="left") + np.searchsorted(ordered, prices[where], "right")
        levels[where] = below / (2 * max(len(where), 1))
    return levels

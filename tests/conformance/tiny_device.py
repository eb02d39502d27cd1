"""A second device, small and slow: the numbers of ``fedlearn.conformance.v1.Numerics`` from the documents alone.

It proves that docs/features.md (with docs/features-tables.json), export.md, bundle.md, engine.md and device-budget.md are
enough to port from. So it shares no code with fedlearn but the generated messages, and uses no package but grpc and
protobuf. ``python tests/conformance/tiny_device.py unix:/tmp/tiny.sock`` serves until it is stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
import sys
import unicodedata
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from fedlearn.proto import conformance_pb2 as pb
from fedlearn.proto import conformance_pb2_grpc as rpc
from fedlearn.proto import device_pb2

TABLES = json.loads((Path(__file__).parents[2] / "docs" / "features-tables.json").read_text(encoding="utf-8"))
NAN, INF = math.nan, math.inf
MOST = 255
Span = tuple[int, int, int]
Weights = dict[int, float]


class Unserved(Exception):
    """A case that this device does not do."""


def f32(value: float) -> float:
    """Round to the nearest f32."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return math.copysign(INF, value)


# --- docs/features.md: normalisation and terms ------------------------------------------------------------------------

CJK = "".join(f"{chr(first)}-{chr(last)}" for first, last in TABLES["text"]["cjk"])
STOP_WORDS = frozenset(TABLES["text"]["stop_words"])
IS_CJK = re.compile(f"[{CJK}]")
QUOTES = str.maketrans("‘’`–—−", "'''---")


def normalise(text: str) -> str:
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).translate(QUOTES)
    text = re.sub(r"\s*[\r\n\x85\u2028\u2029]\s*", "\n", text)
    text = re.sub(r"[^\S\n]+", " ", text)
    return re.sub(f" (?=[{CJK}])|(?<=[{CJK}]) ", "", text).strip()


def own_text(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """Cut the foreign spans out, normalise what is left between them, and join it by line breaks."""
    pieces, at = [], 0
    for start, end in sorted(spans):
        if not start <= end <= len(text):
            raise ValueError("foreign_spans: a span outside its message.")
        if start >= at:
            pieces.append(text[at:start])
        at = max(at, end)
    return "\n".join(map(normalise, [*pieces, text[at:]]))


def stem(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("ches", "shes", "sses", "xes", "oes")):
        return word[:-2]
    return word[:-1] if len(word) > 3 and word[-1] == "s" and word[-2] not in "sui" else word


def terms(text: str) -> Iterator[tuple[str, int]]:
    for run in re.finditer(rf"[{CJK}]+|[^\W_{CJK}]+", text):
        word = run[0]
        if IS_CJK.match(word):
            for n in (2, 3):
                yield from ((word[i : i + n], run.start() + i) for i in range(len(word) - n + 1))
        elif len(word) > 1 and word not in STOP_WORDS and not any(map(str.isdigit, word)):
            yield stem(word), run.start()


# --- docs/features.md: index ------------------------------------------------------------------------------------------


def wordy(char: str) -> bool:
    return char.isalnum() and not IS_CJK.match(char)


def whole(text: str, start: int, end: int) -> bool:
    """Say whether a phrase stands as a whole word, a plural s aside."""
    if start and wordy(text[start]) and wordy(text[start - 1]):
        return False
    if end < len(text) and wordy(text[end - 1]) and wordy(text[end]):
        return text[end] == "s" and not (end + 1 < len(text) and wordy(text[end + 1]))
    return True


class Phrases:
    """Whole-phrase search; a phrase's id is its place in code-point order."""

    def __init__(self, phrases: Iterable[str]) -> None:
        self.ids = {phrase: i for i, phrase in enumerate(sorted(set(phrases)))}
        self.longest = max(map(len, self.ids), default=0)

    def find(self, text: str) -> list[Span]:
        found, at = [], 0
        while at < len(text):
            for end in range(min(at + self.longest, len(text)), at + 1, -1):
                if text[at:end] in self.ids and whole(text, at, end):
                    found.append((at, end, self.ids[text[at:end]]))
                    at = end - 1
                    break
            at += 1
        return found


class Item(NamedTuple):
    """One row of the catalogue; values are normalised, the empty ones left out."""

    key: str
    domain: str
    name: str
    values: list[tuple[str, list[str]]]
    price: float
    rating: float
    hours: tuple[float, float]
    nearby: set[str]


def read_item(row: Mapping[str, Any]) -> Item:
    said = sorted(row.get("attributes", {}).items())
    return Item(
        key=f"{row['domain']}:{row['name']}",
        domain=row["domain"],
        name=normalise(row["name"]),
        values=[(name, [v for v in map(normalise, values) if v]) for name, values in said],
        price=f32(row.get("price", NAN)),
        rating=f32(row.get("rating", NAN)),
        hours=read_hours(in_digits(normalise(row.get("duration", "")))) or (NAN, NAN),
        nearby=set(row.get("nearby", ())),
    )


class Index:
    """What the catalogue says, worked out once."""

    def __init__(self, data: bytes) -> None:
        body = json.loads(data)
        rows = [{**row, "domain": body["domain"]} for row in body["items"]] + body["context"]
        self.digest = index_digest(body["name"], body["domain"], rows)
        self.domain = body["domain"]
        self.n = len(body["items"])
        self.items = [read_item(row) for row in rows]
        self.targets = self.items[: self.n]
        self.keys = {item.key: i for i, item in enumerate(self.items)}
        self.others = [d for d in {item.domain for item in self.items} if d != self.domain]
        self.names = Phrases(item.name for item in self.items)
        self.bearers_of_name: dict[int, list[int]] = defaultdict(list)
        for i, item in enumerate(self.items):
            self.bearers_of_name[self.names.ids[item.name]].append(i)
        self._terms()
        self._values()
        self.near = [self._near(i) for i in range(len(self.items))]
        self.taste = [self._taste(item) for item in self.items]
        self.price_level = self._price_levels()

    def _terms(self) -> None:
        counts = [Counter(t for _, vs in item.values for v in vs for t, _ in terms(v)) for item in self.targets]
        frequency = Counter(term for count in counts for term in count)
        self.terms = {term: i for i, term in enumerate(sorted(frequency))}
        self.bm25: list[Weights] = [{} for _ in frequency]
        mean = max(sum(map(Counter.total, counts)) / self.n, 1.0)
        for i, count in enumerate(counts):
            for term, tf in count.items():
                idf = math.log(1 + (self.n - frequency[term] + 0.5) / (frequency[term] + 0.5))
                weight = idf * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * count.total() / mean))
                self.bm25[self.terms[term]][i] = weight

    def _values(self) -> None:
        bearers: dict[str, set[int]] = defaultdict(set)
        groups: dict[str, int] = {}
        for i, item in enumerate(self.targets):
            for name, values in item.values:
                for value in values:
                    bearers[value].add(i)
                    groups[value] = min(groups.get(value, 2), {"dish": 0, "facility": 1}.get(name, 2))
        self.values = Phrases(bearers)
        self.bearers = [sorted(bearers[value]) for value in sorted(bearers)]
        self.groups = [groups[value] for value in sorted(bearers)]

    def _near(self, i: int) -> Weights:
        item = self.items[i]
        return {
            j: 0.5 * ((other.key in item.nearby) + (item.key in other.nearby))
            for j, other in enumerate(self.targets)
            if other.key in item.nearby or item.key in other.nearby
        }

    def _taste(self, item: Item) -> Weights:
        sets = [{self.values.ids[v] for v in values if v in self.values.ids} for _, values in item.values]
        known = [sorted(s) for s in sets if s]
        taste: Weights = defaultdict(float)
        for values in known:
            idf = [math.log((self.n + 1) / len(self.bearers[v])) for v in values]
            for v, weight in zip(values, idf, strict=True):
                taste[v] += weight / (sum(idf) * len(known))
        return taste

    def _price_levels(self) -> list[float]:
        """Rank inside the own domain, 0..1, ties in the middle."""
        prices: dict[str, list[float]] = defaultdict(list)
        for item in self.items:
            if item.price == item.price:
                prices[item.domain].append(item.price)
        return [f32(_rank(item.price, prices[item.domain])) for item in self.items]


def _rank(price: float, prices: Sequence[float]) -> float:
    if price != price:
        return NAN
    return (sum(p < price for p in prices) + sum(p <= price for p in prices)) / (2 * len(prices))


def index_digest(name: str, domain: str, rows: Sequence[Mapping[str, Any]]) -> str:
    listed = [
        [
            row["domain"],
            row["name"],
            [[key, row["attributes"][key]] for key in sorted(row.get("attributes", ()))],
            row.get("price"),
            row.get("rating"),
            row.get("duration", ""),
            row.get("nearby", []),
        ]
        for row in rows
    ]
    text = json.dumps([name, domain, listed], ensure_ascii=False, separators=(",", ":"))
    catalogue = hashlib.sha256(text.encode()).hexdigest()
    return hashlib.sha256(f"fedlearn.features/{TABLES['spec_version']}/{catalogue}".encode()).hexdigest()


# --- docs/features.md: what a sentence says ---------------------------------------------------------------------------

LANGUAGE, NUMBERS, WISHES = TABLES["language"], TABLES["numbers"], TABLES["wishes"]
EVENTS = re.compile(f"(?P<stop>{LANGUAGE['stop']})|(?P<neg>{LANGUAGE['negative']})|(?P<pos>{LANGUAGE['positive']})")


def negated(text: str) -> list[bool]:
    """Say for each position whether a negation covers it."""
    covered = [False] * (len(text) + 1)
    cuts = [(0, 0, ""), *((m.start(), m.end(), m.lastgroup) for m in EVENTS.finditer(text))]
    for (_, after, kind), (before, _, _) in pairwise([*cuts, (len(covered), 0, "")]):
        if kind == "neg":
            covered[after:before] = [True] * (before - after)
    clauses = [0, *(m.end() for m in re.finditer(LANGUAGE["stop"], text))]
    for closer in re.finditer(LANGUAGE["after"], text):
        begin = clauses[bisect_right(clauses, closer.start()) - 1]
        covered[begin : closer.start()] = [True] * (closer.start() - begin)
    return covered


def in_digits(text: str) -> str:
    for words, digits in NUMBERS["fractions"]:
        text = text.replace(words, digits)
    text = re.sub(NUMBERS["chinese"], lambda m: str(_chinese(m[0])), text)
    return re.sub(NUMBERS["english"], lambda m: str(_english(m[0])), text)


def _chinese(word: str) -> int:
    total, digit, place = 0, 0, 1
    for char in word:
        if char in NUMBERS["chinese_units"]:
            place = NUMBERS["chinese_units"][char]
            total, digit = total + max(digit, 1) * place, 0
        else:
            digit = NUMBERS["chinese_digits"][char]
            place = 10 if digit == 0 else place
    return total + digit * max(place // 10, 1)


def _english(words: str) -> int:
    total = 0
    for word in re.split("[ -]", words):
        total = max(total, 1) * 100 if word == "hundred" else total + NUMBERS["english_words"][word]
    return total


def read_price(text: str) -> tuple[float, float] | None:
    taken: list[tuple[int, int]] = []
    found: list[tuple[int, tuple[float, float]]] = []
    for kind, pattern in WISHES["prices"]:
        for m in re.finditer(pattern, text):
            spans = [m.span(i) for i in range(1, m.re.groups + 1) if m[i]]
            start, end = spans[0][0], spans[-1][1]
            if all(end <= a or b <= start for a, b in taken):
                taken.append((start, end))
                numbers = [float(text[a:b]) for a, b in spans]
                found.append((start, _band(kind, numbers)))
    return max(found)[1] if found else None


def _band(kind: str, numbers: Sequence[float]) -> tuple[float, float]:
    first = numbers[0]
    return {
        "band": (min(numbers), max(numbers)),
        "ceiling": (0.0, first),
        "floor": (first, INF),
        "about": (0.8 * first, 1.2 * first),
    }[kind]


def read_level(text: str) -> float | None:
    cheap = [m.span() for m in re.finditer(WISHES["cheap"], text)]
    dear = [m.start() for m in re.finditer(WISHES["expensive"], text)]
    found = [(a, -1.0) for a, _ in cheap] + [(at, 1.0) for at in dear if not any(a <= at < b for a, b in cheap)]
    return max(found)[1] if found else None


def read_rating(text: str) -> float | None:
    found = [
        (m.start(1), float(m[1]))
        for pattern in WISHES["ratings"]
        for m in re.finditer(pattern, text)
        if float(m[1]) <= 5 and not re.compile(WISHES["rating_ceiling"]).match(text, m.end(1))
    ]
    if found:
        return max(found)[1]
    return WISHES["well_rated_floor"] if re.search(WISHES["well_rated"], text) else None


def read_hours(text: str) -> tuple[float, float] | None:
    found, hours = None, WISHES["duration_hours"]
    for low, low_unit, high, high_unit in re.findall(WISHES["duration"], text):
        if high_unit:
            last = hours[high_unit[0]]
            first = float(low) * (hours[low_unit[0]] if low_unit else last)
            found = first, max(first, float(high) * last)
        elif low_unit:
            found = (float(low) * hours[low_unit[0]],) * 2
    return None if found is None else (f32(found[0]), f32(found[1]))


def read_wishes(text: str) -> dict[str, tuple[float, ...]]:
    """Return what is asked for by the names of the wish positions; a span has two numbers."""
    text = in_digits(text)
    price, level, rating, hours = read_price(text), read_level(text), read_rating(text), read_hours(text)
    found: dict[str, tuple[float, ...] | None] = {
        "price": price,
        "level": None if level is None else (level,),
        "free": (1.0,) if re.search(WISHES["free"], text) else None,
        "rating": None if rating is None else (rating,),
        "hours": hours,
        "near": (1.0,) if re.search(WISHES["near"], text) else None,
    }
    return {name: tuple(map(f32, numbers)) for name, numbers in found.items() if numbers is not None}


PLACES = {"price": 0, "level": 2, "free": 3, "rating": 4, "hours": 5, "near": 7}


class Said(NamedTuple):
    """What one message said. A slot is True for facilities, False for everything else."""

    values: set[tuple[int, int]]
    words: Counter[tuple[int, bool, int]]
    names: set[int]
    wishes: dict[str, tuple[float, ...]]
    renewed: set[bool]
    subject: int

    @property
    def empty(self) -> bool:
        return not (self.values or self.words or self.names or self.wishes)


def blanked(text: str, spans: Iterable[Span]) -> str:
    for start, end, _ in spans:
        text = text[:start] + "\n" * (end - start) + text[end:]
    return text


def read_message(text: str, spans: Sequence[tuple[int, int]], index: Index) -> Said | None:
    plain = own_text(text, spans)
    names = index.names.find(plain)
    plain = blanked(plain, names)
    values = index.values.find(plain)
    about = blanked(plain, values)
    said = Said(
        *settled(plain, values, index)[:2],
        {name for _, _, name in names},
        read_wishes(plain),
        settled(plain, values, index)[2],
        subject(about, index),
    )
    return None if said.empty and not said.subject else said


def subject(text: str, index: Index) -> int:
    named = {domain for domain, pattern in LANGUAGE["subjects"].items() if re.search(pattern, text)}
    return 1 if index.domain in named else -1 if named.intersection(index.others) else 0


def settled(
    text: str, values: Sequence[Span], index: Index
) -> tuple[set[tuple[int, int]], Counter[tuple[int, bool, int]], set[bool]]:
    """Return values, words and renewed slots of a message, its own changes of mind applied."""
    value_at = {start: value for start, _, value in values}
    inside = {at: start for start, end, _ in values for at in range(start, end)}
    places: dict[int, list[int]] = {start: [] for start in value_at}
    for term, at in terms(text):
        if term in index.terms:
            places.setdefault(inside.get(at, at), []).append(index.terms[term])
    covered, renewing = negated(text), renewals(text, values, sorted(places))
    said: set[tuple[int, int]] = set()
    words: Counter[tuple[int, bool, int]] = Counter()
    renewed: set[bool] = set()
    for at in sorted(places, reverse=True):
        slot = at in value_at and index.groups[value_at[at]] == 1
        wanted = not covered[at]
        withdrawn = wanted and slot in renewed
        polarity = 1 if wanted else -1
        if at in value_at:
            said.add((value_at[at], 0 if withdrawn else polarity))
        if not withdrawn:
            words.update((term, slot, polarity) for term in places[at])
        if wanted and at in renewing:
            renewed.add(slot)
    return said, Counter({key: min(count, MOST) for key, count in words.items()}), renewed


def renewals(text: str, values: Sequence[Span], places: Sequence[int]) -> set[int]:
    start_of = {end: start for start, end, _ in values}
    found = set()
    for cue in re.finditer(LANGUAGE["change"], text):
        if text.startswith("instead", cue.start()) and cue.start() - 1 in start_of:
            found.add(start_of[cue.start() - 1])
        else:
            found.update([at for at in places if at > cue.start()][:1])
    return found


def aged(said: Iterable[Said]) -> list[tuple[int, Said]]:
    """Return the messages that named something, latest first, with their ages."""
    wish, about, kept = 0, 1, []
    for message in said:
        if message.subject and (message.subject != about or (message.subject > 0 and not message.empty)):
            wish, about = wish + 1, message.subject
        if not message.empty:
            kept.insert(0, (wish, message))
    present = sum(wish == kept[0][0] for wish, _ in kept)
    return [(min(max(i - present + 1, 0), MOST), message) for i, (_, message) in enumerate(kept)]


def make_query(asked: pb.MakeQuery, index: Index) -> list[int]:
    """Return the flat form of a Query."""
    own = [m for m in asked.messages if m.direction == device_pb2.DIRECTION_OUTGOING]
    read = [read_message(m.text, [(s.start, s.end) for s in m.foreign_spans], index) for m in own]
    said = aged(s for s in read if s is not None)
    words: Counter[tuple[int, int, int]] = Counter()
    values: set[tuple[int, ...]] = set()
    renewed: set[bool] = set()
    for age, message in said:
        for value, polarity in message.values:
            withdrawn = polarity > 0 and (index.groups[value] == 1) in renewed
            values.add((value, 0 if withdrawn else polarity, age))
        for (term, slot, polarity), count in message.words.items():
            if polarity < 0 or slot not in renewed:
                words[term, polarity, age] += count
        renewed |= message.renewed
    wishes = [NAN] * 8
    for age, message in reversed(said):
        for name, numbers in message.wishes.items() if age == 0 else ():
            wishes[PLACES[name] : PLACES[name] + len(numbers)] = numbers
    chosen = [(index.keys[c.item], app_tag(c.app)) for c in reversed(asked.earlier) if c.item in index.keys]
    blocks: list[list[tuple[int, ...]]] = [
        sorted((term, min(count, MOST), polarity, age) for (term, polarity, age), count in words.items()),
        sorted(values),
        sorted({(name, age) for age, message in said for name in message.names}),
        [(item, app, min(age, MOST)) for age, (item, app) in enumerate(chosen)],
    ]
    bits = struct.unpack("<8i", struct.pack("<8f", *wishes))
    return [*map(len, blocks), *(n for block in blocks for row in block for n in row), *bits]


def app_tag(app: str) -> int:
    return int.from_bytes(hashlib.blake2b(app.encode(), digest_size=4).digest(), "big") >> 1


# --- docs/features.md: columns ----------------------------------------------------------------------------------------

BOTH = frozenset({"chat", "choices"})
CHAT = ("words", "words_earlier", "dish", "facility", "kind", "values_earlier", "rejected", "price_fit")
CHAT = (*CHAT, "price_level_fit", "free", "rating_fit", "hours_fit", "near_named")
NEEDS = {
    **dict.fromkeys(CHAT, frozenset({"chat"})),
    **dict.fromkeys(("near_own", "near_other"), frozenset({"choices"})),
    **dict.fromkeys(("near_wished", "near_last_wished"), BOTH),
    **dict.fromkeys(("alike_own", "alike_other", "price_alike", "chosen_before"), frozenset({"choices"})),
    **dict.fromkeys(("rating", "price_level"), frozenset({"catalogue"})),
}


class Matcher:
    """The columns of one Query, f32 for each item of the target domain."""

    def __init__(self, flat: Sequence[int], index: Index) -> None:
        self.index = index
        self.columns = {name: [0.0] * index.n for name in NEEDS}
        at, blocks = 4, []
        for rows, width in zip(flat[:4], (4, 3, 2, 3), strict=True):
            blocks.append([tuple(flat[at + i * width : at + (i + 1) * width]) for i in range(rows)])
            at += rows * width
        if len(flat) != at + 8:
            raise ValueError("query: its counts contradict its length.")
        self.wishes = struct.unpack("<8f", struct.pack("<8i", *flat[at:]))
        self._words(blocks[0])
        self._values(blocks[1])
        self._wishes([name for name, age in blocks[2] if age == 0])
        self._choices([row[0] for row in blocks[3]])
        self._put("rating", [item.rating / 5 for item in index.targets])
        self._put("price_level", index.price_level[: index.n])

    def _put(self, name: str, values: Iterable[float]) -> None:
        """Store a column; what is not known is 0."""
        self.columns[name] = [0.0 if value != value else f32(value) for value in values]

    def _total(self, rows: Iterable[Weights]) -> list[float]:
        out = [0.0] * self.index.n
        for row in rows:
            for item, weight in row.items():
                out[item] += weight
        return out

    def _words(self, rows: Sequence[tuple[int, ...]]) -> None:
        for name, ids in (
            ("words", [t for t, _, p, age in rows if p > 0 and age == 0]),
            ("words_earlier", [t for t, _, p, age in rows if p > 0 and age > 0]),
            ("rejected", [t for t, _, p, _ in rows if p < 0]),
        ):
            if ids:
                score = self._total(self.index.bm25[t] for t in ids)
                self._put(name, [s / max(score) for s in score])

    def _values(self, rows: Sequence[tuple[int, ...]]) -> None:
        group = self.index.groups
        for name, ids in (
            ("dish", [v for v, p, age in rows if p > 0 and age == 0 and group[v] == 0]),
            ("facility", [v for v, p, age in rows if p > 0 and age == 0 and group[v] == 1]),
            ("kind", [v for v, p, age in rows if p > 0 and age == 0 and group[v] == 2]),
            ("values_earlier", [v for v, p, age in rows if p > 0 and age > 0]),
            ("rejected", [v for v, p, _ in rows if p < 0]),
        ):
            if ids:
                share = [0.0] * self.index.n
                for item in (i for v in ids for i in self.index.bearers[v]):
                    share[item] = f32(share[item] + f32(1.0 / len(ids)))
                self._put(name, share)

    def _wishes(self, named: Sequence[int]) -> None:
        index, (low, high, level, free, floor, shortest, longest, _) = self.index, self.wishes
        items = index.targets
        if low == low:
            self._put("price_fit", [_price_fit(item.price, low, high) for item in items])
        if level == level:
            self._put("price_level_fit", [level * (2 * p - 1) for p in index.price_level[: index.n]])
        if free == free:
            self._put("free", [float(item.price == 0) for item in items])
        if floor == floor:
            self._put("rating_fit", [_rating_fit(item.rating, floor) for item in items])
        if shortest == shortest:
            self._put("hours_fit", [_hours_fit(item.hours, shortest, longest) for item in items])
        if named:
            near = self._total(index.near[i] for name in named for i in index.bearers_of_name[name])
            self._put("near_named", [min(1.0, value) for value in near])

    def _choices(self, chosen: Sequence[int]) -> None:
        index = self.index
        if not chosen:
            return
        everywhere = [0.0] * index.n
        for side, ids in (("own", [i for i in chosen if i < index.n]), ("other", [i for i in chosen if i >= index.n])):
            near = self._total(index.near[i] for i in ids)
            everywhere = [a + b for a, b in zip(everywhere, near, strict=True)]
            self._put(f"near_{side}", [value / (len(ids) + 1) for value in near])
            self._put(f"alike_{side}", self._alike(ids))
        if self.wishes[7] == self.wishes[7]:
            self._put("near_wished", [value / (len(chosen) + 1) for value in everywhere])
            self._put("near_last_wished", self._total([index.near[chosen[0]]]))
        levels = [index.price_level[i] for i in chosen if index.price_level[i] == index.price_level[i]]
        if levels:
            mean = sum(levels) / len(levels)
            self._put("price_alike", [1 - 2 * abs(level - mean) for level in index.price_level[: index.n]])
        self._put("chosen_before", [float(i in chosen) for i in range(index.n)])

    def _alike(self, ids: Sequence[int]) -> list[float]:
        taste: Weights = defaultdict(float)
        for i in ids:
            for value, weight in self.index.taste[i].items():
                taste[value] += weight
        shared = self._total(dict.fromkeys(self.index.bearers[v], taste[v]) for v in sorted(taste))
        return [min(1.0, 2 * value / (len(ids) + 4)) for value in shared]


def _price_fit(price: float, low: float, high: float) -> float:
    if price != price or low <= price <= high:
        return 1.0 if price == price else 0.0
    bound = low if price < low else high
    return -min(1.0, abs(math.log2(price + 1) - math.log2(bound + 1)))


def _rating_fit(rating: float, floor: float) -> float:
    if rating != rating:
        return 0.0
    return 1.0 if floor - rating <= 1e-6 else -min(1.0, floor - rating)


def _hours_fit(hours: tuple[float, float], low: float, high: float) -> float:
    """In f32 throughout."""
    if hours[0] != hours[0]:
        return 0.0
    first, last = f32(hours[0] * f32(0.9)), f32(f32(hours[1] * f32(1.1)) + f32(0.1))
    low, high = f32(low * 0.9), f32(high * 1.1 + 0.1)
    overlap = max(f32(min(last, high) - max(first, low)), 0.0)
    return overlap / f32(max(last, high) - min(first, low))


# --- docs/engine.md: the schedule, and the step of the match model ----------------------------------------------------

U64 = (1 << 64) - 1


def philox(key: Sequence[int]) -> Iterator[int]:
    """Philox 4x64 with 10 rounds (Salmon et al. 2011); the counter begins at 1."""
    for count in range(1, 1 << 63):
        a, b, c, d = count, 0, 0, 0
        k0, k1 = key
        for _ in range(10):
            p, q = a * 0xD2E7470EE14C6C93, c * 0xCA5A826395121157
            a, b, c, d = (q >> 64) ^ b ^ k0, q & U64, (p >> 64) ^ d ^ k1, p & U64
            k0, k1 = (k0 + 0x9E3779B97F4A7C15) & U64, (k1 + 0xBB67AE8584CAA73B) & U64
        yield from (a, b, c, d)


def uniforms(seed: int, round_number: int, phone: str, purpose: str) -> Iterator[float]:
    text = "\x1f".join((str(seed), str(round_number), phone, purpose))
    key = struct.unpack("<2Q", hashlib.blake2b(text.encode(), digest_size=16).digest())
    return ((word >> 11) * 2.0**-53 for word in philox(key))


def schedule(count: int, training: Mapping[str, Any], drawn: Iterator[float]) -> Iterator[list[int]]:
    """Yield the batches, the short ones without their padding."""
    for _ in range(training["epochs"]):
        draws = [next(drawn) for _ in range(count)] if training["shuffle"] else range(count)
        order = sorted(range(count), key=lambda i, draws=draws: draws[i])
        size = training["batch_size"]
        yield from (order[at : at + size] for at in range(0, count, size))


def match_plan(data: bytes) -> dict[str, Any]:
    plan: dict[str, Any] = json.loads(data)
    if plan["model"] != "match" or any(p["scope"] == "private" for p in plan["parameters"]):
        raise Unserved("tiny_device computes the match model only, without private parameters.")
    return plan


def local_update(asked: pb.LocalUpdate) -> list[float]:
    """Return -rate times the sum of gradients of the conditional logit, each at the weights of its step."""
    plan = match_plan(asked.plan)
    training = plan["training"]
    if training["example_privacy"] is not None:
        raise Unserved("tiny_device has no private steps.")
    columns = {c.name: c for c in asked.columns}
    count, k, d = columns["features"].shape
    x = struct.unpack(f"<{count * k * d}f", columns["features"].data)
    logq = struct.unpack(f"<{count * k}f", columns["logq"].data)
    label = struct.unpack(f"<{count}q", columns["label"].data)
    incoming = struct.unpack(f"<{d}f", asked.weights)
    delta = [0.0] * d
    drawn = uniforms(asked.shuffle_seed, asked.mechanism_step, "", "shuffle")
    for batch in schedule(count, training, drawn):
        weights = [a + b for a, b in zip(incoming, delta, strict=True)]
        for i in batch:
            rows = [x[(i * k + j) * d : (i * k + j + 1) * d] for j in range(k)]
            logits = [math.sumprod(row, weights) if hasattr(math, "sumprod") else _dot(row, weights) for row in rows]
            share = softmax([u - q for u, q in zip(logits, logq[i * k : (i + 1) * k], strict=True)])
            share[label[i]] -= 1.0
            for column in range(d):
                gradient = sum(p * row[column] for p, row in zip(share, rows, strict=True))
                delta[column] -= training["learning_rate"] * gradient / len(batch)
    return delta


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def softmax(logits: Sequence[float]) -> list[float]:
    most = max(logits)
    powers = [math.exp(value - most) for value in logits]
    return [power / sum(powers) for power in powers]


def ranking(asked: pb.Rank, index: Index) -> list[str]:
    """Return the best items; products are rounded and summed column by column in f32, so equal rows tie."""
    plan = match_plan(asked.plan)
    weights = struct.unpack(f"<{len(plan['features'])}f", asked.weights)
    columns = Matcher(make_query(asked.occasion, index), index).columns
    scores = [0.0] * index.n
    for name, weight in zip(plan["features"], weights, strict=True):
        if NEEDS[name] <= set(asked.sources):
            scores = [f32(s + f32(weight * value)) for s, value in zip(scores, columns[name], strict=True)]
    best = sorted(range(index.n), key=lambda i: -scores[i])
    return [index.items[i].key for i in best[: asked.count]]


# --- docs/engine.md: clip and grid ------------------------------------------------------------------------------------


def contribute(asked: pb.Contribute) -> pb.Grid:
    """Exact: floor(|v| * target / norm / step) is the integer square root of a rational number."""
    delta, bound, step = asked.delta, asked.l2_clip_norm, Fraction(asked.grid_step)
    if not all(map(math.isfinite, delta)):
        return pb.Grid(refusal="not_finite")
    margin = (2 * len(delta) + 32) * 2.0**-53
    squares = sum((Fraction(v) ** 2 for v in delta), Fraction(0))
    if squares <= Fraction(bound * (1.0 - margin)) ** 2:
        return pb.Grid(values=[int(Fraction(v) / step) for v in delta])
    scale = Fraction(bound * (1.0 - 2.0 * margin)) ** 2 / squares / step**2
    return pb.Grid(values=[(1 if v > 0 else -1) * math.isqrt(int(Fraction(v) ** 2 * scale)) for v in delta])


# --- docs/device-budget.md: the phone's own ledger --------------------------------------------------------------------

DAY = 86_400.0
FORMS = {"blt": "blt", "banded": "toeplitz", "tree": "tree", "independent": "toeplitz"}


class Refused(Exception):
    """The verdict on a task that is not admitted."""


class Run(NamedTuple):
    """One phone in one run. ``since`` is the step it counts b from, None where nothing holds it back."""

    terms: str
    count: int
    since: int | None
    assumed: bool
    rho: float
    epoch: int


def squared_sensitivity(factorization: Mapping[str, Any], n: int, b: int, j: int) -> float:
    """Return S(j), by the definition: the norm of columns 0, b, ..., (j - 1) b together; a bound for the tree."""
    if factorization["kind"] == "tree":
        return float(sum(j * min(j, -(-(2**level) // b)) for level in range(n.bit_length())))
    if factorization["kind"] == "blt":
        pairs = list(zip(factorization["scale"], factorization["decay"], strict=True))
        column = [1.0, *(sum(scale * decay ** (i - 1) for scale, decay in pairs) for i in range(1, n))]
    else:
        column = [*factorization["coefficients"], *[0.0] * n][:n]
    moved = [math.fsum(column[i - m * b] for m in range(j) if i >= m * b) for i in range(n)]
    return math.fsum(value * value for value in moved) * (1 + n * 2.0**-50)


def zcdp(terms: Mapping[str, Any], j: int) -> float:
    if not j:
        return 0.0
    squared = squared_sensitivity(terms["factorization"], terms["steps"], terms["min_separation"], j)
    return squared / (2 * terms["noise_multiplier"] ** 2)


def epsilon(rho: float, delta: float) -> float:
    """Return the least over orders a = 1 + e^x; every order is valid, so a coarse search errs upward."""

    def at(x: float) -> float:
        a = 1 + math.exp(x)
        return rho * a + math.log1p(-1 / a) - math.log(delta * a) / (a - 1)

    low, high = -12.0, 12.0
    for _ in range(100):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, right) if at(left) < at(right) else (left, high)
    return max(at(low), 0.0) if rho else 0.0


def seconds(text: str) -> float:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()


def canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def require(holds: bool, verdict: str) -> None:
    if not holds:
        raise Refused(verdict)


class Phone:
    """A fresh phone. ``runs``, ``epoch``, ``waiting`` and ``time`` are in the KeyStore's anchor; the rest is not."""

    def __init__(self) -> None:
        self.runs: dict[tuple[str, str], Run] = {}
        self.epoch, self.waiting, self.time = 0, False, 0.0
        self.clock_noted = False
        self.wipe(loss=False)

    def wipe(self, *, loss: bool = True) -> None:
        """Lose the store."""
        self.tokens: set[str] = set()
        self.rounds: list[float] = []
        self._lose(loss)

    def _lose(self, loss: bool) -> None:
        self.epoch, self.waiting = self.epoch + loss, self.waiting or loss

    def spent(self, **changed: float) -> float:
        return math.fsum(run.rho for run in self.runs.values())

    def offer(self, asked: Mapping[str, Any], *, take: bool) -> float:
        """Return the total zCDP with the task, and take part if told to; or refuse."""
        task, now = asked["task"], asked["now"]
        key = task["recipient"], task["run_id"]
        plan_digest = hashlib.sha256(canonical(asked["plan"])).hexdigest()
        self._clock(asked)
        _live(asked, plan_digest)
        policy, bundle = asked["policy"], asked["bundle"]
        require(now < bundle["expires"] and now < seconds(policy["expires"]), "expired")
        _planned(task, asked["plan"], plan_digest)
        require(_floors(task, policy), "breaks_policy")
        require(task["issued"] <= now + 300 and now < task["expires"], "expired")
        require(0 < task["expires"] - task["issued"] <= 7 * DAY, "expired")
        require(task["token"] not in self.tokens, "token_used")
        today = [time for time in self.rounds if time > now - DAY]
        require(len(today) < policy["device"]["max_rounds_per_day"], "too_soon")
        run = self._sight(key, task)
        terms = task["mechanism"]
        require(run.count < terms["max_participations"], "participations_used_up")
        far = run.since is None or task["step"] >= run.since + terms["min_separation"]
        require(far, "history_lost" if run.assumed else "too_soon")
        cost = zcdp(terms, run.count + 1)
        total = math.fsum([cost, *(other.rho for name, other in self.runs.items() if name != key)])
        device = policy["device"]
        require(epsilon(total, device["delta"]) <= device["epsilon"], "device_budget")
        if take:
            self.runs[key] = Run(run.terms, run.count + 1, task["step"], False, cost, self.epoch)
            self.waiting = self.clock_noted = False
            self.tokens.add(task["token"])
            self.rounds.append(now)
        return total

    def _clock(self, asked: Mapping[str, Any]) -> None:
        now, status = asked["now"], asked["status"]
        if now < self.time - 600:
            self._lose(not self.clock_noted)
            self.clock_noted = True
            raise Refused("clock_moved")
        signed = max(asked["task"]["issued"], seconds(status["issued"]) if status else -INF)
        self.time = max(self.time, now if now <= signed + DAY else signed)

    def _sight(self, key: tuple[str, str], task: Mapping[str, Any]) -> Run:
        """Return what is known of a run; a run not seen since the last loss is noted first."""
        terms, step = task["mechanism"], task["step"]
        said = canonical([terms, task["population"], task["purpose"]]).decode()
        run = self.runs.get(key)
        require(run is None or run.terms == said, "not_the_approved_plan")
        if run is not None and run.epoch == self.epoch:
            return run
        if run is not None:
            count, since = run.count, step if run.since is None else max(run.since, step)
        elif step == 0 and not self.waiting:
            count, since = 0, None
        else:
            count, since = min(step // terms["min_separation"] + 1, terms["max_participations"]), step
        self.runs[key] = Run(said, count, since, True, zcdp(terms, count), self.epoch)
        self.clock_noted = False
        return self.runs[key]


def _live(asked: Mapping[str, Any], plan_digest: str) -> None:
    status, bundle = asked["status"], asked["bundle"]
    require(status is not None, "status")
    require(-300 <= asked["now"] - seconds(status["issued"]) <= DAY, "status")
    used = {bundle["contents"], bundle["digest"], bundle["policy_digest"], plan_digest}
    require("*" not in status["stopped"] and not used.intersection(status["stopped"], ()), "status")
    require(not used & {*status["stopped"], *status["revoked"]}, "status")


def _planned(task: Mapping[str, Any], plan: Mapping[str, Any], plan_digest: str) -> None:
    same = all(task[name] == plan[name] for name in ("population", "purpose", "recipient", "mechanism"))
    require(same and task["plan_digest"] == plan_digest and task["run_id"] != "", "not_the_approved_plan")
    require(0 <= task["step"] < plan["mechanism"]["steps"], "not_the_approved_plan")


def _floors(task: Mapping[str, Any], policy: Mapping[str, Any]) -> bool:
    floors, terms = policy["mechanism"], task["mechanism"]
    purposes = {one["id"]: one for one in policy["purposes"] if one["kind"] == "train"}
    operators = {one["id"] for one in policy["recipients"] if one["kind"] == "operator"}
    return (
        task["population"] == policy["population"]["id"]
        and task["purpose"] in purposes
        and task["recipient"] in operators.intersection(purposes[task["purpose"]]["recipients"])
        and terms["kind"] in floors["kinds"]
        and terms["factorization"]["kind"] == FORMS.get(terms["kind"])
        and 0 < terms["l2_clip_norm"] <= floors["max_l2_clip_norm"]
        and floors["min_noise_multiplier"] <= terms["noise_multiplier"] < INF
        and task["round_size"] >= floors["min_round_size"]
        and 1 <= terms["steps"] <= floors["max_steps"]
        and terms["min_separation"] >= floors["min_separation"]
        and 1 <= terms["max_participations"] <= floors["max_participations"]
    )


def verdict(situation: str) -> pb.VerdictReply:
    """Offer a fresh phone all tasks in turn, and answer with the verdict on the last."""
    *before, last = json.loads(situation)["asked"]
    phone = Phone()
    for event in before:
        if event.get("event") == "store_wiped":
            phone.wipe()
            continue
        try:
            phone.offer(event, take=True)
        except Refused:
            continue
    try:
        return pb.VerdictReply(verdict="admitted", rho=phone.offer(last, take=False))
    except Refused as refused:
        return pb.VerdictReply(verdict=str(refused), rho=phone.spent())


# --- the service ------------------------------------------------------------------------------------------------------


class Numerics(rpc.NumericsServicer):  # type: ignore[misc]
    """Answers one case after the other; the catalogue is that of the last ``load_catalogue``."""

    def __init__(self) -> None:
        self._index: Index | None = None

    @property
    def index(self) -> Index:
        if self._index is None:
            raise ValueError("load a catalogue first.")
        return self._index

    def Answer(self, request: pb.Case, context: grpc.ServicerContext) -> pb.Reply:  # noqa: N802 - gRPC's name
        try:
            return self._answer(request)
        except Unserved as error:
            return context.abort(grpc.StatusCode.UNIMPLEMENTED, str(error))
        except (ValueError, KeyError, IndexError, TypeError, struct.error) as error:
            return context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{request.WhichOneof('body')}: {error}")

    def _answer(self, case: pb.Case) -> pb.Reply:
        match case.WhichOneof("body"):
            case "load_catalogue":
                self._index = Index(case.load_catalogue)
                return pb.Reply(index_digest=self._index.digest)
            case "make_query":
                return pb.Reply(query=pb.Numbers(values=make_query(case.make_query, self.index)))
            case "match_rows":
                columns = Matcher(case.match_rows.query, self.index).columns
                rows = [columns[name][i] for i in case.match_rows.candidates for name in NEEDS]
                return pb.Reply(rows=pb.Floats(values=rows))
            case "local_update":
                return pb.Reply(delta=pb.Floats(values=local_update(case.local_update)))
            case "contribute":
                return pb.Reply(grid=contribute(case.contribute))
            case "verdict":
                return pb.Reply(verdict=verdict(case.verdict.situation))
            case "rank":
                return pb.Reply(ranking=pb.Ranking(items=ranking(case.rank, self.index)))
            case kind:
                raise Unserved(f"no such case: {kind}")


def serve(address: str) -> tuple[grpc.Server, int]:
    """Return a running server, and its port where the address asked for any."""
    server = grpc.server(ThreadPoolExecutor(max_workers=1))
    rpc.add_NumericsServicer_to_server(Numerics(), server)
    port = server.add_insecure_port(address)
    server.start()
    return server, port


if __name__ == "__main__":
    serve(sys.argv[1])[0].wait_for_termination()

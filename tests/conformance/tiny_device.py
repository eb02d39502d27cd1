"""A second device, small and slow: the numbers of ``fedlearn.conformance.v1.Numerics`` from the documents alone.

It proves that docs/features.md (with docs/features-tables.json), engine.md, bundle.md and device-budget.md are enough
to port from. So it shares no code with fedlearn but the generated messages, and needs no package but grpc and protobuf.
``python tests/conformance/tiny_device.py unix:tiny.sock`` serves until it is stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import grpc

from fedlearn.proto import conformance_pb2 as pb
from fedlearn.proto import conformance_pb2_grpc as rpc
from fedlearn.proto import device_pb2

TABLES: Final = json.loads((Path(__file__).parents[2] / "docs" / "features-tables.json").read_text(encoding="utf-8"))
NAN, INF = math.nan, math.inf
MOST: Final = 255
FACILITY: Final = 1
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
        if re.match(f"[{CJK}]", word):
            for n in (2, 3):
                yield from ((word[i : i + n], run.start() + i) for i in range(len(word) - n + 1))
        elif len(word) > 1 and word not in STOP_WORDS and not any(map(str.isdigit, word)):
            yield stem(word), run.start()


# --- docs/features.md: index ------------------------------------------------------------------------------------------


class Phrases:
    """Whole-phrase search; a phrase's id is its place in code-point order."""

    def __init__(self, phrases: Iterable[str]) -> None:
        self.ids = {phrase: i for i, phrase in enumerate(sorted(set(phrases)))}
        self.longest = max(map(len, self.ids), default=0)

    def find(self, text: str) -> list[Span]:
        found, at = [], 0
        while at < len(text):
            ends = range(min(at + self.longest, len(text)), at + 1, -1)
            end = next((end for end in ends if text[at:end] in self.ids and whole(text, at, end)), 0)
            if end:
                found.append((at, end, self.ids[text[at:end]]))
            at = end or at + 1
        return found


def wordy(char: str) -> bool:
    return char.isalnum() and not re.match(f"[{CJK}]", char)


def whole(text: str, start: int, end: int) -> bool:
    """Say whether a phrase stands as a whole word, a plural s aside."""
    if start and wordy(text[start]) and wordy(text[start - 1]):
        return False
    if end < len(text) and wordy(text[end - 1]) and wordy(text[end]):
        return text[end] == "s" and not wordy(text[end + 1 : end + 2])
    return True


class Index:
    """What the catalogue says, worked out once. A weight row maps items of the target domain to weights."""

    def __init__(self, data: bytes) -> None:
        body = json.loads(data)
        self.domain, self.n = body["domain"], len(body["items"])
        rows = [{**row, "domain": self.domain} for row in body["items"]] + body["context"]
        self.digest = index_digest(body["name"], self.domain, rows)
        self.keys = [f"{row['domain']}:{row['name']}" for row in rows]
        self.ids = {key: i for i, key in enumerate(self.keys)}
        self.domains = [row["domain"] for row in rows]
        self.price = [f32(row.get("price", NAN)) for row in rows]
        self.rating = [f32(row.get("rating", NAN)) for row in rows]
        self.hours = [tuple(map(f32, read_hours(in_digits(normalise(row.get("duration", "")))))) for row in rows]
        # of each item, by attribute: its normalised values
        said = [sorted(row.get("attributes", {}).items()) for row in rows]
        self.said = [{name: list(filter(None, map(normalise, vs))) for name, vs in item} for item in said]
        self._terms()
        self._values()
        names = [normalise(row["name"]) for row in rows]
        self.names = Phrases(names)
        self.named = [[i for i, name in enumerate(names) if name == one] for one in sorted(set(names))]
        nearby = [set(row.get("nearby", ())) for row in rows]
        self.near = [self._near(i, nearby) for i in range(len(rows))]
        self.taste = [self._taste(list(item.values())) for item in self.said]
        self.level = [self._level(i) for i in range(len(rows))]

    def _terms(self) -> None:
        counts = [Counter(t for vs in item.values() for v in vs for t, _ in terms(v)) for item in self.said[: self.n]]
        frequency = Counter(term for count in counts for term in count)
        mean = max(sum(map(Counter.total, counts)) / self.n, 1.0)
        self.terms = {term: i for i, term in enumerate(sorted(frequency))}
        self.bm25: list[Weights] = [{} for _ in frequency]
        for i, count in enumerate(counts):
            for term, tf in count.items():
                idf = math.log(1 + (self.n - frequency[term] + 0.5) / (frequency[term] + 0.5))
                norm = 1.2 * (1 - 0.75 + 0.75 * count.total() / mean)
                self.bm25[self.terms[term]][i] = idf * tf * (1.2 + 1) / (tf + norm)

    def _values(self) -> None:
        bearers: dict[str, Weights] = defaultdict(dict)
        groups: dict[str, int] = {}
        for i, item in enumerate(self.said[: self.n]):
            for name, value in ((name, value) for name, values in item.items() for value in values):
                bearers[value][i] = 1.0
                groups[value] = min(groups.get(value, 2), {"dish": 0, "facility": FACILITY}.get(name, 2))
        self.values = Phrases(bearers)
        self.bearers = [bearers[value] for value in sorted(bearers)]
        self.groups = [groups[value] for value in sorted(bearers)]

    def _near(self, i: int, nearby: Sequence[set[str]]) -> Weights:
        found = {j: 0.5 * (self.keys[j] in nearby[i]) + 0.5 * (self.keys[i] in nearby[j]) for j in range(self.n)}
        return {j: weight for j, weight in found.items() if weight}

    def _taste(self, attributes: Iterable[Sequence[str]]) -> Weights:
        """Return value id -> weight."""
        known = [sorted({self.values.ids[v] for v in values if v in self.values.ids}) for values in attributes]
        known, taste = [values for values in known if values], defaultdict(float)
        for values in known:
            idf = [math.log((self.n + 1) / len(self.bearers[v])) for v in values]
            for v, weight in zip(values, idf, strict=True):
                taste[v] += weight / (sum(idf) * len(known))
        return taste

    def _level(self, i: int) -> float:
        """Rank of the price inside the own domain, 0..1, ties in the middle."""
        pairs = zip(self.domains, self.price, strict=True)
        prices = [p for domain, p in pairs if domain == self.domains[i] and not math.isnan(p)]
        below = sum((p < self.price[i]) + (p <= self.price[i]) for p in prices)
        return NAN if math.isnan(self.price[i]) else f32(below / (2 * len(prices)))


def index_digest(name: str, domain: str, rows: Iterable[Mapping[str, Any]]) -> str:
    listed = []
    for row in rows:
        attributes = [list(pair) for pair in sorted(row.get("attributes", {}).items())]
        numbers = [row.get("price"), row.get("rating")]
        listed.append(
            [row["domain"], row["name"], attributes, *numbers, row.get("duration", ""), row.get("nearby", [])]
        )
    text = json.dumps([name, domain, listed], ensure_ascii=False, separators=(",", ":"))
    head = f"fedlearn.features/{TABLES['spec_version']}/{hashlib.sha256(text.encode()).hexdigest()}"
    return hashlib.sha256(head.encode()).hexdigest()


# --- docs/features.md: what a sentence says ---------------------------------------------------------------------------

LANGUAGE, NUMBERS, WISHES = TABLES["language"], TABLES["numbers"], TABLES["wishes"]
EVENTS = re.compile(f"(?P<stop>{LANGUAGE['stop']})|(?P<neg>{LANGUAGE['negative']})|(?P<pos>{LANGUAGE['positive']})")


def negated(text: str) -> list[bool]:
    """Say for each position whether a negation covers it."""
    covered = [False] * (len(text) + 1)
    cuts = [(0, 0, ""), *((m.start(), m.end(), m.lastgroup) for m in EVENTS.finditer(text)), (len(covered), 0, "")]
    spans = [(after, before) for (_, after, kind), (before, _, _) in pairwise(cuts) if kind == "neg"]
    clauses = [0, *(m.end() for m in re.finditer(LANGUAGE["stop"], text))]
    closers = [m.start() for m in re.finditer(LANGUAGE["after"], text)]
    for begin, end in [*spans, *((max(begin for begin in clauses if begin <= at), at) for at in closers)]:
        covered[begin:end] = [True] * (end - begin)
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


def read_price(text: str) -> tuple[float, ...]:
    taken: list[tuple[int, int]] = []
    bands: dict[int, tuple[float, float]] = {}
    for kind, pattern in WISHES["prices"]:
        for m in re.finditer(pattern, text):
            spans = [m.span(i) for i in range(1, m.re.groups + 1) if m[i]]
            start, end = spans[0][0], spans[-1][1]
            if all(end <= a or b <= start for a, b in taken):
                taken.append((start, end))
                numbers = [float(text[a:b]) for a, b in spans]
                least, most = min(numbers), max(numbers)
                about = 0.8 * least, 1.2 * least
                bands[start] = {"band": (least, most), "ceiling": (0.0, most), "floor": (least, INF), "about": about}[
                    kind
                ]
    return bands[max(bands)] if bands else ()


def read_level(text: str) -> tuple[float, ...]:
    cheap = [m.span() for m in re.finditer(WISHES["cheap"], text)]
    dear = [m.start() for m in re.finditer(WISHES["expensive"], text)]
    found = [(a, -1.0) for a, _ in cheap] + [(at, 1.0) for at in dear if not any(a <= at < b for a, b in cheap)]
    return (max(found)[1],) if found else ()


def read_rating(text: str) -> tuple[float, ...]:
    ceiling = re.compile(WISHES["rating_ceiling"])
    matches = [m for pattern in WISHES["ratings"] for m in re.finditer(pattern, text)]
    found = [(m.start(1), float(m[1])) for m in matches if float(m[1]) <= 5 and not ceiling.match(text, m.end(1))]
    if found:
        return (max(found)[1],)
    return (WISHES["well_rated_floor"],) if re.search(WISHES["well_rated"], text) else ()


def read_hours(text: str) -> tuple[float, ...]:
    found, hours = (), WISHES["duration_hours"]
    for low, low_unit, high, high_unit in re.findall(WISHES["duration"], text):
        unit = low_unit or high_unit
        if unit:
            first = float(low) * hours[unit[0]]
            found = first, max(first, float(high) * hours[high_unit[0]]) if high_unit else first
    return found


def read_wishes(text: str) -> dict[int, tuple[float, ...]]:
    """Return place in the wishes -> numbers from there on."""
    text = in_digits(text)
    free, near = ((1.0,) if re.search(WISHES[name], text) else () for name in ("free", "near"))
    found = {0: read_price(text), 2: read_level(text), 3: free, 4: read_rating(text), 5: read_hours(text), 7: near}
    return {place: tuple(map(f32, numbers)) for place, numbers in found.items() if numbers}


class Said(NamedTuple):
    """What one message said. A slot is True for facilities, False for everything else."""

    values: set[tuple[int, int]]
    words: Counter[tuple[int, bool, int]]
    renewed: set[bool]
    names: set[int]
    wishes: dict[int, tuple[float, ...]]
    subject: int

    @property
    def empty(self) -> bool:
        return not (self.values or self.words or self.names or self.wishes)


def read_message(text: str, spans: Sequence[tuple[int, int]], index: Index) -> Said | None:
    plain = own_text(text, spans)
    names = index.names.find(plain)
    plain = blanked(plain, names)
    values = index.values.find(plain)
    about = blanked(plain, values)
    domains = {domain for domain, pattern in LANGUAGE["subjects"].items() if re.search(pattern, about)}
    subject = 1 if index.domain in domains else -1 if domains.intersection(index.domains) else 0
    said = Said(*settled(plain, values, index), {name for *_, name in names}, read_wishes(plain), subject)
    return None if said.empty and not said.subject else said


def blanked(text: str, spans: Iterable[Span]) -> str:
    for start, end, _ in spans:
        text = text[:start] + "\n" * (end - start) + text[end:]
    return text


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
        slot, wanted = at in value_at and index.groups[value_at[at]] == FACILITY, not covered[at]
        withdrawn, polarity = wanted and slot in renewed, 1 if wanted else -1
        if at in value_at:
            said.add((value_at[at], 0 if withdrawn else polarity))
        if not withdrawn:
            words.update((term, slot, polarity) for term in places[at])
        if wanted and at in renewing:
            renewed.add(slot)
    return said, Counter({key: min(count, MOST) for key, count in words.items()}), renewed


def renewals(text: str, values: Sequence[Span], places: Sequence[int]) -> set[int]:
    """Return the places of what is named anew."""
    start_of, found = {end: start for start, end, _ in values}, set()
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
            withdrawn = polarity > 0 and (index.groups[value] == FACILITY) in renewed
            values.add((value, 0 if withdrawn else polarity, age))
        for (term, slot, polarity), count in message.words.items():
            if polarity < 0 or slot not in renewed:
                words[term, polarity, age] += count
        renewed |= message.renewed
    wishes = [NAN] * 8
    for message in (message for age, message in reversed(said) if age == 0):
        for place, numbers in message.wishes.items():
            wishes[place : place + len(numbers)] = numbers
    chosen = [(index.ids[c.item], app_tag(c.app)) for c in reversed(asked.earlier) if c.item in index.ids]
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

CHAT = "words words_earlier dish facility kind values_earlier rejected price_fit price_level_fit free rating_fit"
GROUPS_OF_COLUMNS = (
    (f"{CHAT} hours_fit near_named", {"chat"}),
    ("near_own near_other", {"choices"}),
    ("near_wished near_last_wished", {"chat", "choices"}),
    ("alike_own alike_other price_alike chosen_before", {"choices"}),
    ("rating price_level", {"catalogue"}),
)
NEEDS = {name: needs for names, needs in GROUPS_OF_COLUMNS for name in names.split()}
"""Column -> sources, in order."""


class Matcher:
    """The columns of one Query, f32 for each item of the target domain."""

    def __init__(self, flat: Sequence[int], index: Index) -> None:
        self.index, self.columns = index, {name: [0.0] * index.n for name in NEEDS}
        at, blocks = 4, []
        for rows, width in zip(flat[:4], (4, 3, 2, 3), strict=True):
            blocks.append([tuple(flat[at + i * width : at + (i + 1) * width]) for i in range(rows)])
            at += rows * width
        self.wishes = struct.unpack("<8f", struct.pack("<8i", *flat[at:]))
        self._words([(t, p, age) for t, _, p, age in blocks[0]])
        self._values(blocks[1])
        self._wishes([name for name, age in blocks[2] if age == 0])
        self._choices([item for item, _, _ in blocks[3]])
        self._put("rating", lambda i: index.rating[i] / 5)
        self._put("price_level", lambda i: index.level[i])

    def _put(self, name: str, value: Callable[[int], float]) -> None:
        """Store a column; what is not known is 0."""
        self.columns[name] = [0.0 if math.isnan(value(i)) else f32(value(i)) for i in range(self.index.n)]

    def _total(self, rows: Iterable[Weights]) -> list[float]:
        out = [0.0] * self.index.n
        for item, weight in (pair for row in rows for pair in row.items()):
            out[item] += weight
        return out

    def _words(self, rows: Sequence[tuple[int, ...]]) -> None:
        present = [t for t, p, age in rows if p > 0 and age == 0]
        before = [t for t, p, age in rows if p > 0 and age > 0]
        for name, ids in (
            ("words", present),
            ("words_earlier", before),
            ("rejected", [t for t, p, _ in rows if p < 0]),
        ):
            score = self._total(self.index.bm25[t] for t in ids)
            self._put(name, [value / (max(score) or 1.0) for value in score].__getitem__)

    def _values(self, rows: Sequence[tuple[int, ...]]) -> None:
        wanted: dict[str, list[int]] = defaultdict(list)
        for v, polarity, age in rows:
            if polarity < 0:
                wanted["rejected"].append(v)
            elif polarity > 0:
                wanted["values_earlier" if age else ("dish", "facility", "kind")[self.index.groups[v]]].append(v)
        for name, ids in wanted.items():
            share = self.columns[name] = [0.0] * self.index.n
            for item in (i for v in ids for i in self.index.bearers[v]):
                share[item] = f32(share[item] + f32(1.0 / len(ids)))

    def _wishes(self, named: Sequence[int]) -> None:
        index, (low, high, level, free, floor, shortest, longest, _) = self.index, self.wishes
        if not math.isnan(low):
            self._put("price_fit", lambda i: _price_fit(index.price[i], low, high))
        if not math.isnan(level):
            self._put("price_level_fit", lambda i: level * (2 * index.level[i] - 1))
        if not math.isnan(free):
            self._put("free", lambda i: float(index.price[i] == 0))
        if not math.isnan(floor):
            self._put("rating_fit", lambda i: _rating_fit(index.rating[i], floor))
        if not math.isnan(shortest):
            self._put("hours_fit", lambda i: _hours_fit(index.hours[i], shortest, longest))
        near = self._total(index.near[item] for name in named for item in index.named[name])
        self._put("near_named", lambda i: min(1.0, near[i]))

    def _choices(self, chosen: Sequence[int]) -> None:
        index = self.index
        for side, ids in (("own", [i for i in chosen if i < index.n]), ("other", [i for i in chosen if i >= index.n])):
            near = [value / (len(ids) + 1) for value in self._total(index.near[i] for i in ids)]
            alike = [min(1.0, 2 * value / (len(ids) + 4)) for value in self._alike(ids)]
            self._put(f"near_{side}", near.__getitem__)
            self._put(f"alike_{side}", alike.__getitem__)
        if not math.isnan(self.wishes[7]):
            everywhere, last = (self._total(index.near[i] for i in ids) for ids in (chosen, chosen[:1]))
            self._put("near_wished", lambda i: everywhere[i] / (len(chosen) + 1))
            self._put("near_last_wished", lambda i: last[i])
        levels = [index.level[i] for i in chosen if not math.isnan(index.level[i])]
        if levels:
            mean = sum(levels) / len(levels)
            self._put("price_alike", lambda i: 1 - 2 * abs(index.level[i] - mean))
        self._put("chosen_before", lambda i: float(i in chosen))

    def _alike(self, ids: Sequence[int]) -> list[float]:
        taste: Weights = defaultdict(float)
        for value, weight in (pair for i in ids for pair in self.index.taste[i].items()):
            taste[value] += weight
        return self._total(dict.fromkeys(self.index.bearers[v], taste[v]) for v in sorted(taste))


def _price_fit(price: float, low: float, high: float) -> float:
    if low <= price <= high:
        return 1.0
    return -min(abs(math.log2(price + 1) - math.log2((low if price < low else high) + 1)), 1.0)


def _rating_fit(rating: float, floor: float) -> float:
    return 1.0 if floor - rating <= 1e-6 else -min(floor - rating, 1.0)


def _hours_fit(hours: Sequence[float], low: float, high: float) -> float:
    """In f32 throughout."""
    if not hours:
        return 0.0
    first, last = f32(hours[0] * f32(0.9)), f32(f32(hours[1] * f32(1.1)) + f32(0.1))
    low, high = f32(low * 0.9), f32(high * 1.1 + 0.1)
    overlap = max(f32(min(last, high) - max(first, low)), 0.0)
    return overlap / f32(max(last, high) - min(first, low))


# --- docs/engine.md: the schedule, the step of the match model, clip and grid -----------------------------------------

U64 = (1 << 64) - 1


def philox(key: Sequence[int]) -> Iterator[int]:
    """Philox 4x64 with 10 rounds (Salmon et al. 2011); the counter begins at 1."""
    for count in range(1, 1 << 63):
        (a, b, c, d), (k0, k1) = (count, 0, 0, 0), key
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
        draws = [next(drawn) for _ in range(count)] if training["shuffle"] else [0.0] * count
        order = sorted(range(count), key=draws.__getitem__)
        size = training["batch_size"]
        yield from (order[at : at + size] for at in range(0, count, size))


def match_plan(data: bytes) -> dict[str, Any]:
    plan: dict[str, Any] = json.loads(data)
    private = any(p["scope"] == "private" for p in plan["parameters"]) or plan["training"]["example_privacy"]
    if plan["model"] != "match" or private:
        raise Unserved("tiny_device computes the match model, without private parameters and private steps.")
    return plan


def local_update(asked: pb.LocalUpdate) -> list[float]:
    """Return -rate times the sum of the steps' gradients of the conditional logit."""
    training, columns = match_plan(asked.plan)["training"], {c.name: c for c in asked.columns}
    count, k, d = columns["features"].shape
    x = list(struct.iter_unpack(f"<{d}f", columns["features"].data))
    logq = list(struct.iter_unpack(f"<{k}f", columns["logq"].data))
    label = struct.unpack(f"<{count}q", columns["label"].data)
    incoming, delta = struct.unpack(f"<{d}f", asked.weights), [0.0] * d
    for batch in schedule(count, training, uniforms(asked.shuffle_seed, asked.mechanism_step, "", "shuffle")):
        weights = [a + b for a, b in zip(incoming, delta, strict=True)]
        rate = training["learning_rate"] / len(batch)
        for i in batch:
            rows = x[i * k : (i + 1) * k]
            logits = [math.fsum(map(float.__mul__, row, weights)) - q for row, q in zip(rows, logq[i], strict=True)]
            powers = [math.exp(value - max(logits)) for value in logits]
            excess = [power / sum(powers) - (place == label[i]) for place, power in enumerate(powers)]
            for column in range(d):
                delta[column] -= rate * sum(e * row[column] for e, row in zip(excess, rows, strict=True))
    return delta


def ranking(asked: pb.Rank, index: Index) -> list[str]:
    """Return the best items; products are rounded and summed column by column in f32, so that equal rows tie."""
    names = match_plan(asked.plan)["features"]
    columns, scores = Matcher(make_query(asked.occasion, index), index).columns, [0.0] * index.n
    for name, weight in zip(names, struct.unpack(f"<{len(names)}f", asked.weights), strict=True):
        if NEEDS[name] <= set(asked.sources):
            scores = [f32(s + f32(weight * value)) for s, value in zip(scores, columns[name], strict=True)]
    best = sorted(range(index.n), key=lambda i: -scores[i])
    return [index.keys[i] for i in best[: asked.count]]


def contribute(asked: pb.Contribute) -> pb.Grid:
    """Clip and put on the grid, exactly: floor(|v| * target / norm / step) is an integer square root."""
    delta, bound, step = asked.delta, asked.l2_clip_norm, Fraction(asked.grid_step)
    if not all(map(math.isfinite, delta)):
        return pb.Grid(refusal="not_finite")
    margin = (2 * len(delta) + 32) * 2.0**-53
    squares = sum(Fraction(v) ** 2 for v in delta)
    if squares <= Fraction(bound * (1.0 - margin)) ** 2:
        return pb.Grid(values=[int(Fraction(v) / step) for v in delta])
    scale = Fraction(bound * (1.0 - 2.0 * margin)) ** 2 / squares / step**2
    return pb.Grid(values=[(1 if v > 0 else -1) * math.isqrt(int(Fraction(v) ** 2 * scale)) for v in delta])


# --- docs/device-budget.md: the phone's own ledger --------------------------------------------------------------------

DAY: Final = 86_400.0
FORMS: Final = {"blt": "blt", "banded": "toeplitz", "tree": "tree", "independent": "toeplitz"}


class Refused(Exception):
    """The verdict on a task that is not admitted."""


def require(holds: bool, verdict: str) -> None:
    if not holds:
        raise Refused(verdict)


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
    squared = squared_sensitivity(terms["factorization"], terms["steps"], terms["min_separation"], j) if j else 0.0
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
    return max(at(low), 0.0)


def seconds(text: str) -> float:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()


def canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


class Run(NamedTuple):
    """One phone in one run. ``since`` is the step that b counts from, None where nothing holds the phone back."""

    terms: bytes
    count: int
    since: int | None
    assumed: bool
    rho: float
    epoch: int


class Phone:
    """A fresh phone. Tokens and rounds are lost with the store; the rest is in the KeyStore's anchor too."""

    def __init__(self) -> None:
        self.runs: dict[tuple[str, str], Run] = {}
        self.epoch, self.waiting, self.time, self.clock_noted = 0, False, 0.0, False
        self.tokens: set[str] = set()
        self.rounds: list[float] = []
        self.sights: list[tuple[str, float]] = []

    def wipe(self) -> None:
        self.tokens, self.rounds, self.sights = set(), [], []
        self.epoch, self.waiting = self.epoch + 1, True

    def spent(self, key: tuple[str, str] = ("", ""), rho: float = 0.0) -> float:
        """Return the zCDP of all runs; of the one named, the given figure."""
        return math.fsum([rho, *(run.rho for name, run in self.runs.items() if name != key)])

    def offer(self, asked: Mapping[str, Any], *, take: bool) -> float:
        """Return the total zCDP with the task, and take part if told to; or refuse."""
        task, now, policy, bundle = asked["task"], asked["now"], asked["policy"], asked["bundle"]
        digest = hashlib.sha256(canonical(asked["plan"])).hexdigest()
        self._clock(asked)
        require(
            _live(asked["status"], {bundle["contents"], bundle["digest"], bundle["policy_digest"], digest}, now),
            "status",
        )
        require(now < bundle["expires"] and now < seconds(policy["expires"]), "expired")
        require(_planned(task, asked["plan"]) and task["plan_digest"] == digest, "not_the_approved_plan")
        require(_floors(task, policy), "breaks_policy")
        valid = task["issued"] <= now + 300 and now < task["expires"] <= task["issued"] + 7 * DAY
        require(valid and task["issued"] < task["expires"], "expired")
        require(task["token"] not in self.tokens, "token_used")
        require(sum(time > now - DAY for time in self.rounds) < policy["device"]["max_rounds_per_day"], "too_soon")
        key, terms, step = (task["recipient"], task["run_id"]), task["mechanism"], task["step"]
        run = self._sight(key, task, now, policy["device"]["max_rounds_per_day"])
        require(run.count < terms["max_participations"], "participations_used_up")
        far = run.since is None or step >= run.since + terms["min_separation"]
        require(far, "history_lost" if run.assumed else "too_soon")
        cost = zcdp(terms, run.count + 1)
        total = self.spent(key, cost)
        require(epsilon(total, policy["device"]["delta"]) <= policy["device"]["epsilon"], "device_budget")
        if take:
            self.runs[key] = Run(run.terms, run.count + 1, step, False, cost, self.epoch)
            self.waiting = self.clock_noted = False
            self.tokens.add(task["token"])
            self.rounds.append(now)
        return total

    def _clock(self, asked: Mapping[str, Any]) -> None:
        now, status = asked["now"], asked["status"]
        if now < self.time - 600:
            if not self.clock_noted:
                self.epoch, self.waiting, self.clock_noted = self.epoch + 1, True, True
            raise Refused("clock_moved")
        signed = max(asked["task"]["issued"], seconds(status["issued"]) if status else -INF)
        self.time = max(self.time, now if now <= signed + DAY else signed)

    def _sight(self, key: tuple[str, str], task: Mapping[str, Any], now: float, most: int) -> Run:
        """Return what is known of a run; one that was not seen since history was lost is noted first."""
        terms, step, run = task["mechanism"], task["step"], self.runs.get(key)
        said = canonical([terms, task["population"], task["purpose"]])
        require(run is None or run.terms == said, "not_the_approved_plan")
        if run is not None and run.epoch == self.epoch:
            return run
        require(sum(name == key[0] and time > now - DAY for name, time in self.sights) < most, "too_soon")
        count, since = min(step // terms["min_separation"] + 1, terms["max_participations"]), step
        if run is not None:
            count, since = run.count, max(step, -1 if run.since is None else run.since)
        begins_here = run is None and step == 0 and not self.waiting
        noted = (0, None) if begins_here else (count, since)
        # what is assumed costs something only once the phone takes part
        self.runs[key] = Run(said, *noted, True, 0.0 if run is None else run.rho, self.epoch)
        self.sights.append((key[0], now))
        self.clock_noted = False
        return self.runs[key]


def _live(status: Mapping[str, Any] | None, used: set[str], now: float) -> bool:
    if status is None or not -300 <= now - seconds(status["issued"]) <= DAY:
        return False
    return not {*used, "*"} & {*status["stopped"], *status["revoked"]}


def _planned(task: Mapping[str, Any], plan: Mapping[str, Any]) -> bool:
    same = all(task[name] == plan[name] for name in ("population", "purpose", "recipient", "mechanism"))
    return same and task["run_id"] != "" and 0 <= task["step"] < plan["mechanism"]["steps"]


def _floors(task: Mapping[str, Any], policy: Mapping[str, Any]) -> bool:
    floors, terms = policy["mechanism"], task["mechanism"]
    named = {
        r
        for one in policy["purposes"]
        if (one["id"], one["kind"]) == (task["purpose"], "train")
        for r in one["recipients"]
    }
    operators = {one["id"] for one in policy["recipients"] if one["kind"] == "operator"}
    return (
        task["population"] == policy["population"]["id"]
        and task["recipient"] in named & operators
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
    phone, asked = Phone(), json.loads(situation)["asked"]
    reply = pb.VerdictReply()
    for place, event in enumerate(asked):
        if event.get("event") == "store_wiped":
            phone.wipe()
            continue
        try:
            rho = phone.offer(event, take=place < len(asked) - 1)
            reply = pb.VerdictReply(verdict="admitted", rho=rho)
        except Refused as refused:
            reply = pb.VerdictReply(verdict=str(refused), rho=phone.spent())
    return reply


# --- the service ------------------------------------------------------------------------------------------------------


class Numerics(rpc.NumericsServicer):
    """Answers one case after the other; the catalogue is that of the last ``load_catalogue``."""

    def __init__(self) -> None:
        self.index: Index | None = None

    def Answer(self, request: pb.Case, context: grpc.ServicerContext) -> pb.Reply:  # noqa: N802 - gRPC's name
        kind = request.WhichOneof("body") or "nothing"
        try:
            return getattr(self, f"_{kind}", self._nothing)(request)
        except Unserved as error:
            return context.abort(grpc.StatusCode.UNIMPLEMENTED, str(error))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error) as error:
            return context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{kind}: {error}")

    def _nothing(self, case: pb.Case) -> pb.Reply:
        raise Unserved("no such case.")

    def _load_catalogue(self, case: pb.Case) -> pb.Reply:
        self.index = Index(case.load_catalogue)
        return pb.Reply(index_digest=self.index.digest)

    def _make_query(self, case: pb.Case) -> pb.Reply:
        return pb.Reply(query=pb.Numbers(values=make_query(case.make_query, self.index)))

    def _match_rows(self, case: pb.Case) -> pb.Reply:
        columns = Matcher(case.match_rows.query, self.index).columns
        rows = [columns[name][i] for i in case.match_rows.candidates for name in NEEDS]
        return pb.Reply(rows=pb.Floats(values=rows))

    def _local_update(self, case: pb.Case) -> pb.Reply:
        return pb.Reply(delta=pb.Floats(values=local_update(case.local_update)))

    def _contribute(self, case: pb.Case) -> pb.Reply:
        return pb.Reply(grid=contribute(case.contribute))

    def _verdict(self, case: pb.Case) -> pb.Reply:
        return pb.Reply(verdict=verdict(case.verdict.situation))

    def _rank(self, case: pb.Case) -> pb.Reply:
        return pb.Reply(ranking=pb.Ranking(items=ranking(case.rank, self.index)))


def serve(address: str) -> tuple[grpc.Server, int]:
    """Return a running server, and its port where the address leaves it open."""
    server = grpc.server(ThreadPoolExecutor(max_workers=1))
    rpc.add_NumericsServicer_to_server(Numerics(), server)
    port = server.add_insecure_port(address)
    server.start()
    return server, port


if __name__ == "__main__":
    serve(sys.argv[1])[0].wait_for_termination()

"""Small mistakes that a port could make: in ``tiny_device.py``, one text in place of another. The kit must find each.

Left out are those that change nothing that can be seen from outside, and rules of the guard that the form of its cases
does not reach.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from fedlearn.proto import conformance_pb2 as pb
from fedlearn_client.conformance.cases import Outcome, Verdict, run
from fedlearn_client.conformance.lines import Answer
from fedlearn_client.conformance.numbers import Numbers

DEVICE = Path(__file__).with_name("tiny_device.py")

MUTANTS: tuple[tuple[str, str], ...] = (
    ('word[:-3] + "y"', "word"),
    ('word.endswith(("ches", "shes", "sses", "xes", "oes"))', 'word.endswith("~")'),
    ("return word[:-1] if len(word) > 3", "return word[:-1] if len(word) > 99"),
    ('word[-2] not in "sui"', 'word[-2] not in "~"'),
    ("word not in STOP_WORDS", 'word != "~"'),
    ("not any(map(str.isdigit, word))", "True"),
    ("for n in (2, 3)", "for n in (2,)"),
    ("for n in (2, 3)", "for n in (2, 3, 4)"),
    ('unicodedata.normalize("NFKC", text).casefold()', "text.casefold()"),
    (".casefold()", ".lower()"),
    (".translate(QUOTES)", ".translate({})"),
    ("\\x85\\u2028\\u2029", "\\x85"),
    ("[\\r\\n\\x85\\u2028\\u2029]", "[\\r\\n]"),
    (" (?=[{CJK}])|(?<=[{CJK}]) ", "~"),
    ("pieces.append(text[at:start])", "pieces.append(text[at:end])"),
    ('"\\n".join(map(normalise', '"".join(map(normalise'),
    ("for start, end in sorted(spans)", "for start, end in spans"),
    ("and whole(text, at, end)), 0)", "), 0)"),
    ('return text[end] == "s" and not', "return False and not"),
    (
        "ends = range(min(at + self.longest, len(text)), at + 1, -1)",
        "ends = range(at + 2, min(at + self.longest, len(text)) + 1)",
    ),
    ("at = end or at + 1", "at = at + 1"),
    ("mean = max(sum(map(Counter.total, counts)) / self.n, 1.0)", "mean = 1.0"),
    ("1 - 0.75 + 0.75 * count.total() / mean", "1"),
    ("idf * tf * (1.2 + 1)", "tf * (1.2 + 1)"),
    ("idf = math.log(1 + (self.n", "idf = math.log((self.n"),
    ("frequency[term] + 0.5) / (frequency", "frequency[term]) / (frequency"),
    (
        'min(groups.get(value, 2), {"dish": 0, "facility": FACILITY}.get(name, 2))',
        '{"dish": 0, "facility": FACILITY}.get(name, 2)',
    ),
    ('{"dish": 0, "facility": FACILITY}', '{"dish": 0}'),
    ("+ 0.5 * (self.keys[i] in nearby[j])", "+ 0.0"),
    ("idf = [math.log((self.n + 1) / len(self.bearers[v])) for v in values]", "idf = [1.0 for v in values]"),
    ("weight / (sum(idf) * len(known))", "weight / sum(idf)"),
    ("weight / (sum(idf) * len(known))", "weight / len(known)"),
    ("(p < self.price[i]) + (p <= self.price[i])", "2 * (p < self.price[i])"),
    ("if domain == self.domains[i] and", "if"),
    ('kind == "neg"]', 'kind == "~"]'),
    ('closers = [m.start() for m in re.finditer(LANGUAGE["after"], text)]', "closers = []"),
    ("max(begin for begin in clauses if begin <= at), at)", "0, at)"),
    ("(?P<pos>{LANGUAGE['positive']})", "(?P<pos>~~)"),
    ("(?P<stop>{LANGUAGE['stop']})", "(?P<stop>~~)"),
    ('for words, digits in NUMBERS["fractions"]:', "for words, digits in []:"),
    ('text = re.sub(NUMBERS["chinese"]', 'text = re.sub("~~"'),
    ('return re.sub(NUMBERS["english"]', 'return re.sub("~~"'),
    ("return total + digit * max(place // 10, 1)", "return total + digit"),
    ("place = 10 if digit == 0 else place", "pass"),
    ('total = max(total, 1) * 100 if word == "hundred" else total +', "total = total +"),
    ("max(total, 1) * 100", "total * 100"),
    ("if all(end <= a or b <= start for a, b in taken)", "if True"),
    ("return bands[max(bands)]", "return bands[min(bands)]"),
    ("bands[max(bands)] if bands else ()", "next(iter(bands.values())) if bands else ()"),
    ("0.8 * least, 1.2 * least", "0.9 * least, 1.1 * least"),
    ('"floor": (least, INF)', '"floor": (least, 1e9)'),
    ("if not any(a <= at < b for a, b in cheap)", ""),
    ("return (max(found)[1],) if found else ()", "return (min(found)[1],) if found else ()"),
    ("and not ceiling.match(text, m.end(1))]", "]"),
    ("if float(m[1]) <= 5 and", "if"),
    ('return (WISHES["well_rated_floor"],)', "return ()"),
    ("max(first, float(high) * hours[high_unit[0]])", "float(high) * hours[high_unit[0]]"),
    ("unit = low_unit or high_unit", "unit = low_unit"),
    ('for name in ("free", "near")', 'for name in ("near", "near")'),
    ("plain = blanked(plain, names)", "pass"),
    ('"\\n" * (end - start) + text[end:]', '" " * (end - start) + text[end:]'),
    ("about = blanked(plain, values)", "about = plain"),
    ("subject = 1 if index.domain in domains else -1", "subject = -1"),
    ("-1 if domains.intersection(index.domains) else 0", "0"),
    ("-1 if domains.intersection(index.domains) else 0", "-1 if domains else 0"),
    ("inside = {at: start for start, end, _ in values for at in range(start, end)}", "inside = {}"),
    (
        "slot, wanted = at in value_at and index.groups[value_at[at]] == FACILITY, not covered[at]",
        "slot, wanted = False, not covered[at]",
    ),
    ("withdrawn, polarity = wanted and slot in renewed,", "withdrawn, polarity = False,"),
    ("withdrawn, polarity = wanted and slot in renewed,", "withdrawn, polarity = slot in renewed,"),
    ("if not withdrawn:", "if True:"),
    ("if wanted and at in renewing:", "if at in renewing:"),
    ('if text.startswith("instead", cue.start()) and', "if False and"),
    ("if at > cue.start()]", "if at > cue.end()]"),
    ("if at > cue.start()][:1]", "if at > cue.start()]"),
    ("or (message.subject > 0 and not message.empty))", ")"),
    ("(message.subject != about or (", "(False or ("),
    ("message.subject > 0 and not message.empty", "message.subject > 0"),
    ("if not message.empty:\n", "if True:\n"),
    ("present = sum(wish == kept[0][0] for wish, _ in kept)", "present = 1"),
    ("min(max(i - present + 1, 0), MOST)", "min(max(i - present, 0), MOST)"),
    ("m.direction == device_pb2.DIRECTION_OUTGOING", "True"),
    ("values.add((value, 0 if withdrawn else polarity, age))", "values.add((value, polarity, age))"),
    ("if polarity < 0 or slot not in renewed:", "if True:"),
    ("renewed |= message.renewed", "pass"),
    ("reversed(said) if age == 0)", "said if age == 0)"),
    ("reversed(said) if age == 0)", "reversed(said))"),
    ("for c in reversed(asked.earlier)", "for c in asked.earlier"),
    ('"big") >> 1', '"little") >> 1'),
    ('digest_size=4).digest(), "big") >> 1', 'digest_size=4).digest(), "big") & 0x7FFFFFFF'),
    ("min(count, MOST), polarity, age) for (term", "count, polarity, age) for (term"),
    ("present = [t for t, p, age in rows if p > 0 and age == 0]", "present = [t for t, p, age in rows if p > 0]"),
    ("before = [t for t, p, age in rows if p > 0 and age > 0]", "before = []"),
    ("f32(1.0 / len(ids))", "1.0"),
    ("if low <= price <= high:", "if low < price < high:"),
    ("math.log2(price + 1)", "math.log2(price)"),
    (
        "return 1.0 if floor - rating <= 1e-6 else -min(floor - rating, 1.0)",
        "return 1.0 if floor - rating <= 1e-6 else -1.0",
    ),
    ("f32(hours[0] * f32(0.9))", "hours[0]"),
    ("high * 1.1 + 0.1)", "high * 1.1)"),
    ("level * (2 * index.level[i] - 1)", "level * index.level[i]"),
    ("float(index.price[i] == 0)", "float(index.price[i] < 20)"),
    ("min(1.0, near[i])", "near[i]"),
    ("value / (len(ids) + 1) for", "value / len(ids or [1]) for"),
    ("2 * value / (len(ids) + 4)", "2 * value / (len(ids) + 3)"),
    ("for ids in (chosen, chosen[:1]))", "for ids in (chosen, chosen[-1:]))"),
    ("everywhere[i] / (len(chosen) + 1)", "everywhere[i] / len(chosen)"),
    ("if not math.isnan(self.wishes[7]):", "if True:"),
    ('self._put("chosen_before", lambda i: float(i in chosen))', "pass"),
    ("for count in range(1, 1 << 63)", "for count in range(0, 1 << 63)"),
    (
        'draws = [next(drawn) for _ in range(count)] if training["shuffle"] else [0.0] * count',
        "draws = [next(drawn) for _ in range(count)]",
    ),
    (
        "yield from (order[at : at + size] for at in range(0, count, size))",
        "yield from (order[at : at + size] for at in range(0, count - size + 1, size))",
    ),
    (" / len(batch)\n", "\n"),
    ("weights = [a + b for a, b in zip(incoming, delta, strict=True)]", "weights = incoming"),
    (") - q for row, q", ") for row, q"),
    ("if NEEDS[name] <= set(asked.sources):", "if True:"),
    ("key=lambda i: -scores[i])", "key=lambda i: (-scores[i], -i))"),
    ("bound * (1.0 - 2.0 * margin)", "bound"),
    ("int(Fraction(v) / step)", "round(Fraction(v) / step)"),
    ("math.isqrt(int(Fraction(v) ** 2 * scale))", "math.isqrt(int(Fraction(v) ** 2 * scale)) + 1"),
    ('require(now < bundle["expires"] and', "require("),
    ('now < seconds(policy["expires"]), "expired")', 'True, "expired")'),
    ("now < self.time - 600", "now < self.time - 60"),
    ("now < self.time - 600", "now < self.time - 6000"),
    ('(step // terms["min_separation"] + 1', '(step // terms["min_separation"]'),
    (
        'step // terms["min_separation"] + 1, terms["max_participations"])',
        'step // terms["min_separation"] + 1, 10**9)',
    ),
    ("begins_here = run is None and step == 0 and not self.waiting", "begins_here = run is None and step == 0"),
    ("begins_here = run is None and step == 0 and not self.waiting", "begins_here = run is None and not self.waiting"),
    ('"history_lost" if run.assumed else "too_soon"', '"too_soon"'),
    ("self.epoch, self.waiting = self.epoch + 1, True", "self.epoch, self.waiting = self.epoch, True"),
    ("level in range(n.bit_length())", "level in range(n.bit_length() + 1)"),
    ("level in range(n.bit_length())", "level in range(n.bit_length() - 1)"),
    ("decay ** (i - 1)", "decay ** i"),
    ("i >= m * b", "i > m * b"),
    ('now < task["expires"] <= task["issued"] + 7 * DAY', 'now <= task["expires"] <= task["issued"] + 7 * DAY'),
    ('task["issued"] <= now + 300', 'task["issued"] <= now + 400'),
    ('{*used, "*"} & {*status["stopped"], *status["revoked"]}', '{*used, "*"} & {*status["stopped"]}'),
    ('{*used, "*"} &', "used &"),
    ('bundle["contents"], bundle["digest"]', 'bundle["digest"]'),
    ("self.rounds) < policy", "self.rounds) <= policy"),
    ('require(run is None or run.terms == said, "not_the_approved_plan")', "pass"),
)


class Within:
    """A line to a device in this process, without gRPC."""

    def __init__(self, device: ModuleType) -> None:
        self._numerics = device.Numerics()

    def call(self, method: str, request: bytes) -> Answer:
        case = pb.Case.FromString(request)
        try:
            reply = getattr(self._numerics, f"_{case.WhichOneof('body')}")(case)
        except Exception as error:  # noqa: BLE001 - whatever a mistake leads to is no answer
            return Answer("INVALID_ARGUMENT", f"{type(error).__name__}", b"")
        return Answer("OK", "", reply.SerializeToString())

    def watch(self, method: str, request: bytes, count: int) -> Iterator[Answer]:
        raise NotImplementedError

    def close(self) -> None:
        return


def mutant(old: str, new: str) -> ModuleType:
    """Return ``tiny_device`` with one text in place of another, as a module of its own."""
    source = DEVICE.read_text(encoding="utf-8")
    assert old in source, f"{old!r} is no longer in tiny_device.py"
    device = ModuleType("tiny_mutant")
    device.__file__ = str(DEVICE)
    sys.modules[device.__name__] = device
    exec(compile(source.replace(old, new, 1), device.__name__, "exec"), device.__dict__)
    device.Index = functools.lru_cache(device.Index)  # each case loads its catalogue anew
    return device


def first_failure(device: ModuleType) -> Outcome | None:
    """Return the first case of the kit's numeric part that a device fails."""
    outcomes = run(Numbers(Within(device)).cases())
    return next((one for one in outcomes if one.verdict is Verdict.FAILED), None)

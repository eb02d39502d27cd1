"""Grants: a source serves exactly the uses that it was granted for, and nobody else can tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import Final

from fedlearn.proto import device_pb2 as pb
from fedlearn_client.conformance.cases import Case, Differs, require
from fedlearn_client.conformance.lines import Answer
from fedlearn_client.conformance.phone import (
    PACKAGE,
    STREAMS,
    TEXT_VERSION,
    WATCH,
    Grant,
    Phone,
    came,
    other,
    same,
    set_request,
)
from fedlearn_client.conformance.town import CHAT, DISPUTED, OPERATOR, OTHER, READING, RECOMMEND, SURFACE, TRAIN

GRANTS: Final[dict[str, Grant]] = {
    "chat_surface": (CHAT, RECOMMEND, SURFACE),
    "chat_other": (CHAT, RECOMMEND, OTHER),
    "reading_surface": (READING, RECOMMEND, SURFACE),
    "reading_other": (READING, RECOMMEND, OTHER),
}
TRAINING: Final[dict[str, Grant]] = {
    "chat_training": (CHAT, TRAIN, OPERATOR),
    "reading_training": (READING, TRAIN, OPERATOR),
}
_RECIPIENTS: Final = {"surface": SURFACE, "other": OTHER}
_SURFACE: Final = GRANTS["chat_surface"]


@dataclass(slots=True)
class _Grid:
    """Rankings by recipient and the apps that were granted for it; the first one that is seen is the measure."""

    seen: dict[tuple[str, frozenset[str]], bytes] = field(default_factory=dict)


def cases(phone: Phone) -> Iterator[Case]:
    """Yield every case."""
    everything, grid = GRANTS | TRAINING, _Grid()
    subsets: list[tuple[str, ...]] = [(), *((name,) for name in everything), *combinations(GRANTS, 2)]
    subsets += [("chat_surface", "chat_training"), ("chat_other", "reading_training"), tuple(everything)]
    for names in subsets:
        title = "+".join(names) if len(names) < 3 else "all"
        granted = ", ".join(name.replace("_", " for ") for name in names) or "nothing"
        sentence = f"With {granted} granted, each caller's ranking is made of exactly what was granted for it."
        yield Case(f"consent.grid.{title or 'nothing'}", sentence, _grid_case(phone, grid, names))
    yield Case("consent.no_trace", "A caller without a grant gets the same bits before and after chat was pushed.",
               lambda: _no_trace(phone))  # fmt: skip
    yield Case("consent.off_switch", "With the off switch everybody gets the same ranking; without it the old one.",
               lambda: _off_switch(phone))  # fmt: skip
    yield Case("consent.text_version", "A grant for other words than the present ones is refused.",
               lambda: _text_version(phone))  # fmt: skip
    yield Case("consent.minor", "For a minor every switch is off and cannot be switched on.",
               lambda: _age(phone, pb.AGE_CLASS_MINOR))  # fmt: skip
    yield Case("consent.age_unknown", "An owner of unknown age counts as a minor.",
               lambda: _age(phone, pb.AGE_CLASS_UNKNOWN))  # fmt: skip
    yield Case("consent.disputed", "A disputed source cannot be granted, and says so.", lambda: _disputed(phone))
    yield Case("consent.unlisted", "A use that the policy does not list cannot be granted.", lambda: _unlisted(phone))
    yield Case("consent.restricted", "A stream that its app restricts for a purpose does not serve it.",
               lambda: _restricted(phone))  # fmt: skip
    yield Case("consent.watch", "A watcher gets the present switches, and again after a change.",
               lambda: _watch(phone))  # fmt: skip
    yield Case("consent.list", "Every use that the policy lists has one switch, with its words.", lambda: _list(phone))


def _grid_case(phone: Phone, grid: _Grid, names: tuple[str, ...]) -> Callable[[], None]:
    return lambda: _check_grid(phone, grid, [(GRANTS | TRAINING)[name] for name in names])


def _check_grid(phone: Phone, grid: _Grid, grants: list[Grant]) -> None:
    phone.ready()
    plain = {caller: phone.ranking(caller) for caller in _RECIPIENTS}
    same(plain["other"], plain["surface"], "one ranking for everybody while nothing is granted")
    for grant in grants:
        phone.set(grant)
    phone.push_everything()
    for caller, app in _RECIPIENTS.items():
        sources = frozenset(grant[0] for grant in grants if grant[1:] == (RECOMMEND, app))
        found = phone.ranking(caller)
        if not sources:
            same(found, plain[caller], f"for {caller}, without a grant, the ranking without personal data")
            continue
        words = f"for {caller} a ranking made of {' and '.join(sorted(sources))}"
        known = grid.seen.setdefault((caller, sources), found)
        same(found, known, f"{words} alone, as in the case where just that was granted")
        other(found, plain[caller], words)
        for (whose, less), ranking in grid.seen.items():
            if whose == caller and less != sources:
                other(found, ranking, f"{words}, and not of {' and '.join(sorted(less))}")


def _no_trace(phone: Phone) -> None:
    phone.ready()
    before = phone.ranking("other")
    phone.set(_SURFACE)
    same(phone.ranking("other"), before, "the same ranking for a caller without a grant once another has one")
    phone.push("chat", [phone.said()])
    same(phone.ranking("other"), before, "the same ranking for a caller without a grant after a push")
    require(not phone.full_ranking("other").used, "no word on what was used, but to the surface", "used is filled")


def _off_switch(phone: Phone) -> None:
    phone.ready()
    plain = phone.ranking("other")
    phone.set(_SURFACE)
    phone.push("chat", [phone.said()])
    personal = phone.ranking("surface")
    phone.owner(off=True)
    try:
        for caller in _RECIPIENTS:
            same(phone.ranking(caller), plain, f"for {caller} the ranking without personal data")
        require(not phone.full_ranking("surface").used, "nothing used", "used is filled")
    finally:
        phone.owner(off=False)
    same(phone.ranking("surface"), personal, "the personal ranking once it is switched back")


def _text_version(phone: Phone) -> None:
    phone.ready()
    for version in (0, TEXT_VERSION - 1, TEXT_VERSION + 1):
        request = set_request(_SURFACE, text_version=version)
        phone.refused("settings", "Consent/Set", request, f"version {version} of words that are at {TEXT_VERSION}")
    _require_all_off(phone)


def _require_all_off(phone: Phone) -> None:
    on = [f"{one.app} for {one.recipient}" for one in phone.switches() if one.on]
    require(not on, "every switch off", f"on: {', '.join(on)}")


def _age(phone: Phone, age: int) -> None:
    phone.ready()
    plain = phone.ranking("surface")
    phone.set(_SURFACE)
    phone.push("chat", [phone.said()])
    phone.owner(age)
    try:
        _require_all_off(phone)
        blocked = {one.blocked for one in phone.switches()}
        require(blocked <= {"minor", "disputed"}, "every switch blocked: minor", ", ".join(sorted(blocked)))
        phone.refused("settings", "Consent/Set", set_request(_SURFACE), "a grant of a minor")
        same(phone.ranking("surface"), plain, "the ranking without personal data")
    finally:
        phone.owner()
    same(phone.ranking("surface"), plain, "the ranking without personal data, once the owner is an adult again")


def _disputed(phone: Phone) -> None:
    phone.ready()
    request = set_request((DISPUTED, RECOMMEND, SURFACE))
    phone.refused("settings", "Consent/Set", request, "a grant of a disputed source")
    found = [one.blocked for one in phone.switches() if one.app == DISPUTED]
    require(bool(found) and set(found) == {"disputed"}, "its switches blocked: disputed", ", ".join(found) or "none")


def _unlisted(phone: Phone) -> None:
    phone.ready()
    for what, grant in (
        ("app", ("kit.nobody", RECOMMEND, SURFACE)),
        ("purpose", (CHAT, "advertising", SURFACE)),
        ("recipient", (CHAT, RECOMMEND, "kit.advertiser")),
        ("pair of purpose and recipient", (CHAT, RECOMMEND, OPERATOR)),
    ):
        phone.refused("settings", "Consent/Set", set_request(grant), f"a grant for an unlisted {what}")
    wrong = set_request(_SURFACE)
    wrong.data_type = pb.DATA_TYPE_CHOICE
    phone.refused("settings", "Consent/Set", wrong, "a grant for a data type that the app does not deliver")
    _require_all_off(phone)


def _restricted(phone: Phone) -> None:
    phone.ready()
    plain, stream = phone.ranking("surface"), STREAMS["chat"][0]
    phone.set(_SURFACE)
    for purposes in ([RECOMMEND], ["*"]):
        phone.push("chat", [phone.said()])
        other(phone.ranking("surface"), plain, "a personal ranking before the restriction")
        phone.ask("chat", "Signals/Restrict", pb.RestrictRequest(stream=stream, purposes=purposes))
        try:
            same(phone.ranking("surface"), plain, f"the ranking without the stream, restricted for {purposes[0]}")
        finally:
            phone.ask("chat", "Signals/Restrict", pb.RestrictRequest(stream=stream))
    phone.push("chat", [phone.said()])
    other(phone.ranking("surface"), plain, "a personal ranking once the restriction is lifted")


def _watch(phone: Phone) -> None:
    phone.ready()
    line = phone.callers.another("settings")
    try:
        answers = line.watch(f"/{PACKAGE}.{WATCH}", b"", 2)
        first = _state(next(answers))
        phone.set(_SURFACE)
        second = _state(next(answers))
    finally:
        line.close()
    on = [one.app for one in first.grants if one.on]
    require(not on, "first the present state, all off", f"on: {', '.join(on)}")
    on = [one.app for one in second.grants if one.on]
    require(on == [CHAT], f"then one switch on, of {CHAT}", f"on: {', '.join(on) or 'none'}")


def _state(answer: Answer) -> pb.ListReply:
    if answer.code != "OK":
        raise Differs("a state", came(answer))
    return pb.ListReply.FromString(answer.body)


def _list(phone: Phone) -> None:
    phone.ready()
    policy = phone.documents.policy
    numbers = {"message_content": pb.DATA_TYPE_MESSAGE_CONTENT, "choice": pb.DATA_TYPE_CHOICE}
    expected = {
        (source.app, numbers[source.data_type.value], purpose.id, recipient, purpose.text, purpose.text_version)
        for source in policy.sources
        for purpose in policy.purposes
        if purpose.id in source.purposes
        for recipient in purpose.recipients
    }
    rows = [
        (one.app, int(one.data_type), one.purpose, one.recipient, one.text, one.current_text_version)
        for one in phone.switches()
    ]
    require(len(rows) == len(set(rows)), "each switch once", "one of them twice")
    odd = {row[:4] for row in set(rows) ^ expected}
    require(not odd, "exactly the switches of the policy", f"these differ: {sorted(odd)[:3]}")

"""Rankings: what a caller gets, and what it is told about it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fedlearn.proto import device_pb2 as pb
from fedlearn_client.conformance.cases import Case, require
from fedlearn_client.conformance.phone import ITEMS, PICKED, Phone, same
from fedlearn_client.conformance.town import CHAT, OTHER, READING, RECOMMEND, SURFACE, TRAIN

_DOMAIN: Final = "restaurant:"
_ID_BYTES: Final = 16


def fresh(phone: Phone) -> Iterator[Case]:
    """Yield what is asked of a target that was never used."""
    yield Case("fresh.off", "On a fresh target every switch is off and the owner's age is unknown.",
               lambda: _off(phone))  # fmt: skip
    yield Case("fresh.ranking", "And everybody gets one ranking, made of nothing.", lambda: _fresh_ranking(phone))
    yield Case("fresh.nothing", "And nothing is kept, spent, done or sent.", lambda: _fresh_nothing(phone))


def cases(phone: Phone) -> Iterator[Case]:
    """Yield every case."""
    yield Case("recommend.used", "The surface is told what was used, exactly; no other caller is.",
               lambda: _used(phone))  # fmt: skip
    yield Case("recommend.count", "As many items as asked for, 10 for none; all ranked, each once; 101 are refused.",
               lambda: _count(phone))  # fmt: skip
    yield Case("recommend.repeatable", "Asked twice, the same items with the same bits, under another random id.",
               lambda: _repeatable(phone))  # fmt: skip
    yield Case("recommend.purpose", "A purpose that the policy does not list for the caller is refused.",
               lambda: _purpose(phone))  # fmt: skip
    yield Case("feedback.foreign", "Feedback on another app's ranking, or on none, is refused.",
               lambda: _foreign_feedback(phone))  # fmt: skip
    yield Case("feedback.item", "Feedback on an item that was not in the ranking is refused.",
               lambda: _foreign_item(phone))  # fmt: skip
    yield Case("feedback.choice", "Feedback is a choice of the calling app: kept under its grant, once, else not.",
               lambda: _choice(phone))  # fmt: skip


def _install(phone: Phone) -> None:
    """Install, and leave everything else as it was found."""
    if not phone.ask("system", "Runtime/Status").bundles:
        phone.install()


def _off(phone: Phone) -> None:
    _install(phone)
    state: pb.ListReply = phone.ask("settings", "Consent/List")
    on = [f"{one.app} for {one.recipient}" for one in state.grants if one.on]
    require(not on, "every switch off", f"on: {', '.join(on)}")
    touched = [one.app for one in state.grants if one.time_ms or one.text_version]
    require(not touched, "no switch touched", f"touched: {', '.join(touched)} (is this target fresh?)")
    unknown = state.age == pb.AGE_CLASS_UNKNOWN
    require(unknown, "the owner's age unknown", f"{pb.AgeClass.Name(state.age)} (is this target fresh?)")


def _fresh_ranking(phone: Phone) -> None:
    _install(phone)
    first = phone.full_ranking("surface")
    require(len(first.items) == ITEMS, f"{ITEMS} items", f"{len(first.items)}")
    require(not first.used, "nothing used", "used is filled")
    same(phone.ranking("other"), phone.ranking("surface"), "the ranking of the surface for another app")


def _fresh_nothing(phone: Phone) -> None:
    _install(phone)
    require(phone.kept() == 0, "no signal kept", f"{phone.kept()}")
    budget = phone.ask("settings", "Audit/Budget")
    require(budget.rho == 0.0 and budget.participations == 0, "nothing spent", f"rho {budget.rho}")
    for method, rows in (("Audit/Runs", "runs"), ("Audit/Egress", "entries"), ("Audit/Receipts", "receipts")):
        found = getattr(phone.ask("settings", method), rows)
        require(not found, f"{method} empty", f"{len(found)} rows (is this target fresh?)")


def _used(phone: Phone) -> None:
    phone.ready()
    for recipient in (SURFACE, OTHER):
        phone.set((CHAT, RECOMMEND, recipient))
    phone.push("chat", [phone.said()])
    _require_used(phone, {(CHAT, pb.DATA_TYPE_MESSAGE_CONTENT)})
    phone.set((READING, RECOMMEND, SURFACE))
    phone.push("reading", [phone.picked(PICKED[0])])
    _require_used(phone, {(CHAT, pb.DATA_TYPE_MESSAGE_CONTENT), (READING, pb.DATA_TYPE_CHOICE)})
    require(not phone.full_ranking("other").used, "no word on what was used to another app", "used is filled")


def _require_used(phone: Phone, expected: set[tuple[str, int]]) -> None:
    found = {(one.app, int(one.data_type)) for one in phone.full_ranking("surface").used}
    require(found == expected, f"used: {sorted(expected)}", str(sorted(found)))


def _count(phone: Phone) -> None:
    phone.ready()
    whole = [one.item for one in phone.full_ranking("surface").items]
    for count, expected in ((0, 10), (1, 1), (7, 7), (100, ITEMS)):
        found = [one.item for one in phone.full_ranking("surface", count).items]
        require(found == whole[:expected], f"the first {expected} for count {count}", f"{len(found)} items")
    require(len(set(whole)) == ITEMS, "each item once", "an item twice")
    require(all(one.startswith(_DOMAIN) for one in whole), f"items of {_DOMAIN[:-1]} alone", "another domain's")
    request = pb.GetRequest(purpose=RECOMMEND, count=101)
    phone.refused("surface", "Recommend/Get", request, "a ranking of 101 items")


def _repeatable(phone: Phone) -> None:
    phone.ready()
    first, second = phone.full_ranking("surface"), phone.full_ranking("surface")
    for one in (first, second):
        require(len(one.ranking_id) == _ID_BYTES, f"an id of {_ID_BYTES} bytes", f"{len(one.ranking_id)}")
    require(first.ranking_id != second.ranking_id, "another id each time", "the same")
    require(list(first.items) == list(second.items), "the same items and scores", "others")


def _purpose(phone: Phone) -> None:
    phone.ready()
    for purpose in ("", "advertising", TRAIN):
        phone.refused("surface", "Recommend/Get", pb.GetRequest(purpose=purpose), f"the purpose {purpose!r}")
    # the chat app is nobody's recipient
    phone.refused("chat", "Recommend/Get", pb.GetRequest(purpose=RECOMMEND), "a caller that the purpose does not list")


def _foreign_feedback(phone: Phone) -> None:
    phone.ready()
    ranking = phone.full_ranking("surface")
    item = ranking.items[0].item
    for ranking_id in (ranking.ranking_id, bytes(_ID_BYTES), b"", b"short"):
        request = pb.FeedbackRequest(ranking_id=ranking_id, item=item)
        phone.refused("other", "Recommend/Feedback", request, "feedback on a ranking that the app did not get")


def _foreign_item(phone: Phone) -> None:
    phone.ready()
    ranking = phone.full_ranking("other", 5)
    absent = phone.full_ranking("other").items[20].item
    for item in (absent, "restaurant:nowhere", ""):
        request = pb.FeedbackRequest(ranking_id=ranking.ranking_id, item=item)
        phone.refused("other", "Recommend/Feedback", request, "feedback on an item that was not shown")


def _choice(phone: Phone) -> None:
    phone.ready()
    before = phone.kept()
    ranking = phone.full_ranking("other")
    request = pb.FeedbackRequest(ranking_id=ranking.ranking_id, item=ranking.items[3].item)
    phone.ask("other", "Recommend/Feedback", request)
    require(phone.kept() == before, "nothing kept without a grant", "a signal more")
    phone.set((OTHER, RECOMMEND, SURFACE))
    ranking = phone.full_ranking("other")
    request = pb.FeedbackRequest(ranking_id=ranking.ranking_id, item=ranking.items[3].item)
    for _ in range(2):
        phone.ask("other", "Recommend/Feedback", request)
    require(phone.kept() == before + 1, "one signal kept", f"{phone.kept() - before}")
    used = [one.app for one in phone.full_ranking("surface").used]
    require(used == [OTHER], f"a choice of {OTHER} used for the surface", ", ".join(used) or "nothing")

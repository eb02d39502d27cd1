"""Rankings: whose data goes in, who is told, how often, and what is remembered."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from fedlearn.errors import BundleRefused, CallerRefused, OutOfRange, RateLimited, SignalRefused, WorkerFailed
from fedlearn.policy.document import DataType, Purpose, PurposeKind
from fedlearn.proto import device_pb2 as pb
from fedlearn_client import limits
from fedlearn_client.buckets import Buckets
from fedlearn_client.fakes import FakeClock, FakeExamples
from fedlearn_client.grants import Age, Owner
from fedlearn_client.hooks import Caller, EarlierChoice, Occasion, Role
from fedlearn_client.intake import Intake
from fedlearn_client.reading import Derived
from fedlearn_client.recommend import NOTHING, RankingMemory, Recommender
from fedlearn_client.services.recommend import RecommendServicer
from fedlearn_client.services.refusals import UnknownName
from fedlearn_client.store.streams import Stream
from fedlearn_client.turns import Turns

PURPOSE = "suggest"
SURFACE = Caller("surface", Role.SURFACE)
MAPS = Caller("maps", Role.APP)
WISH = Occasion((b"hotpot",), (EarlierChoice("book:x", "reading"),), "")


def stream(app: str, kind: DataType, number: int = 1) -> Stream:
    return Stream(number, app, "s", kind, f"alias-{number}", frozenset(), 0.0)


@dataclass
class FakeConsent:
    off: bool = False
    granted: dict[tuple[str, str], list[Stream]] = field(default_factory=dict)
    is_wanted: bool = True

    def owner(self) -> Owner:
        return Owner(Age.ADULT, self.off)

    def effective(self, purpose: str, recipient: str) -> list[Stream]:
        return [] if self.off else self.granted.get((purpose, recipient), [])

    def wanted(self, app: str, data_type: DataType) -> bool:
        return self.is_wanted


@dataclass
class FakeReading:
    """Items in the order of what it was told: so that a test sees what went in."""

    asked: list[tuple[Occasion, frozenset[str], int]] = field(default_factory=list)
    faults: list[Exception] = field(default_factory=list)
    ingested: list[list[pb.Signal]] = field(default_factory=list)

    def rank(self, bundle: Any, occasion: Occasion, sources: frozenset[str], count: int) -> list[pb.RankedItem]:
        self.asked.append((occasion, sources, count))
        return [pb.RankedItem(item=f"restaurant:{n}", score=len(occasion.said) + 1.0 / n) for n in range(1, count + 1)]

    def require_catalogue(self) -> None:
        return

    def ingest(self, signals: Any) -> Derived:
        self.ingested.append(list(signals))
        if self.faults:
            raise self.faults.pop(0)
        return Derived("index", [b"" if "nothing" in one.message.text else b"body" for one in signals])


@dataclass
class FakeStreams:
    made: list[str] = field(default_factory=list)

    def register(self, app: str, name: str, kind: DataType) -> None:
        self.made.append(f"{app}/{name}/{kind}")

    def find(self, app: str, name: str) -> Stream:
        return stream(app, DataType.CHOICE)


@dataclass
class FakeStore:
    rows: list[Any] = field(default_factory=list)

    def add(self, stream: Stream, rows: Any) -> None:
        self.rows += rows


class World:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.consent = FakeConsent()
        self.reading = FakeReading()
        self.streams = FakeStreams()
        self.store = FakeStore()
        self.memory = RankingMemory()
        self.examples = FakeExamples(PURPOSE, "surface", wish=WISH)
        self.intake = Intake(self.consent, self.store, self.reading, lambda: None)  # type: ignore[arg-type]
        self.recommender = Recommender(
            policy=policy,
            ranker_for=lambda _purpose: "bundle",
            consent=self.consent,
            examples=self.examples,
            ranker=self.reading,
            streams=self.streams,
            intake=self.intake,
            buckets=Buckets(10.0, 20, self.clock.monotonic),
            memory=self.memory,
            clock_rng=self.clock,
        )  # type: ignore[arg-type]


@dataclass
class FakePolicy:
    purposes: tuple[Purpose, ...]
    sources: tuple[()] = ()


def policy() -> Any:
    return FakePolicy(
        (
            Purpose(PURPOSE, PurposeKind.RECOMMEND, "", 1, ("surface", "maps")),
            Purpose("train", PurposeKind.TRAIN, "", 1, ("surface", "lab")),
        )
    )


@pytest.fixture
def world() -> World:
    return World()


def test_only_what_is_granted_to_the_caller_goes_in(world: World) -> None:
    world.recommender.get(SURFACE, PURPOSE, 5)
    world.recommender.get(MAPS, PURPOSE, 5)
    assert world.reading.asked == [
        (WISH, frozenset({"catalogue", "chat", "choices"}), 5),
        (NOTHING, frozenset({"catalogue"}), 5),
    ]


def test_the_off_switch_ranks_nothing_for_everyone(world: World) -> None:
    world.consent.off = True
    mine, theirs = (world.recommender.get(one, PURPOSE, 5) for one in (SURFACE, MAPS))
    assert mine.items == theirs.items
    assert {one[:2] for one in world.reading.asked} == {(NOTHING, frozenset({"catalogue"}))}


def test_only_the_surface_hears_what_was_used_and_only_what_there_was(world: World) -> None:
    everything = [
        stream("chat", DataType.MESSAGE_CONTENT, 1),
        stream("reading", DataType.CHOICE, 2),
        stream("shopping", DataType.CHOICE, 3),  # granted, but nothing of it is in the occasion
    ]
    world.consent.granted = {(PURPOSE, "surface"): everything, (PURPOSE, "maps"): everything}
    used = world.recommender.get(SURFACE, PURPOSE, 5).used
    assert [(one.app, one.data_type) for one in used] == [
        ("chat", DataType.MESSAGE_CONTENT),
        ("reading", DataType.CHOICE),
    ]
    world.examples.pair = (PURPOSE, "maps")
    assert world.recommender.get(MAPS, PURPOSE, 5).used == ()
    world.examples.pair = (PURPOSE, "surface")
    world.consent.off = True
    assert world.recommender.get(SURFACE, PURPOSE, 5).used == ()


def test_what_is_taken_back_while_it_ranks_is_in_no_ranking_and_none_is_remembered(world: World) -> None:
    mine = stream("chat", DataType.MESSAGE_CONTENT)
    world.consent.granted = {(PURPOSE, "surface"): [mine]}
    rank = world.reading.rank

    def slow(*request: Any) -> list[pb.RankedItem]:
        items = rank(*request)
        if len(world.reading.asked) == 1:  # it has read its occasion; the owner takes back, and gets the receipt
            world.consent.granted = {}
            world.examples.wish = NOTHING
            world.memory.forget()
        return items

    world.reading.rank = slow  # type: ignore[method-assign]
    got = world.recommender.get(SURFACE, PURPOSE, 5)
    assert [occasion for occasion, _, _ in world.reading.asked] == [WISH, NOTHING]
    assert got.items[0].score == pytest.approx(1.0), "made from what was destroyed"
    assert got.used == ()
    assert list(world.memory._kept) == [got.id]


def test_whoever_changes_all_the_time_what_may_be_used_gets_the_ranking_of_the_catalogue(world: World) -> None:
    """And no error, by which an app could tell that another one's grants are being changed."""
    rank = world.reading.rank

    def slow(*request: Any) -> list[pb.RankedItem]:
        world.consent.granted = {
            (PURPOSE, "surface"): [stream("chat", DataType.MESSAGE_CONTENT, len(world.reading.asked))]
        }
        return rank(*request)

    world.reading.rank = slow  # type: ignore[method-assign]
    got = world.recommender.get(SURFACE, PURPOSE, 5)
    assert [occasion for occasion, _, _ in world.reading.asked] == [WISH, WISH, WISH, NOTHING]
    assert (got.items[0].score, got.used) == (pytest.approx(1.0), ())
    assert list(world.memory._kept) == [got.id]


def test_used_is_of_the_moment_of_the_occasion(world: World) -> None:
    chat, late = stream("chat", DataType.MESSAGE_CONTENT), stream("late", DataType.MESSAGE_CONTENT, 2)
    world.consent.granted = {(PURPOSE, "surface"): [chat]}
    rank = world.reading.rank

    def slow(*request: Any) -> list[pb.RankedItem]:
        items = rank(*request)
        world.consent.granted = {(PURPOSE, "surface"): [chat, late]}
        return items

    world.reading.rank = slow  # type: ignore[method-assign]
    assert [one.app for one in world.recommender.get(SURFACE, PURPOSE, 5).used] == ["chat", "late"]
    assert len(world.reading.asked) == 2, "a ranking whose grants changed was handed out"


@pytest.mark.parametrize(
    ("caller", "purpose"),
    [
        (Caller("stranger", Role.APP), PURPOSE),
        (SURFACE, "train"),
        (SURFACE, "nothing"),
        (Caller("lab", Role.APP), "train"),
    ],
)
def test_the_policy_must_list_the_caller_for_a_recommend_purpose(world: World, caller: Caller, purpose: str) -> None:
    with pytest.raises(CallerRefused, match="lists no such recommend purpose"):
        world.recommender.get(caller, purpose, 5)
    assert world.reading.asked == []


def test_counts_have_their_bounds(world: World) -> None:
    servicer = RecommendServicer(world.recommender)
    assert len(servicer.get(MAPS, pb.GetRequest(purpose=PURPOSE)).items) == 10
    assert len(servicer.get(MAPS, pb.GetRequest(purpose=PURPOSE, count=100)).items) == 100
    for request in (pb.GetRequest(purpose=PURPOSE, count=101), pb.GetRequest(purpose="", count=1)):
        with pytest.raises(SignalRefused):
            servicer.get(MAPS, request)


def test_feedback_is_a_choice_of_the_calling_app_and_counts_once(world: World) -> None:
    got = world.recommender.get(MAPS, PURPOSE, 5)
    for _ in range(2):
        world.recommender.feedback(MAPS, got.id, "restaurant:3")
    assert set(world.streams.made) == {"maps/feedback/choice"}
    assert [one.id for one in world.store.rows] == [f"{got.id.hex()}-2"] * 2
    assert [one.choice.item for (one,) in world.reading.ingested] == ["restaurant:3"] * 2


def test_feedback_that_nobody_wants_is_not_even_read(world: World) -> None:
    got = world.recommender.get(MAPS, PURPOSE, 5)
    world.consent.is_wanted = False
    world.recommender.feedback(MAPS, got.id, "restaurant:3")
    assert (world.store.rows, world.reading.ingested) == ([], [])


def test_feedback_needs_a_ranking_of_this_app_that_held_the_item(world: World) -> None:
    got = world.recommender.get(MAPS, PURPOSE, 5)
    for caller, ranking_id, item, kind in (
        (SURFACE, got.id, "restaurant:3", UnknownName),
        (MAPS, bytes(16), "restaurant:3", UnknownName),
        (MAPS, got.id[:15], "restaurant:3", SignalRefused),
        (MAPS, got.id, "restaurant:6", SignalRefused),
    ):
        with pytest.raises(kind):
            world.recommender.feedback(caller, ranking_id, item)
    world.clock.advance(limits.RANKING_TTL_S)
    with pytest.raises(UnknownName):
        world.recommender.feedback(MAPS, got.id, "restaurant:3")
    assert world.store.rows == []


def test_rankings_are_forgotten_by_age_number_and_withdrawal() -> None:
    memory = RankingMemory()
    for number in range(limits.RANKINGS_PER_APP + 1):
        memory.keep(bytes([number]), "a", ("x",), 0.0)
    assert memory.items(bytes([0]), "a", 0.0) is None
    assert memory.items(bytes([1]), "a", 0.0) == ("x",)
    for number in range(limits.RANKINGS * 2):
        memory.keep(number.to_bytes(4, "big"), f"app{number}", (), 1.0)
    assert len(memory) == limits.RANKINGS
    memory.keep(b"late", "a", (), limits.RANKING_TTL_S + 1.0)
    assert len(memory) == 1
    memory.forget()
    assert len(memory) == 0


def test_an_app_that_asks_too_often_is_told_when_to_come_back(world: World) -> None:
    for _ in range(20):
        world.recommender.get(MAPS, PURPOSE, 1)
    with pytest.raises(RateLimited, match=r"in 0\.1 s"):
        world.recommender.get(MAPS, PURPOSE, 1)
    world.recommender.get(SURFACE, PURPOSE, 1)  # another app's bucket
    world.clock.advance(0.1)
    world.recommender.get(MAPS, PURPOSE, 1)
    with pytest.raises(RateLimited):
        world.recommender.feedback(MAPS, bytes(16), "x")
    world.clock.uptime -= 1000.0  # a clock that goes back gives nothing
    with pytest.raises(RateLimited):
        world.recommender.get(MAPS, PURPOSE, 1)


def test_buckets_are_bounded_in_number_and_refuse_nonsense() -> None:
    clock = FakeClock()
    buckets = Buckets(1.0, 1, clock.monotonic)
    for number in range(2000):
        buckets.take(f"app{number}")
    with pytest.raises(RateLimited):
        buckets.take("app1999")
    for rate, burst in ((0.0, 1), (float("nan"), 1), (float("inf"), 1), (1.0, 0)):
        with pytest.raises(OutOfRange):
            Buckets(rate, burst, clock.monotonic)


def said(text: str, direction: int = pb.DIRECTION_OUTGOING) -> pb.Signal:
    return pb.Signal(id=text, time_ms=5, message=pb.MessageSignal(text=text, direction=direction))


CHAT = stream("chat", DataType.MESSAGE_CONTENT)


def test_what_others_wrote_is_never_read_and_what_says_nothing_is_not_kept(world: World) -> None:
    world.intake.take(CHAT, [said("mine"), said("theirs", pb.DIRECTION_INCOMING), said("nothing")])
    assert [[one.id for one in signals] for signals in world.reading.ingested] == [["mine", "nothing"]]
    assert [(one.id, one.time, one.catalogue, one.body) for one in world.store.rows] == [
        ("mine", 0.005, "index", b"body")
    ]


def test_without_a_catalogue_the_refusal_is_the_same_whatever_is_wanted(world: World) -> None:
    def none() -> None:
        raise BundleRefused("catalogue: none")

    world.reading.require_catalogue = none  # type: ignore[method-assign]
    for wanted in (True, False):
        world.consent.is_wanted = wanted
        with pytest.raises(BundleRefused):
            world.intake.take(CHAT, [said("mine")])
    assert world.reading.ingested == []


def test_a_worker_that_a_withdrawal_killed_shows_the_app_nothing(world: World) -> None:
    def killed(signals: Any) -> Derived:
        world.consent.is_wanted = False
        raise WorkerFailed("killed")

    world.reading.ingest = killed  # type: ignore[method-assign]
    world.intake.take(CHAT, [said("mine")])
    assert world.store.rows == []


def test_a_worker_that_dies_is_asked_once_more_and_then_the_app_hears_of_it(world: World) -> None:
    world.reading.faults = [WorkerFailed("once")]
    world.intake.take(CHAT, [said("mine")])
    assert len(world.store.rows) == 1
    world.reading.faults = [WorkerFailed("once"), WorkerFailed("twice")]
    with pytest.raises(WorkerFailed, match="twice"):
        world.intake.take(CHAT, [said("more")])
    assert len(world.store.rows) == 1


def test_turns_are_taken_in_order_of_arrival() -> None:
    turns, order = Turns(), []

    def work(name: int) -> None:
        with turns:
            order.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    with turns:
        for waiting, thread in enumerate(threads, start=1):
            thread.start()
            until = time.monotonic() + 10
            while len(turns._waiting) < waiting and time.monotonic() < until:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert order == list(range(8))
    with turns:
        pass

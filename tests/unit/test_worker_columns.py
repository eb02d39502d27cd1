"""Signals -> stored bodies -> occasions -> columns: the same numbers as the simulator makes from the same sessions."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedlearn.device.plan import ColumnSpec, DevicePlan, ParameterSpec, Scope
from fedlearn.engine.population import MatchPopulation
from fedlearn.errors import BundleRefused, SignalRefused, UnknownSetting
from fedlearn.features import CatalogueIndex, feature_mask, make_query, match_all
from fedlearn.features.said import said_from_bytes
from fedlearn.proto import device_pb2
from fedlearn.proto import worker_pb2 as pb
from fedlearn.rng import simulation_rng
from fedlearn.signals import Choice, Direction, Message, Session
from fedlearn_client.worker.columns import NEVER, Known, examples, make_columns, terms_of
from fedlearn_client.worker.ingest import derive

_spec = importlib.util.spec_from_file_location("worker_examples", Path(__file__).with_name("worker_examples.py"))
assert _spec
assert _spec.loader
made = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(made)

INDEX = CatalogueIndex.build(made.CATALOGUE)
ALL = frozenset({"chat", "choices", "catalogue"})
OUT, IN = device_pb2.DIRECTION_OUTGOING, device_pb2.DIRECTION_INCOMING

TALKS = (
    (("I want sichuan noodles", "not too expensive, below 40"), ("restaurant:place 3", "book:a novel"), 5),
    (("curry? no, soup instead",), (), 2),
    ((), ("restaurant:place 1",), 7),
    (("dumplings near place 9, at least 4 stars", "thai is fine too"), (), 9),
    (("good morning",), (), 0),
)


def signal(text: str, direction: int = OUT, spans: tuple[tuple[int, int], ...] = ()) -> device_pb2.Signal:
    return device_pb2.Signal(
        id="x",
        message=device_pb2.MessageSignal(
            text=text, direction=direction, foreign_spans=[device_pb2.Span(start=a, end=b) for a, b in spans]
        ),
    )


def bodies(*signals: device_pb2.Signal) -> list[bytes]:
    return [derived.body for derived in derive(signals, INDEX).derived]


def occasion(texts: tuple[str, ...], earlier: tuple[str, ...], chosen: str) -> pb.Occasion:
    return pb.Occasion(
        said=[body for body in bodies(*map(signal, texts)) if body],
        earlier=[pb.EarlierChoice(item=item, app="maps") for item in earlier],
        chosen=chosen,
    )


def occasions() -> list[pb.Occasion]:
    return [occasion(texts, earlier, f"restaurant:place {chosen}") for texts, earlier, chosen in TALKS]


def session(texts: tuple[str, ...], earlier: tuple[str, ...], chosen: int) -> Session:
    messages = tuple(Message(text, Direction.OUTGOING) for text in texts)
    return Session(messages, tuple(Choice(item, "maps") for item in earlier), chosen, "g")


class Table:
    """Features of the talks, made as the laboratory makes them."""

    def __init__(self, sources: frozenset[str]) -> None:
        self.mask = feature_mask(sources)

    @property
    def width(self) -> int:
        return len(self.mask)

    def features(self, row: int) -> np.ndarray:
        return np.where(self.mask, match_all(make_query(session(*TALKS[row]), INDEX), INDEX), np.float32(0))


@pytest.mark.parametrize("sources", [ALL, frozenset({"chat"}), frozenset({"choices", "catalogue"}), frozenset()])
def test_match_columns_are_the_simulators_bit_for_bit(sources: frozenset[str]) -> None:
    plan = made.match_plan()
    labels = np.array([chosen for _, _, chosen in TALKS])
    population = MatchPopulation([""], [np.arange(len(TALKS))], labels, INDEX.n, Table(sources))
    (simulated,) = population.draw([0], made.CANDIDATES, seed=11, step=4)
    found = examples(occasions(), INDEX, 64)
    columns = make_columns(Known(plan, INDEX, sources), found, simulation_rng(11, 4, "", "negatives"))
    assert list(columns) == ["features", "label", "logq"]
    for name, column in columns.items():
        np.testing.assert_array_equal(column, simulated.columns[name])


def test_a_source_that_is_not_granted_is_zero_and_its_data_changes_nothing() -> None:
    plan = made.match_plan()
    full = make_columns(
        Known(plan, INDEX, frozenset({"choices", "catalogue"})),
        examples(occasions(), INDEX, 64),
        simulation_rng(1, 1, "", "negatives"),
    )
    mute = [pb.Occasion(earlier=o.earlier, chosen=o.chosen) for o in occasions()]
    bare = make_columns(
        Known(plan, INDEX, frozenset({"choices", "catalogue"})),
        examples(mute, INDEX, 64),
        simulation_rng(1, 1, "", "negatives"),
    )
    np.testing.assert_array_equal(full["features"], bare["features"])
    granted = feature_mask({"choices", "catalogue"})
    assert not full["features"][:, :, ~granted].any()
    assert full["features"][:, :, granted].any()


def test_features_in_the_plans_order() -> None:
    known = Known(made.match_plan(features=("rating", "dish")), INDEX, ALL)
    columns = make_columns(known, examples(occasions(), INDEX, 64), simulation_rng(0, 0, "", "negatives"))
    whole = make_columns(
        Known(made.match_plan(), INDEX, ALL), examples(occasions(), INDEX, 64), simulation_rng(0, 0, "", "negatives")
    )
    places = [made.NAMES.index("rating"), made.NAMES.index("dish")]
    np.testing.assert_array_equal(columns["features"], whole["features"][:, :, places])


def test_the_newest_usable_occasions_count() -> None:
    stale = pb.Occasion(said=[b"\xff\xff"], chosen="restaurant:place 2")
    unknown = pb.Occasion(chosen="restaurant:closed long ago")
    context = pb.Occasion(chosen="book:a novel")
    given = [*occasions(), stale, unknown, context]
    assert [chosen for _, chosen in examples(given, INDEX, 3)] == [7, 9, 0]
    assert len(examples(given, INDEX, 64)) == len(TALKS)
    assert examples([], INDEX, 64) == []


def test_no_example_gives_empty_columns() -> None:
    for plan in (made.match_plan(), two_tower_plan()):
        columns = make_columns(Known(plan, INDEX, ALL), [], simulation_rng(0, 0, "", "negatives"))
        assert {name: column.shape for name, column in columns.items()} == {
            spec.name: (0, *spec.shape) for spec in plan.columns
        }


def test_a_catalogue_smaller_than_k_fills_up_at_no_weight() -> None:
    plan = made.match_plan()
    small = replace(made.CATALOGUE, items=made.CATALOGUE.items[:5])
    index = CatalogueIndex.build(small)
    found = examples([pb.Occasion(chosen="restaurant:place 3")], index, 64)
    columns = make_columns(Known(plan, index, ALL), found, simulation_rng(0, 0, "", "negatives"))
    assert columns["features"].shape == (1, made.CANDIDATES, made.WIDTH)
    assert (columns["logq"][0] == NEVER).tolist() == [False] * 5 + [True] * 3
    logits = -columns["logq"][0]
    share = np.exp(logits - logits.max())
    assert share[5:].tolist() == [0.0] * 3, "exactly none"


def two_tower_plan(rows: int = 7, terms: int = 3, items: int = 24) -> DevicePlan:
    return replace(
        made.match_plan(),
        model="two_tower",
        examples="two_tower",
        example_options=(("rows", rows), ("terms", terms)),
        features=(),
        parameters=(ParameterSpec("item_rows", (items, 2), Scope.SHARED),),
        columns=(
            ColumnSpec("items", "<i8", (made.CANDIDATES,)),
            ColumnSpec("label", "<i8", ()),
            ColumnSpec("logq", "<f4", (made.CANDIDATES,)),
            ColumnSpec("term_weight", "<f4", (terms,)),
            ColumnSpec("terms", "<i8", (terms,)),
        ),
    )


def test_two_tower_terms_follow_their_definition() -> None:
    """Wanted terms, by age, then by term id; the first T; modulo the rows; weight 1."""
    plan = two_tower_plan()
    texts = ("sichuan noodles", "no curry", "thai salad please")
    query = make_query(session(texts, (), 0), INDEX)
    wanted = sorted({(age, term) for term, _, polarity, age in query.terms.tolist() if polarity > 0})
    assert len(wanted) > 3, "more than fit"
    columns = terms_of(Known(plan, INDEX, ALL), query)
    assert columns["terms"].tolist() == [term % 7 for _, term in wanted[:3]]
    assert columns["term_weight"].tolist() == [1.0] * 3
    silent = terms_of(Known(plan, INDEX, frozenset({"choices"})), query)
    assert not silent["term_weight"].any()
    assert not silent["terms"].any()
    short = terms_of(Known(two_tower_plan(terms=50), INDEX, ALL), query)
    assert short["term_weight"].tolist() == [1.0] * len(wanted) + [0.0] * (50 - len(wanted))


def test_two_tower_columns() -> None:
    plan = two_tower_plan()
    found = examples(occasions(), INDEX, 64)
    columns = make_columns(Known(plan, INDEX, ALL), found, simulation_rng(11, 4, "", "negatives"))
    assert columns["items"][:, 0].tolist() == [chosen for _, chosen in found], "the chosen one stands first"
    assert all(len(set(row)) == made.CANDIDATES for row in columns["items"].tolist())
    assert not columns["label"].any()
    assert columns["terms"].max() < 7


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (two_tower_plan(items=23), "item_rows has 23"),
        (two_tower_plan(rows=0), "rows >= 1"),
        (replace(made.match_plan(), examples="other"), "choose among"),
        (made.match_plan(features=("dish", "horoscope")), "horoscope"),
        (replace(made.match_plan(), columns=two_tower_plan().columns), "no such column"),
        (replace(made.match_plan(), catalogue=replace(made.match_plan().catalogue, domain="hotel")), "domain"),
    ],
)
def test_a_plan_that_this_runtime_cannot_serve_is_refused(plan: DevicePlan, words: str) -> None:
    with pytest.raises(BundleRefused, match=words):
        make_columns(Known(plan, INDEX, ALL), examples(occasions(), INDEX, 9), simulation_rng(0, 0, "", "negatives"))


def test_an_unknown_source_is_refused() -> None:
    with pytest.raises(UnknownSetting):
        make_columns(
            Known(made.match_plan(), INDEX, frozenset({"contacts"})),
            examples(occasions(), INDEX, 9),
            simulation_rng(0, 0, "", "negatives"),
        )


def test_only_the_owners_words_leave_a_trace() -> None:
    own, incoming, empty = bodies(signal("noodles"), signal("noodles", IN), signal("zxqj 1234"))
    assert said_from_bytes(own).words
    assert incoming == b""
    assert empty == b"", "a message that says nothing about the catalogue leaves no row"
    text = "she wrote: noodles. I want curry"
    spans = ((11, 18),)
    (cut,) = bodies(signal(text, OUT, spans))
    (plain,) = bodies(signal("she wrote: " + "\n" * 7 + ". I want curry"))
    assert cut == plain
    assert cut != bodies(signal(text))[0], "the negative control: undeclared, the quotation would count"


def test_choices_keep_the_key_of_known_items_only() -> None:
    known, other, unknown = (
        device_pb2.Signal(id="x", choice=device_pb2.ChoiceSignal(item=item))
        for item in ("restaurant:place 3", "book:a novel", "restaurant:nowhere")
    )
    assert bodies(known, other, unknown) == [b"restaurant:place 3", b"book:a novel", b""]


@pytest.mark.parametrize(
    "wrong",
    [
        device_pb2.Signal(id="x"),
        signal("x", device_pb2.DIRECTION_UNSPECIFIED),
        signal("x", OUT, ((0, 2),)),
        signal("xyz", OUT, ((2, 1),)),
    ],
)
def test_what_is_not_a_signal_is_refused(wrong: device_pb2.Signal) -> None:
    with pytest.raises(SignalRefused):
        derive([signal("noodles"), wrong], INDEX)

"""One message's Said: what is kept, what leaves no trace, and bytes that have one form only."""

from __future__ import annotations

import importlib.util
import os
import struct
from itertools import islice
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from fedlearn.errors import CatalogueMismatch, DataCorrupt, OutOfRange
from fedlearn.features import CatalogueIndex, make_query, make_query_from, read_message, said_bytes, said_from_bytes
from fedlearn.features.patterns import Wishes
from fedlearn.features.said import MAX_SAID_BYTES, Said, Word, round_wishes
from fedlearn.lab.city import City, CityConfig
from fedlearn.lab.data.crosswoz import CrossWoz
from fedlearn.signals import Direction, Session

ROOT = Path(os.environ.get("FEDLEARN_DATA_ROOT", Path(__file__).parents[2].parent / "shared" / "data"))


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


town, oracle = _load("features_town"), _load("said_oracle")

FULL = Said(
    values=((3, -1), (3, 0), (7, 1)),
    words=(Word(2, -1, False, 1), Word(2, 1, False, 3), Word(2, 1, True, 255), Word(300, 1, False, 2)),
    names=(0, 1, 200),
    wishes=Wishes((0.0, float("inf")), -1.0, True, 4.5, (0.5, 2.0), True),
    renews_facilities=True,
    renews_rest=True,
    subject=-1,
)
NOTHING = Said((), (), (), Wishes(), False, False, 0)


def through_bytes(session: Session, index: CatalogueIndex) -> bytes:
    said = [
        said_from_bytes(said_bytes(s))
        for m in session.messages
        if m.direction is Direction.OUTGOING and (s := read_message(m.text, m.foreign_spans, index)) is not None
    ]
    return make_query_from(said, session.earlier, index).flat().tobytes()


def test_a_city_through_bytes_gives_the_queries_of_the_slow_oracle() -> None:
    city = City(CityConfig(devices=40))
    index = CatalogueIndex.build(city.catalogue)
    seen = 0
    for device in city.devices():
        for session in device.sessions:
            expected = oracle.slow_query(session, index).flat().tobytes()
            assert make_query(session, index).flat().tobytes() == expected
            assert through_bytes(session, index) == expected
            seen += 1
    assert seen > 100


@pytest.mark.skipif(not (ROOT / "crosswoz" / "val.json.zip").exists(), reason="set FEDLEARN_DATA_ROOT")
@pytest.mark.parametrize("domain", ["restaurant", "attraction", "hotel"])
def test_real_dialogues_through_bytes_give_the_queries_of_the_slow_oracle(domain: str) -> None:
    data = CrossWoz(ROOT, domain)
    index = CatalogueIndex.build(data.catalogue)
    for device in islice(data.devices(), 100):
        for session in device.sessions:
            assert through_bytes(session, index) == oracle.slow_query(session, index).flat().tobytes()


@pytest.mark.parametrize(
    "texts",
    [
        ("景点", "想吃麻辣火锅"),
        ("想吃麻辣火锅", "景点", "餐馆", "要有wifi"),
        ("想吃麻辣火锅", "景点"),
        ("餐馆", "想吃麻辣火锅", "餐馆"),
        ("restaurants", "sightseeing", "roast duck"),
    ],
)
def test_a_message_that_only_names_a_domain_is_kept_for_the_ages(texts: tuple[str, ...]) -> None:
    session = town.said(*texts)
    assert through_bytes(session, town.INDEX) == oracle.slow_query(session, town.INDEX).flat().tobytes()


def test_control_without_them_the_ages_would_differ() -> None:
    session = town.said("想吃麻辣火锅", "景点", "餐馆", "要有wifi")
    said = [read_message(m.text, (), town.INDEX) for m in session.messages]
    spoken = [s for s in said if s is not None and not s.empty]
    assert len(spoken) == 2
    short = make_query_from(spoken, (), town.INDEX)
    assert not np.array_equal(short.flat(), make_query(session, town.INDEX).flat())


@pytest.mark.parametrize("text", ["", "哈哈", "我叫张伟,电话13812345678", "see you at 8", "不要", "算了", "\n\n"])
def test_a_message_about_nothing_leaves_nothing(text: str) -> None:
    assert read_message(text, (), town.INDEX) is None


def test_subject_only_is_six_bytes() -> None:
    said = read_message("找个景点", (), town.INDEX)
    assert said is not None
    assert said.empty
    assert said_bytes(said) == bytes((1, 2, 0, 0, 0, 0))


def test_foreign_spans_are_cut_before_reading() -> None:
    text = "「川菜」不错,便宜点"
    said = read_message(text, ((0, 4),), town.INDEX)
    assert said is not None
    assert said.values == ()
    assert said.wishes.price_level == -1.0
    assert read_message(text, ((0, len(text)),), town.INDEX) is None
    with pytest.raises(OutOfRange, match="foreign_spans"):
        read_message(text, ((0, len(text) + 1),), town.INDEX)


def test_a_change_of_mind_inside_a_message_is_settled_and_told_to_older_ones() -> None:
    said = read_message("想吃麻辣火锅,不了,改成经典烤鸭", (), town.INDEX)
    assert said is not None
    ids = town.INDEX.values.ids
    assert set(said.values) == {(ids["麻辣火锅"], 0), (ids["经典烤鸭"], 1)}
    assert (said.renews_rest, said.renews_facilities) == (True, False)
    assert town.INDEX.terms["火锅"] not in {w.term for w in said.words}


def test_repr_hides_what_was_said() -> None:
    assert repr(FULL) == "Said()"


def test_every_field_survives_its_bytes() -> None:
    data = said_bytes(FULL)
    assert said_from_bytes(data) == FULL
    assert len(data) == 3 + 5 * 4 + 4 + (1 + 4 * 2 + 1) + (1 + 4)


def test_numbers_are_rounded_once() -> None:
    rounded = round_wishes(Wishes(price=(0.8 * 33.1, 1.2 * 33.1), hours=(1 / 3, 1.0), rating=4.3))
    said = Said((), (), (), rounded, False, False, 0)
    assert said_from_bytes(said_bytes(said)) == said
    assert rounded.price is not None
    assert rounded.price == (float(np.float32(0.8 * 33.1)), float(np.float32(1.2 * 33.1)))


def _price(low: float, high: float) -> bytes:
    return bytes((1, 0, 1)) + struct.pack("<ff", low, high) + bytes(3)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "cut short"),
        (bytes((1, 0, 0, 0, 0)), "cut short"),
        (bytes((2, 1, 0, 0, 0, 0)), "version"),
        (bytes((1, 3, 0, 0, 0, 0)), "flags"),
        (bytes((1, 65, 0, 0, 0, 0)), "flags"),
        (bytes((1, 1, 32, 0, 0, 0)), "flags"),
        (bytes((1, 1, 6, 0, 0, 0)), "flags"),
        (bytes((1, 0, 0, 0, 0, 0)), "says nothing"),
        (bytes((1, 12, 0, 0, 0, 0)), "says nothing"),
        (bytes((1, 1, 0, 0, 0, 0, 0)), "behind its end"),
        (bytes((1, 1, 0, 0x80, 0, 0, 0)), "shortest form"),
        (bytes((1, 1, 0, 0x80, 0x80, 0x80, 0x80, 0x80, 1, 0, 0)), "shortest form"),
        (bytes((1, 1, 0, 9, 0, 0)), "more than it has bytes"),
        (bytes((1, 1, 0, 0, 1, 0, 0, 0)), "0 times"),
        (bytes((1, 1, 0, 0, 0, 1, 0xFF, 0xFF, 0xFF, 0xFF, 1)), "largest"),
        (bytes((1, 1, 8)) + struct.pack("<f", 0.5) + bytes(3), "rating"),
        (bytes((1, 1, 8)) + struct.pack("<f", float("nan")) + bytes(3), "rating"),
        (bytes((1, 1, 8, 0)), "cut short"),
        (_price(2.0, 1.0), "price"),
        (_price(-1.0, 1.0), "price"),
        (_price(-0.0, 1.0), "price"),
        (_price(float("inf"), float("inf")), "price"),
        (_price(1.0, float("nan")), "price"),
        (bytes(MAX_SAID_BYTES + 1), "at most"),
    ],
)
def test_odd_bytes_are_refused(data: bytes, why: str) -> None:
    with pytest.raises(DataCorrupt, match=why):
        said_from_bytes(data)


def test_a_count_that_promises_too_much_reads_no_further() -> None:
    data = bytearray(said_bytes(FULL))
    at = 3 + 5 * 4
    data[at : at + 1] = b"\xff\xff\xff\xff\x0f"
    with pytest.raises(DataCorrupt, match="more than it has bytes"):
        said_from_bytes(bytes(data))


@pytest.mark.parametrize(
    "said",
    [
        Said(((10_000, 1),), (), (), Wishes(), False, False, 0),
        Said((), (Word(10_000, 1, False, 1),), (), Wishes(), False, False, 0),
        Said((), (), (10_000,), Wishes(), False, False, 0),
    ],
)
def test_a_said_of_another_catalogue_is_refused(said: Said) -> None:
    with pytest.raises(CatalogueMismatch, match="another catalogue"):
        make_query_from([said], (), town.INDEX)

"""A Said has one form in bytes, and Saids give the Query that reading everything at once gives."""

from __future__ import annotations

import importlib.util
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedlearn.errors import DataCorrupt
from fedlearn.features import make_query, make_query_from, read_message, said_bytes, said_from_bytes
from fedlearn.features.patterns import Wishes
from fedlearn.features.said import Said, Word
from fedlearn.signals import Choice, Direction, Message, Session


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "unit" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


town, oracle = _load("features_town"), _load("said_oracle")

PIECES = (
    "想吃", "不要", "除了", "算了", "换成", "还是", "actually ", "instead", "no ", "not ", "never mind ",
    "anything but ", "麻辣火锅", "经典烤鸭", "roast duck", "tiramisu", "wifi", "停车位", "包间", "川菜", "Sichuan",
    "素食", "火锅", "烤鸭", "hotpot", "老王火锅", "青山公园", "Luigi", "餐馆", "景点", "restaurant", "hotels",
    "便宜点", "fancy", "人均100元", "under 30", "4.5分以上", "两小时", "附近", "免费", "就算了", "不要了", ",",
    "。", " ", "\n", "哈哈", "张伟", "13812345678",
)  # fmt: skip
texts = st.lists(st.sampled_from(PIECES), max_size=10).map("".join) | st.text(max_size=15)


@st.composite
def messages(draw: st.DrawFn) -> Message:
    text = draw(texts)
    way = draw(st.sampled_from((Direction.OUTGOING, Direction.OUTGOING, Direction.INCOMING)))
    cuts = draw(st.lists(st.tuples(st.integers(0, len(text)), st.integers(0, len(text))), max_size=2))
    return Message(text, way, 0, tuple((min(c), max(c)) for c in cuts))


keys = [item.key for item in (*town.ITEMS, *town.CONTEXT)]
sessions = st.builds(
    lambda said, earlier: Session(tuple(said), tuple(Choice(k, k[:4]) for k in earlier), 0, "g"),
    st.lists(messages(), max_size=7),
    st.lists(st.sampled_from([*keys, "nowhere:1"]), max_size=3),
)


@settings(max_examples=400, deadline=None)
@given(sessions)
def test_message_by_message_through_bytes_equals_the_oracle(session: Session) -> None:
    expected = oracle.slow_query(session, town.INDEX).flat().tobytes()
    assert make_query(session, town.INDEX).flat().tobytes() == expected
    kept = []
    for m in session.messages:
        if m.direction is Direction.OUTGOING:
            said = read_message(m.text, m.foreign_spans, town.INDEX)
            if said is not None:
                data = said_bytes(said)
                assert said_from_bytes(data) == said
                kept.append(said_from_bytes(data))
    assert make_query_from(kept, session.earlier, town.INDEX).flat().tobytes() == expected


ids = st.integers(0, (1 << 28) - 1)
spans = st.tuples(st.floats(0, 1e6, width=32), st.floats(0, width=32, allow_nan=False)).filter(
    lambda s: s[0] <= s[1] and str(s[0])[0] != "-"
)
wishes = st.builds(
    Wishes,
    st.none() | spans,
    st.sampled_from((None, -1.0, 1.0)),
    st.booleans(),
    st.none() | st.floats(1, 5, width=32),
    st.none() | spans,
    st.booleans(),
)
words = st.dictionaries(st.tuples(ids, st.booleans(), st.sampled_from((-1, 1))), st.integers(1, 255), max_size=6).map(
    lambda found: tuple(Word(t, p, slot, found[t, slot, p]) for t, slot, p in sorted(found))
)
saids = st.builds(
    Said,
    st.sets(st.tuples(ids, st.sampled_from((-1, 0, 1))), max_size=6).map(lambda s: tuple(sorted(s))),
    words,
    st.sets(ids, max_size=4).map(lambda s: tuple(sorted(s))),
    wishes,
    st.booleans(),
    st.booleans(),
    st.sampled_from((-1, 1)),
)


@settings(max_examples=300)
@given(saids)
def test_any_said_survives_its_bytes(said: Said) -> None:
    assert said_from_bytes(said_bytes(said)) == said


@settings(max_examples=200)
@given(saids, st.data())
def test_changed_bytes_are_refused_or_another_said(said: Said, data: st.DataObject) -> None:
    good = said_bytes(said)
    at = data.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[at] ^= data.draw(st.integers(1, 255))
    with suppress(DataCorrupt):
        assert said_bytes(said_from_bytes(bytes(bad))) == bytes(bad)


@settings(max_examples=500)
@given(st.binary(max_size=40) | st.binary(max_size=40).map(lambda tail: b"\x01" + tail))
@example(b"\x01\x01\x00\x00\x00\x00")
def test_any_bytes_are_refused_or_in_the_one_form(data: bytes) -> None:
    with suppress(DataCorrupt):
        assert said_bytes(said_from_bytes(data)) == data

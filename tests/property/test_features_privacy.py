"""What must not change one bit of a phone's features: others' data, others' words, and words that name nothing."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedlearn.features import CatalogueIndex, QueryStore, QueryStoreWriter, make_query, match_all
from fedlearn.features.language import changes, negated, subject
from fedlearn.features.patterns import Wishes, read_wishes
from fedlearn.features.text import normalise, terms
from fedlearn.signals import Choice, Direction, Message, Session

_path = Path(__file__).parents[1] / "unit" / "features_town.py"
_spec = importlib.util.spec_from_file_location("features_town", _path)
assert _spec is not None
assert _spec.loader is not None
town = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(town)

WISHES = (
    "想吃麻辣火锅,人均100-150元",
    "不要川菜,最好有停车位",
    "算了,换成经典烤鸭",
    "评分4.5分以上,附近",
    "推荐一家便宜的餐馆",
    "I feel like roast duck, under 200 yuan",
    "anything but Italian",
    "actually, tiramisu instead, rated 4.5 or above",
    "青山公园附近",
    "哈哈",
)
SURNAMES, GIVEN = "赵钱孙李周吴郑冯陈褚卫蒋沈韩杨朱秦许何吕施张", "伟芳娜敏静丽强磊军洋勇艳杰娟涛明超霞平刚桂英"
STREETS = ("朝阳路", "中山北路", "建国门外大街", "解放碑", "Elm Street", "Baker Street", "Rue Monge", "Hauptstr.")

words = st.text(st.characters(codec="utf-8"), max_size=20)
sessions = st.builds(
    lambda texts, earlier: town.said(*texts, earlier=tuple(earlier)),
    st.lists(st.sampled_from(WISHES), max_size=4),
    st.lists(st.sampled_from([i.key for i in (*town.ITEMS, *town.CONTEXT)]), max_size=4),
)
names = st.one_of(
    st.builds(str.__add__, st.sampled_from(SURNAMES), st.text(GIVEN, min_size=1, max_size=2)),
    st.sampled_from(("Alice", "Bob Smith", "María José", "Oyelaran", "Chen Wei", "Ivanov")),
)
numbers = st.one_of(
    st.integers(0, 10**6).map(str),
    st.integers(10**10, 2 * 10**10 - 1).map(str),
    st.builds("{:03d}-{:04d}-{:04d}".format, st.integers(100, 999), st.integers(0, 9999), st.integers(0, 9999)),
    st.builds("{}:{:02d}".format, st.integers(0, 23), st.integers(0, 59)),
)
addresses = st.builds("{}{}号".format, st.sampled_from(STREETS[:4]), st.integers(1, 999)) | st.builds(
    "{} {}".format, st.integers(1, 999), st.sampled_from(STREETS[4:])
)
noise = st.one_of(
    names.map("我叫{}".format),
    names.map("my name is {}".format),
    names,
    numbers,
    numbers.map("电话{}".format),
    addresses,
    addresses.map("住在{}".format),
)


def bits(session: Session, index: CatalogueIndex = town.INDEX) -> tuple[bytes, bytes]:
    query = make_query(session, index)
    return query.flat().tobytes(), match_all(query, index).tobytes()


def matches_nothing(text: str) -> bool:
    plain = normalise(text)
    silent = read_wishes(plain) == Wishes() and not any(negated(plain)) and not changes(plain)
    about = subject(plain, town.INDEX.domain, town.INDEX.other_domains)
    return silent and about == 0 and not any(t in town.INDEX.terms for t, _ in terms(plain))


@settings(derandomize=True, deadline=None, max_examples=200)
@given(noise)
def test_names_numbers_and_addresses_of_this_test_match_nothing(text: str) -> None:
    assert matches_nothing(text)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(sessions, noise, st.integers(0, 4))
def test_a_message_of_names_numbers_or_addresses_changes_no_bit(session: Session, text: str, at: int) -> None:
    messages = list(session.messages)
    messages.insert(min(at, len(messages)), Message(text, Direction.OUTGOING, 0))
    assert bits(replace(session, messages=tuple(messages))) == bits(session)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(sessions, noise, noise)
def test_names_numbers_and_addresses_inside_messages_change_no_bit(session: Session, before: str, after: str) -> None:
    messages = tuple(replace(m, text=f"{before}。{m.text}，{after}") for m in session.messages)
    assert bits(replace(session, messages=messages)) == bits(session)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(sessions, words)
def test_any_words_that_match_nothing_change_no_bit(session: Session, text: str) -> None:
    assume(matches_nothing(text))
    assume(not any(v in normalise(text) for v in (*town.INDEX.values.ids, *town.INDEX.names.ids)))
    added = (*session.messages, Message(text, Direction.OUTGOING, 99))
    assert bits(replace(session, messages=added)) == bits(session)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(sessions, st.lists(st.tuples(st.integers(0, 4), st.sampled_from(WISHES) | words), max_size=4))
def test_incoming_messages_change_no_bit(session: Session, incoming: list[tuple[int, str]]) -> None:
    messages = list(session.messages)
    for at, text in incoming:
        messages.insert(min(at, len(messages)), Message(text, Direction.INCOMING, at))
    assert bits(replace(session, messages=tuple(messages))) == bits(session)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(sessions, st.sampled_from(WISHES) | words, st.sampled_from(WISHES) | words, st.integers(0, 10))
def test_foreign_words_change_no_bit(session: Session, one: str, other: str, at: int) -> None:
    def quoting(inner: str) -> Session:
        messages = []
        for m in session.messages:
            cut = min(at, len(m.text))
            text = m.text[:cut] + inner + m.text[cut:]
            messages.append(Message(text, Direction.OUTGOING, m.time, ((cut, cut + len(inner)),)))
        return replace(session, messages=tuple(messages))

    assert bits(quoting(one)) == bits(quoting(other))


@settings(derandomize=True, deadline=None, max_examples=50)
@given(sessions, st.integers(0, 4), st.text(max_size=5))
def test_label_and_group_change_no_bit(session: Session, chosen: int, group: str) -> None:
    assert bits(replace(session, chosen=chosen, group=group)) == bits(session)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(sessions, st.sampled_from(["restaurant:nowhere", "bank:account 42", ""]))
def test_choices_outside_the_catalogue_change_no_bit(session: Session, key: str) -> None:
    earlier = (Choice(key, "bank", -99), *session.earlier, Choice(key, "bank", 0))
    assert bits(replace(session, earlier=earlier)) == bits(session)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(mine=sessions, others=st.lists(sessions, max_size=3))
def test_other_users_change_no_bit(tmp_path_factory: object, mine: Session, others: list[Session]) -> None:
    folder = tmp_path_factory.mktemp("store")  # type: ignore[attr-defined]
    with QueryStoreWriter(folder, town.INDEX) as writer:
        for i, session in enumerate([*others, mine]):
            writer.add(str(i), [make_query(session, town.INDEX)], [session.chosen], [session.group])
    kept = QueryStore.open(folder, town.INDEX).query(len(others))
    assert (kept.flat().tobytes(), match_all(kept, town.INDEX).tobytes()) == bits(mine)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(sessions)
def test_features_are_bounded_finite_and_made_twice_the_same(session: Session) -> None:
    query = make_query(session, town.INDEX)
    found = match_all(query, town.INDEX)
    assert np.isfinite(found).all()
    assert np.abs(found).max() <= 1.0 + 1e-6
    assert bits(session) == bits(session, CatalogueIndex.build(town.TOWN))


def test_control_a_catalogue_word_does_change_the_features() -> None:
    assert bits(town.said("我叫毛肚")) != bits(town.said("我叫张伟"))

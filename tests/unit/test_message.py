"""Questions and answers survive the trip; whatever else arrives is refused by name."""

from __future__ import annotations

import pytest
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from fedlearn.errors import MalformedMessage
from fedlearn_server.message import (
    COHORT,
    PLACE,
    REPLY,
    TASK,
    Question,
    pack_answer,
    pack_question,
    unpack_answer,
    unpack_question,
)

CHALLENGE = bytes(range(16))
QUESTION = Question('{"code": "1"}', b"a task", 2, 3, CHALLENGE)


def with_value(record: str, key: str, value: object) -> RecordDict:
    content = pack_question(QUESTION)
    content[record] = ConfigRecord({**content[record], key: value})
    return content


def without(record: str, key: str) -> RecordDict:
    content = pack_question(QUESTION)
    content[record] = ConfigRecord({name: value for name, value in content[record].items() if name != key})
    return content


def test_a_question_survives_the_trip() -> None:
    assert unpack_question(pack_question(QUESTION)) == QUESTION


def test_what_is_the_same_for_all_is_sent_once() -> None:
    other = pack_question(Question(QUESTION.cohort, QUESTION.task, 0, 3, bytes(16)))
    mine = pack_question(QUESTION)
    same = {name for name in mine if mine[name].object_id == other[name].object_id}
    assert same == {COHORT, TASK}


@pytest.mark.parametrize(
    ("record", "key"),
    [(COHORT, "description"), (TASK, "payload"), (PLACE, "partition"), (PLACE, "partitions"), (PLACE, "challenge")],
)
def test_an_absent_field_is_named(record: str, key: str) -> None:
    with pytest.raises(MalformedMessage, match=rf"{record}\.{key} is absent"):
        unpack_question(without(record, key))


@pytest.mark.parametrize("record", [COHORT, TASK, PLACE])
def test_an_absent_record_is_named(record: str) -> None:
    content = pack_question(QUESTION)
    del content[record]
    with pytest.raises(MalformedMessage, match=record):
        unpack_question(content)


@pytest.mark.parametrize(
    ("record", "key", "value"),
    [
        (COHORT, "description", b"bytes"),
        (TASK, "payload", "text"),
        (PLACE, "partition", 1.0),
        (PLACE, "partition", True),
        (PLACE, "partition", [0]),
        (PLACE, "partition", 3),
        (PLACE, "partition", -1),
        (PLACE, "partitions", 0),
        (PLACE, "challenge", bytes(15)),
        (PLACE, "challenge", b""),
    ],
)
def test_a_wrong_value_is_refused(record: str, key: str, value: object) -> None:
    with pytest.raises(MalformedMessage, match=r"place|fedlearn\."):
        unpack_question(with_value(record, key, value))


def test_a_record_of_another_kind_is_refused() -> None:
    content = pack_question(QUESTION)
    content[TASK] = ArrayRecord()
    with pytest.raises(MalformedMessage, match=TASK):
        unpack_question(content)


def test_an_answer_survives_the_trip() -> None:
    assert unpack_answer(pack_answer(b"a reply", CHALLENGE), CHALLENGE) == b"a reply"


@pytest.mark.parametrize("challenge", [bytes(16), CHALLENGE[:15], b""])
def test_an_answer_by_somebody_who_was_not_asked_is_refused(challenge: bytes) -> None:
    with pytest.raises(MalformedMessage, match="challenge"):
        unpack_answer(pack_answer(b"a reply", challenge), CHALLENGE)


@pytest.mark.parametrize("key", ["payload", "challenge"])
def test_half_an_answer_is_refused(key: str) -> None:
    whole = {"payload": b"a reply", "challenge": CHALLENGE}
    del whole[key]
    with pytest.raises(MalformedMessage, match=rf"{REPLY}\.{key} is absent"):
        unpack_answer(RecordDict({REPLY: ConfigRecord(whole)}), CHALLENGE)


def test_what_is_secret_is_not_shown() -> None:
    assert "challenge" not in repr(QUESTION)
    assert "a task" not in repr(QUESTION)

"""What a Flower message of ours carries: bytes under our own schema, in records that Flower stores by their content.

A question has three records. Two are the same for many messages, so that Flower sends and keeps them once:

    fedlearn.cohort    which population, how features are made, which code     (one a run)
    fedlearn.task      the round's task: model, terms, secret round key        (one a round)
    fedlearn.place     which part of the population, and a challenge           (one a message)

An answer has one record with a reply and the challenge, which only the node that was asked has seen.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field

from flwr.app import ConfigRecord, RecordDict

from fedlearn.errors import MalformedMessage

COHORT = "fedlearn.cohort"
TASK = "fedlearn.task"
PLACE = "fedlearn.place"
REPLY = "fedlearn.reply"
CHALLENGE_BYTES = 16


@dataclass(frozen=True, slots=True)
class Question:
    """One part of the population is asked to do one round's task.

    Args:
        cohort: canonical JSON that a cohort host understands; the same for a whole run.
        task: an encoded ``RoundTask``; the same for a whole round.
        partition: which part of the population, 0-based.
        partitions: parts of the population, >= 1.
        challenge: 16 random bytes that the answer repeats.
    """

    cohort: str
    task: bytes = field(repr=False)
    partition: int
    partitions: int
    challenge: bytes = field(repr=False)


def pack_question(question: Question) -> RecordDict:
    """Return the question as Flower records."""
    return RecordDict(
        {
            COHORT: ConfigRecord({"description": question.cohort}),
            TASK: ConfigRecord({"payload": question.task}),
            PLACE: ConfigRecord(
                {
                    "partition": question.partition,
                    "partitions": question.partitions,
                    "challenge": question.challenge,
                }
            ),
        }
    )


def unpack_question(content: RecordDict) -> Question:
    """Return the question; raise MalformedMessage if it is not one of ours."""
    partition, partitions = _integer(content, PLACE, "partition"), _integer(content, PLACE, "partitions")
    if not 0 <= partition < partitions:
        raise MalformedMessage(f"place.partition={partition} is not one of {partitions}.")
    challenge = _bytes(content, PLACE, "challenge")
    if len(challenge) != CHALLENGE_BYTES:
        raise MalformedMessage(f"place.challenge has {len(challenge)} bytes, expected {CHALLENGE_BYTES}.")
    return Question(
        _text(content, COHORT, "description"), _bytes(content, TASK, "payload"), partition, partitions, challenge
    )


def pack_answer(payload: bytes, challenge: bytes) -> RecordDict:
    """Return an encoded ``CohortReply`` as Flower records."""
    return RecordDict({REPLY: ConfigRecord({"payload": payload, "challenge": challenge})})


def unpack_answer(content: RecordDict, challenge: bytes) -> bytes:
    """Return the encoded reply.

    Raises:
        MalformedMessage: not one of ours, or it does not repeat the challenge: the sender never saw the question.
    """
    if not hmac.compare_digest(_bytes(content, REPLY, "challenge"), challenge):
        raise MalformedMessage("the answer does not repeat the challenge of its question.")
    return _bytes(content, REPLY, "payload")


def _value(content: RecordDict, record: str, key: str) -> object:
    found = content.get(record)
    return found.get(key) if isinstance(found, ConfigRecord) else None


def _bytes(content: RecordDict, record: str, key: str) -> bytes:
    value = _value(content, record, key)
    if not isinstance(value, bytes):
        raise MalformedMessage(f"{record}.{key} is absent.")
    return value


def _text(content: RecordDict, record: str, key: str) -> str:
    value = _value(content, record, key)
    if not isinstance(value, str):
        raise MalformedMessage(f"{record}.{key} is absent.")
    return value


def _integer(content: RecordDict, record: str, key: str) -> int:
    value = _value(content, record, key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise MalformedMessage(f"{record}.{key} is absent.")
    return value

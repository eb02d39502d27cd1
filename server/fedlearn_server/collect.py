"""Asks every part of a population one round's question and yields the answers as they arrive, on any Flower runtime.

A part is asked of one node at a time. Silence is asked again, of the same node and of others that answer, because a
node that was killed took its message with it; the first answer of a part counts and any other is dropped.
"""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from fedlearn.errors import MalformedMessage, OutOfRange, Reason, RoundFailed
from fedlearn.rng import os_bytes
from fedlearn_server.flower import was_lost
from fedlearn_server.message import CHALLENGE_BYTES, Question, pack_question, unpack_answer

SHORTEST_WAIT_S = 0.05
LONGEST_WAIT_S = 0.5
TTL_SLACK_S = 60.0
KIND_OF_ERROR = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,59}( FL[0-9]{3})?")
"""What a node may say of its failure (``fedlearn_server.flower.failure_reply``); its own words may quote a phone."""


@dataclass(frozen=True, slots=True)
class Asking:
    """How a round asks and what it needs.

    Args:
        deadline_s: seconds until a round closes, > 0.
        resend_s: seconds of silence after which a part is asked again, twice as long each time; None: never.
        enough: share of the parts whose accepted answers close a round early, in (0, 1]; 1 waits for all.
        minimum: least share of the parts whose answers must be accepted for a step to be released, in (0, 1].
        attempts: how often a step is tried before the run stops, >= 1. An attempt that is given up released nothing.

    Raises:
        OutOfRange: a value outside its range; names ``runtime.FIELD``.
    """

    deadline_s: float
    resend_s: float | None = None
    enough: float = 1.0
    minimum: float = 0.5
    attempts: int = 1

    def __post_init__(self) -> None:
        """Refuse values that cannot be met."""
        if not self.deadline_s > 0.0:
            raise OutOfRange(f"runtime.deadline_s={self.deadline_s}: must be > 0 seconds.")
        if self.resend_s is not None and not self.resend_s > 0.0:
            raise OutOfRange(f"runtime.resend_s={self.resend_s}: must be > 0 seconds, or null: never ask again.")
        if not 0.0 < self.minimum <= self.enough <= 1.0:
            raise OutOfRange(
                f"runtime.minimum={self.minimum}, runtime.enough={self.enough}: need 0 < minimum <= enough <= 1."
            )
        if self.attempts < 1:
            raise OutOfRange(f"runtime.attempts={self.attempts}: must be >= 1.")

    def parts(self, share: float, partitions: int) -> int:
        """Return the least number of parts that is at least ``share`` of them, >= 1."""
        return max(1, -int(-share * partitions // 1))


@dataclass(frozen=True, slots=True)
class PartAnswer:
    """The answer for one part of the population.

    Args:
        partition: which part.
        node: Flower's id of the node that was asked.
        payload: an encoded reply; empty after a failure.
        failure: what went wrong, or ""; of a node's own words the kind of error and its code at most.
        reason: what a failure counts as.
    """

    partition: int
    node: int
    payload: bytes = field(repr=False)
    failure: str = ""
    reason: Reason = Reason.FAILED


@dataclass(frozen=True, slots=True)
class _Asked:
    partition: int
    node: int
    challenge: bytes = field(repr=False)


class Conversation:
    """What a server says to its nodes, round after round.

    Args:
        grid: any Flower runtime.
        cohort: what the run is about, for the nodes' cohort hosts.
        partitions: parts of the population, >= 1. Which node answers for which part is decided anew each round, so a
            node that joins works from the next round on, and a node that has gone is no loss.
        asking: deadlines.
    """

    def __init__(self, grid: Grid, cohort: str, partitions: int, asking: Asking) -> None:
        self._grid = grid
        self._cohort = cohort
        self._partitions = partitions
        self._asking = asking
        self._late: dict[str, _Asked] = {}

    def ask(self, task: bytes, step: int) -> Generator[PartAnswer, None, None]:
        """Yield one answer for each part, and what must be counted besides: doubled and late answers.

        Stop early by closing the iterator: what arrives later is counted as late in the next round, and never read.

        Args:
            task: the encoded task.
            step: labels the messages.

        Raises:
            RoundFailed: no node is there until the deadline.
        """
        round_ = _Round(self._grid, self._cohort, self._partitions, self._asking, task=task, step=step)
        late, self._late = self._late, {}
        try:
            yield from round_.begin()
            wait = SHORTEST_WAIT_S
            while round_.waiting:
                replies = list(self._grid.pull_messages([*round_.open, *late]))
                for reply in replies:
                    asked = late.pop(reply.metadata.reply_to_message_id, None)
                    if asked is None:
                        yield from round_.receive(reply)
                    elif not reply.has_error():
                        yield PartAnswer(asked.partition, asked.node, b"", "answered an earlier round", Reason.LATE)
                if replies:
                    wait = SHORTEST_WAIT_S
                    continue
                if time.monotonic() > round_.end:
                    break
                round_.ask_again()
                time.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT_S)
            for partition in sorted(round_.waiting):
                failure = f"no answer within {self._asking.deadline_s:g} s"
                yield PartAnswer(partition, round_.asked_last[partition], b"", failure)
        finally:
            # a part that was asked twice and answered once is not late
            self._late = {key: asked for key, asked in round_.open.items() if asked.partition in round_.waiting}


class _Round:
    """Who was asked what in one round."""

    def __init__(self, grid: Grid, cohort: str, partitions: int, asking: Asking, *, task: bytes, step: int) -> None:
        self._grid = grid
        self._cohort = cohort
        self._partitions = partitions
        self._asking = asking
        self._task = task
        self._step = step
        self.end = time.monotonic() + asking.deadline_s
        self.waiting = set(range(partitions))
        self.open: dict[str, _Asked] = {}
        self.asked_last: dict[int, int] = {}
        self._answered: dict[str, _Asked] = {}
        self._alive: list[int] = []
        self._asks = dict.fromkeys(self.waiting, 0)
        self._due: dict[int, float] = {}

    def begin(self) -> Iterator[PartAnswer]:
        """Ask every part, spread evenly over the nodes that are there."""
        nodes = wait_for_nodes(self._grid, self.end)
        for partition in range(self._partitions):
            if not self._send(partition, nodes[partition % len(nodes)]) and self._asking.resend_s is None:
                self.waiting.discard(partition)
                yield PartAnswer(partition, self.asked_last[partition], b"", "the task could not be sent")

    def receive(self, reply: Message) -> Iterator[PartAnswer]:
        """Yield what one reply means."""
        message_id = reply.metadata.reply_to_message_id
        again = self._answered.get(message_id)
        if again is not None:
            yield PartAnswer(again.partition, again.node, b"", "answered more than once", Reason.DUPLICATE)
            return
        asked = self.open.pop(message_id, None)
        if asked is None or asked.partition not in self.waiting:
            return  # not ours, or a part that was asked twice and answered
        if was_lost(reply) and self._asking.resend_s is not None:
            self._due[asked.partition] = 0.0
            return
        self._answered[message_id] = asked
        self.waiting.discard(asked.partition)
        if asked.node not in self._alive:
            self._alive.append(asked.node)
        yield _answer(asked, reply)

    def ask_again(self) -> None:
        """Ask parts again that were silent for too long."""
        overdue = [part for part in sorted(self.waiting) if self._due.get(part, self.end) <= time.monotonic()]
        if not overdue:
            return
        nodes = sorted(self._grid.get_node_ids())
        for partition in overdue:
            if nodes:
                self._send(partition, self._next_node(partition, nodes))
            else:
                self._due[partition] = time.monotonic() + SHORTEST_WAIT_S

    def _next_node(self, partition: int, nodes: list[int]) -> int:
        """Another node that has answered in this round, then the next in line, which may be the same one, and so on."""
        asks = self._asks[partition]
        others = [node for node in self._alive if node in nodes and node != self.asked_last[partition]]
        if asks % 2 and others:
            return others[(partition + asks) % len(others)]
        return nodes[(partition + asks // 2) % len(nodes)]

    def _send(self, partition: int, node: int) -> bool:
        self.asked_last[partition] = node
        asks = self._asks[partition] = self._asks[partition] + 1
        if self._asking.resend_s is not None:
            self._due[partition] = time.monotonic() + self._asking.resend_s * 2 ** (asks - 1)
        challenge = os_bytes(CHALLENGE_BYTES)
        question = Question(self._cohort, self._task, partition, self._partitions, challenge)
        ttl = self._asking.deadline_s + TTL_SLACK_S
        message = Message(pack_question(question), node, MessageType.TRAIN, ttl=ttl, group_id=str(self._step))
        # one by one: a grid leaves out the ids of messages it could not send, so a batch would not say whose
        message_id = next(iter(self._grid.push_messages([message])), "")
        if message_id:
            self.open[message_id] = _Asked(partition, node, challenge)
        return bool(message_id)


def wait_for_nodes(grid: Grid, end: float) -> list[int]:
    """Return the nodes that are there, in order of id, once there is one: some runtimes start the server first.

    Raises:
        RoundFailed: there is none at ``end`` (monotonic seconds).
    """
    while not (nodes := sorted(grid.get_node_ids())):
        if time.monotonic() > end:
            raise RoundFailed("no node is there; start one: `fedlearn up` or `fedlearn node`.")
        time.sleep(SHORTEST_WAIT_S)
    return nodes


def _failure(reply: Message) -> str:
    """Return what is kept of an error reply: it reaches logs, failure.json and the run's status."""
    if was_lost(reply):
        return "lost"
    said = reply.error.reason or ""
    return said if KIND_OF_ERROR.fullmatch(said) else "failed"


def _answer(asked: _Asked, reply: Message) -> PartAnswer:
    if reply.has_error():
        return PartAnswer(asked.partition, asked.node, b"", _failure(reply))
    try:
        return PartAnswer(asked.partition, asked.node, unpack_answer(reply.content, asked.challenge))
    except MalformedMessage as error:
        return PartAnswer(asked.partition, asked.node, b"", str(error), Reason.MALFORMED)

"""Asking over any grid: late, lost, doubled, forged, broken and unsendable messages, and parts asked again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedlearn.errors import OutOfRange, Reason, RoundFailed, RunInterrupted
from fedlearn_server import collect as module
from fedlearn_server.collect import Asking, Conversation, PartAnswer
from fedlearn_server.grids.in_process import InProcessGrid
from fedlearn_server.grids.ray import run_ray
from fedlearn_server.message import pack_answer, unpack_question

NODE_UNAVAILABLE = 5
PATIENT = Asking(30.0)


def echo(message: Message, context: Context) -> Message:
    question = unpack_question(message.content)
    return Message(pack_answer(b"part %d" % question.partition, question.challenge), reply_to=message)


class SlowGrid(InProcessGrid):
    """Delivers the reply to the n-th message at the pull planned for it, if any; ``twice`` delivers each again."""

    def __init__(
        self, pulls: list[int | None], *, nodes: int | None = None, twice: bool = False, unsent: tuple[int, ...] = ()
    ) -> None:
        super().__init__(echo, nodes or len(pulls))
        self._pulls = pulls
        self._twice = twice
        self._unsent = unsent
        self._pending: dict[str, int] = {}
        self._pulled = 0
        self._again: list[Message] = []
        self.asked: list[tuple[int, int]] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            number = len(self.asked)
            self.asked.append((unpack_question(message.content).partition, message.metadata.dst_node_id))
            if number in self._unsent:
                continue  # as Flower's in-memory grid does
            (message_id,) = super().push_messages([message])
            self._pending[message_id] = number
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self._pulled += 1
        wanted = set(message_ids)
        due = [
            message_id
            for message_id, number in self._pending.items()
            if message_id in wanted and number < len(self._pulls) and (self._pulls[number] or 10**9) <= self._pulled
        ]
        for message_id in due:
            del self._pending[message_id]
        again, self._again = self._again, []
        replies = [reply for message_id in due for reply in super(SlowGrid, self).pull_messages([message_id])]
        self._again = replies if self._twice else []
        return [*again, *replies]


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHORTEST_WAIT_S", 0.001)
    monkeypatch.setattr(module, "LONGEST_WAIT_S", 0.002)


def answers(grid: Grid, parts: int, asking: Asking = PATIENT) -> list[PartAnswer]:
    return list(Conversation(grid, "{}", parts, asking).ask(b"task", 0))


def test_in_the_order_of_arrival() -> None:
    found = answers(SlowGrid([9, 1, 4]), 3)
    assert [answer.partition for answer in found] == [1, 2, 0]
    assert [answer.payload for answer in found] == [b"part 1", b"part 2", b"part 0"]
    assert not any(answer.failure for answer in found)


def test_parts_are_spread_over_the_nodes_that_are_there() -> None:
    grid = SlowGrid([1] * 7, nodes=3)
    assert sorted(answer.partition for answer in answers(grid, 7)) == list(range(7))
    assert grid.asked == [(0, 1), (1, 2), (2, 3), (3, 1), (4, 2), (5, 3), (6, 1)]


def test_what_never_comes_is_a_failure_at_the_deadline() -> None:
    found = answers(SlowGrid([1, None, 2, None]), 4, Asking(0.05))
    assert [answer.partition for answer in found] == [0, 2, 1, 3]
    assert [answer.failure for answer in found[2:]] == ["no answer within 0.05 s"] * 2
    assert {answer.reason for answer in found[2:]} == {Reason.FAILED}


def test_a_second_answer_is_a_duplicate_not_a_second_payload() -> None:
    found = answers(SlowGrid([1, 3], twice=True), 2)
    payloads = [(answer.partition, answer.payload) for answer in found if not answer.failure]
    assert payloads == [(0, b"part 0"), (1, b"part 1")]
    (again,) = [answer for answer in found if answer.failure]
    assert (again.partition, again.payload, again.reason) == (0, b"", Reason.DUPLICATE)


def test_a_task_that_could_not_be_sent_is_a_failure_of_that_part_alone() -> None:
    found = answers(SlowGrid([1, 1, 1], unsent=(1,)), 3)
    assert [(answer.partition, bool(answer.failure)) for answer in found] == [(1, True), (0, False), (2, False)]


# --- asking again ---------------------------------------------------------------------------------------------------


def test_silence_is_asked_again_and_answered_once() -> None:
    """A node that was killed took its message with it; the second question goes to one that has answered."""
    grid = SlowGrid([1, None, 1])
    found = answers(grid, 2, Asking(30.0, resend_s=0.01))
    assert [(answer.partition, answer.payload) for answer in found] == [(0, b"part 0"), (1, b"part 1")]
    assert grid.asked == [(0, 1), (1, 2), (1, 1)]


def test_without_resending_nothing_is_asked_again() -> None:
    grid = SlowGrid([1, None])
    answers(grid, 2, Asking(0.05))
    assert len(grid.asked) == 2


def test_both_answers_of_a_part_that_was_asked_twice_come_and_one_counts() -> None:
    """The node was only slow. Its late answer is neither added nor held against anybody."""
    grid = SlowGrid([30, 60, 30], nodes=2)
    found = answers(grid, 2, Asking(30.0, resend_s=0.01))
    assert grid.asked[0][0] == grid.asked[2][0] == 0, "the premise: part 0 was asked twice"
    assert [(answer.partition, answer.failure) for answer in found] == [(0, ""), (1, "")]


def test_the_second_answer_of_a_part_that_comes_a_round_later_is_not_late() -> None:
    grid = SlowGrid([20, 21, 22, 23, 24, 25, 26, 60, 60, 60], nodes=2)
    conversation = Conversation(grid, "{}", 1, Asking(30.0, resend_s=0.005))
    (first,) = conversation.ask(b"first", 0)
    assert len(grid.asked) > 1, "the premise: it was asked twice"
    assert not first.failure
    assert all(answer.reason is not Reason.LATE for answer in conversation.ask(b"second", 1))


def test_a_lost_node_is_replaced_at_once() -> None:
    """SuperLink says that a node has gone: no need to wait for the time of asking again."""
    lost: list[int] = []

    def app(message: Message, context: Context) -> Message:
        if context.node_id == 2:
            lost.append(unpack_question(message.content).partition)
            return Message(Error(code=NODE_UNAVAILABLE, reason="gone"), reply_to=message)
        return echo(message, context)

    grid = InProcessGrid(app, 2)
    found = answers(grid, 2, Asking(30.0, resend_s=1000.0))
    assert [(answer.partition, answer.node, answer.failure) for answer in found] == [(0, 1, ""), (1, 1, "")]
    assert lost == [1]


def test_an_unsendable_part_is_tried_again_where_resending_is_on() -> None:
    grid = SlowGrid([1, 1, 1], unsent=(1,))
    found = answers(grid, 2, Asking(30.0, resend_s=0.01))
    assert [(answer.partition, answer.failure) for answer in found] == [(0, ""), (1, "")]


def test_nodes_that_all_go_are_waited_for_until_the_deadline() -> None:
    grid = SlowGrid([None, 1], nodes=1)
    looks = iter([[1], [], [], [1]])
    grid.get_node_ids = lambda: next(looks)
    (found,) = answers(grid, 1, Asking(30.0, resend_s=0.001))
    assert found.payload == b"part 0"


# --- other rounds, other senders ------------------------------------------------------------------------------------


def test_an_answer_to_an_earlier_round_is_counted_and_never_read() -> None:
    grid = SlowGrid([1, 6, 30, 30])
    conversation = Conversation(grid, "{}", 2, PATIENT)
    early = conversation.ask(b"first", 0)
    assert next(early).partition == 0
    early.close()  # enough
    found = list(conversation.ask(b"second", 1))
    assert [(answer.partition, answer.reason, answer.payload) for answer in found if answer.failure] == [
        (1, Reason.LATE, b"")
    ]
    assert sorted(answer.payload for answer in found if not answer.failure) == [b"part 0", b"part 1"]


def test_an_answer_without_the_challenge_of_its_question_is_malformed() -> None:
    def app(message: Message, context: Context) -> Message:
        question = unpack_question(message.content)
        challenge = question.challenge if question.partition else bytes(16)
        return Message(pack_answer(b"x", challenge), reply_to=message)

    forged, honest = answers(InProcessGrid(app, 2), 2)
    assert (forged.reason, forged.payload) == (Reason.MALFORMED, b"")
    assert (honest.failure, honest.payload) == ("", b"x")


def test_errors_and_foreign_records() -> None:
    def app(message: Message, context: Context) -> Message:
        if unpack_question(message.content).partition == 0:
            raise RuntimeError("out of memory")
        return Message(RecordDict(), reply_to=message)

    first, second = answers(InProcessGrid(app, 2), 2)
    assert first.failure == "RuntimeError", "the words of an exception may quote a phone's data"
    assert (first.reason, second.reason, second.payload) == (Reason.FAILED, Reason.MALFORMED, b"")


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("DataMismatch FL205", "DataMismatch FL205"),
        ("torch_OutOfMemoryError2", "torch_OutOfMemoryError2"),
        ("ValueError: I want hotpot", "failed"),
        ("我想吃火锅", "failed"),
        ("ValueError\x1b]0;owned\x07", "failed"),
        ("ValueError\n", "failed"),
        ("ValueError FL205 4711", "failed"),
        ("4711", "failed"),
        ("a" * 61, "failed"),
        ("", "failed"),
    ],
)
def test_of_what_a_node_says_of_its_failure_only_the_kind_is_kept(said: str, kept: str) -> None:
    def app(message: Message, context: Context) -> Message:
        return Message(Error(code=7, reason=said), reply_to=message)

    (found,) = answers(InProcessGrid(app, 1), 1)
    assert (found.failure, found.reason) == (kept, Reason.FAILED)


def test_a_lost_node_without_asking_again_says_so_in_our_words() -> None:
    def app(message: Message, context: Context) -> Message:
        return Message(Error(code=NODE_UNAVAILABLE, reason="node 4711 has gone"), reply_to=message)

    (found,) = answers(InProcessGrid(app, 1), 1)
    assert found.failure == "lost"


def test_no_nodes() -> None:
    with pytest.raises(RoundFailed, match="no node is there"):
        answers(InProcessGrid(echo, 0), 1, Asking(0.02))


def test_every_part_gets_the_same_task_and_its_own_challenge() -> None:
    seen = []

    def app(message: Message, context: Context) -> Message:
        seen.append((message.metadata.group_id, unpack_question(message.content)))
        return echo(message, context)

    list(Conversation(InProcessGrid(app, 2), "about", 3, PATIENT).ask(b"task", 5))
    assert [(group, question.cohort, question.task) for group, question in seen] == [("5", "about", b"task")] * 3
    assert sorted(question.partition for _, question in seen) == [0, 1, 2]
    assert len({question.challenge for _, question in seen}) == 3


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"deadline_s": 0.0}, "deadline_s"),
        ({"resend_s": 0.0}, "resend_s"),
        ({"minimum": 0.0}, "minimum"),
        ({"enough": 1.1}, "enough"),
        ({"minimum": 0.9, "enough": 0.5}, "minimum"),
        ({"attempts": 0}, "attempts"),
    ],
)
def test_settings_that_cannot_be_met(change: dict[str, float], field: str) -> None:
    with pytest.raises(OutOfRange, match=f"runtime.{field}"):
        Asking(**{"deadline_s": 1.0, **change})


@pytest.mark.parametrize(
    ("share", "parts", "least"), [(1.0, 7, 7), (0.5, 7, 4), (0.5, 4, 2), (0.01, 4, 1), (1 / 3, 3, 1), (0.9, 1, 1)]
)
def test_a_share_of_the_parts(share: float, parts: int, least: int) -> None:
    assert PATIENT.parts(share, parts) == least


def test_ctrl_c_ends_the_thread_that_ray_runs_the_server_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the process would live on until the deadline of its round, waiting for nodes that are gone."""
    simulation = pytest.importorskip("flwr.simulation")
    pytest.importorskip("ray")
    ended: list[BaseException] = []
    threads: list[threading.Thread] = []
    waiting = threading.Event()
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        waiting.set()
        try:
            answers(grid, 1, Asking(60.0))
        except RunInterrupted as error:
            ended.append(error)

    def run_simulation(server_app: Callable[[Grid, Context], None], *rest: object, **named: object) -> None:
        context = Context(1, 0, {}, RecordDict(), {})
        threads.append(threading.Thread(target=server_app, args=(SlowGrid([None]), context)))
        threads[0].start()
        waiting.wait(10)
        raise KeyboardInterrupt

    monkeypatch.setattr(simulation, "run_simulation", run_simulation)
    with pytest.raises(KeyboardInterrupt):
        run_ray(server_app, echo, 1)
    threads[0].join(10)
    assert not threads[0].is_alive()
    assert len(ended) == 1

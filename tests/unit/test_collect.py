"""Collecting over any grid: late, lost, doubled, broken and unsendable messages each give one answer."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import ServerApp

from fedlearn.errors import Reason, RunInterrupted
from fedlearn_server import collect as module
from fedlearn_server.collect import NodeAnswer, collect
from fedlearn_server.grids.in_process import InProcessGrid
from fedlearn_server.grids.ray import run_ray
from fedlearn_server.node import pack, unpack


def echo(message: Message, context) -> Message:
    return Message(pack(b"from %d" % context.node_config["partition-id"]), reply_to=message)


class SlowGrid(InProcessGrid):
    """Delivers a reply only at the pull its node is planned for; ``twice`` delivers each reply again at the next."""

    def __init__(self, pulls: list[int | None], *, twice: bool = False, unsent: tuple[int, ...] = ()) -> None:
        super().__init__(echo, len(pulls))
        self._pulls = pulls
        self._twice = twice
        self._unsent = unsent
        self._pending: dict[str, int] = {}
        self._pulled = 0
        self._again: list[Message] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            node = message.metadata.dst_node_id
            if node in self._unsent:
                continue  # as Flower's in-memory grid does
            (message_id,) = super().push_messages([message])
            self._pending[message_id] = node
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self._pulled += 1
        wanted = set(message_ids)
        due = [
            message_id
            for message_id, node in self._pending.items()
            if message_id in wanted and (self._pulls[node - 1] or 10**9) <= self._pulled
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


def answers(grid: InProcessGrid, deadline_s: float = 30.0) -> list[NodeAnswer]:
    return list(collect(grid, b"task", 0, deadline_s))


def test_in_the_order_of_arrival() -> None:
    found = answers(SlowGrid([9, 1, 4]))
    assert [answer.node for answer in found] == [2, 3, 1]
    assert [answer.payload for answer in found] == [b"from 1", b"from 2", b"from 0"]
    assert not any(answer.failure for answer in found)


def test_what_never_comes_is_a_failure_at_the_deadline() -> None:
    found = answers(SlowGrid([1, None, 2, None]), deadline_s=0.05)
    assert [answer.node for answer in found] == [1, 3, 2, 4]
    assert [answer.failure for answer in found[2:]] == ["no answer within 0.05 s"] * 2
    assert {answer.reason for answer in found[2:]} == {Reason.FAILED}


def test_a_second_answer_is_a_duplicate_not_a_second_payload() -> None:
    found = answers(SlowGrid([1, 3], twice=True))
    assert [(answer.node, answer.payload) for answer in found if not answer.failure] == [(1, b"from 0"), (2, b"from 1")]
    (again,) = [answer for answer in found if answer.failure]
    assert (again.node, again.payload, again.reason) == (1, b"", Reason.DUPLICATE)


def test_a_task_that_could_not_be_sent_is_a_failure_of_that_node_alone() -> None:
    found = answers(SlowGrid([1, 1, 1], unsent=(2,)))
    assert [(answer.node, bool(answer.failure)) for answer in found] == [(2, True), (1, False), (3, False)]


def test_errors_and_foreign_records() -> None:
    def app(message: Message, context) -> Message:
        if context.node_config["partition-id"] == 0:
            raise RuntimeError("out of memory")
        return Message(RecordDict(), reply_to=message)

    first, second = answers(InProcessGrid(app, 2))
    assert first.failure == "RuntimeError", "the words of an exception may quote a phone's data"
    assert (second.failure, second.payload) == ("", b"")


def test_no_nodes() -> None:
    assert answers(InProcessGrid(echo, 0)) == []


def test_every_node_gets_the_same_payload() -> None:
    seen = []

    def app(message: Message, context) -> Message:
        seen.append((message.metadata.group_id, unpack(message.content)))
        return echo(message, context)

    list(collect(InProcessGrid(app, 3), b"task", 5, 1.0))
    assert seen == [("5", b"task")] * 3


def test_ctrl_c_ends_the_thread_that_ray_runs_the_server_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the process would live on until the deadline of its round, waiting for nodes that are gone."""
    simulation = pytest.importorskip("flwr.simulation")
    pytest.importorskip("ray")
    ended: list[BaseException] = []
    threads: list[threading.Thread] = []
    waiting = threading.Event()
    server_app = ServerApp()

    @server_app.main()
    def main(grid, context: Context) -> None:
        waiting.set()
        try:
            list(collect(grid, b"task", 0, 60.0))
        except RunInterrupted as error:
            ended.append(error)

    def run_simulation(server_app: ServerApp, *rest: object, **named: object) -> None:
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

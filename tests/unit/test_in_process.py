"""The embedded grid: replies stream one by one, failures are replies, and contexts name the node."""

from __future__ import annotations

import pytest
from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from fedlearn_server.grids.in_process import InProcessGrid

BYTES = "bytes"


def pack(payload: bytes) -> RecordDict:
    return RecordDict({BYTES: ConfigRecord({"payload": payload})})


def unpack(content: RecordDict) -> bytes:
    return content[BYTES]["payload"]


class Echo:
    """A ClientApp that answers with its node's id; node 2 raises what it is given."""

    def __init__(self, problem: BaseException | None = None) -> None:
        self.ran: list[int] = []
        self.problem = problem

    def __call__(self, message: Message, context) -> Message:
        node = context.node_id
        self.ran.append(node)
        if node == 2 and self.problem is not None:
            raise self.problem
        answer = f"{node}".encode() + unpack(message.content)
        return Message(pack(answer), reply_to=message)


def push(grid: InProcessGrid) -> list[str]:
    return list(
        grid.push_messages(
            grid.create_message(pack(b"!"), MessageType.TRAIN, node, group_id="0") for node in grid.get_node_ids()
        )
    )


def test_a_node_works_when_its_reply_is_pulled() -> None:
    echo = Echo()
    grid = InProcessGrid(echo, 3)
    ids = push(grid)
    assert len(set(ids)) == 3
    assert echo.ran == []
    pulled = [list(grid.pull_messages(ids)) for _ in range(4)]
    assert [len(replies) for replies in pulled] == [1, 1, 1, 0]
    assert echo.ran == [1, 2, 3]
    assert [unpack(replies[0].content) for replies in pulled[:3]] == [b"1!", b"2!", b"3!"]
    assert [replies[0].metadata.reply_to_message_id for replies in pulled[:3]] == ids


def test_only_the_asked_messages_are_answered() -> None:
    grid = InProcessGrid(Echo(), 3)
    ids = push(grid)
    (reply,) = grid.pull_messages([ids[2]])
    assert unpack(reply.content) == b"3!"
    assert list(grid.pull_messages([ids[2], "unknown"])) == []


def test_send_and_receive() -> None:
    grid = InProcessGrid(Echo(), 2)
    messages = [grid.create_message(pack(b"?"), MessageType.TRAIN, node, group_id="0") for node in (2, 1)]
    assert [unpack(reply.content) for reply in grid.send_and_receive(messages)] == [b"2?", b"1?"]


def test_a_node_that_raises_is_an_error_reply() -> None:
    grid = InProcessGrid(Echo(ValueError("broken")), 2)
    ids = push(grid)
    replies = [reply for _ in ids for reply in grid.pull_messages(ids)]
    assert [reply.has_error() for reply in replies] == [False, True]
    assert replies[1].error.reason == "ValueError", "no word of the exception travels"
    assert replies[1].metadata.reply_to_message_id == ids[1]


def test_ctrl_c_is_nobodys_reply() -> None:
    grid = InProcessGrid(Echo(KeyboardInterrupt()), 2)
    ids = push(grid)
    list(grid.pull_messages(ids))
    with pytest.raises(KeyboardInterrupt):
        grid.pull_messages(ids)


def test_nodes() -> None:
    grid = InProcessGrid(Echo(), 3)
    assert list(grid.get_node_ids()) == [1, 2, 3]
    assert [node.node_id for node in grid.get_nodes()] == [1, 2, 3]

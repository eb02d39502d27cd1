"""Sends one task to every node and yields the replies as they arrive, on any Flower runtime."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from fedlearn_server.node import pack, unpack

SHORTEST_WAIT_S = 0.05
LONGEST_WAIT_S = 0.5


@dataclass(frozen=True, slots=True)
class NodeAnswer:
    """One node's answer: our bytes, or the reason why there are none."""

    node: int
    payload: bytes
    failure: str = ""


def collect(grid: Grid, payload: bytes, step: int, deadline_s: float) -> Iterator[NodeAnswer]:
    """Push ``payload`` to every node and yield each answer once.

    Args:
        grid: any Flower runtime.
        payload: the encoded task.
        step: labels the messages.
        deadline_s: seconds after which missing answers are yielded as failures.
    """
    messages = [
        grid.create_message(pack(payload), MessageType.TRAIN, node, group_id=str(step)) for node in grid.get_node_ids()
    ]
    nodes = {message_id: message.metadata.dst_node_id for message_id, message in _pushed(grid, messages)}
    end = time.monotonic() + deadline_s
    wait = SHORTEST_WAIT_S
    while nodes:
        replies = list(grid.pull_messages(list(nodes)))
        for reply in replies:
            node = nodes.pop(reply.metadata.reply_to_message_id, None)
            if node is not None:
                yield _answer(node, reply)
        if replies:
            wait = SHORTEST_WAIT_S
        elif time.monotonic() > end:
            break
        else:
            time.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT_S)
    for node in nodes.values():
        yield NodeAnswer(node, b"", f"no answer within {deadline_s:g} s")


def _pushed(grid: Grid, messages: list[Message]) -> Iterator[tuple[str, Message]]:
    return zip(grid.push_messages(messages), messages, strict=True)


def _answer(node: int, reply: Message) -> NodeAnswer:
    if reply.has_error():
        return NodeAnswer(node, b"", reply.error.reason or f"error {reply.error.code}")
    return NodeAnswer(node, unpack(reply.content))

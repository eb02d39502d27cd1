"""Sends one task to every node and yields the replies as they arrive, on any Flower runtime."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from fedlearn.errors import Reason, RoundFailed
from fedlearn_server.node import pack, unpack

SHORTEST_WAIT_S = 0.05
LONGEST_WAIT_S = 0.5


@dataclass(frozen=True, slots=True)
class NodeAnswer:
    """One node's answer: our bytes, or why there are none.

    Args:
        node: Flower's id of the node.
        payload: our bytes; empty after a failure.
        failure: what went wrong, or "".
        reason: what a failure counts as.
    """

    node: int
    payload: bytes
    failure: str = ""
    reason: Reason = Reason.FAILED


def wait_for_nodes(grid: Grid, count: int, deadline_s: float) -> None:
    """Return once ``count`` nodes are there: some runtimes start the server before its nodes.

    Raises:
        RoundFailed: fewer nodes after ``deadline_s`` seconds; a part of the population would be left out unseen.
    """
    end = time.monotonic() + deadline_s
    while (found := len(list(grid.get_node_ids()))) < count:
        if time.monotonic() > end:
            raise RoundFailed(f"runtime.shards={count}: only {found} nodes are there after {deadline_s:g} s.")
        time.sleep(SHORTEST_WAIT_S)


def collect(grid: Grid, payload: bytes, step: int, deadline_s: float) -> Iterator[NodeAnswer]:
    """Push ``payload`` to every node and yield each answer once; a node that answers again is yielded as a duplicate.

    Args:
        grid: any Flower runtime.
        payload: the encoded task.
        step: labels the messages.
        deadline_s: seconds after which missing answers are yielded as failures.
    """
    nodes: dict[str, int] = {}
    for node in grid.get_node_ids():
        message = grid.create_message(pack(payload), MessageType.TRAIN, node, group_id=str(step))
        # one by one: a grid leaves out the ids of messages it could not send, so a batch would not say whose
        message_id = next(iter(grid.push_messages([message])), "")
        if message_id:
            nodes[message_id] = node
        else:
            yield NodeAnswer(node, b"", "the task could not be sent")
    answered: dict[str, int] = {}
    end = time.monotonic() + deadline_s
    wait = SHORTEST_WAIT_S
    while nodes:
        replies = list(grid.pull_messages(list(nodes)))
        for reply in replies:
            message_id = reply.metadata.reply_to_message_id
            if message_id in nodes:
                answered[message_id] = nodes.pop(message_id)
                yield _answer(answered[message_id], reply)
            elif message_id in answered:
                yield NodeAnswer(answered[message_id], b"", "answered more than once", Reason.DUPLICATE)
        if replies:
            wait = SHORTEST_WAIT_S
        elif time.monotonic() > end:
            break
        else:
            time.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT_S)
    for node in nodes.values():
        yield NodeAnswer(node, b"", f"no answer within {deadline_s:g} s")


def _answer(node: int, reply: Message) -> NodeAnswer:
    if reply.has_error():
        return NodeAnswer(node, b"", reply.error.reason or f"error {reply.error.code}")
    return NodeAnswer(node, unpack(reply.content))

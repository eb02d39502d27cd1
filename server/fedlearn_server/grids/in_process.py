"""The embedded default runtime: every node in this process, no port, no extra process."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedlearn_server.flower import NodeInfo, Run, failure_reply, identify_message, identify_process

RUN_ID = 1


class InProcessGrid(Grid):
    """Flower's Grid over ClientApps in this process.

    A node works when its reply is pulled, one node a pull, so that replies stream and at most one is held.
    """

    def __init__(self, client_app: ClientApp, nodes: int) -> None:
        self._client_app = client_app
        self._contexts = {node: _context(node) for node in range(1, nodes + 1)}
        self._waiting: dict[str, Message] = {}
        self._ids = itertools.count(1)
        self._run: Run | None = None
        identify_process(RUN_ID)

    def set_run(self, run: Run) -> None:
        """Remember the run; nothing here depends on it."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that was set, or an empty one."""
        return self._run or Run.create_empty(RUN_ID)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message to one node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return every node's id, 1-based."""
        return list(self._contexts)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return every node."""
        return [NodeInfo(node_id=node) for node in self._contexts]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages and return their ids."""
        ids = []
        for message in messages:
            message_id = str(next(self._ids))
            identify_message(message, message_id)
            self._waiting[message_id] = message
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the first waiting node among ``message_ids`` and return its reply, or nothing."""
        for message_id in message_ids:
            message = self._waiting.pop(message_id, None)
            if message is not None:
                return [self._answer(message)]
        return []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Yield the reply of each message; ``timeout`` has no meaning where nothing can be late."""
        del timeout
        for message_id in self.push_messages(messages):
            yield from self.pull_messages([message_id])

    def _answer(self, message: Message) -> Message:
        try:
            return self._client_app(message, self._contexts[message.metadata.dst_node_id])
        except Exception as problem:  # noqa: BLE001 - a node's failure is a reply, as on every Flower runtime
            return failure_reply(message, problem)


def run_in_process(server_app: ServerApp, client_app: ClientApp, nodes: int) -> None:
    """Run the ServerApp over ``nodes`` nodes in this process; its exceptions pass through."""
    grid = InProcessGrid(client_app, nodes)
    server_app(grid, _context(0))


def _context(node: int) -> Context:
    return Context(RUN_ID, node, {}, RecordDict(), {})

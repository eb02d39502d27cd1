"""What an operator sees of a running ServerApp: it wraps the grid and the round observer, and serves what they count.

The ServerApp writes the port where the operator looks for it (the ``.serverapp`` lock file of its training directory);
nothing else in ``run_training`` changes::

    log_json("serverapp")
    with observed_server() as observed:
        lock.write(observed.port)
        run_training(job, observed.grid(grid), observed.rounds(observe))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedlearn_server.flower import NodeInfo, Run, was_lost
from fedlearn_server.message import PLACE, TASK
from fedlearn_server.metrics import (
    SERVER_ASKED,
    SERVER_ASKED_AGAIN,
    SERVER_BEGUN,
    SERVER_NODES,
    SERVER_REPLIES,
    SERVER_SECONDS,
    ServerMetrics,
)
from fedlearn_server.observe import ObservationServer, serve
from fedlearn_server.round import Observer, RoundOutcome

SILENT_S = 900.0


class ObservedServer:
    """The metrics of a running ServerApp and what fills them.

    Args:
        metrics: counts.
        server: shows them.
    """

    def __init__(self, metrics: ServerMetrics, server: ObservationServer) -> None:
        self._metrics = metrics
        self.port = server.port

    def grid(self, grid: Grid) -> Grid:
        """Return a grid that counts what is asked and answered."""
        return _ObservedGrid(grid, self._metrics)

    def rounds(self, observe: Observer) -> Observer:
        """Return an observer that counts rounds before it hands them on."""
        return observe_rounds(observe, self._metrics)


@contextmanager
def observed_server(
    port: int = 0, host: str = "127.0.0.1", *, unprotected: bool = False, silent_s: float = SILENT_S
) -> Iterator[ObservedServer]:
    """Serve a ServerApp's metrics and health for as long as it runs.

    Args:
        port: 0 picks a free one.
        host: the address to listen on.
        unprotected: export figures of realised cohorts too. They are releases without noise: simulated populations
            only.
        silent_s: seconds without a published round after which the ServerApp is not ready; longer than a round and
            its attempts may take.

    Raises:
        OutOfRange: the port is taken.
    """
    metrics = ServerMetrics(unprotected=unprotected)

    def health() -> str | None:
        silent = metrics.silent_s
        return None if silent <= silent_s else f"no round was published for {silent:.0f} s"

    server = serve(metrics.registry, health, port, host)
    try:
        yield ObservedServer(metrics, server)
    finally:
        server.close()


def observe_rounds(observe: Observer, metrics: ServerMetrics) -> Observer:
    """Return an observer that counts each round once it is published, and shows it to ``observe``."""

    def observed(outcome: RoundOutcome) -> Callable[[], None]:
        show = observe(outcome)

        def published() -> None:
            metrics.round_done(outcome.charges)
            metrics.time(SERVER_SECONDS, outcome.seconds)
            for reason, count in outcome.unprotected.rejected.items():
                metrics.rejected(reason, count)
            if show is not None:
                show()

        return published

    return observed


class _ObservedGrid(Grid):
    """Hands everything on, and counts."""

    def __init__(self, grid: Grid, metrics: ServerMetrics) -> None:
        self._grid = grid
        self._metrics = metrics
        self._task: object = None
        self._parts: set[object] = set()

    def set_run(self, run: Run) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        nodes = list(self._grid.get_node_ids())
        self._metrics.set(SERVER_NODES, len(nodes))
        return nodes

    def get_nodes(self) -> Iterable[NodeInfo]:
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        held = list(messages)
        for message in held:
            self._count(message.content)
        return self._grid.push_messages(held)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for reply in self._grid.pull_messages(message_ids):
            outcome = "lost" if was_lost(reply) else "error" if reply.has_error() else "answer"
            self._metrics.add(SERVER_REPLIES, label=outcome)
            yield reply

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self._grid.send_and_receive(messages, timeout=timeout)

    def _count(self, content: RecordDict) -> None:
        """Tell a first question from one that is asked again: an attempt has one task, the same bytes for all."""
        record, place = content.get(TASK), content.get(PLACE)
        if not isinstance(record, ConfigRecord) or not isinstance(place, ConfigRecord):
            return
        if record["payload"] is not self._task:
            self._task, self._parts = record["payload"], set()
            self._metrics.add(SERVER_BEGUN)
        again = place["partition"] in self._parts
        self._parts.add(place["partition"])
        self._metrics.add(SERVER_ASKED_AGAIN if again else SERVER_ASKED)

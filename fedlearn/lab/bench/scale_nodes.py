"""A process that hosts many resident nodes, a thread each: the code of ``fedlearn node``, without a process a node. ::

    python -m fedlearn.lab.bench.scale_nodes HOST:PORT CA NODE_DIRECTORY...

On standard input, ``calls`` asks for one JSON line with what the nodes have sent and received; its end ends the nodes.
"""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from fedlearn.lab.bench.scale_app import open_null
from fedlearn_server.flower import FleetLink, load_node_key
from fedlearn_server.metrics import NodeMetrics
from fedlearn_server.node import Node
from fedlearn_server.node_answers import Answering
from fedlearn_server.node_state import NodeDirectory
from fedlearn_server.node_stop import Stop

KEY_FILE = "key.pem"
EMPTY_PULL = "PullMessages, nothing there"
EMPTY_BYTES = 64
"""A response to a pull is longer than this if it has a message."""


@dataclass(frozen=True, slots=True)
class Calls:
    """Calls of Flower's Fleet API by name: how many, and their bytes before TLS, without HTTP's headers."""

    count: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)
    received: Counter[str] = field(default_factory=Counter)

    def tap(self, method: str, request: bytes, response: bytes) -> None:
        """Count one call (``fedlearn_server.flower.FleetLink``)."""
        name = method.rpartition("/")[2]
        if name == "PullMessages" and len(response) < EMPTY_BYTES:
            name = EMPTY_PULL
        self.count[name] += 1
        self.sent[name] += len(request)
        self.received[name] += len(response)

    def minus(self, earlier: Calls) -> Calls:
        """Return the calls since ``earlier``."""
        return Calls(
            Counter({name: self.count[name] - earlier.count[name] for name in self.count}),
            Counter({name: self.sent[name] - earlier.sent[name] for name in self.sent}),
            Counter({name: self.received[name] - earlier.received[name] for name in self.received}),
        )

    def plus(self, other: Calls) -> Calls:
        """Return both together."""
        return Calls(self.count + other.count, self.sent + other.sent, self.received + other.received)

    def to_plain(self) -> dict[str, dict[str, int]]:
        """Return what JSON can hold."""
        return {"count": dict(self.count), "sent": dict(self.sent), "received": dict(self.received)}


def from_plain(plain: Mapping[str, Mapping[str, int]]) -> Calls:
    """Return what ``to_plain`` made."""
    return Calls(Counter(plain["count"]), Counter(plain["sent"]), Counter(plain["received"]))


def main(arguments: list[str]) -> int:
    """Run nodes until standard input ends."""
    address, ca, *directories = arguments
    calls, lock = Calls(), threading.Lock()

    def tap(method: str, request: bytes, response: bytes) -> None:
        with lock:
            calls.tap(method, request, response)

    with ExitStack() as opened:
        stops, threads = [], []
        for directory in map(Path, directories):
            link = FleetLink(address, Path(ca), load_node_key(directory / KEY_FILE), tap)
            opened.callback(link.close)
            state = NodeDirectory(directory)
            opened.callback(state.close)
            stops.append(opened.enter_context(Stop()))
            node = Node(link, Answering(open_null), state, NodeMetrics(), stop=stops[-1])
            threads.append(threading.Thread(target=node.run, name=directory.name))
        for thread in threads:
            thread.start()
        try:
            for _ in sys.stdin:
                with lock:
                    print(json.dumps(calls.to_plain()), flush=True)  # noqa: T201 - what the bench reads
        finally:
            for stop in stops:
                stop.wish()
            for thread in threads:
                thread.join()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

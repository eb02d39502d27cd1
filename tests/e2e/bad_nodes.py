"""Nodes that misbehave over a real SuperLink, as ``bad_contributions`` says, and the ServerApp that they meet."""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import add_header_to_object_body

from fedlearn_server.flower import FleetLink, build_bundle, failure_reply
from fedlearn_server.message import REPLY, unpack_question

if TYPE_CHECKING:
    from superlink_world import SuperLinkWorld

UNIT = Path(__file__).parents[1] / "unit"
NODES = 2
HEARTBEAT_S = 5.0
PULL_S = 0.25
A_PULL_LATER_S = 0.7
"""More than the longest wait of a ServerApp between two pulls."""
UNSEEN = ("answers_twice",)
"""SuperLink itself takes one answer to a message."""

SERVED = b'''\
"""A ServerApp that trains once over bad nodes."""

import json
import sys
from pathlib import Path

from flwr.serverapp import ServerApp

from fedlearn_server.flower import guard_replies, limit_retries

app = ServerApp()


@app.main()
def main(grid, context):
    order = json.loads(context.run_config["fedlearn"])
    sys.path.insert(0, order["modules"])
    import bad_contributions

    limit_retries(grid, 4.0)
    guard_replies(grid)
    directory = Path(order["directory"])
    records = bad_contributions.run_all(grid, directory, order["mode"], order["names"], order["deadline_s"])
    (directory / "records.json").write_text(json.dumps(list(records)))
'''
PROJECT = b"""\
[project]
name = "served"
version = "1.0.0"
description = "Trains over bad nodes."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedlearn"

[tool.flwr.app.components]
serverapp = "served:app"
clientapp = "fedlearn_server.app:client_app"

[tool.flwr.app.config]
fedlearn = ""
"""


def load(name: str, folder: Path = UNIT) -> ModuleType:
    """Return a module of the tests."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


town = load("round_town")
bad = load("bad_contributions")


class BadNodes:
    """Answers for all nodes in one thread: Flower keeps who a process is in globals."""

    def __init__(self, links: Sequence[FleetLink], names: Sequence[str]) -> None:
        self._links = links
        self._app = bad.BadApp(tuple(names))
        self._names = tuple(names)
        self._held: list[tuple[FleetLink, Message]] = []
        self._beaten = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.problems: list[BaseException] = []

    def __enter__(self) -> BadNodes:
        self._thread.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._done.wait(PULL_S):
                self._beat()
                for link in self._links:
                    message = link.pull()
                    if message is not None:
                        self._answer(link, message)
        except BaseException as problem:  # noqa: BLE001 - shown by the test, which has the other thread
            self.problems.append(problem)

    def _beat(self) -> None:
        if time.monotonic() - self._beaten > HEARTBEAT_S:
            self._beaten = time.monotonic()
            for link in self._links:
                link.heartbeat()

    def _answer(self, link: FleetLink, message: Message) -> None:
        try:
            reply = self._app(message, Context(1, 1, {}, RecordDict(), {}))
        except Exception as problem:  # noqa: BLE001 - as a resident node does
            reply = failure_reply(message, problem)
        culprit = unpack_question(message.content).partition == bad.CULPRIT
        delivery = bad.KINDS[self._names[int(message.metadata.group_id)]].delivery if culprit else "once"
        if delivery == "held":
            self._held.append((link, reply))
            return
        if delivery == "after_held":
            for held_link, held in self._held:
                held_link.push(held)
            time.sleep(A_PULL_LATER_S)
        if delivery == "half":
            with silent_uploads(link), suppress(ConnectionAbortedError):
                link.push(reply)
            return
        if delivery == "unreadable":
            reply = Message(RecordDict({REPLY: Unreadable()}), reply_to=message)
        link.push(reply)
        if delivery == "twice":
            link.push(Message(reply.content, reply_to=message))


class Unreadable(ConfigRecord):
    """A record whose bytes are none."""

    def deflate(self) -> bytes:
        """Return a part as SuperLink checks it: well framed."""
        return add_header_to_object_body(b"\xff\xff not a record", self)


Unreadable.__qualname__ = "ConfigRecord"  # the name by which Flower finds who reads it


@contextmanager
def silent_uploads(link: FleetLink) -> Iterator[None]:
    """End every upload of a part before it begins, as a kill between two calls does."""
    real = link._client

    class Cut:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def PushObject(self, request: object) -> None:  # noqa: N802 - Flower's name
            raise ConnectionAbortedError

    link._client = Cut()
    try:
        yield
    finally:
        link._client = real


@contextmanager
def online(world: SuperLinkWorld, nodes: int = NODES) -> Iterator[list[FleetLink]]:
    """Register nodes and bring them online; they are nodes no more afterwards."""
    members = [world.register() for _ in range(nodes)]
    links = [world.link(member) for member in members]
    try:
        for link in links:
            link.activate(None)
        yield links
    finally:
        for member, link in zip(members, links, strict=True):
            link.close()
            world.control.unregister_node(member.node_id)


def train(
    world: SuperLinkWorld,
    links: Sequence[FleetLink],
    directory: Path,
    *,
    mode: str,
    names: Sequence[str],
    deadline_s: float,
) -> list[dict[str, Any]]:
    """Train in a ServerApp of its own, one step for each kind, and return what it recorded."""
    directory.mkdir(parents=True)
    order = {
        "modules": str(UNIT),
        "directory": str(directory),
        "mode": mode,
        "names": list(names),
        "deadline_s": deadline_s,
    }
    with BadNodes(links, names) as nodes:
        run_id = world.control.start_run(
            build_bundle({"pyproject.toml": PROJECT, "served.py": SERVED}), {"fedlearn": json.dumps(order)}
        )
        ended = world.wait_for_run(run_id, seconds=120 + 2 * deadline_s + 5 * len(names))
    assert not nodes.problems, nodes.problems
    assert ended == "completed", ended
    found: list[dict[str, Any]] = json.loads((directory / "records.json").read_text(encoding="utf-8"))
    return found

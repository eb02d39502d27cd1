"""Nodes of a deployment: made, registered at SuperLink, started, and waited for."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from fedlearn.errors import DeploymentRefused, SuperLinkRefused
from fedlearn_server.deployment import processes
from fedlearn_server.deployment.keys import public_pem, write_node_key
from fedlearn_server.deployment.layout import make_private, write_private
from fedlearn_server.deployment.records import Deployment, NodeRecord, ProcessRecord, new_node
from fedlearn_server.deployment.superlink import environment, program

if TYPE_CHECKING:
    from fedlearn_server.flower import ControlLink, FlowerNode

Say = Callable[[str], None]
"""Tells the operator what is going on, one line at a time."""


def silent(line: str) -> None:
    """Tell nobody."""


MOST_NODES: Final = 512
ONLINE: Final = "online"
ONLINE_S: Final = 60.0
ONLINE_S_PER_NODE: Final = 5.0
"""Each node's imports are seconds of one core."""
_POLL_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What a node says of itself in ``status.json``; empty where it says nothing.

    Args:
        pid: of the process that says it.
        state: connecting, online, draining or stopped.
        reason: why it is not online.
        since: ISO time of the last change of state.
        answered: questions answered.
        metrics_port: where its metrics are, or 0.
    """

    pid: int = 0
    state: str = ""
    reason: str = ""
    since: str = ""
    answered: int = 0
    metrics_port: int = 0


def read_report(node: NodeRecord) -> NodeReport:
    """Return what a node's running process says of itself, or an empty report."""
    try:
        plain: Any = json.loads((node.state / "status.json").read_text(encoding="utf-8"))
        report = NodeReport(
            pid=int(plain["pid"]),
            state=str(plain["state"]),
            reason=str(plain["reason"]),
            since=str(plain["since"]),
            answered=int(plain["answered"]),
            metrics_port=int(plain["metrics_port"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return NodeReport()
    return report if report.pid == node.process.pid else NodeReport()


def with_nodes(deployment: Deployment, count: int) -> Deployment:
    """Return a deployment with at least ``count`` nodes, each with a key; starts and registers none."""
    taken = {node.name for node in deployment.nodes}
    free = (name for name in (f"node-{number}" for number in range(1, count + len(taken) + 1)) if name not in taken)
    for name in list(free)[: max(0, count - len(taken))]:
        deployment = deployment.with_node(new_node(deployment, name))
    for node in deployment.nodes:
        if not node.key.exists() and node.node_id is None:
            make_private(node.state.parent)
            make_private(node.state)
            write_node_key(node.key)
    return deployment


def start_node(deployment: Deployment, node: NodeRecord, command: Sequence[str] | None = None) -> ProcessRecord:
    """Start a node's process; it looks for SuperLink until it finds it.

    Args:
        deployment: with SuperLink's address.
        node: one of its nodes.
        command: to be followed by the options; the installed `fedlearn node` by default, or a gateway.
    """
    options = [
        *("--superlink", deployment.address),
        *("--ca", str(deployment.ca)),
        *("--key", str(node.key)),
        *("--state", str(node.state)),
    ]
    chosen = _command(deployment) if command is None else tuple(command)
    log = deployment.layout.node_log(node.name)
    return processes.start([*chosen, *options], environment(deployment), deployment.directory, log)


def _command(deployment: Deployment) -> tuple[str, ...]:
    if deployment.gateways is None:
        return (program("fedlearn"), "node")
    return (sys.executable, "-m", "fedlearn_server.gateway.beside", "--template", str(deployment.gateways))


def registered(control: ControlLink, deployment: Deployment) -> Deployment:
    """Register every node that SuperLink does not know, and return the deployment with their ids.

    Safe to repeat, and after SuperLink's database was lost: its nodes then get new ids.

    Raises:
        DeploymentRefused: SuperLink refuses a key, e.g. because it was revoked.
    """
    known = control.nodes()
    for node in deployment.nodes:
        pem = public_pem(node.key)
        node_id = _id_of(pem, known)
        if node_id is None:
            node_id = _register(control, node, pem)
        if node_id != node.node_id:
            _forget_identity(node, node_id)
            deployment = deployment.with_node(replace(node, node_id=node_id))
    return deployment


def wait_until_online(
    control: ControlLink,
    nodes: Sequence[NodeRecord],
    seen: Sequence[FlowerNode] | None,
    say: Say,
    seconds: float | None = None,
) -> None:
    """Wait for nodes.

    Args:
        control: to SuperLink.
        nodes: with the ids that SuperLink gave them.
        seen: what SuperLink said of them when it had just been started, else None. A node that outlived an earlier
            SuperLink says that it is online until it notices: SuperLink must have heard of it since.
        say: told how many are missing.
        seconds: how long to wait; None: depends on how many they are.

    Raises:
        DeploymentRefused: some ended, or are not online in time; the message says why for each.
    """
    allowed = ONLINE_S + ONLINE_S_PER_NODE * len(nodes) if seconds is None else seconds
    until = time.monotonic() + allowed
    waiting = list(nodes)
    while True:
        heard = None if seen is None else _heard_of(control, seen)
        waiting = [node for node in waiting if not _is_online(node, heard)]
        ended = [node for node in waiting if not processes.is_running(node.process)]
        if not waiting:
            return
        if len(ended) == len(waiting) or time.monotonic() > until:
            raise DeploymentRefused("\n".join(_why_not_online(node, allowed) for node in waiting))
        say(f"waiting for {len(waiting) - len(ended)} of {len(nodes)} nodes")
        time.sleep(_POLL_S)


def forget(control: ControlLink, deployment: Deployment, node: NodeRecord) -> Deployment:
    """Return a deployment without a node that does not run: unregistered, its key and files removed."""
    if node.node_id is not None:
        with suppress(SuperLinkRefused):  # it may not know the node any more
            control.unregister_node(node.node_id)
    shutil.rmtree(node.state, ignore_errors=True)
    return deployment.without_node(node.name)


def _id_of(pem: bytes, known: Sequence[FlowerNode]) -> int | None:
    return next((node.node_id for node in known if node.public_key == pem), None)


def _heard_of(control: ControlLink, seen: Sequence[FlowerNode]) -> set[int]:
    before = {node.node_id: node.online_until for node in seen}
    online = (node for node in control.nodes() if node.status == ONLINE)
    return {node.node_id for node in online if node.online_until > before.get(node.node_id, 0.0)}


def _is_online(node: NodeRecord, heard: set[int] | None) -> bool:
    return read_report(node).state == ONLINE and (heard is None or node.node_id in heard)


def _register(control: ControlLink, node: NodeRecord, pem: bytes) -> int:
    try:
        return control.register_node(pem, node.name)
    except SuperLinkRefused as error:
        raise DeploymentRefused(
            f"{node.name}: SuperLink does not take its key ({error}). A key that was revoked stays so: replace it "
            "(docs/operations.md)."
        ) from error


def _forget_identity(node: NodeRecord, node_id: int) -> None:
    """Put the new id where the node looks at its start; it would ask for the old one."""
    path = node.state / "node.json"
    if path.exists():
        write_private(path, json.dumps({"node_id": node_id}).encode())


def _why_not_online(node: NodeRecord, seconds: float) -> str:
    report = read_report(node)
    log = node.state / "node.log"
    still = f"{report.state or 'starting'} after {seconds:.0f} s"
    state = still if processes.is_running(node.process) else "ended"
    return f"{node.name}: {state}: {report.reason or processes.last_line(log)} (log: {log})"

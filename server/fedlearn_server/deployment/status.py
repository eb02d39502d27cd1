"""What of a deployment is running, and what an operator has to do about the rest."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from fedlearn.errors import DeploymentRefused, SuperLinkRefused, SuperLinkUnreachable
from fedlearn_server.deployment import processes
from fedlearn_server.deployment.certificates import check_certificates, now_utc
from fedlearn_server.deployment.nodes import ONLINE, read_report
from fedlearn_server.deployment.operator import open_control
from fedlearn_server.deployment.records import NOT_STARTED, Deployment, NodeRecord, ProcessRecord, opened

if TYPE_CHECKING:
    from fedlearn_server.flower import FlowerNode, FlowerRun

WARN_DAYS: Final = 30
LEAST_FREE_BYTES: Final = 512 << 20
RUNS_SHOWN: Final = 20
STOPPED: Final = "stopped"
DIED: Final = "died"


@dataclass(frozen=True, slots=True)
class SuperLinkStatus:
    """How SuperLink is.

    Args:
        state: online, starting (it runs and does not answer), stopped or died.
        pid: 0 if it does not run.
        address: ``host:port``.
        since: ISO time of its start, or "".
        fedlearn: version that started it.
        flwr: version that started it.
    """

    state: str
    pid: int
    address: str
    since: str
    fedlearn: str
    flwr: str


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """How a node is.

    Args:
        name: of its directory.
        node_id: SuperLink's, or None.
        state: connecting, online, draining, starting, stopped or died.
        reason: why it is not online.
        since: ISO time of the last change of state, or "".
        answered: questions answered since its start.
        metrics_port: of its metrics and health page, or 0.
        pid: 0 if it does not run.
    """

    name: str
    node_id: int | None
    state: str
    reason: str
    since: str
    answered: int
    metrics_port: int
    pid: int


@dataclass(frozen=True, slots=True)
class NodeElsewhere:
    """How a node that does not run on this machine is, as SuperLink says.

    Args:
        name: for people.
        node_id: SuperLink's.
        state: registered, online or offline.
    """

    name: str
    node_id: int
    state: str


@dataclass(frozen=True, slots=True)
class DeploymentStatus:
    """How a deployment is.

    Args:
        directory: of the deployment.
        superlink: SuperLink.
        nodes: of this machine, in the deployment's order.
        runs: the newest that SuperLink knows, newest first; none if it does not answer.
        certificate_days: full days until SuperLink's certificate expires, or None if it cannot be used.
        disk_free_bytes: where the database lies.
        problems: what is not as it should be, each with the way out.
        elsewhere: nodes of other machines, by name; none if SuperLink does not answer.
    """

    directory: str
    superlink: SuperLinkStatus
    nodes: tuple[NodeStatus, ...]
    runs: tuple[FlowerRun, ...]
    certificate_days: int | None
    disk_free_bytes: int
    problems: tuple[str, ...]
    elsewhere: tuple[NodeElsewhere, ...] = ()

    @property
    def is_well(self) -> bool:
        """Whether nothing has to be done."""
        return not self.problems


def status(deployment: Deployment) -> DeploymentStatus:
    """Return how a deployment is; changes nothing.

    Raises:
        DeploymentRefused: its record cannot be read.
    """
    found = opened(deployment.directory)
    problems: list[str] = []
    days = _certificate_days(found, problems)
    superlink, runs, known = _superlink(found, problems)
    nodes = tuple(_node(node, problems) for node in found.nodes)
    elsewhere = _elsewhere(found, known)
    states = {superlink.state, *(node.state for node in nodes)}
    if states == {STOPPED} and days is not None:  # it would refuse a certificate that cannot be used
        problems.append("nothing runs here; `fedlearn up` starts it.")
    online = ONLINE in {*(node.state for node in nodes), *(node.state for node in elsewhere)}
    if superlink.state == ONLINE and not online:
        problems.append(f"no node is online, a training would wait; {_way_to_nodes(found)}")
    free = shutil.disk_usage(found.directory).free
    if free < LEAST_FREE_BYTES:
        problems.append(f"{free >> 20} MiB free where the database lies; make room in {found.directory}.")
    return DeploymentStatus(str(found.directory), superlink, nodes, runs, days, free, tuple(problems), elsewhere)


def _elsewhere(deployment: Deployment, known: Sequence[FlowerNode]) -> tuple[NodeElsewhere, ...]:
    here = {node.node_id for node in deployment.nodes}
    found = (NodeElsewhere(node.name, node.node_id, node.status) for node in known if node.node_id not in here)
    return tuple(sorted(found, key=lambda node: (node.name, node.node_id)))


def _way_to_nodes(deployment: Deployment) -> str:
    return f"`fedlearn up{'' if deployment.nodes else ' --nodes 3'}` starts some here."


def _superlink(
    deployment: Deployment, problems: list[str]
) -> tuple[SuperLinkStatus, tuple[FlowerRun, ...], tuple[FlowerNode, ...]]:
    record = deployment.superlink
    if not processes.is_running(record):
        state = _gone(record)
        if state != STOPPED:
            problems.append("SuperLink died; `fedlearn up` starts it.")
        return _superlink_status(deployment, state, running=False), (), ()
    answer = _asked(deployment, problems)
    if answer is None:
        return _superlink_status(deployment, "starting", running=True), (), ()
    return _superlink_status(deployment, ONLINE, running=True), *answer


def _superlink_status(deployment: Deployment, state: str, *, running: bool) -> SuperLinkStatus:
    record = deployment.superlink
    return SuperLinkStatus(
        state=state,
        pid=record.pid if running else 0,
        address=deployment.address,
        since=datetime.fromtimestamp(record.created, UTC).isoformat(timespec="seconds") if running else "",
        fedlearn=deployment.versions[0],
        flwr=deployment.versions[1],
    )


def _asked(deployment: Deployment, problems: list[str]) -> tuple[tuple[FlowerRun, ...], tuple[FlowerNode, ...]] | None:
    """Return the runs and the nodes that SuperLink knows."""
    try:
        control = open_control(deployment)
        try:
            return control.runs(RUNS_SHOWN), control.nodes()
        finally:
            control.close()
    except (SuperLinkUnreachable, SuperLinkRefused, OSError) as error:
        problems.append(f"{error} Its log: {deployment.layout.superlink_log}")
        return None


def _node(node: NodeRecord, problems: list[str]) -> NodeStatus:
    running = processes.is_running(node.process)
    report = read_report(node)
    state = (report.state or "starting") if running else _gone(node.process)
    reason = report.reason
    if state == DIED:
        problems.append(f"{node.name} died; `fedlearn up` starts it. The last it wrote: {_last_words(node)}")
    elif state not in {ONLINE, STOPPED}:
        problems.append(f"{node.name} is {state}{f': {reason}' if reason else ''}")
    return NodeStatus(
        name=node.name,
        node_id=node.node_id,
        state=state,
        reason=reason,
        since=report.since,
        answered=report.answered,
        metrics_port=report.metrics_port if running else 0,
        pid=node.process.pid if running else 0,
    )


def _gone(record: ProcessRecord) -> str:
    """Return why a process does not run: `fedlearn down` forgets it, an accident does not."""
    return STOPPED if record == NOT_STARTED else DIED


def _last_words(node: NodeRecord) -> str:
    return processes.last_line(node.state / "node.log")


def _certificate_days(deployment: Deployment, problems: list[str]) -> int | None:
    now = now_utc()
    try:
        found = check_certificates(deployment.layout.certificates, now)
    except DeploymentRefused as error:
        problems.append(str(error))
        return None
    days = (min(found.expires, found.authority_expires) - now).days
    if days < WARN_DAYS:
        problems.append(f"the certificate expires in {days} days; `fedlearn up --renew-certificates`.")
    return days

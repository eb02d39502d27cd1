"""Start whatever of a deployment is not running."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fedlearn.errors import DeploymentRefused, OutOfRange
from fedlearn_server.deployment import processes
from fedlearn_server.deployment.certificates import ensure_certificates, issue_server, now_utc, read_certificates
from fedlearn_server.deployment.layout import Layout, claim, locked
from fedlearn_server.deployment.nodes import (
    MOST_NODES,
    Say,
    forget,
    registered,
    silent,
    start_node,
    wait_until_online,
    with_nodes,
)
from fedlearn_server.deployment.operator import require_guarded
from fedlearn_server.deployment.records import (
    HOST,
    Deployment,
    NodeRecord,
    ProcessRecord,
    installed_versions,
    new_deployment,
    opened,
    saved,
)
from fedlearn_server.deployment.superlink import (
    choose_port,
    start_superlink,
    stop_superlink,
    wait_until_it_answers,
)

if TYPE_CHECKING:
    from fedlearn_server.flower import ControlLink

FIRST_NODES: Final = 3
STRAY_S: Final = 1.0


def up(
    directory: Path,
    nodes: int | None = None,
    *,
    port: int | None = None,
    host: str | None = None,
    say: Say = silent,
    node_command: Sequence[str] | None = None,
    gateways: Path | None = None,
) -> Deployment:
    """Start what is not running of a deployment, making it first if need be; return once every node is online.

    Safe to repeat and to interrupt; two at the same time wait for each other.

    Args:
        directory: of the deployment.
        nodes: how many, 0..512; None: those there are, 3 at first. More are added, those that do not run are removed.
        port: of SuperLink; None: the one it had, a free one at first.
        host: name by which others reach SuperLink, for its certificate.
        say: told what is going on.
        node_command: what to run instead of the installed `fedlearn node`.
        gateways: settings that its nodes share as gateways for phones; None: as it was, at first nodes that simulate.

    Raises:
        OutOfRange: ``nodes``.
        DeploymentRefused: something is in the way, or a part does not start; the message says what and the way out.
    """
    if nodes is not None and not 0 <= nodes <= MOST_NODES:
        raise OutOfRange(f"--nodes {nodes}: must be in 0..{MOST_NODES}.")
    with in_words(directory):
        layout = claim(directory.absolute())
        with locked(layout):
            return _up(layout, _Wish(nodes, port, host, node_command, gateways), say)


@contextmanager
def in_words(directory: Path) -> Iterator[None]:
    """Turn what the system says about files into DeploymentRefused with the way out."""
    try:
        yield
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        advice = "the disk is full: make room and try again" if full else "is it a directory that you may write?"
        raise DeploymentRefused(f"{error.filename or directory}: {error.strerror or error}; {advice}.") from error


@dataclass(frozen=True, slots=True)
class _Wish:
    """What `up` was asked for; None: as it is, or the default."""

    nodes: int | None
    port: int | None
    host: str | None
    node_command: Sequence[str] | None
    gateways: Path | None


def _up(layout: Layout, wish: _Wish, say: Say) -> Deployment:
    deployment = opened(layout.directory) if layout.record.exists() else saved(new_deployment(layout.directory))
    deployment = _with_gateways(_of_this_version(deployment), wish.gateways)
    at_first = deployment.superlink
    wanted = _count(deployment) if wish.nodes is None else wish.nodes
    extra = _extra_nodes(deployment, wanted)
    _prepare_certificates(deployment, wish.host)
    before = saved(with_nodes(deployment, wanted))
    deployment = _with_superlink(before, wish.port, say)
    deployment = _with_started_nodes(deployment, extra, wish.node_command, say)
    try:
        control = _guarded_control(deployment, silent if deployment.superlink == at_first else say)
    except DeploymentRefused:
        processes.stop(_new_processes(before, deployment), STRAY_S)
        raise
    try:
        for node in extra:
            deployment = forget(control, deployment, node)
        seen = control.nodes() if deployment.superlink != at_first else None
        deployment = saved(registered(control, deployment))
        wait_until_online(control, deployment.nodes, seen, say)
    finally:
        control.close()
    return deployment


def _with_gateways(deployment: Deployment, template: Path | None) -> Deployment:
    """Let the nodes be gateways; a node that runs stays what it is."""
    if template is None or template.absolute() == deployment.gateways:
        return deployment
    if any(processes.is_running(node.process) for node in deployment.nodes):
        kind = "nodes that simulate phones" if deployment.gateways is None else f"gateways by {deployment.gateways}"
        raise DeploymentRefused(f"--gateways {template}: {deployment.directory} runs {kind}; `fedlearn down` first.")
    return replace(deployment, gateways=template.absolute())


def _count(deployment: Deployment) -> int:
    was_started = deployment.port != 0
    return len(deployment.nodes) if was_started else FIRST_NODES


def _of_this_version(deployment: Deployment) -> Deployment:
    versions = installed_versions()
    if deployment.versions == versions:
        return deployment
    if any(map(processes.is_running, _recorded(deployment))):
        old, new = (
            " with ".join((f"fedlearn {pair[0]}", f"flwr {pair[1]}")) for pair in (deployment.versions, versions)
        )
        raise DeploymentRefused(
            f"{deployment.directory} runs {old}, this is {new}; `fedlearn down` first, then up again."
        )
    return saved(replace(deployment, versions=versions))


def _extra_nodes(deployment: Deployment, wanted: int) -> tuple[NodeRecord, ...]:
    """Return the nodes that are too many; none of them runs."""
    extra = deployment.nodes[wanted:]
    running = [node.name for node in extra if processes.is_running(node.process)]
    if running:
        raise DeploymentRefused(
            f"--nodes {wanted}: {len(deployment.nodes)} nodes are there and {', '.join(running)} would go, but runs; "
            f"`fedlearn down`, then `fedlearn up --nodes {wanted}`."
        )
    return extra


def _prepare_certificates(deployment: Deployment, host: str | None) -> None:
    directory = deployment.layout.certificates
    found = ensure_certificates(directory, now_utc(), () if host is None else (host,))
    if host is None or host in found.names:
        return
    if processes.is_running(deployment.superlink):
        raise DeploymentRefused(
            f"--host {host}: the certificate is for {', '.join(found.names)} and SuperLink runs with it; "
            "`fedlearn down`, then up with --host again."
        )
    issue_server(directory, now_utc(), (*read_certificates(directory).names, host))


def _with_superlink(deployment: Deployment, port: int | None, say: Say) -> Deployment:
    if processes.is_running(deployment.superlink):
        if port not in {None, deployment.port}:
            raise DeploymentRefused(f"--port {port}: SuperLink runs on port {deployment.port}; `fedlearn down` first.")
        _stop_strays(deployment, say)
        return deployment
    _stop_strays(deployment, say)
    address = f"{HOST}:{choose_port(deployment, port)}"
    if address != deployment.address:
        # nodes that still run look for SuperLink at the old one
        processes.stop([node.process for node in deployment.nodes], STRAY_S)
    say(f"starting SuperLink on {address}")
    deployment = saved(replace(deployment, address=address))
    return saved(replace(deployment, superlink=start_superlink(deployment)))


def _with_started_nodes(
    deployment: Deployment, extra: Sequence[NodeRecord], command: Sequence[str] | None, say: Say
) -> Deployment:
    """Start nodes before SuperLink answers: their imports take as long as its own."""
    for node in deployment.nodes:
        if node not in extra and not processes.is_running(node.process):
            say(f"starting {node.name}")
            deployment = deployment.with_node(replace(node, process=start_node(deployment, node, command)))
    return saved(deployment)


def _guarded_control(deployment: Deployment, say: Say) -> ControlLink:
    """Return a connection to a SuperLink that answers, to its operator alone; one that obeys anybody is stopped."""
    say(f"waiting for SuperLink at {deployment.address}")
    control = wait_until_it_answers(deployment)
    try:
        require_guarded(deployment)
    except BaseException:
        control.close()
        stop_superlink(deployment.superlink)
        raise
    return control


def _stop_strays(deployment: Deployment, say: Say) -> None:
    """Stop what a SuperLink that was killed left behind, or an `up` that was.

    A ServerApp without its SuperLink can reach nobody, and holds the lock of its training.
    """
    # in this order: a ServerApp that is started meanwhile is not among the first, or is among the second
    found = processes.marked(deployment.identity)
    ours = {member.pid for record in _recorded(deployment) for member in processes.family(record)}
    strays = [record for record in found if record.pid not in ours]
    if strays:
        say(f"stopping {len(strays)} processes that were left behind")
        processes.stop(strays, STRAY_S)


def _recorded(deployment: Deployment) -> list[ProcessRecord]:
    return [deployment.superlink, *(node.process for node in deployment.nodes)]


def _new_processes(before: Deployment, after: Deployment) -> list[ProcessRecord]:
    known = {node.process for node in before.nodes}
    return [node.process for node in after.nodes if node.process not in known]

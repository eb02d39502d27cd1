"""A SuperLink with TLS and node authentication for ``fedlearn bench scale``, and the nodes it measures."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fedlearn import __version__
from fedlearn.errors import RunError
from fedlearn.lab.bench.scale_app import Sample, ScaleOrder, read_samples, take_sample, to_json
from fedlearn.lab.bench.scale_nodes import KEY_FILE, Calls, from_plain
from fedlearn_server.app import ORDER
from fedlearn_server.deployment import processes
from fedlearn_server.deployment.certificates import ensure_certificates, now_utc
from fedlearn_server.deployment.keys import public_pem, write_node_key
from fedlearn_server.deployment.layout import write_private
from fedlearn_server.deployment.records import Deployment, ProcessRecord, new_deployment
from fedlearn_server.deployment.superlink import (
    choose_port,
    environment,
    program,
    start_superlink,
    wait_until_it_answers,
)
from fedlearn_server.flower import ControlLink, build_bundle, load_node_key

NODES_A_PROCESS = 16
SSH_KEY_FILE = "key.ssh"
"""Flower's own SuperNode reads no other form."""
POLL_S = 0.2
ONLINE_S = 120.0
END_S = 15.0


class ScaleWorld:
    """One running SuperLink.

    Args:
        deployment: where it is.
        control: to it.
    """

    def __init__(self, deployment: Deployment, control: ControlLink) -> None:
        self._deployment = deployment
        self._control = control
        self._named = 0
        self._runs = 0

    @property
    def _log(self) -> Path:
        return self._deployment.directory / "nodes.log"

    @property
    def superlink(self) -> int:
        """Pid."""
        return self._deployment.superlink.pid

    @contextmanager
    def resident(self, count: int) -> Iterator[ResidentNodes]:
        """Run ``count`` resident nodes, sixteen a process; they are online."""
        with ExitStack() as opened:
            directories = [self._new_node(opened) for _ in range(count)]
            hosts = []
            for first in range(0, count, NODES_A_PROCESS):
                some = [str(path) for path in directories[first : first + NODES_A_PROCESS]]
                command = [sys.executable, "-m", "fedlearn.lab.bench.scale_nodes", self._deployment.address]
                hosts.append(opened.enter_context(_host([*command, str(self._deployment.ca), *some], self._deployment)))
            self._wait_online(count, hosts)
            yield ResidentNodes(hosts)

    @contextmanager
    def stock(self, count: int) -> Iterator[tuple[int, ...]]:
        """Run ``count`` of Flower's own SuperNodes; yield their pids once they are online."""
        with ExitStack() as opened:
            records = [self._supernode(self._new_node(opened)) for _ in range(count)]
            opened.callback(_end, records)
            self._wait_online(count)
            yield tuple(record.pid for record in records)

    def run(self, weights: int, parts: int, rounds: int, seed: int, nodes: Sequence[int]) -> list[Sample]:
        """Train over the nodes that are online; return the totals before the first round and after each.

        Raises:
            RunError: the ServerApp failed.
        """
        self._runs += 1
        directory = self._deployment.directory / "runs" / str(self._runs)
        order = ScaleOrder(str(directory), weights, parts, rounds, seed, self.superlink, tuple(nodes))
        run_id = self._control.start_run(build_bundle(bundle_files()), {ORDER: to_json(order)})
        while True:
            time.sleep(POLL_S)
            found = self._control.run(run_id)
            if found is None or not found.is_over:
                continue
            if found.sub_status != "completed":
                raise RunError(f"the ServerApp of a measurement ended: {found.sub_status} {found.details}")
            return read_samples(order.samples)

    def idle(self, nodes: Sequence[int], seconds: float) -> tuple[Sample, Sample]:
        """Return the totals at both ends of some seconds without a run; this process stands for a ServerApp."""
        before = take_sample(self.superlink, nodes)
        time.sleep(seconds)
        return before, take_sample(self.superlink, nodes)

    def _new_node(self, opened: ExitStack) -> Path:
        self._named += 1
        directory = self._deployment.layout.node(f"node-{self._named}")
        directory.mkdir(mode=0o700, parents=True)
        write_node_key(directory / KEY_FILE)
        node_id = self._control.register_node(public_pem(directory / KEY_FILE), directory.name)
        opened.callback(self._control.unregister_node, node_id)
        return directory

    def _supernode(self, directory: Path) -> ProcessRecord:
        key = load_node_key(directory / KEY_FILE)
        write_private(directory / SSH_KEY_FILE, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        port = choose_port(replace(self._deployment, address="127.0.0.1:0"), None)
        command = [
            program("flower-supernode"),
            *("--superlink", self._deployment.address),
            *("--root-certificates", str(self._deployment.ca)),
            *("--auth-supernode-private-key", str(directory / SSH_KEY_FILE)),
            *("--port", str(port)),
        ]
        return processes.start(command, environment(self._deployment), directory, directory / "node.log")

    def _wait_online(self, count: int, hosts: Sequence[subprocess.Popen[str]] = ()) -> None:
        until = time.monotonic() + ONLINE_S
        while (online := sum(node.status == "online" for node in self._control.nodes())) < count:
            if time.monotonic() > until or any(host.poll() is not None for host in hosts):
                raise RunError(f"only {online} of {count} nodes came online; {processes.last_line(self._log)}")
            time.sleep(POLL_S)


@dataclass(frozen=True, slots=True)
class ResidentNodes:
    """Processes that host resident nodes."""

    hosts: Sequence[subprocess.Popen[str]]

    @property
    def pids(self) -> tuple[int, ...]:
        """Of the processes."""
        return tuple(host.pid for host in self.hosts)

    def calls(self) -> Calls:
        """Return what all nodes have sent and received so far."""
        total = Calls()
        for host in self.hosts:
            if host.stdin is None or host.stdout is None:
                raise RunError("a process that hosts nodes has no pipe.")
            host.stdin.write("calls\n")
            host.stdin.flush()
            total = total.plus(from_plain(json.loads(host.stdout.readline())))
        return total


@contextmanager
def scale_world() -> Iterator[ScaleWorld]:
    """Start a SuperLink with TLS, node authentication and a database on disk; nothing of it is left afterwards.

    Raises:
        DeploymentRefused: it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="fedlearn-scale-") as name, ExitStack() as opened:
        deployment = new_deployment(Path(name))
        ensure_certificates(deployment.layout.certificates, now_utc())
        deployment = replace(deployment, address=f"127.0.0.1:{choose_port(deployment, None)}")
        deployment = replace(deployment, superlink=start_superlink(deployment))
        opened.callback(_end, [deployment.superlink])
        control = wait_until_it_answers(deployment)
        opened.callback(control.close)
        yield ScaleWorld(deployment, control)


def bundle_files() -> dict[str, bytes]:
    """Return a bundle without code that names the apps of this benchmark."""
    project = f"""\
[project]
name = "fedlearn-scale"
version = "{__version__}"
description = "Names the installed apps of fedlearn bench scale; holds no code."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedlearn"

[tool.flwr.app.components]
serverapp = "fedlearn.lab.bench.scale_app:app"
clientapp = "fedlearn.lab.bench.scale_app:client_app"

[tool.flwr.app.config]
{ORDER} = ""
"""
    return {"pyproject.toml": project.encode()}


@contextmanager
def _host(command: Sequence[str], deployment: Deployment) -> Iterator[subprocess.Popen[str]]:
    log = deployment.directory / "nodes.log"
    with log.open("a") as errors:
        process = subprocess.Popen(  # noqa: S603 - our own program
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**environment(deployment), "OMP_NUM_THREADS": "1"},
        )
    with process:  # closes the pipes, which ends the nodes, and waits
        yield process


def _end(records: Sequence[ProcessRecord]) -> None:
    """End processes and what they have started."""
    families = [record for head in records for record in processes.family(head)]
    processes.stop(families, END_S)
    for record in records:
        processes.is_running(record)  # waits for what has ended: no zombie is left

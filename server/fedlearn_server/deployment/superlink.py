"""SuperLink's process: its port, its environment, its start, and the wait until it answers."""

from __future__ import annotations

import os
import random
import shutil
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fedlearn.errors import DeploymentRefused, SuperLinkUnreachable
from fedlearn.files import CACHE_VARIABLE, STATE_VARIABLE
from fedlearn_server.deployment import processes
from fedlearn_server.deployment.certificates import CA_CERTIFICATE, SERVER_CERTIFICATE, SERVER_KEY
from fedlearn_server.deployment.layout import make_private
from fedlearn_server.deployment.operator import ensure_token, open_control
from fedlearn_server.deployment.records import HOST, Deployment, ProcessRecord

if TYPE_CHECKING:
    from fedlearn_server.flower import ControlLink

START_S: Final = 90.0
"""A loaded machine takes a minute to import Flower."""
SUPERLINK_STOP_S: Final = 3.0
PORTS: Final = range(18000, 32000)
PORT_TRIES: Final = 100
SERVER_APP_STOP_S: Final = 2.0
_POLL_S: Final = 0.05  # nodes that come before they are registered wait for seconds
_QUOTED_LINES: Final = 6


def environment(deployment: Deployment) -> dict[str, str]:
    """Return the environment of a deployment's processes: this one's, with Flower kept quiet and to its directory.

    What Flower is told by this one's is left out: some of it opens a port that nobody guards.
    """
    chosen = {
        name: str(Path(os.environ[name]).absolute())
        for name in (STATE_VARIABLE, CACHE_VARIABLE)
        if os.environ.get(name)
    }
    programs = str(Path(sys.executable).parent)
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("FLWR_")},
        **chosen,
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_HOME": str(deployment.layout.flower_home),
        # At INFO each call of an operator is a line or two; DEBUG shows contents.
        "FLWR_LOG_LEVEL": "WARNING",
        # Flower starts what it needs by name.
        "PATH": os.pathsep.join(filter(None, (programs, os.environ.get("PATH", os.defpath)))),
        processes.IDENTITY: deployment.identity,
    }


def start_superlink(deployment: Deployment) -> ProcessRecord:
    """Start SuperLink.

    Raises:
        DeploymentRefused: it is not installed.
    """
    layout = deployment.layout
    program("flower-superlink")
    ensure_token(deployment)
    make_private(layout.database.parent)
    make_private(layout.flower_home)
    command = [
        *(sys.executable, "-m", "fedlearn_server.superlink"),
        *("--operator-token", str(layout.operator_token)),
        *("--ssl-ca-certfile", str(layout.certificates / CA_CERTIFICATE)),
        *("--ssl-certfile", str(layout.certificates / SERVER_CERTIFICATE)),
        *("--ssl-keyfile", str(layout.certificates / SERVER_KEY)),
        *("--host", HOST, "--port", str(deployment.port)),
        *("--database", str(layout.database)),
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
    ]
    return processes.start(command, environment(deployment), deployment.directory, layout.superlink_log)


def wait_until_it_answers(deployment: Deployment, seconds: float = START_S) -> ControlLink:
    """Return a connection to SuperLink once it answers.

    Raises:
        DeploymentRefused: it ended, or does not answer in time.
        SuperLinkRefused: what answers there is not this SuperLink.
    """
    control = open_control(deployment)
    until = time.monotonic() + seconds
    while True:
        try:
            control.nodes()
        except SuperLinkUnreachable as error:
            problem = _what_went_wrong(deployment, error, time.monotonic() > until)
            if problem is not None:
                control.close()
                raise problem from None
            time.sleep(_POLL_S)
        else:
            return control


def choose_port(deployment: Deployment, asked: int | None) -> int:
    """Return a port for a SuperLink that does not run: the one asked for, the one it had, or a free one.

    Raises:
        DeploymentRefused: that port is taken; nodes look for SuperLink where it was, so another is only taken if asked.
    """
    port = deployment.port if asked is None else asked
    if port == 0:
        return _free_port()
    if not _is_free(port):
        raise DeploymentRefused(
            f"port {port} of {HOST} is taken by {processes.holder_of(port)}; name another: `fedlearn up --port PORT`."
        )
    return port


def program(name: str) -> str:
    """Return the path of a program of this environment.

    Raises:
        DeploymentRefused: it is not installed.
    """
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise DeploymentRefused(f"{name} is not installed: pip install fedlearn-server.")
    return found


def stop_superlink(superlink: ProcessRecord) -> None:
    """Stop SuperLink and its ServerApps.

    It is killed when it takes long: it waits half a minute for connections that somebody keeps open, and its database
    is safe (write-ahead log).

    Raises:
        DeploymentRefused: a process cannot be ended.
    """
    members = processes.family(superlink)
    processes.stop([superlink], SUPERLINK_STOP_S)
    processes.stop(members, SERVER_APP_STOP_S)


def _what_went_wrong(deployment: Deployment, error: Exception, too_late: bool) -> DeploymentRefused | None:
    log = deployment.layout.superlink_log
    if processes.is_running(deployment.superlink):
        return DeploymentRefused(f"SuperLink runs but does not answer: {error} Its log: {log}") if too_late else None
    words = "\n  ".join(processes.last_lines(log, _QUOTED_LINES)) or "nothing"
    return DeploymentRefused(f"SuperLink ended at its start; it wrote to {log}:\n  {words}")


def _free_port() -> int:
    """Return a free port below those that systems give to outgoing connections.

    A node that looks for a SuperLink that was killed may be given the very port it calls as its own: on Linux it is
    then connected to itself, and the port is taken.
    """
    for port in random.SystemRandom().sample(PORTS, k=PORT_TRIES):
        if _is_free(port):
            return port
    raise DeploymentRefused(f"no free port found in {PORTS.start}..{PORTS.stop - 1}; name one: `--port PORT`.")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # as SuperLink itself: connections of an earlier one that are being closed do not count
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except PermissionError:
            raise DeploymentRefused(
                f"--port {port}: this user may not use ports below 1024; name another one."
            ) from None
        except OSError:
            return False
    return True

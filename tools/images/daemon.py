"""A Docker daemon of our own: started by hand, used over its own socket, stopped by its process id.

A build needs this machine's network, a fleet needs networks with names and walls. One daemon has both only if it may
change the machine's own network: so there is one for the builds, without a bridge, and one for the fleet, in an empty
network namespace. They use the same folder, one after the other.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedlearn.errors import MissingDependency, RunError

START_S: Final = 60.0
STOP_S: Final = 30.0
POLL_S: Final = 0.2
DOCKER: Final = ("docker", "dockerd", "docker-compose", "debootstrap")
INSTALL: Final = "apt-get install docker.io docker-compose debootstrap"


@dataclass(frozen=True, slots=True)
class Docker:
    """Commands to one daemon.

    Args:
        socket: of the daemon.
    """

    socket: Path

    def run(self, *command: str, environment: dict[str, str] | None = None, timeout_s: float = 600) -> str:
        """Run ``docker ...`` or ``docker-compose ...`` and return what it printed.

        Raises:
            RunError: it failed; the message has the end of what it said.
        """
        done = subprocess.run(
            command,
            env={
                **os.environ,
                "DOCKER_HOST": f"unix://{self.socket}",
                "DOCKER_BUILDKIT": "1",
                "BUILDKIT_PROGRESS": "plain",
                **(environment or {}),
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )
        if done.returncode:
            said = (done.stdout + done.stderr).strip()[-3000:]
            raise RunError(f"{' '.join(command)}: exit status {done.returncode}:\n{said}")
        return done.stdout


def require_programs() -> None:
    """Raise MissingDependency unless all that is needed is installed and may be used."""
    missing = [name for name in DOCKER if shutil.which(name) is None]
    if missing:
        raise MissingDependency(f"{', '.join(missing)}: not installed; {INSTALL}")
    if os.geteuid() != 0:
        raise MissingDependency("a daemon of our own needs root.")


@contextmanager
def building(folder: Path) -> Iterator[Docker]:
    """Run a daemon for builds: with this machine's network, without networks of its own."""
    with _daemon(folder, [], "--bridge=none", "--iptables=false", "--ip6tables=false") as docker:
        yield docker


@contextmanager
def networked(folder: Path) -> Iterator[Docker]:
    """Run a daemon in a network namespace of its own: bridges and walls, and no way to anything outside it."""
    holder = subprocess.Popen(["unshare", "--net", "sleep", "7200"])
    try:
        time.sleep(POLL_S)  # until it has the namespace
        entered = ["nsenter", f"--net=/proc/{holder.pid}/ns/net"]
        subprocess.run([*entered, "ip", "link", "set", "lo", "up"], check=True, timeout=10)
        with _daemon(folder, entered) as docker:
            yield docker
    finally:
        holder.terminate()
        holder.wait()


@contextmanager
def _daemon(folder: Path, prefix: list[str], *options: str) -> Iterator[Docker]:
    folder.mkdir(parents=True, exist_ok=True)
    docker = Docker(folder / "docker.sock")
    places = ("data-root", "exec-root", "pidfile")
    command = [*prefix, "dockerd", "--host", f"unix://{docker.socket}", *options]
    for place in places:
        command += [f"--{place}", str(folder / place)]
    log = folder / "dockerd.log"
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        _wait(docker, process, log)
        yield docker
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(docker: Docker, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_S
    while True:
        try:
            docker.run("docker", "info", timeout_s=10)
        except (RunError, subprocess.TimeoutExpired) as error:
            if process.poll() is not None or time.monotonic() > until:
                words = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
                raise RunError(f"dockerd does not run here; the end of {log}:\n{words}") from error
            time.sleep(POLL_S)
        else:
            return

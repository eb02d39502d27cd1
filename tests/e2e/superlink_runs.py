"""Runs over a deployment of this machine, for tests that kill its parts."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

from fedlearn.lab import rundir
from fedlearn.lab.superlink import marks
from fedlearn.ledger import verifier
from fedlearn_server.checkpoint import load_model
from fedlearn_server.deployment import Deployment, default_directory, down, opened, processes, up

PATIENCE_S = 120.0
TOLERANCE = 1e-6
"""Absolute and relative: what single precision leaves when a population is split otherwise."""


class City(Protocol):
    """The part of ``SmallCity`` that is used here."""

    def start(self, directory: Path, *overrides: str) -> subprocess.Popen[str]:
        """Start ``fedlearn train``."""

    def command(self, *arguments: str) -> subprocess.Popen[str]:
        """Start ``fedlearn``."""

    def steps(self, directory: Path) -> list[int]:
        """Return the recorded steps."""


@contextmanager
def deployed(state: Path, nodes: int) -> Iterator[Deployment]:
    """Be a user with a SuperLink: what ``fedlearn up`` makes, in a state directory of its own; ends with ``down``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDLEARN_STATE", str(state))
        try:
            yield up(default_directory(), nodes)
            down(opened(default_directory()), stop_runs=True)
        finally:
            record = default_directory() / "deployment.json"
            if record.exists():
                processes.stop(processes.marked(opened(default_directory()).identity), 0.0)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(holds: Callable[[], Any], what: str) -> None:
    """Wait for something that happens soon."""
    end = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {PATIENCE_S:g} s for: {what}")
        time.sleep(0.02)


def wait_for_steps(city: City, directory: Path, more: int, process: subprocess.Popen[str]) -> None:
    """Wait for that many rounds more."""
    goal = len(city.steps(directory)) + more
    wait_until(lambda: len(city.steps(directory)) >= goal or process.poll() is not None, f"round {goal}")
    assert process.poll() is None, f"ended early: {process.communicate()[0]}"


def wait_until_followed(city: City, directory: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a process that was just started follows the run: it has the directory's lock and saw a round."""

    def is_locked() -> bool:
        with (directory / rundir.LOCK_FILE).open("r") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    wait_until(lambda: is_locked() or process.poll() is not None, "the run to be followed")
    wait_for_steps(city, directory, 1, process)


def kill_serverapp(directory: Path) -> int:
    """Kill the ServerApp at work on a training; return its Flower run."""
    who = marks.read_at_work(directory)
    assert who is not None
    assert marks.is_held(directory)
    os.kill(who.pid, signal.SIGKILL)
    wait_until(lambda: not marks.is_held(directory), "the lock of a killed process to be free")
    return who.flower_run


def finished(process: subprocess.Popen[str]) -> str:
    """Wait for the command's end and return what it said."""
    output, _ = process.communicate(timeout=2 * PATIENCE_S)
    assert process.returncode == 0, output
    return " ".join(output.split())


def weights(directory: Path) -> np.ndarray:
    """Return the finished model as one vector."""
    model = load_model(directory)
    return np.concatenate([model[name].ravel() for name in sorted(model)])


def assert_same_model(left: Path, right: Path) -> None:
    """Compare the models of two run directories."""
    one, two = weights(left), weights(right)
    assert np.abs(one).max() > 0.01, "nothing was learnt, so nothing was compared"
    assert np.abs(one - two).max() <= TOLERANCE
    assert np.linalg.norm(one - two) <= TOLERANCE * np.linalg.norm(one)


def verify(directory: Path) -> None:
    """Run the verifier that shares no code with the ledger; it raises what it rejects."""
    verifier.verify(None, directories=[directory])

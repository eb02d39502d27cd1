"""Processes are found by pid and time of creation, stopped with all they started, and nobody else is touched."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from fedlearn.errors import DeploymentRefused
from fedlearn_server.deployment import processes
from fedlearn_server.deployment.records import NOT_STARTED, ProcessRecord, new_deployment
from fedlearn_server.deployment.superlink import choose_port, environment, program, stop_superlink
from fedlearn_server.superlink import FLOWER_SETTINGS

SLEEP = "import time\nprint('ready', flush=True)\ntime.sleep(60)"
STUBBORN = f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n{SLEEP}"
PARENT = (
    f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {STUBBORN!r}], start_new_session=True)\n{SLEEP}"
)

Start = Callable[[str], ProcessRecord]


@pytest.fixture
def identity() -> Iterator[str]:
    """Of a deployment of this test; what it started ends with the test."""
    made = uuid.uuid4().hex
    yield made
    processes.stop(processes.marked(made), 0.0)


@pytest.fixture
def start(identity: str, tmp_path: Path) -> Start:
    """Start a script and wait until it, and its child, are ready."""

    def act(script: str) -> ProcessRecord:
        log = tmp_path / f"{uuid.uuid4().hex}.log"
        environ = {**os.environ, processes.IDENTITY: identity}
        record = processes.start([sys.executable, "-c", script], environ, tmp_path, log)
        until_lines(log, 2 if script is PARENT else 1)
        return record

    return act


def until_lines(log: Path, count: int) -> None:
    while log.read_text().count("ready") < count:
        time.sleep(0.01)


def test_runs_until_it_is_stopped(start: Start, identity: str) -> None:
    record = start(SLEEP)
    assert processes.is_running(record)
    assert [found.pid for found in processes.marked(identity)] == [record.pid]
    assert processes.stop([record], 10.0) == ()
    assert not processes.is_running(record)
    assert processes.marked(identity) == ()


def test_what_it_writes_nobody_else_can_read(start: Start, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        start(f"open('database', 'w').close()\n{SLEEP}")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "database").stat().st_mode) == 0o600
    assert all(stat.S_IMODE(log.stat().st_mode) == 0o600 for log in tmp_path.glob("*.log"))


def test_superlink_takes_its_helpers_along(start: Start) -> None:
    parent = start(PARENT)
    members = processes.family(parent)
    stop_superlink(parent)
    assert processes.wait_gone(members, 0.0) == ()


def test_a_terminal_that_is_closed_does_not_stop_it(start: Start) -> None:
    record = start(SLEEP)
    assert os.getsid(record.pid) == record.pid != os.getsid(0)


def test_a_pid_of_another_process_is_left_alone(start: Start) -> None:
    record = start(SLEEP)
    reused = replace(record, created=record.created - 60.0)
    assert not processes.is_running(reused)
    assert processes.family(reused) == ()
    assert processes.stop([reused], 0.0) == ()
    assert processes.is_running(record)


def test_a_clock_that_is_set_a_little(start: Start) -> None:
    record = start(SLEEP)
    assert processes.is_running(replace(record, created=record.created + 0.5))


def test_never_started() -> None:
    assert not processes.is_running(NOT_STARTED)
    assert processes.family(NOT_STARTED) == ()
    assert processes.stop([NOT_STARTED], 0.0) == ()


def test_a_zombie_does_not_run() -> None:
    """Its parent, here this process, has not waited for it: an `up` in another process sees exactly that."""
    child = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.DEVNULL)
    record = processes.record_of(psutil.Process(child.pid))
    try:
        while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        assert not processes.is_running(record)
        assert processes.stop([record], 5.0) == ()
    finally:
        child.wait()


def test_one_whose_first_thread_ended_runs_until_the_last_has(start: Start) -> None:
    """It shows as a zombie; taken for one, it would hold its port after `down`, and never be waited for."""
    record = start(
        "import ctypes, threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\n"
        "print('ready', flush=True)\nctypes.CDLL(None).pthread_exit(None)"
    )
    process = psutil.Process(record.pid)
    while process.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert processes.is_running(record)
    processes.stop([record], 10.0)
    assert not psutil.pid_exists(record.pid), "it was waited for"


def test_one_that_ignores_us_is_killed(start: Start) -> None:
    stubborn, polite = start(STUBBORN), start(SLEEP)
    assert processes.stop([stubborn, polite], 0.5) == (stubborn,)
    assert not processes.is_running(stubborn)


def test_children_in_sessions_of_their_own_are_found(start: Start) -> None:
    parent = start(PARENT)
    members = processes.family(parent)
    assert len(members) == 2
    processes.stop(members, 0.2)
    assert processes.wait_gone(members, 0.0) == ()


def test_children_whose_parent_was_killed_are_found(start: Start, identity: str) -> None:
    parent = start(PARENT)
    child = next(member for member in processes.family(parent) if member != parent)
    os.kill(parent.pid, signal.SIGKILL)
    assert processes.wait_gone([parent], 10.0) == ()
    assert processes.family(parent) == ()
    assert processes.marked(identity) == (child,)


def test_those_of_another_deployment_are_not(start: Start) -> None:
    start(SLEEP)
    assert processes.marked(uuid.uuid4().hex) == ()


def test_this_process_is_not_its_own_stray(monkeypatch: pytest.MonkeyPatch, identity: str) -> None:
    script = (
        "import os, sys; from fedlearn_server.deployment import processes; "
        "print([found.pid == os.getpid() for found in processes.marked(sys.argv[1])])"
    )
    environ = {**os.environ, processes.IDENTITY: identity}
    done = subprocess.run(
        [sys.executable, "-c", script, identity], check=False, env=environ, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DeploymentRefused, match="flower-nothing is not installed"):
        processes.start([str(tmp_path / "flower-nothing")], os.environ, tmp_path, tmp_path / "log")
    with pytest.raises(DeploymentRefused, match="flower-nothing is not installed"):
        program("flower-nothing")


def test_a_large_log_is_moved_aside(start: Start, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.truncate(processes.LONGEST_LOG + 1)
    record = processes.start([sys.executable, "-c", ""], os.environ, tmp_path, log)
    assert processes.wait_gone([record], 10.0) == ()
    assert log.stat().st_size == 0
    assert (tmp_path / "log.1").stat().st_size == processes.LONGEST_LOG + 1


def test_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert processes.last_line(log) == f"it wrote nothing to {log}"
    said = {"level": "critical", "message": "ended by an exception", "error": "ValueError at a.py:3"}
    log.write_bytes(
        b"\x1b[91mERROR\x1b[0m: no\n" + json.dumps(said).encode() + b"\n\n[1]\n\xff\n" + b"x" * 900 + b"\n\n"
    )
    assert processes.last_lines(log, 5) == [
        "ERROR: no",
        "ended by an exception ValueError at a.py:3",
        "[1]",
        "\ufffd",
        "x" * 500,
    ]


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_port_that_is_taken(tmp_path: Path, taken: int) -> None:
    known = replace(new_deployment(tmp_path), address=f"127.0.0.1:{taken}")
    words = rf"port {taken} of 127\.0\.0\.1 is taken by process {os.getpid()} .*`fedlearn up --port PORT`"
    with pytest.raises(DeploymentRefused, match=words):
        choose_port(known, None)
    with pytest.raises(DeploymentRefused, match=words):
        choose_port(new_deployment(tmp_path), taken)


def test_a_port_is_kept_while_it_is_free(tmp_path: Path) -> None:
    port = choose_port(new_deployment(tmp_path), None)
    assert 1024 <= port <= 65535
    known = replace(new_deployment(tmp_path), address=f"127.0.0.1:{port}")
    assert choose_port(known, None) == port
    other = choose_port(new_deployment(tmp_path), None)
    assert choose_port(known, other) == other


def test_a_port_whose_last_connections_are_closing_is_free(tmp_path: Path) -> None:
    """SuperLink was killed and is started again at once: the system still holds its connections (TIME_WAIT)."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            accepted = server.accept()[0]
            accepted.close()
            assert client.recv(1) == b""
    assert choose_port(replace(new_deployment(tmp_path), address=f"127.0.0.1:{port}"), None) == port


def test_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLEARN_STATE", "relative")
    monkeypatch.setenv("FLWR_LOG_LEVEL", "DEBUG")  # it would put contents into the log
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    monkeypatch.setenv("FLWR_INTERNAL_GRPC_CONTROL_API", "1")  # it would open a port that nobody guards
    deployment = new_deployment(tmp_path)
    made = environment(deployment)
    assert made["FEDLEARN_STATE"] == str(Path("relative").absolute())
    assert made["FLWR_LOG_LEVEL"] == "WARNING"
    assert made["FLWR_TELEMETRY_ENABLED"] == "0"
    assert {name for name in made if name.startswith("FLWR_")} == FLOWER_SETTINGS
    assert made["FLWR_HOME"].startswith(str(tmp_path))
    assert made["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert made[processes.IDENTITY] == deployment.identity

"""Processes that outlive the command that started them: found again, and stopped, by pid and time of creation.

The only importer of psutil here. Every process carries the deployment's identity in its environment, which its children
inherit: so those are found too whose parent died, or that were started and never recorded.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import psutil

from fedlearn.errors import DeploymentRefused
from fedlearn_server.deployment.records import NOT_STARTED, ProcessRecord

IDENTITY: Final = "FEDLEARN_DEPLOYMENT"
CLOCK_S: Final = 1.0
"""psutil computes the time of creation from the time of boot, which moves when the clock is set by a little."""
KILL_WAIT_S: Final = 5.0
LONGEST_LOG: Final = 16 << 20
_POLL_S: Final = 0.05
_COLOR: Final = re.compile(r"\x1b\[[0-9;]*m")
_GONE: Final = (psutil.NoSuchProcess, psutil.AccessDenied)

# Kept so that one that ends while this process lives is waited for, and is no zombie.
_started: Final[list[subprocess.Popen[bytes]]] = []


def start(command: Sequence[str], environment: Mapping[str, str], directory: Path, log: Path) -> ProcessRecord:
    """Start a process in a session of its own, so that nothing sent to this one's terminal reaches it.

    Args:
        command: program and arguments.
        environment: all of it.
        directory: to work in.
        log: file for what it writes, appended to; one that has grown large is moved aside first.

    Raises:
        DeploymentRefused: the program is not there, or ended at once.
    """
    if log.exists() and log.stat().st_size > LONGEST_LOG:
        log.replace(log.with_name(log.name + ".1"))
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        process = subprocess.Popen(  # noqa: S603 - our own programs
            command,
            stdin=subprocess.DEVNULL,
            stdout=handle,
            stderr=handle,
            env=dict(environment),
            cwd=directory,
            start_new_session=True,
            umask=0o077,
        )
    except FileNotFoundError:
        raise DeploymentRefused(f"{command[0]} is not installed; pip install fedlearn-server.") from None
    finally:
        os.close(handle)
    _started.append(process)
    try:
        return ProcessRecord(process.pid, float(psutil.Process(process.pid).create_time()))
    except psutil.NoSuchProcess:
        raise DeploymentRefused(f"{command[0]} ended at once: {last_line(log)}") from None


def is_running(record: ProcessRecord) -> bool:
    """Whether the process that was recorded still runs; one that only has its pid, or is a zombie, does not."""
    return _find(record) is not None


def record_of(process: psutil.Process) -> ProcessRecord:
    """Return what names a process."""
    return ProcessRecord(process.pid, float(process.create_time()))


def family(record: ProcessRecord) -> tuple[ProcessRecord, ...]:
    """Return a process and all its descendants; nothing if it does not run."""
    process = _find(record)
    if process is None:
        return ()
    try:
        children = process.children(recursive=True)
    except _GONE:
        children = []
    return tuple(_records([process, *children]))


def command_of(record: ProcessRecord) -> str:
    """Return a running process's command line, or ""."""
    process = _find(record)
    try:
        return "" if process is None else " ".join(process.cmdline())
    except _GONE:
        return ""


def listens_at(record: ProcessRecord) -> frozenset[str]:
    """Return where a running process takes connections, as ``address:port``; its children do not count.

    Raises:
        DeploymentRefused: the system does not say.
    """
    process = _find(record)
    try:
        found = [] if process is None else process.net_connections("inet")
    except psutil.NoSuchProcess:
        return frozenset()
    except (psutil.Error, OSError) as error:
        raise DeploymentRefused(f"where process {record.pid} takes connections cannot be seen: {error}.") from None
    return frozenset(f"{at.laddr.ip}:{at.laddr.port}" for at in found if at.status == psutil.CONN_LISTEN)


def marked(identity: str) -> tuple[ProcessRecord, ...]:
    """Return every other process of this user that a deployment, or one of its processes, started and that runs."""
    others = (process for process in psutil.process_iter() if process.pid != os.getpid())
    return tuple(_records(process for process in others if _is_marked(process, identity)))


def stop(records: Iterable[ProcessRecord], grace_s: float) -> tuple[ProcessRecord, ...]:
    """Ask processes to end, and end those that have not after ``grace_s`` seconds.

    Returns:
        Those that had to be killed.

    Raises:
        DeploymentRefused: one cannot be ended.
    """
    asked = tuple(record for record in records if record != NOT_STARTED)
    _signal(asked, signal.SIGTERM)
    late = wait_gone(asked, grace_s)
    _signal(late, signal.SIGKILL)
    left = wait_gone(late, KILL_WAIT_S)
    if left:
        raise DeploymentRefused(
            f"processes {', '.join(str(record.pid) for record in left)} do not end, even when killed: the system holds "
            "them (a disk that does not answer?). `fedlearn down` again when it lets go."
        )
    return late


def wait_gone(records: Iterable[ProcessRecord], seconds: float) -> tuple[ProcessRecord, ...]:
    """Wait for processes to end; return those that still run after ``seconds``."""
    until = time.monotonic() + seconds
    while True:
        running = tuple(record for record in records if is_running(record))
        if not running or time.monotonic() >= until:
            return running
        time.sleep(_POLL_S)


def holder_of(port: int) -> str:
    """Return who listens on a port of this machine, in words, as far as the system tells this user."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f"process {connection.pid} ({psutil.Process(connection.pid).name()})"
    except psutil.Error:
        pass
    return "another process"


def last_line(log: Path) -> str:
    """Return what the last line of a log says."""
    return " ".join(last_lines(log, 1)) or f"it wrote nothing to {log}"


def last_lines(log: Path, count: int) -> list[str]:
    """Return what the last lines of a log say, at most 500 characters each: no empty ones, no colors, no JSON."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 64 * 1024))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    lines = (_COLOR.sub("", line).strip() for line in text.splitlines())
    return [_words(line)[:500] for line in [line for line in lines if line][-count:]]


def _words(line: str) -> str:
    """Return the words of a structured log line, or the line."""
    try:
        plain = json.loads(line)
        return " ".join(str(plain[name]) for name in ("message", "error") if name in plain) or line
    except (ValueError, TypeError):
        return line


def _find(record: ProcessRecord) -> psutil.Process | None:
    process = _look_up(record)
    if process is None:
        _started[:] = [child for child in _started if child.poll() is None]
    return process


def _look_up(record: ProcessRecord) -> psutil.Process | None:
    if record.pid <= 0:
        return None
    try:
        process = psutil.Process(record.pid)
        if abs(process.create_time() - record.created) > CLOCK_S:
            return None
        if process.status() == psutil.STATUS_ZOMBIE and _can_be_reaped(record.pid):
            return None
    except _GONE:
        return None
    return process


def _can_be_reaped(pid: int) -> bool:
    """Whether a zombie is all over. One whose first thread ended looks like one too, while its other threads run."""
    return all(child.poll() is not None for child in _started if child.pid == pid)


def _records(processes: Iterable[psutil.Process]) -> Iterable[ProcessRecord]:
    for process in processes:
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                yield record_of(process)
        except _GONE:
            continue


def _is_marked(process: psutil.Process, identity: str) -> bool:
    try:
        return bool(process.environ().get(IDENTITY) == identity)
    except (*_GONE, OSError):
        return False


def _signal(records: Iterable[ProcessRecord], what: signal.Signals) -> None:
    for record in records:
        process = _find(record)
        if process is not None:
            try:
                process.send_signal(what)
            except _GONE:
                continue

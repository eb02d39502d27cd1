"""A daemon in a process of its own, as ``fedlearn-device serve`` starts it, called as an app would call it.

The daemon tells callers apart by their user id, and whoever runs a benchmark has one. So there is one caller at a time:
each *life* of the daemon begins with another callers file.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf.message import Message

from fedlearn.errors import TransportFailed, WorkerFailed
from fedlearn.proto import device_pb2 as pb
from fedlearn_client.hooks import Role

FORBIDDEN: Final = ("numpy", "onnxruntime", "onnx", "torch", "flwr", "fedlearn_server", "fedlearn.lab")
"""Packages that the daemon must never load."""

_SERVE: Final = "import sys; from fedlearn_client.cli import main; sys.exit(main())"
_START_S: Final = 60.0
_CALL_S: Final = 120.0
_POLL_S: Final = 0.001
_GONE_S: Final = 60.0
_KIB: Final = 1024.0
_OPTIONS: Final = (
    ("grpc.max_send_message_length", 16 * 2**20),
    ("grpc.max_receive_message_length", 16 * 2**20),
    ("grpc.initial_reconnect_backoff_ms", 10),
    ("grpc.use_local_subchannel_pool", 1),  # each life has a connection of its own
)


@dataclass(frozen=True, slots=True)
class Life:
    """A running daemon with one known caller.

    Args:
        pid: of the daemon.
        serving_s: from its start to its first answer.
        channel: to its public socket.
    """

    pid: int
    serving_s: float
    channel: grpc.Channel

    def call(self, method: str, request: Message | bytes = b"") -> Any:
        """Call ``Service/Method`` and return the reply; raise TransportFailed with the daemon's words."""
        data = request if isinstance(request, bytes) else request.SerializeToString()
        try:
            reply = _stub(self.channel, method)(data, timeout=_CALL_S)
        except grpc.RpcError as error:
            raise TransportFailed(f"bench: {method}: {error.code().name}: {error.details()}") from None
        return getattr(pb, f"{method.partition('/')[2]}Reply").FromString(reply)

    def seconds(self, method: str, requests: list[bytes]) -> list[float]:
        """Return how long each call took, one after the other; raise TransportFailed for one that fails."""
        call, found = _stub(self.channel, method), []
        try:
            for request in requests:
                began = time.perf_counter()
                call(request, timeout=_CALL_S)
                found.append(time.perf_counter() - began)
        except grpc.RpcError as error:
            raise TransportFailed(f"bench: {method}: {error.code().name}: {error.details()}") from None
        return found

    def mebibytes(self, field: str = "VmRSS") -> float:
        """Return a memory field of the daemon's /proc status, in MiB."""
        return status_mebibytes(self.pid, field)

    def workers(self) -> list[int]:
        """Return the process ids of its children."""
        threads = Path(f"/proc/{self.pid}/task").glob("*/children")
        return [int(pid) for children in threads for pid in _read(children).split()]

    def kill_workers(self) -> None:
        """End its workers, as idleness or a withdrawal would, and wait until they are gone."""
        for pid in self.workers():
            os.kill(pid, signal.SIGKILL)
        self.await_no_workers()

    def await_no_workers(self) -> float:
        """Wait until it has no worker; return the seconds.

        Raises:
            WorkerFailed: one is still there after a minute.
        """
        began = time.monotonic()
        while self.workers():
            if time.monotonic() - began > _GONE_S:
                raise WorkerFailed("bench: the daemon's worker does not end.")
            time.sleep(0.02)
        return time.monotonic() - began


class Phone:
    """Settings and state of a daemon that is started again and again.

    Args:
        folder: this user's own; the socket's path must be short.
        root_key: that signed the roster.
    """

    def __init__(self, folder: Path, root_key: str) -> None:
        self._folder = folder
        self._socket = folder / "s"
        self._settings = folder / "settings.toml"
        table: dict[str, object] = {
            "directory": str(folder / "state"),
            "socket": str(self._socket),
            "callers": str(folder / "callers.toml"),
            "root_keys": [root_key],
            "recommend_rate": 10_000.0,  # the limit of an app's own is for apps
            "recommend_burst": 10_000,
        }
        self._settings.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in table.items()))

    @contextmanager
    def life(self, app: str, role: Role, *, imports: bool = False) -> Iterator[Life]:
        """Run the daemon; this user is ``app``.

        Args:
            app: id.
            role: what it may call.
            imports: have the interpreter note every import, for ``loaded``; slower.

        Raises:
            TransportFailed: it does not serve.
        """
        callers = self._folder / "callers.toml"
        callers.write_text(f'[{os.geteuid()}]\napp = "{app}"\nrole = "{role}"\n')
        callers.chmod(0o600)
        self._socket.unlink(missing_ok=True)
        began = time.perf_counter()
        with self._errors.open("a") as errors:
            daemon = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [
                    sys.executable,
                    *(("-X", "importtime") if imports else ()),
                    *("-c", _SERVE, "serve", "--settings", str(self._settings)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        try:
            channel = self._connected(daemon)
            with channel:
                _answer(channel)
                yield Life(daemon.pid, time.perf_counter() - began, channel)
        finally:
            daemon.terminate()
            daemon.wait(_CALL_S)

    def loaded(self) -> frozenset[str]:
        """Return the modules that daemons with ``imports`` loaded so far."""
        lines = self._errors.read_text().splitlines()
        return frozenset(line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:"))

    @property
    def _errors(self) -> Path:
        return self._folder / "stderr"

    def _connected(self, daemon: subprocess.Popen[bytes]) -> grpc.Channel:
        until = time.monotonic() + _START_S
        while not self._socket.exists():
            if daemon.poll() is not None or time.monotonic() > until:
                last = self._errors.read_text().strip().splitlines()[-1:]
                raise TransportFailed(f"bench: the daemon does not serve. It said: {' '.join(last)[:300]}")
            time.sleep(_POLL_S)
        return grpc.insecure_channel(f"unix:{self._socket}", _OPTIONS)


def forbidden(modules: frozenset[str]) -> list[str]:
    """Return what of ``modules`` a daemon must not load."""
    return sorted(name for name in modules if any(name == one or name.startswith(f"{one}.") for one in FORBIDDEN))


def status_mebibytes(pid: int, field: str) -> float:
    """Return a memory field of a process, in MiB; 0 where it has ended."""
    for line in _read(Path(f"/proc/{pid}/status")).splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) / _KIB
    return 0.0


def _answer(channel: grpc.Channel) -> None:
    """Ask for the status until there is an answer; a caller that may not ask is told so, which is one."""
    try:
        _stub(channel, "Runtime/Status")(b"", timeout=_START_S, wait_for_ready=True)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.PERMISSION_DENIED:
            raise TransportFailed(f"bench: the daemon does not answer: {error.code().name}") from None


def _stub(channel: grpc.Channel, method: str) -> Any:
    return channel.unary_unary(f"/fedlearn.device.v1.{method}")


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""

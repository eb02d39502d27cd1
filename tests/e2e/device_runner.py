"""A daemon for the proofs of ``tests/e2e``: one socket a caller, a gateway behind another socket. Not a test.

Run as a program it reads a JSON configuration from its argument and serves until its standard input ends. The gateway
lives in the process of the test, so that what left this one is known there whatever becomes of it.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from fedlearn.errors import TransportFailed
from fedlearn_client import daemon as daemon_module
from fedlearn_client.daemon import Daemon, Hooks
from fedlearn_client.fakes import FIT, FakeConditions
from fedlearn_client.hooks import Caller, Method, Role
from fedlearn_client.linux.attestation import NoAttestation
from fedlearn_client.linux.audit import JsonLines
from fedlearn_client.linux.callers import SocketCallers
from fedlearn_client.linux.clock import LinuxClock
from fedlearn_client.linux.keystore import FileKeyStore
from fedlearn_client.memory import keep_small, leave_no_dump
from fedlearn_client.settings import Settings
from fedlearn_client.workers import Workers

HEAD = struct.Struct(">BI")
"""Of a request: number of the method, length. Of a reply: 1 or, where the transport failed, 0; length."""
METHODS = tuple(Method)


@dataclass(frozen=True)
class Config:
    """What a daemon of the tests is told.

    Args:
        state: directory of the store.
        sockets: app id -> its socket and its role.
        root_keys: as in ``Settings``.
        gateway: socket of the gateway, "" where there is none.
        worker: how to start a worker, [] for the real one.
        sabotage: name in ``device_sabotage`` of a promise that this daemon breaks, "" for the real one.
        settings: further fields of ``Settings``.
    """

    state: str
    sockets: dict[str, tuple[str, str]]
    root_keys: tuple[str, ...]
    gateway: str = ""
    worker: list[str] = field(default_factory=list)
    sabotage: str = ""
    settings: dict[str, Any] = field(default_factory=dict)


class SocketTransport:
    """A ``Transport`` to a gateway in another process."""

    def __init__(self, path: str) -> None:
        self._path = path

    def call(self, method: Method, request: bytes) -> bytes:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
                link.connect(self._path)
                link.sendall(HEAD.pack(METHODS.index(method), len(request)) + request)
                arrived, length = HEAD.unpack(exactly(link, HEAD.size))
                reply = exactly(link, length)
        except OSError as error:
            raise TransportFailed("gateway: the connection broke.") from error
        if not arrived:
            raise TransportFailed("gateway: no reply.")
        return reply

    def hang_up(self) -> None:
        return None


def exactly(link: socket.socket, count: int) -> bytes:
    """Read ``count`` bytes; raise OSError where the other side ended before."""
    data = bytearray()
    while len(data) < count:
        part = link.recv(min(count - len(data), 1 << 20))
        if not part:
            raise ConnectionResetError("ended early")
        data += part
    return bytes(data)


def hooks_of(config: Config, **changes: Any) -> Hooks:
    """The Linux hooks, for a phone that is always fit to train."""
    clock, state = LinuxClock(), Path(config.state)
    daemon_module.make_private(state)
    made: dict[str, Any] = {
        "conditions": FakeConditions(FIT),
        "keystore": FileKeyStore(state / "keys", random_bytes=clock.random_bytes),
        "attestation": NoAttestation(),
        "callers": SocketCallers({Path(path): Caller(app, Role(role)) for app, (path, role) in config.sockets.items()}),
        "transport": SocketTransport(config.gateway),
        "clock_rng": clock,
        "audit": JsonLines(state / "log.jsonl", clock),
    }
    return Hooks(**{**made, **changes})


def daemon_of(config: Config, **changes: Any) -> Daemon:
    """Return a daemon, not yet started. ``changes`` are hooks."""
    public = [Path(path) for path, _ in config.sockets.values()]
    paths = {name: Path(value) for name, value in config.settings.items() if name == "credential"}
    settings = Settings(
        **{
            "directory": Path(config.state),
            "socket": public[0],
            "callers": Path(config.state) / "not-used.toml",
            "root_keys": tuple(config.root_keys),
            "recommend_rate": 10_000.0,
            "control_rate": 10_000.0,
            "control_burst": 10_000,
            "recommend_burst": 10_000,
            "train": False,
            **config.settings,
            **paths,
        }
    )
    return Daemon(settings, hooks_of(config, **changes), also=tuple(public[1:]))


def with_worker(command: list[str]) -> Callable[..., Workers]:
    """Return what makes ``Workers`` that start by ``command``, or as they always do."""
    return partial(Workers, command=command) if command else Workers


def main() -> None:
    """Serve until the standard input ends."""
    keep_small()
    leave_no_dump()
    config = Config(**json.loads(sys.argv[1]))
    daemon_module.Workers = with_worker(config.worker)  # type: ignore[assignment, misc]
    if config.sabotage:
        import device_sabotage

        getattr(device_sabotage, config.sabotage)()
    daemon = daemon_of(config)
    daemon.start()
    sys.stdout.write("serving\n")
    sys.stdout.flush()
    sys.stdin.read()
    daemon.stop()


if __name__ == "__main__":
    main()

"""A phone on this machine: a daemon, callers with a socket each, and a gateway in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc

from fedlearn.device.bundle import Bundle
from fedlearn.ledger.signing import SigningKey
from fedlearn.proto import device_pb2 as pb
from fedlearn.proto import device_pb2_grpc as rpc
from fedlearn_client.daemon import Daemon, Hooks
from fedlearn_client.fakes import FakeAttestation, FakeAuditSink, FakeConditions, FakeGateway
from fedlearn_client.hooks import Caller, Role, Transport
from fedlearn_client.linux.callers import SocketCallers
from fedlearn_client.linux.clock import LinuxClock
from fedlearn_client.linux.keystore import FileKeyStore
from fedlearn_client.settings import Settings

CALLERS: Final = {
    "settings": Caller("settings", Role.SETTINGS),
    "system": Caller("system", Role.SYSTEM),
    "oem.surface": Caller("oem.surface", Role.SURFACE),
    "chat": Caller("chat", Role.APP),
    "books": Caller("books", Role.APP),
    "clips": Caller("clips", Role.APP),
    "shop": Caller("shop", Role.APP),
    "dining": Caller("dining", Role.APP),
    "maps": Caller("maps", Role.APP),
}
TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, kw_only=True)
class Handset:
    """A running daemon, and a channel for each caller.

    Args:
        directory: the store, while it runs.
        channels: caller -> its own channel.
    """

    directory: Path
    channels: dict[str, grpc.Channel] = field(repr=False)

    @property
    def consent(self) -> rpc.ConsentStub:
        """The settings screen's."""
        return rpc.ConsentStub(self.channels["settings"])

    @property
    def audit(self) -> rpc.AuditStub:
        """The settings screen's."""
        return rpc.AuditStub(self.channels["settings"])

    @property
    def runtime(self) -> rpc.RuntimeStub:
        """The system's."""
        return rpc.RuntimeStub(self.channels["system"])

    def push(self, app: str, kind: pb.DataType, signals: tuple[pb.Signal, ...]) -> None:
        """Hand an app's signals over."""
        stub = rpc.SignalsStub(self.channels[app])
        stub.Register(pb.RegisterRequest(stream="main", data_type=kind), timeout=TIMEOUT_S)
        stub.Push(pb.PushRequest(stream="main", signals=signals), timeout=TIMEOUT_S)

    def ranking(self, caller: str, count: int = 10) -> pb.GetReply:
        """Return the ranking that one caller gets."""
        request = pb.GetRequest(purpose="restaurants", count=count)
        reply: pb.GetReply = rpc.RecommendStub(self.channels[caller]).Get(request, timeout=TIMEOUT_S)
        return reply

    def switch(self, on: bool, app: str, kind: pb.DataType, purpose: str, recipient: str) -> pb.SetReply:
        """Set one switch, for the words that the policy has now."""
        listed = self.consent.List(pb.ListRequest(), timeout=TIMEOUT_S).grants
        words = next(g for g in listed if (g.app, g.purpose, g.recipient) == (app, purpose, recipient))
        request = pb.SetRequest(
            app=app,
            data_type=kind,
            purpose=purpose,
            recipient=recipient,
            on=on,
            text_version=words.current_text_version,
        )
        reply: pb.SetReply = self.consent.Set(request, timeout=TIMEOUT_S)
        return reply


@dataclass(frozen=True, kw_only=True)
class Phone(Handset):
    """What the story talks to.

    Args:
        gateway: the other end of the transport; keeps every byte that arrived.
    """

    gateway: FakeGateway


@contextmanager
def running_phone(directory: Path, bundle: Bundle, root: str, task_key: SigningKey) -> Iterator[Phone]:
    """Run a phone that has nothing on it yet, and stop it afterwards."""
    gateway = FakeGateway(bundle.plan, bundle.files["weights.bin"], task_key, clock_rng=LinuxClock())
    with running_daemon(directory, root, gateway) as handset:
        yield Phone(directory=handset.directory, channels=handset.channels, gateway=gateway)


@contextmanager
def running_daemon(
    directory: Path, root: str, transport: Transport, credential: Path | None = None
) -> Iterator[Handset]:
    """Run a daemon that has nothing on it yet, and stop it afterwards.

    Args:
        directory: new, its path short: it holds sockets.
        root: the root's public key.
        transport: to its gateway.
        credential: file with which it enrols; None: the gateway asks for none.
    """
    clock = LinuxClock()
    # socket paths are short by law of the kernel; the run's own folder may be deep
    sockets = {name: directory / f"{number}.sock" for number, name in enumerate(CALLERS)}
    settings = Settings(
        directory=directory / "state",
        socket=sockets["settings"],
        callers=directory / "callers.toml",
        root_keys=(root,),
        credential=credential,
        train=False,  # a night is when somebody says so
    )
    hooks = Hooks(
        conditions=FakeConditions(),
        keystore=FileKeyStore(directory / "keys", random_bytes=clock.random_bytes),
        attestation=FakeAttestation(),
        callers=SocketCallers({sockets[name]: caller for name, caller in CALLERS.items()}),
        transport=transport,
        clock_rng=clock,
        audit=FakeAuditSink(),
    )
    others = tuple(path for name, path in sockets.items() if name != "settings")
    with ExitStack() as life:
        daemon = Daemon(settings, hooks, others)
        life.callback(daemon.stop)
        daemon.start()
        channels = {name: life.enter_context(grpc.insecure_channel(f"unix:{path}")) for name, path in sockets.items()}
        yield Handset(directory=settings.directory, channels=channels)

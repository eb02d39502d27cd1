"""A phone for proofs: the real daemon with everything installed, in this process or in one that can be killed.

::

    with device_world.world(inside=False) as phone:      # its own process
        phone.call(CHAT, "Signals/Push", pb.PushRequest(...))
        phone.kill()
        phone.start()
        phone.gateway.requests                            # everything that ever left, outside the killed process

Callers are told apart by their socket (``SocketCallers``), so no test needs to be root. The gateway is the fake one, in
the process of the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import grpc
from google.protobuf.message import Message

from fedlearn.device.bundle import build_bundle
from fedlearn.errors import TransportFailed
from fedlearn.policy.document import DataType
from fedlearn.proto import device_pb2 as pb
from fedlearn.proto import gateway_pb2
from fedlearn_client import daemon as daemon_module
from fedlearn_client.fakes import FakeClock, FakeGateway
from fedlearn_client.hooks import Method
from fedlearn_client.linux.clock import LinuxClock
from fedlearn_client.linux.keystore import FileKeyStore
from fedlearn_client.relay import private_directory
from fedlearn_client.services.door import Door
from fedlearn_client.store.database import Database

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
import device_runner as runner
import device_town

HERE = Path(__file__).parent

town: Any = device_town
CHAT, READING, SHOPPING, MAPS, SURFACE = town.CHAT, town.READING, town.SHOPPING, town.MAPS, town.SURFACE
SETTINGS, SYSTEM = "org.city.settings", "org.city.system"
ROLES = {
    CHAT: "app",
    READING: "app",
    SHOPPING: "app",
    MAPS: "app",
    SURFACE: "surface",
    SETTINGS: "settings",
    SYSTEM: "system",
}
NOW = float(int(time.time()))
"""When every document was issued, so that equal arguments give equal bytes."""

STREAM = "messages"
KINDS = {CHAT: DataType.MESSAGE_CONTENT, READING: DataType.CHOICE, SHOPPING: DataType.CHOICE, MAPS: DataType.CHOICE}
NUMBERS = {DataType.MESSAGE_CONTENT: pb.DATA_TYPE_MESSAGE_CONTENT, DataType.CHOICE: pb.DATA_TYPE_CHOICE}
SEPARATION, MOST = 5, 20
"""b and k of the runs here."""


class Refused(Exception):
    """A status that is not OK."""

    def __init__(self, code: str, details: str) -> None:
        super().__init__(f"{code}: {details}")
        self.code = code
        self.details = details


# -- what is installed -------------------------------------------------------------------------------------------------


@lru_cache
def plan() -> Any:
    """The town's plan with much noise, so that no budget ends a test."""
    terms = town.mechanism(noise_multiplier=40.0, steps=2000, min_separation=SEPARATION, max_participations=MOST)
    return town.small_plan(mechanism=terms)


@lru_cache
def bundle() -> bytes:
    """The town's bundle, its policy allowing many rounds a day, its weights telling every wish apart."""
    policy = town.city_policy(NOW)
    policy = replace(policy, device=replace(policy.device, max_rounds_per_day=1000))
    files = town.bundle_files(plan(), now=NOW, policy=policy)
    files["weights.bin"] = weights()
    return bytes(build_bundle(files, expires=NOW + 30 * town.DAY, signers=town.approvers()[:2]))


@lru_cache
def weights() -> bytes:
    """A different weight for each feature."""
    values = [1.0 + 0.037 * number for number in range(town.WIDTH)]
    return struct.pack(f"<{town.WIDTH}f", *values)


# -- the gateway, outside ----------------------------------------------------------------------------------------------


class Gateway(FakeGateway):
    """The fake gateway, safe to use from several threads, behind a socket for a daemon in another process.

    ``on_upload`` is called as soon as an upload has arrived; ``clock`` decides times and tokens (``FixedRandom``).
    """

    def __init__(self, clock: Any = None, credentials: Sequence[bytes] | None = None) -> None:
        super().__init__(
            plan(),
            weights(),
            town.operator_key(),
            clock_rng=clock or LinuxClock(),
            run_id="run-1",
            task_seconds=12 * 3600.0,  # of a clock that stands still while all tests run
            credentials=credentials,
        )
        self._one = threading.Lock()
        self._listener: socket.socket | None = None
        self.on_upload: Callable[[], None] = lambda: None

    def call(self, method: Method, request: bytes) -> bytes:
        with self._one:
            reply = super().call(method, request)
        if method is Method.UPLOAD:
            self.on_upload()
        return reply

    def listen(self, path: Path) -> None:
        """Serve ``SocketTransport`` until ``close``."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(8)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                link, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(link,), daemon=True).start()

    def _answer(self, link: socket.socket) -> None:
        with link, contextlib.suppress(OSError):
            number, length = runner.HEAD.unpack(runner.exactly(link, runner.HEAD.size))
            request = runner.exactly(link, length)  # a request that was cut short never arrived
            try:
                reply, arrived = self.call(runner.METHODS[number], request), 1
            except TransportFailed:
                reply, arrived = b"", 0
            link.sendall(runner.HEAD.pack(arrived, len(reply)) + reply)

    def uploads(self) -> list[bytes]:
        """Every upload that arrived, resent ones too."""
        return [seen.body for seen in list(self.requests) if seen.method is Method.UPLOAD]

    def participations(self) -> dict[str, list[int]]:
        """Run -> steps of the tokens that were used in an upload, in order of arrival, each once."""
        found: dict[str, dict[int, None]] = {}
        tokens: dict[bytes, bytes] = {}
        for body in self.uploads():
            token = gateway_pb2.UploadRequest.FromString(body).token
            assert tokens.setdefault(token, body) == body, "the same token with other bytes"
            task = self.tasks[token]
            found.setdefault(task.run_id, {})
            if tokens[token] is body:
                assert task.step not in found[task.run_id], "two tokens for one step"
                found[task.run_id][task.step] = None
        return {run: list(steps) for run, steps in found.items()}

    def require_lawful(self) -> None:
        """Steps of a run at least b apart, at most k, the same bytes each time."""
        for steps in self.participations().values():
            assert len(steps) <= MOST
            assert all(later - earlier >= SEPARATION for earlier, later in itertools.pairwise(steps)), steps


class FixedRandom(FakeClock):
    """A clock for a gateway that says the same in every world."""

    def __init__(self) -> None:
        super().__init__(NOW)
        self._count = 0

    def random_bytes(self, count: int) -> bytes:
        self._count += 1
        return hashlib.sha256(self._count.to_bytes(8, "big")).digest()[:count]


class _Context:
    """What a call at the door knows of its connection."""

    def __init__(self, peer: str) -> None:
        self._peer = peer

    def peer(self) -> str:
        return self._peer

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        raise Refused(code.name, details)


# -- the phone ---------------------------------------------------------------------------------------------------------


@dataclass
class World:
    """One phone. Made by ``world``."""

    folder: Path
    inside: bool
    gateway: Gateway
    transport: Any = None
    worker: list[str] = field(default_factory=list)
    sabotage: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    hooks: Mapping[str, Any] = field(default_factory=dict)
    _daemon: Any = None
    _process: subprocess.Popen[str] | None = None
    _channels: dict[str, grpc.Channel] = field(default_factory=dict)
    _loop: asyncio.AbstractEventLoop | None = None
    door: Any = None

    @property
    def state(self) -> Path:
        """The daemon's directory."""
        return self.folder / "state"

    @property
    def pid(self) -> int:
        """Of the daemon's process."""
        return os.getpid() if self._process is None else self._process.pid

    def config(self) -> runner.Config:
        """What the daemon is told."""
        sockets = {app: (str(self.folder / f"{number}"), role) for number, (app, role) in enumerate(ROLES.items())}
        return runner.Config(
            str(self.state),
            sockets,
            (town.root_key().public,),
            str(self.folder / "gateway"),
            self.worker,
            self.sabotage,
            dict(self.settings),
        )

    def start(self, wait: bool = True) -> None:
        """Start the daemon and, unless it is to be killed while it starts, wait until it serves."""
        if self.inside:
            hooks = {"transport": self.transport or self.gateway, **self.hooks}
            with (
                patch.object(daemon_module, "Workers", runner.with_worker(self.worker)),
                patch.object(daemon_module, "Door", self._make_door),
            ):
                self._daemon = runner.daemon_of(self.config(), **hooks)
                self._daemon.start()
            return
        own = self.folder / "own"
        own.mkdir(exist_ok=True)
        with (self.folder / "stderr").open("a") as errors:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / "device_runner.py"), json.dumps(asdict(self.config()))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=own,
                env={**os.environ, "TMPDIR": str(own), "HOME": str(own)},
            )
        assert self._process.stdout is not None
        if wait:
            assert self._process.stdout.readline() == "serving\n", self.stderr()

    def _make_door(self, *args: Any) -> Door:
        self.door = Door(*args)
        return self.door

    def at_the_door(self, app: str, method: str, request: bytes) -> str:
        """Call without a channel, for speed; return the name of the status. Only ``inside``, one call at a time."""
        path = f"/fedlearn.device.v1.{method}"
        peer = f"unix:{private_directory(Path(self.config().sockets[app][0]))}/0-1-1"
        call = self.door.handlers().service(SimpleNamespace(method=path)).unary_unary
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        try:
            self._loop.run_until_complete(call(request, _Context(peer)))
        except Refused as refused:
            return refused.code
        return "OK"

    def stderr(self) -> str:
        """What the daemon's process wrote on it."""
        path = self.folder / "stderr"
        return path.read_text() if path.exists() else ""

    def stop(self) -> None:
        """Stop the daemon in good order."""
        self._hang_up()
        if self._daemon is not None:
            self._daemon.stop()
            self._daemon = None
        if self._process is not None:
            self._process.communicate(timeout=60)
            assert self._process.returncode == 0, self.stderr()
            self._process = None

    def strike(self) -> None:
        """kill -9, and no more: calls under way end by themselves."""
        assert self._process is not None
        self._process.kill()

    def kill(self) -> None:
        """kill -9, and clear up."""
        self.strike()
        assert self._process is not None
        self._process.communicate(timeout=60)
        self._process = None
        self._hang_up()

    def close(self) -> None:
        """End everything."""
        if self._process is not None:
            self.kill()
        self.stop()
        self.gateway.close()

    def _hang_up(self) -> None:
        if self._loop is not None:
            self._loop.close()
            self._loop = None
        for channel in self._channels.values():
            channel.close()
        self._channels.clear()

    def raw(self, app: str, method: str, request: bytes, timeout: float = 120.0) -> bytes:
        """Call with these very bytes; return those of the reply, or raise ``Refused``."""
        if app not in self._channels:
            address = f"unix:{self.config().sockets[app][0]}"
            self._channels[app] = grpc.insecure_channel(address, [("grpc.max_send_message_length", 1 << 26)])
        call = self._channels[app].unary_unary(f"/fedlearn.device.v1.{method}")
        try:
            return bytes(call(request, timeout=timeout))
        except grpc.RpcError as error:
            raise Refused(error.code().name, error.details() or "") from None

    def call(self, app: str, method: str, request: Message | None = None) -> Any:
        """Call and return the reply, or raise ``Refused``."""
        data = b"" if request is None else request.SerializeToString()
        return getattr(pb, f"{method.partition('/')[2]}Reply").FromString(self.raw(app, method, data))

    # -- what everybody does -------------------------------------------------------------------------------------

    def install(self) -> None:
        """Install bundle, catalogue and status."""
        self.call(SYSTEM, "Runtime/Install", pb.InstallRequest(task_bundle=bundle()))
        self.call(SYSTEM, "Runtime/Install", pb.InstallRequest(catalogue_bundle=town.signed_catalogue(now=NOW)))
        self.call(SYSTEM, "Runtime/UpdateStatus", pb.UpdateStatusRequest(envelope=town.signed_status(now=NOW)))

    def adult(self) -> None:
        """The owner is an adult."""
        self.call(SETTINGS, "Consent/SetOwner", pb.SetOwnerRequest(age=pb.AGE_CLASS_ADULT))

    def register(self, app: str, stream: str = STREAM) -> None:
        """Register a stream of the app's data type."""
        self.call(app, "Signals/Register", pb.RegisterRequest(stream=stream, data_type=NUMBERS[KINDS[app]]))

    def grant(self, app: str, purpose: str, recipient: str, on: bool = True) -> Any:
        """Grant, or take back and return the reply."""
        request = pb.SetRequest(
            app=app, data_type=NUMBERS[KINDS[app]], purpose=purpose, recipient=recipient, on=on, text_version=1
        )
        return self.call(SETTINGS, "Consent/Set", request)

    def push(self, app: str, *signals: pb.Signal, stream: str = STREAM) -> None:
        """Push."""
        self.call(app, "Signals/Push", pb.PushRequest(stream=stream, signals=signals))

    def rank(self, app: str) -> pb.GetReply:
        """Ask for every item."""
        reply: pb.GetReply = self.call(app, "Recommend/Get", pb.GetRequest(purpose=town.RECOMMEND, count=40))
        return reply

    def train(self) -> str:
        """Run one local round and return its outcome."""
        reply = self.call(SYSTEM, "Runtime/TrainNow", pb.TrainNowRequest(purpose=town.TRAIN))
        return str(reply.outcome)

    def status(self) -> pb.StatusReply:
        """Ask how things are."""
        reply: pb.StatusReply = self.call(SYSTEM, "Runtime/Status")
        return reply

    @contextlib.contextmanager
    def opened_copy(self) -> Iterator[tuple[Database, FileKeyStore]]:
        """A copy of the store, opened with the phone's own keys; the original stays as the killed daemon left it."""
        with tempfile.TemporaryDirectory(prefix="fedlearn-copy-") as name:
            copy = Path(name) / "state"
            shutil.copytree(self.state, copy)
            keystore = FileKeyStore(copy / "keys")
            database = Database.open(copy, keystore, LinuxClock())
            try:
                yield database, keystore
            finally:
                database.close()


def said(
    text: str, name: str, at: float, *, incoming: bool = False, spans: Sequence[tuple[int, int]] = ()
) -> pb.Signal:
    """A message at ``at`` seconds since the Unix epoch."""
    direction = pb.DIRECTION_INCOMING if incoming else pb.DIRECTION_OUTGOING
    foreign = [pb.Span(start=start, end=end) for start, end in spans]
    message = pb.MessageSignal(text=text, direction=direction, foreign_spans=foreign)
    return pb.Signal(id=name, time_ms=round(at * 1000), message=message)


def chose(item: str, name: str, at: float) -> pb.Signal:
    """A choice."""
    return pb.Signal(id=name, time_ms=round(at * 1000), choice=pb.ChoiceSignal(item=item))


def items() -> list[str]:
    """Keys of what is ranked."""
    return [item.key for item in town.catalogue().items]


def without_id(reply: pb.GetReply) -> bytes:
    """The bytes of a ranking but for its id."""
    copy = pb.GetReply.FromString(reply.SerializeToString())
    copy.ClearField("ranking_id")
    return copy.SerializeToString(deterministic=True)


_prepared: list[Path] = []


def prepared() -> Path:
    """The state of a phone on which everything is installed and whose owner is an adult; made once a process."""
    if not _prepared:
        folder = Path(tempfile.mkdtemp(prefix="fedlearn-prepared-"))
        with _fresh(folder) as made:
            made.start()
            made.install()
            made.adult()
        _prepared.append(made.state)
    return _prepared[0]


def forget_prepared() -> None:
    """Remove what ``prepared`` made."""
    for state in _prepared:
        shutil.rmtree(state.parent, ignore_errors=True)
    _prepared.clear()


@contextlib.contextmanager
def _fresh(folder: Path, **options: Any) -> Iterator[World]:
    gateway = options.pop("gateway", None) or Gateway()
    made = World(folder, options.pop("inside", True), gateway, **options)
    gateway.listen(folder / "gateway")
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def world(*, installed: bool = True, **options: Any) -> Iterator[World]:
    """A running phone, with everything installed and an adult owner unless ``installed`` is false.

    Args:
        installed: begin with ``prepared``.
        options: fields of ``World``; ``inside`` (default) is in this process.
    """
    with tempfile.TemporaryDirectory(prefix="fedlearn-") as name:
        folder = Path(name)
        if installed:
            shutil.copytree(prepared(), folder / "state")
        with _fresh(folder, **options) as made:
            made.start()
            yield made

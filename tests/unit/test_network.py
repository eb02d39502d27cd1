"""The transport over gRPC and TLS: pinned certificates only, no proxy, gateways in turn, no connection left."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from fedlearn.device.requests import Denial
from fedlearn.errors import ConfigError, TransportFailed
from fedlearn.proto import gateway_pb2 as pb
from fedlearn_client import network
from fedlearn_client.daemon import linux_hooks
from fedlearn_client.hooks import Method
from fedlearn_client.network import GatewayTransport, deadline_s, read_ca
from fedlearn_client.settings import Settings
from fedlearn_client.transport import NoTransport
from fedlearn_server.deployment.certificates import issue_server, make_authority, now_utc

SERVICE = "fedlearn.gateway.v1.Gateway"


class Gateway:
    """A gRPC server with TLS that answers by ``answer(method, request)``, and counts its connections."""

    def __init__(self, certificates: Path, answer: Callable[[str, bytes], bytes], stem: str = "server") -> None:
        self.answer = answer
        self.heard: list[tuple[str, bytes]] = []
        self.peers: list[str] = []
        self._pool = ThreadPoolExecutor(4)
        self._server = grpc.server(self._pool, options=[("grpc.so_reuseport", 0)])
        methods = {
            name: grpc.unary_unary_rpc_method_handler(
                lambda request, context, name=name: self._hear(name, request, context)
            )
            for name in pb.DESCRIPTOR.services_by_name["Gateway"].methods_by_name
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
        pair = [((certificates / f"{stem}.key").read_bytes(), (certificates / f"{stem}.crt").read_bytes())]
        self.port = self._server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(pair))
        self._server.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._server.stop(0).wait()
        self._pool.shutdown()

    def connections(self) -> int:
        """Established connections of the port, as the kernel counts them."""
        lines = [
            line.split() for table in ("tcp", "tcp6") for line in Path("/proc/net", table).read_text().splitlines()
        ]
        return sum(line[1].endswith(f":{self.port:04X}") and line[3] == "01" for line in lines)

    def _hear(self, name: str, request: bytes, context: Any) -> bytes:
        self.heard.append((name, request))
        self.peers.append(context.peer())
        try:
            return self.answer(name, request)
        except PermissionError as denied:
            context.set_code(grpc.StatusCode.PERMISSION_DENIED)
            context.set_details(str(denied))
            return b""


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The phone maker's authority with a gateway's certificate, and a stranger's."""
    made = {}
    for name in ("own", "foreign"):
        made[name] = tmp_path_factory.mktemp(name)
        make_authority(made[name], now_utc())
        issue_server(made[name], now_utc())
    own = made["own"]
    return SimpleNamespace(**made, ca=read_ca(own / "ca.crt"))


@pytest.fixture
def gateways(papers: SimpleNamespace) -> Iterator[Callable[..., Gateway]]:
    made: list[Gateway] = []

    def make(answer: Callable[[str, bytes], bytes] = lambda _, request: request[::-1], folder: str = "own") -> Gateway:
        made.append(Gateway(getattr(papers, folder), answer))
        return made[-1]

    yield make
    for one in made:
        one.stop()


@pytest.fixture
def phones(papers: SimpleNamespace) -> Iterator[Callable[..., GatewayTransport]]:
    made: list[GatewayTransport] = []

    def make(*addresses: str, first: int = 0, **changes: Any) -> GatewayTransport:
        # which one is tried first is drawn: here it is said
        draw = {"random_bytes": lambda count: first.to_bytes(count, "big"), "connect_s": 5.0, **changes}
        made.append(GatewayTransport(addresses, papers.ca, **draw))
        return made[-1]

    yield make
    for one in made:
        one.hang_up()


def begin(phone: GatewayTransport, method: Method) -> tuple[threading.Thread, list[str]]:
    """Call in a thread of its own; the list gets why it failed."""
    why: list[str] = []

    def call() -> None:
        try:
            phone.call(method, b"a")
        except TransportFailed as error:
            why.append(str(error))

    thread = threading.Thread(target=call)
    thread.start()
    return thread, why


def closed_port() -> str:
    """An address where nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{held.getsockname()[1]}"


@pytest.mark.parametrize("method", list(Method))
def test_bytes_there_and_back(gateways: Any, phones: Any, method: Method) -> None:
    gateway = gateways()
    phone = phones(gateway.address)
    assert phone.call(method, b"\x01\x02\x03") == b"\x03\x02\x01"
    assert gateway.heard == [(method.value, b"\x01\x02\x03")]
    assert phone.call(method, bytes(2**20)) == bytes(2**20)
    assert len(set(gateway.peers)) == 1, "one connection for the calls of a round"


def test_no_connection_is_left_after_hanging_up(gateways: Any, phones: Any) -> None:
    gateway = gateways()
    phone = phones(gateway.address)
    phone.call(Method.CHECK_IN, b"a")
    assert gateway.connections() == 1
    phone.hang_up()
    deadline = time.monotonic() + 10.0
    while gateway.connections() and time.monotonic() < deadline:
        threading.Event().wait(0.02)
    assert gateway.connections() == 0
    phone.call(Method.CHECK_IN, b"b")  # and the next round begins anew
    assert len(set(gateway.peers)) == 2
    phone.hang_up()
    phone.hang_up()


def test_a_gateway_of_another_authority_hears_nothing(
    gateways: Any, phones: Any, papers: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where the system's own roots vouch for it."""
    gateway = gateways(folder="foreign")
    monkeypatch.setenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", str(papers.foreign / "ca.crt"))
    monkeypatch.setenv("SSL_CERT_FILE", str(papers.foreign / "ca.crt"))
    with pytest.raises(TransportFailed, match="reached and trusted"):
        phones(gateway.address).call(Method.CHECK_IN, b"secret")
    assert gateway.heard == []


def test_a_certificate_for_another_host_is_refused(papers: SimpleNamespace, gateways: Any, phones: Any) -> None:
    """The certificate names 127.0.0.1 and localhost; 127.0.0.2 is the same machine by another name."""
    gateway = gateways()
    with pytest.raises(TransportFailed):
        phones(f"127.0.0.2:{gateway.port}", connect_s=2.0).call(Method.CHECK_IN, b"secret")
    assert gateway.heard == []
    assert phones(f"localhost:{gateway.port}").call(Method.CHECK_IN, b"ab") == b"ba"


def test_proxies_of_the_environment_are_not_used(gateways: Any, phones: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as proxy:
        proxy.bind(("127.0.0.1", 0))
        proxy.listen(4)
        proxy.setblocking(False)
        for name in ("grpc_proxy", "https_proxy", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        gateway = gateways()
        assert phones(gateway.address).call(Method.FETCH, b"ab") == b"ba"
        with pytest.raises(BlockingIOError):
            proxy.accept()


def test_a_proxy_would_have_been_used_otherwise(gateways: Any, phones: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the test above can fail."""
    options = [option for option in network._OPTIONS if option[0] != "grpc.enable_http_proxy"]
    monkeypatch.setattr(network, "_OPTIONS", options)
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as proxy:
        proxy.bind(("127.0.0.1", 0))
        proxy.listen(4)
        proxy.settimeout(10.0)
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        gateway = gateways()
        phone = phones(gateway.address)
        calling, _ = begin(phone, Method.FETCH)
        link, _ = proxy.accept()
        with link:
            assert link.recv(7) == b"CONNECT"
            phone.hang_up()
            calling.join(20.0)


def test_gateways_are_tried_in_turn(gateways: Any, phones: Any) -> None:
    one, other = gateways(), gateways()
    phone = phones(closed_port(), one.address, closed_port(), other.address)
    assert phone.call(Method.CHECK_IN, b"a") == b"a"
    assert [len(one.heard), len(other.heard)] == [1, 0]
    one.stop()
    phone.hang_up()
    assert phone.call(Method.CHECK_IN, b"b") == b"b"
    assert [len(one.heard), len(other.heard)] == [1, 1]
    other.stop()
    phone.hang_up()
    with pytest.raises(TransportFailed, match="none of 4"):
        phone.call(Method.CHECK_IN, b"c")


def test_which_gateway_is_first_is_drawn(gateways: Any, phones: Any) -> None:
    both = [gateways(), gateways()]
    for first in range(4):
        phones(*(one.address for one in both), first=first).call(Method.FETCH, b"x")
    assert [len(one.heard) for one in both] == [2, 2]
    turns = itertools.count()
    phone = phones(*(one.address for one in both), random_bytes=lambda size: next(turns).to_bytes(size, "big"))
    for _ in range(4):
        phone.call(Method.FETCH, b"x")
        phone.hang_up()
    assert [len(one.heard) for one in both] == [4, 4], "drawn anew for each connection"


def test_a_request_that_may_have_arrived_goes_nowhere_else(gateways: Any, phones: Any) -> None:
    """A second gateway would call it a replay; the next call goes there."""

    def fail(_: str, request: bytes) -> bytes:
        raise PermissionError("whatever a gateway writes")

    bad, good = gateways(fail), gateways()
    phone = phones(bad.address, good.address)
    with pytest.raises(TransportFailed, match="PERMISSION_DENIED") as failed:
        phone.call(Method.CHECK_IN, b"a")
    assert "whatever" not in str(failed.value)
    assert failed.value.denial == ""
    assert [len(bad.heard), len(good.heard)] == [1, 0]
    assert phone.call(Method.CHECK_IN, b"b") == b"b"


@pytest.mark.parametrize("denial", [Denial.REVOKED, Denial.CLOCK, Denial.BUSY])
def test_a_denial_is_told_apart(gateways: Any, phones: Any, denial: Denial) -> None:
    def deny(_: str, request: bytes) -> bytes:
        raise PermissionError(denial.value)

    with pytest.raises(TransportFailed) as failed:
        phones(gateways(deny).address).call(Method.ENROL, b"a")
    assert failed.value.denial == denial


def test_a_reply_that_is_too_long_is_not_taken(gateways: Any, phones: Any) -> None:
    gateway = gateways(lambda _, request: bytes(3 * 2**20))
    with pytest.raises(TransportFailed, match="RESOURCE_EXHAUSTED"):
        phones(gateway.address).call(Method.FETCH, b"a")


def test_every_call_has_a_deadline(gateways: Any, phones: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = threading.Event()
    gateway = gateways(lambda _, request: b"late" if hold.wait(30.0) else b"never")
    monkeypatch.setattr(network, "CALL_S", 0.3)
    with pytest.raises(TransportFailed, match="DEADLINE_EXCEEDED"):
        phones(gateway.address).call(Method.CHECK_IN, b"a")
    hold.set()


def test_deadlines_grow_with_what_is_carried() -> None:
    assert deadline_s(Method.CHECK_IN, 1024) < 31.0
    assert 60.0 < deadline_s(Method.FETCH, 256) < 65.0
    assert deadline_s(Method.UPLOAD, 2**20) == pytest.approx(62.0)


def test_hanging_up_ends_a_call_under_way(gateways: Any, phones: Any) -> None:
    hold, began = threading.Event(), threading.Event()

    def slow(_: str, request: bytes) -> bytes:
        began.set()
        hold.wait(30.0)
        return b""

    phone = phones(gateways(slow).address)
    thread, why = begin(phone, Method.UPLOAD)
    assert began.wait(20.0)
    phone.hang_up()
    thread.join(20.0)
    hold.set()
    assert why == ["Upload: the call failed (CANCELLED)."]


def test_hanging_up_ends_the_wait_for_a_gateway_that_is_silent(phones: Any) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(4)
        phone = phones(f"127.0.0.1:{silent.getsockname()[1]}", closed_port(), connect_s=3600.0)
        thread, why = begin(phone, Method.UPLOAD)
        silent.settimeout(20.0)
        link, _ = silent.accept()
        with link:
            phone.hang_up()
            thread.join(20.0)
        assert why == ["Upload: hung up."]


def test_a_silent_gateway_is_passed_over(gateways: Any, phones: Any) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(4)
        gateway = gateways()
        phone = phones(f"127.0.0.1:{silent.getsockname()[1]}", gateway.address, connect_s=0.3)
        assert phone.call(Method.CHECK_IN, b"ab") == b"ba"


def test_a_whole_round_over_the_wire(gateways: Any, phones: Any, tmp_path: Path) -> None:
    """Enrolment, check-in, weights and upload; every byte that arrives is in the phone's own log."""
    town = _town()
    made: list[Any] = []

    def answer(name: str, request: bytes) -> bytes:
        try:
            reply: bytes = made[0].gateway.call(Method(name), request)
        except TransportFailed as failed:
            raise PermissionError(failed.denial) from failed
        return reply

    gateway = gateways(answer)
    transport = phones(closed_port(), gateway.address)
    phone = town.Phone(tmp_path, credential=b"c", credentials=[b"c"], transport=lambda _: transport)
    made.append(phone)
    assert phone.run() == "acknowledged"
    assert [name for name, _ in gateway.heard] == ["CheckIn", "Enrol", "CheckIn", "Fetch", "Upload"]
    logged = [entry.body for entry in reversed(phone.egress.entries(10, with_bytes=True))]
    assert logged == [request for _, request in gateway.heard]
    assert len(set(gateway.peers)) == 2, "one connection before the training, one after it"
    phone.gateway.advance(10)
    phone.gateway.denial = Denial.REVOKED
    assert phone.run() == "refused: revoked"
    assert len(set(gateway.peers)) == 3
    phone.store.close()


def _town() -> Any:
    spec = importlib.util.spec_from_file_location("uplink_town", Path(__file__).with_name("uplink_town.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_settings_make_the_transport(papers: SimpleNamespace, tmp_path: Path) -> None:
    callers = tmp_path / "callers.toml"
    callers.write_text('[10001]\napp = "org.city.chat"\nrole = "app"\n')
    callers.chmod(0o600)
    settings = Settings(tmp_path / "state", tmp_path / "s", callers, ("8a" * 32,))
    assert isinstance(linux_hooks(settings).transport, NoTransport)
    ca = papers.own / "ca.crt"
    settings = dataclasses.replace(settings, gateway=("127.0.0.1:1",), gateway_ca=ca)
    assert isinstance(linux_hooks(settings).transport, GatewayTransport)
    settings = dataclasses.replace(settings, gateway_ca=tmp_path / "absent.pem")
    with pytest.raises(ConfigError, match="gateway_ca"):
        linux_hooks(settings)


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_a_file_that_is_no_authority_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="gateway_ca"):
        read_ca(path)


def test_a_damaged_authority_vouches_for_nobody(gateways: Any, papers: SimpleNamespace) -> None:
    pem = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    phone = GatewayTransport((gateways().address,), pem, random_bytes=os.urandom, connect_s=1.0)
    with pytest.raises(TransportFailed):
        phone.call(Method.CHECK_IN, b"a")
    phone.hang_up()

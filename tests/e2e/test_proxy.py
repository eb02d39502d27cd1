"""A real nginx before a real SuperLink: a node works through it, and nothing but a node's calls gets through."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from fedlearn.errors import FedlearnError, SuperLinkRefused, SuperLinkUnreachable
from fedlearn_server.deployment.proxy import NODE_PATHS, ProxySettings, render_proxy
from fedlearn_server.flower import ControlLink, FleetLink, failure_reply

if TYPE_CHECKING:
    from superlink_world import SuperLinkWorld

NGINX = shutil.which("nginx") or ("/usr/sbin/nginx" if Path("/usr/sbin/nginx").exists() else None)
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")

CANARY = b"quokka-marmalade-7153"
PULL = "/v1/fleet/pull-messages"


def load(name: str) -> ModuleType:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


worlds = load("superlink_world")


@pytest.fixture(scope="module")
def world(superlink: SuperLinkWorld) -> SuperLinkWorld:
    """A SuperLink."""
    return superlink


class Proxy:
    """A running nginx."""

    def __init__(self, address: str, directory: Path, ca: Path) -> None:
        self.address = address
        self.directory = directory
        self.port = int(address.rpartition(":")[2])
        self._context = ssl.create_default_context(cafile=str(ca))

    @contextmanager
    def connected(self) -> Iterator[ssl.SSLSocket]:
        """Open a connection; reading gives up after a while."""
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=30) as raw,
            self._context.wrap_socket(raw, server_hostname="localhost") as secure,
        ):
            yield secure

    def answer(self, request_line: str, headers: str = "", body: bytes = b"") -> tuple[int, bytes]:
        """Send a request as it stands and return the status and everything that came back."""
        head = f"{request_line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}"
        length = "" if "Transfer-Encoding" in headers else f"Content-Length: {len(body)}\r\n"
        with self.connected() as connection:
            connection.sendall(f"{head}{length}Content-Type: application/protobuf\r\n\r\n".encode("latin-1") + body)
            return read(connection)

    def log(self, name: str = "access") -> str:
        """Return a log."""
        return (self.directory / f"{name}.log").read_text(encoding="utf-8")

    def lines(self) -> list[dict[str, object]]:
        """Return the access log: JSON, whatever was asked for."""
        return [json.loads(line) for line in self.log().splitlines()]

    def last_line(self, after: int) -> dict[str, object]:
        """Return the last line of the access log once it has more than ``after``; nginx writes it after it answered."""
        return worlds.wait_until(lambda: self.lines()[after:], "a line in the log")[-1]


def read(connection: ssl.SSLSocket) -> tuple[int, bytes]:
    """Read until the other side closes."""
    data = b""
    with suppress(ConnectionError, ssl.SSLError):
        while chunk := connection.recv(65536):
            data += chunk
    return (int(data.split(b" ", 2)[1]) if data else 0), data


@contextmanager
def running(
    world: object, directory: Path, change: Callable[[str], str] = lambda text: text, **settings: object
) -> Iterator[Proxy]:
    """Run nginx in the foreground as this user until the test has ended."""
    directory.mkdir()
    port = worlds.free_port()
    made = ProxySettings(
        **{
            "listen": f"127.0.0.1:{port}",
            "upstream": world.address,
            "ca": world.ca,
            "certificate": world.ca.with_name("server9.crt"),
            "key": world.ca.with_name("server9.key"),
            "work": directory,
            "log": directory,
            "user": "root" if os.geteuid() == 0 else None,
            **settings,
        }
    )
    (directory / "proxy.conf").write_text(change(render_proxy(made)), encoding="utf-8")
    with (directory / "start.log").open("wb") as log:
        process = subprocess.Popen([NGINX, "-c", str(directory / "proxy.conf"), "-g", "daemon off;"], stderr=log)
    try:
        proxy = Proxy(made.listen, directory, world.ca)

        def listens() -> bool:
            assert process.poll() is None, (directory / "start.log").read_text(encoding="utf-8")
            with suppress(OSError), proxy.connected():
                return True
            return False

        worlds.wait_until(listens, "nginx to listen")
        yield proxy
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def proxy(world: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy as the command makes it, but for a small body limit."""
    with running(world, tmp_path_factory.mktemp("nginx") / "proxy", max_body_mb=2) as made:
        yield made


def test_a_node_works_through_it(world: object, proxy: Proxy) -> None:
    """Activation, heartbeat, question, its objects, confirmation, answer and farewell; and no log has any of it."""
    member = world.register()
    link = FleetLink(proxy.address, world.ca, member.key)
    assert link.activate(None) == member.node_id
    link.heartbeat()
    assert link.pull() is None
    asked = world.ask([CANARY], parts=1)
    message = worlds.wait_until(link.pull, "a question")
    link.push(failure_reply(message, SuperLinkRefused(CANARY.decode())))
    assert world.wait_for_run(asked.run_id) == "completed"
    assert [answer["node"] for answer in asked.answers()] == [member.node_id]
    link.deactivate()
    assert world.status_of(member) == "offline"
    link.close()
    assert {line["path"] for line in proxy.lines()} >= {f"/v1/fleet/{name}" for name in NODE_PATHS}
    logs = proxy.log() + proxy.log("error")
    assert CANARY.decode() not in logs
    assert "flwr-" not in logs
    assert list((proxy.directory / "body").rglob("*.*")) == []


def test_an_unknown_node_is_refused_by_superlink(world: object, proxy: Proxy) -> None:
    key, _ = world.new_key()
    link = FleetLink(proxy.address, world.ca, key)
    with pytest.raises(SuperLinkRefused):
        link.activate(None)
    link.close()


def test_the_operator_is_refused(world: object, proxy: Proxy) -> None:
    control = ControlLink(proxy.address, world.ca)
    for call in (control.nodes, control.runs, lambda: control.register_node(b"x", "x"), lambda: control.stop_run(1)):
        with pytest.raises(SuperLinkRefused, match=r"404.*not open to nodes"):
            call()
    control.close()


@pytest.mark.parametrize(
    "target",
    [
        "/v1/control/list-nodes",
        "/v1/control/start-run",
        "/v1/runtime/acquire-task",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/get-run",
        "/v1/fleet/get-fab",
        "/v1/fleet/../control/list-nodes",
        "/v1/fleet/%2e%2e/control/list-nodes",
        "/v1/fleet/..%2fcontrol/list-nodes",
        "/v1/fleet/pull-messages/../../control/list-nodes",
        "/v1/fleet/pull-messages/..%2f..%2fcontrol%2flist-nodes",
        "/v1/fleet/..;/control/list-nodes",
        "/v1/fleet\\..\\control\\list-nodes",
        "//v1/control/list-nodes",
        "/v1//control/list-nodes",
        "/v1%2fcontrol/list-nodes",
        "/%76%31/control/list-nodes",
        "/V1/CONTROL/LIST-NODES",
        "/v1/control/list-nodes?/v1/fleet/pull-messages",
        "https://localhost/v1/control/list-nodes",
        "/docs",
        "/openapi.json",
        "/",
        # other spellings of what is open
        "/V1/FLEET/PULL-MESSAGES",
        "//v1/fleet/pull-messages",
        "/v1/fleet//pull-messages",
        "/v1/fleet/./pull-messages",
        "/v1/control/../fleet/pull-messages",
        "/v1/fleet/pull%2dmessages",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/pull-messages?x=1",
        "/v1/fleet/pull-messages;x",
        "/v1/fleet/pull-messages%00",
        "/v1/fleet/pull-messages%0d%0aX:y",
        "/v1/fleet/pull-messages#x",
        "/v1/fleet/pull-messages\xa0",
    ],
)
def test_nothing_else_and_no_other_spelling_reaches_superlink(proxy: Proxy, target: str) -> None:
    before = len(proxy.lines())
    status, data = proxy.answer(f"POST {target}")
    assert status in {400, 404}, data
    assert proxy.last_line(before)["superlink"] == ""


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "post", "CONNECT"])
def test_other_methods_are_refused(proxy: Proxy, method: str) -> None:
    before = len(proxy.lines())
    assert proxy.answer(f"{method} {PULL}")[0] in {400, 405}
    assert proxy.last_line(before)["superlink"] == "", "the refusal is the proxy's"


@pytest.mark.parametrize("name", NODE_PATHS)
def test_what_is_open_asks_for_a_nodes_signature(proxy: Proxy, name: str) -> None:
    """So the refusals above are the proxy's: this is how SuperLink's own looks."""
    before = len(proxy.lines())
    assert proxy.answer(f"POST /v1/fleet/{name}")[0] == 401
    line = proxy.last_line(before)
    assert (line["path"], line["superlink"]) == (f"/v1/fleet/{name}", "401")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    ],
)
def test_one_request_cannot_hide_in_another(proxy: Proxy, request_bytes: bytes) -> None:
    hidden = b"POST /v1/control/list-nodes HTTP/1.1\r\nHost: x\r\n\r\n"
    with proxy.connected() as connection:
        connection.sendall(request_bytes % PULL.encode() + hidden)
        status, data = read(connection)
    assert status in {400, 501}
    assert data.count(b"HTTP/1.1 ") == 1


def test_versions_are_not_told(proxy: Proxy) -> None:
    for target in (PULL, "/", "/v1/fleet/pull-messages%00"):
        _, data = proxy.answer(f"POST {target}")
        assert b"uvicorn" not in data
        assert b"nginx/" not in data


@pytest.mark.parametrize(
    ("name", "size"), [("push-object", 3 << 20), ("push-messages", 5 << 20), ("pull-object", 70_000)]
)
def test_bodies_over_their_limit_are_refused(proxy: Proxy, name: str, size: int) -> None:
    status, data = proxy.answer(f"POST /v1/fleet/{name}", body=bytes(size))
    assert status == 413
    assert b"larger than the proxy lets through" in data


def test_a_body_within_the_limit_reaches_superlink(proxy: Proxy) -> None:
    before = len(proxy.lines())
    assert proxy.answer("POST /v1/fleet/push-object", body=bytes(1 << 20))[0] == 400  # a million zeros are no protobuf
    assert proxy.last_line(before)["superlink"] == "400"


def test_who_calls_or_connects_too_often_is_refused_and_who_is_slow_cut_off(world: object, tmp_path: Path) -> None:
    def fast(text: str) -> str:
        assert "client_body_timeout 15s;" in text
        assert "client_header_timeout 10s;" in text
        return text.replace("client_body_timeout 15s;", "client_body_timeout 2s;").replace(
            "client_header_timeout 10s;", "client_header_timeout 2s;"
        )

    with running(world, tmp_path / "proxy", fast, nodes_per_address=1) as proxy:
        statuses = [proxy.answer("POST /v1/fleet/activate-node")[0] for _ in range(20)]
        assert statuses[0] == 401
        assert 429 in statuses
        beginning = f"POST {PULL} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n1".encode()
        with ExitStack() as stack:
            waiting = [stack.enter_context(proxy.connected()) for _ in range(8)]
            for connection in waiting:
                connection.sendall(beginning)
            answers = [read(connection)[0] for connection in waiting]
        assert answers.count(429) == 4  # of the other four, the rest of the body never came
        assert set(answers) == {429, 408} or set(answers) == {429, 0}
        with proxy.connected() as connection:
            connection.sendall(b"POST /v1")
            assert read(connection)[0] in {0, 408}


def test_stock_supernodes_get_their_paths(world: object, tmp_path: Path) -> None:
    with running(world, tmp_path / "proxy", stock_supernodes=True) as proxy:
        assert proxy.answer("POST /v1/fleet/get-run")[0] == 401
        assert proxy.answer("POST /v1/fleet/get-fab")[0] == 401
        assert proxy.answer("POST /v1/fleet/register-node")[0] == 404


@pytest.mark.parametrize("wrong", ["ca", "upstream_name", "upstream"])
def test_only_this_superlink_is_trusted(world: object, tmp_path: Path, wrong: str) -> None:
    other = {
        "ca": worlds.Authority(tmp_path / "other").ca,
        "upstream_name": "elsewhere.example.org",
        "upstream": f"127.0.0.1:{worlds.free_port()}",
    }
    member = world.register()
    with running(world, tmp_path / "proxy", **{wrong: other[wrong]}) as proxy:
        link = FleetLink(proxy.address, world.ca, member.key)
        with pytest.raises(SuperLinkUnreachable, match="the proxy cannot reach SuperLink"):
            link.activate(None)
        link.close()


def test_a_node_refuses_a_proxy_of_another_authority(world: object, proxy: Proxy, tmp_path: Path) -> None:
    member = world.register()
    link = FleetLink(proxy.address, worlds.Authority(tmp_path / "other").ca, member.key)
    with pytest.raises(FedlearnError, match="certificate") as refused:
        link.activate(None)
    assert refused.value.code == "FL706"
    link.close()

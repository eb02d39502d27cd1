"""The relay: identity from the kernel alone, bounds, timeouts, and what it refuses to start on."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedlearn.errors import CallerRefused, ConfigError
from fedlearn_client.relay import Relay, RelayLimits, backend_path, private_directory, uid_of_peer

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start programs as other users")


class Backend:
    """Stands for the gRPC server: answers each connection with the name that its other end is bound to, then echoes."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self.open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.open.append(connection)
            threading.Thread(target=self._echo, args=(connection,), daemon=True).start()

    @staticmethod
    def _echo(connection: socket.socket) -> None:
        try:
            connection.sendall(connection.getpeername().encode() + b"\n")
            while data := connection.recv(65536):
                connection.sendall(data)
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        connection.close()

    def close(self) -> None:
        self._listener.close()
        for connection in self.open:
            connection.close()


@pytest.fixture
def public() -> Iterator[Path]:
    """In a folder that other users can enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="fedlearn-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder) / "s"


@contextlib.contextmanager
def relaying(public: Path, limits: RelayLimits | None = None) -> Iterator[tuple[Relay, Backend]]:
    relay = Relay(public, limits or RelayLimits(), time.monotonic)
    relay.prepare()
    backend = Backend(backend_path(public))
    relay.start()
    try:
        yield relay, backend
    finally:
        relay.stop()
        backend.close()
        backend_path(public).unlink()


def connect(public: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(10)
    client.connect(str(public))
    return client


def first_line(client: socket.socket) -> str:
    said = b""
    while not said.endswith(b"\n"):
        more = client.recv(1)
        if not more:
            return said.decode()
        said += more
    return said.decode().strip()


def eventually(true: Callable[[], bool]) -> bool:
    until = time.monotonic() + 10
    while not true() and time.monotonic() < until:
        time.sleep(0.005)
    return true()


CLIENT = """
import os, socket, sys
public, backend, uid = sys.argv[1], sys.argv[2], int(sys.argv[3])
os.setgroups([]); os.setgid(uid); os.setuid(uid)
try:
    socket.socket(socket.AF_UNIX).connect(backend)
    print("reached the server itself")
except PermissionError:
    print("refused")
client = socket.socket(socket.AF_UNIX)
client.connect(public)
print(client.recv(4096).decode().strip())
print(os.getpid())
"""


@AS_ROOT
@pytest.mark.parametrize("uid", [12345, 23456, 65534])
def test_the_uid_of_another_user_arrives_and_nobody_else_reaches_the_server(public: Path, uid: int) -> None:
    with relaying(public):
        done = subprocess.run(
            [sys.executable, "-I", "-c", CLIENT, str(public), str(backend_path(public)), str(uid)],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    direct, name, pid = done.stdout.split("\n")[:3]
    assert direct == "refused"
    assert uid_of_peer(f"unix:{name}", public) == uid
    assert name == f"{private_directory(public)}/{uid}-{pid}-1"


def test_bytes_pass_both_ways_unchanged(public: Path) -> None:
    data = os.urandom(3_000_000)  # more than every buffer on the way
    with relaying(public), connect(public) as client:
        first_line(client)
        threading.Thread(target=client.sendall, args=(data,), daemon=True).start()
        back = b""
        while len(back) < len(data):
            back += client.recv(65536)
    assert back == data


def test_a_reader_who_does_not_read_holds_up_nobody_else(public: Path) -> None:
    with relaying(public) as (relay, _), connect(public) as lazy, connect(public) as other:
        first_line(lazy)
        lazy.setblocking(False)
        sent = 0
        while True:  # until every buffer between here and the echo is full
            try:
                sent += lazy.send(b"x" * 65536)
            except BlockingIOError:
                break
        assert sent < 16 * 1024 * 1024
        assert first_line(other)
        other.sendall(b"hello\n")
        assert first_line(other) == "hello"
        assert relay.connections() == 2


def test_the_end_of_one_side_reaches_the_other(public: Path) -> None:
    with relaying(public) as (relay, _), connect(public) as client:
        first_line(client)
        client.sendall(b"last words")
        client.shutdown(socket.SHUT_WR)
        back = b""
        while data := client.recv(100):
            back += data
        assert back == b"last words"
        assert eventually(lambda: relay.connections() == 0)


def test_a_server_that_goes_away_ends_the_connection(public: Path) -> None:
    with relaying(public) as (relay, backend), connect(public) as client:
        first_line(client)
        backend.open[0].shutdown(socket.SHUT_RDWR)
        assert client.recv(10) == b""
        client.close()
        assert eventually(lambda: relay.connections() == 0)


def test_connections_of_one_uid_are_bounded_and_freed(public: Path) -> None:
    with relaying(public, RelayLimits(connections_per_uid=2)) as (relay, _):
        first, second = connect(public), connect(public)
        assert first_line(first)
        assert first_line(second)
        third = connect(public)
        assert third.recv(10) == b""
        first.close()
        assert eventually(lambda: relay.connections() == 1)
        fourth = connect(public)
        assert first_line(fourth)
        for client in (second, third, fourth):
            client.close()


def test_connections_of_all_are_bounded(public: Path) -> None:
    with relaying(public, RelayLimits(connections=1)):
        first, second = connect(public), connect(public)
        assert first_line(first)
        assert second.recv(10) == b""
        first.close()
        second.close()


def test_who_says_nothing_is_closed(public: Path) -> None:
    limits = RelayLimits(first_byte_s=0.2)
    with relaying(public, limits) as (relay, _), connect(public) as silent, connect(public) as talks:
        first_line(talks)
        talks.sendall(b"x")
        assert first_line(silent)  # the server's greeting does not count
        assert silent.recv(10) == b""
        assert eventually(lambda: relay.connections() == 1)
        talks.sendall(b"yz\n")
        assert first_line(talks) == "xyz"


def test_who_half_closes_and_does_not_read_is_closed(public: Path) -> None:
    with relaying(public, RelayLimits(half_closed_s=0.2)) as (relay, _), connect(public) as client:
        first_line(client)
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                client.send(b"x" * 65536)
        client.shutdown(socket.SHUT_WR)
        assert eventually(lambda: relay.connections() == 0)


def test_the_folder_stays_empty_and_private(public: Path) -> None:
    with relaying(public), connect(public) as client:
        name = Path(first_line(client))
        assert not name.exists()
        folder = private_directory(public)
        assert sorted(one.name for one in folder.iterdir()) == ["grpc", "lock"]
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE(public.stat().st_mode) == 0o666


def test_stop_closes_everything_and_removes_the_socket(public: Path) -> None:
    with relaying(public) as (relay, _):
        client = connect(public)
        first_line(client)
        relay.stop()
        relay.stop()
        assert client.recv(10) == b""
        assert not public.exists()
        client.close()


def test_a_dead_socket_is_taken_over(public: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(public))
    left.close()
    with relaying(public), connect(public) as client:
        assert first_line(client)


def test_a_socket_that_answers_is_not_taken_over(public: Path) -> None:
    other = socket.socket(socket.AF_UNIX)
    other.bind(str(public))
    other.listen()
    relay = Relay(public, RelayLimits(), time.monotonic)
    with pytest.raises(ConfigError, match="another program listens"):
        relay.prepare()
    relay.stop()
    assert public.exists()
    other.close()


def test_two_daemons_do_not_share_a_socket(public: Path) -> None:
    with relaying(public):
        second = Relay(public, RelayLimits(), time.monotonic)
        with pytest.raises(ConfigError, match="another daemon"):
            second.prepare()
        second.stop()
        assert public.exists()


def test_something_else_at_the_path_stays(public: Path) -> None:
    public.write_text("mine")
    relay = Relay(public, RelayLimits(), time.monotonic)
    with pytest.raises(ConfigError, match="something else"):
        relay.prepare()
    relay.stop()
    assert public.read_text() == "mine"


def test_a_path_that_cannot_be_bound_is_named(public: Path) -> None:
    for path, words in (
        (public.parent / ("x" * 100), "bytes too long"),
        (Path("relative"), "absolute"),
        (Path("/tmp/with space"), "absolute path of letters"),
        (public.parent / "missing" / "s", "make it first"),
    ):
        relay = Relay(path, RelayLimits(), time.monotonic)
        with pytest.raises(ConfigError, match=words):
            relay.prepare()
        relay.stop()


def test_folders_that_others_can_change_are_refused(public: Path) -> None:
    public.parent.chmod(0o777)
    relay = Relay(public, RelayLimits(), time.monotonic)
    with pytest.raises(ConfigError, match="changed by others"):
        relay.prepare()
    public.parent.chmod(0o755)
    private_directory(public).mkdir(mode=0o755)
    with pytest.raises(ConfigError, match="mode 0700"):
        relay.prepare()
    private_directory(public).rmdir()
    private_directory(public).symlink_to("/tmp")
    with pytest.raises(ConfigError, match="mode 0700"):
        relay.prepare()
    relay.stop()


def test_only_names_that_the_relay_makes_are_read() -> None:
    public = Path("/run/x/s")
    assert uid_of_peer("unix:/run/x/s.d/0-1-1", public) == 0
    assert uid_of_peer("unix:/run/x/s.d/4294967294-77-4294967295", public) == 4294967294
    for peer in (
        "",
        "unix:",
        "unix:/run/x/s.d/",
        "unix:/run/x/s.d/1000-5",
        "unix:/run/x/s.d/1000-5-1-2",
        "unix:/run/x/s.d/01000-5-1",
        "unix:/run/x/s.d/-1-5-1",
        "unix:/run/x/s.d/1000-5-1\n",
        "unix:/run/x/s.d/../s.d/1000-5-1",
        "unix:/run/x/S.d/1000-5-1",
        "unix:/run/y/s.d/1000-5-1",
        "unix:/run/x/s.d/١٢٣-5-1",
        "unix-abstract:/run/x/s.d/1000-5-1",
        "ipv4:127.0.0.1:5000",
    ):
        with pytest.raises(CallerRefused):
            uid_of_peer(peer, public)

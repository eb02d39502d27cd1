"""Tells the gRPC server who is calling: a relay in front of it that reads SO_PEERCRED. ::

    app --- public socket (0666) ---> relay --- private directory (0700) ---> gRPC server
            SO_PEERCRED: uid, pid              bound to "<uid>-<pid>-<n>"      context.peer() = that path

gRPC cannot see the credentials of a socket. It does see the name that the other end is bound to, and only this daemon's
user (and root) can bind a name inside the private directory or reach the server's socket there. So what
``context.peer()`` says is what the kernel told the relay, and no byte that an app sends can change it.

The identity is the one at ``connect``: a process that hands its connected socket to another lends it its name.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import selectors
import socket
import stat
import struct
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedlearn.errors import CallerRefused, ConfigError

LONGEST_PATH: Final = 107  # of sun_path, the terminating zero left out
_LONGEST_NAME: Final = len("/4294967295-2147483647-4294967295")
_CHUNK: Final = 64 * 1024
_CREDENTIALS: Final = struct.Struct("3i")  # pid, uid, gid
_PLAIN: Final = re.compile(r"/[A-Za-z0-9._/-]+")
_NAME: Final = re.compile(r"(0|[1-9][0-9]{0,9})-(0|[1-9][0-9]{0,9})-(0|[1-9][0-9]{0,9})")


@dataclass(frozen=True, slots=True)
class RelayLimits:
    """Bounds that keep one app from starving the others.

    Args:
        connections: at a time, of all uids together.
        connections_per_uid: at a time.
        first_byte_s: a connection that says nothing for so long is closed.
        half_closed_s: one whose one end has gone is closed after so long, whatever is still in flight.
    """

    connections: int = 64
    connections_per_uid: int = 4
    first_byte_s: float = 10.0
    half_closed_s: float = 5.0


def private_directory(public: Path) -> Path:
    """Return where the relay of the public socket ``public`` keeps what only the daemon's user may reach."""
    return public.with_name(public.name + ".d")


def backend_path(public: Path) -> Path:
    """Return the socket that the gRPC server behind the relay listens on."""
    return private_directory(public) / "grpc"


def uid_of_peer(peer: str, public: Path) -> int:
    """Return the uid that a relay in front of the server put into ``context.peer()``.

    Raises:
        CallerRefused: the peer did not come through the relay of ``public``.
    """
    prefix = f"unix:{private_directory(public)}/"
    match = _NAME.fullmatch(peer.removeprefix(prefix)) if peer.startswith(prefix) else None
    if match is None:
        raise CallerRefused("The connection did not come through the relay: use the public socket.")
    return int(match[1])


@dataclass(slots=True, eq=False)
class _Link:
    """One direction of a connection: what was read from ``source`` and not yet written to ``target``."""

    source: socket.socket
    target: socket.socket
    pending: bytes = b""
    source_ended: bool = False
    finished: bool = False  # the target was told that nothing more comes


@dataclass(slots=True, eq=False)
class _Connection:
    uid: int
    up: _Link
    down: _Link
    opened: float
    heard: bool = False
    half_closed: float | None = None


class Relay:
    """Accepts on a public socket and hands each connection on under its caller's uid. One thread, one selector.

    The server must listen on ``backend_path(public)`` before ``start``.

    Args:
        public: path of the socket that apps connect to; its folder must not be writable by others (a sticky one may).
        limits: bounds on connections.
        clock: monotonic seconds.
    """

    def __init__(self, public: Path, limits: RelayLimits, clock: Callable[[], float]) -> None:
        self._public = public
        self._limits = limits
        self._clock = clock
        self._selector = selectors.DefaultSelector()
        self._connections: set[_Connection] = set()
        self._per_uid: Counter[int] = Counter()
        self._served = 0
        self._lock: int | None = None
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def prepare(self) -> None:
        """Make the private directory and take its lock; the server may then listen on ``backend_path``.

        Raises:
            ConfigError: the path is too long, a folder is not safe, or another daemon holds or serves the socket.
        """
        _require_short(self._public)
        _require_safe_folder(self._public.parent)
        private = private_directory(self._public)
        with contextlib.suppress(FileExistsError):
            private.mkdir(mode=0o700)
        _require_private(private)
        self._lock = _take_lock(private / "lock", self._public)
        _remove_if_dead(self._public)

    def start(self) -> None:
        """Listen on the public socket and relay from a thread of its own."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.setblocking(False)
        listener.bind(str(self._public))
        self._public.chmod(0o666)  # everybody may call; who may do what is decided by uid
        listener.listen(64)
        self._listener = listener
        self._selector.register(listener, selectors.EVENT_READ, None)
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._thread.start()

    def refuse_new(self) -> None:
        """Remove the public socket, so that no new connection is made; those that exist go on."""
        self._public.unlink(missing_ok=True)

    def stop(self) -> None:
        """Close everything and give the lock back; may be called twice."""
        thread, self._thread = self._thread, None
        if thread is not None:
            os.write(self._wake_write, b"x")
            thread.join()
            self.refuse_new()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        if self._wake_read >= 0:
            self._selector.close()
            os.close(self._wake_read)
            os.close(self._wake_write)
            self._wake_read = self._wake_write = -1

    def connections(self) -> int:
        """Return how many connections are open now."""
        return len(self._connections)

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select(self._timeout()):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fd == self._wake_read:
                    self._close_all()
                    return
                elif key.data in self._connections:  # an earlier event of this pass may have closed it
                    self._move(key.data)
            self._close_overdue()

    def _timeout(self) -> float | None:
        waiting = any(not one.heard or one.half_closed is not None for one in self._connections)
        return 1.0 if waiting else None  # nothing wakes the phone while every connection is settled

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()  # type: ignore[union-attr]  # set before the thread started
        except OSError:
            return  # gone again, or out of descriptors: the others go on
        client.setblocking(False)
        _, uid, _ = credentials = _CREDENTIALS.unpack(
            client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        limits = self._limits
        if len(self._connections) >= limits.connections or self._per_uid[uid] >= limits.connections_per_uid:
            client.close()
            return
        try:
            server = self._reach_server(credentials[0], uid)
        except OSError:
            client.close()
            return
        connection = _Connection(uid, _Link(client, server), _Link(server, client), self._clock())
        self._connections.add(connection)
        self._per_uid[uid] += 1
        for end in (client, server):
            self._selector.register(end, selectors.EVENT_READ, connection)

    def _reach_server(self, pid: int, uid: int) -> socket.socket:
        self._served = (self._served + 1) % 2**32
        name = private_directory(self._public) / f"{uid & 0xFFFFFFFF}-{max(pid, 0)}-{self._served}"
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            server.bind(str(name))
            server.settimeout(1.0)  # local and listening: waits only while the server is overrun
            server.connect(str(backend_path(self._public)))
            server.setblocking(False)
        except OSError:
            server.close()
            raise
        finally:
            name.unlink(missing_ok=True)  # the socket keeps its name; the folder stays empty
        return server

    def _move(self, connection: _Connection) -> None:
        try:
            connection.heard |= _pump(connection.up)
            _pump(connection.down)
        except OSError:
            self._close(connection)
            return
        if connection.up.finished and connection.down.finished:
            self._close(connection)
            return
        if connection.half_closed is None and (connection.up.source_ended or connection.down.source_ended):
            connection.half_closed = self._clock()
        self._watch(connection.up.source, connection.up, connection.down, connection)
        self._watch(connection.down.source, connection.down, connection.up, connection)

    def _watch(self, end: socket.socket, reads: _Link, writes: _Link, connection: _Connection) -> None:
        events = 0
        if not reads.pending and not reads.source_ended:
            events |= selectors.EVENT_READ
        if writes.pending:
            events |= selectors.EVENT_WRITE
        known = self._selector.get_map().get(end.fileno())
        if known is None:
            if events:
                self._selector.register(end, events, connection)
        elif not events:
            self._selector.unregister(end)
        elif known.events != events:
            self._selector.modify(end, events, connection)

    def _close_overdue(self) -> None:
        now = self._clock()
        for one in list(self._connections):
            silent = not one.heard and now - one.opened > self._limits.first_byte_s
            if silent or (one.half_closed is not None and now - one.half_closed > self._limits.half_closed_s):
                self._close(one)

    def _close(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        self._per_uid[connection.uid] -= 1
        if self._per_uid[connection.uid] <= 0:
            del self._per_uid[connection.uid]
        for end in (connection.up.source, connection.down.source):
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(end)
            end.close()

    def _close_all(self) -> None:
        for connection in list(self._connections):
            self._close(connection)
        if self._listener is not None:
            self._listener.close()


def _pump(link: _Link) -> bool:
    """Move what can be moved without waiting; return whether anything was read."""
    was_read = False
    if not link.pending and not link.source_ended:
        with contextlib.suppress(BlockingIOError):
            link.pending = link.source.recv(_CHUNK)
            was_read = bool(link.pending)
            link.source_ended = not link.pending
    if link.pending:
        with contextlib.suppress(BlockingIOError):
            link.pending = link.pending[link.target.send(link.pending) :]
    if link.source_ended and not link.pending and not link.finished:
        link.target.shutdown(socket.SHUT_WR)
        link.finished = True
    return was_read


def _require_short(public: Path) -> None:
    if not _PLAIN.fullmatch(str(public)):  # what gRPC would quote in context.peer() is not worth unquoting
        raise ConfigError(f"socket={public}: must be an absolute path of letters, digits and . _ - /")
    longest = len(os.fsencode(private_directory(public))) + _LONGEST_NAME
    if longest > LONGEST_PATH:
        raise ConfigError(
            f"socket={public}: {longest - LONGEST_PATH} bytes too long for a socket path; "
            "choose a shorter folder, e.g. /run/fedlearn/device."
        )


def _require_safe_folder(folder: Path) -> None:
    try:
        found = folder.stat()
    except OSError as error:
        raise ConfigError(f"socket: the folder {folder} cannot be used ({error.strerror}); make it first.") from error
    by_others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if found.st_uid not in {0, os.geteuid()} or (by_others and not found.st_mode & stat.S_ISVTX):
        raise ConfigError(f"socket: the folder {folder} can be changed by others; chmod go-w, or choose another.")


def _require_private(folder: Path) -> None:
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise ConfigError(f"socket: {folder} must be a folder of this user with mode 0700; remove it and start again.")


def _take_lock(path: Path, public: Path) -> int:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise ConfigError(f"socket={public}: another daemon serves it; stop that one first.") from error
    return handle


def _remove_if_dead(public: Path) -> None:
    """Remove a socket that a killed daemon left; a socket that answers, and anything else, stays."""
    try:
        mode = public.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"socket={public}: something else lies there; remove it or choose another path.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(public))
        except ConnectionRefusedError:
            public.unlink()
            return
        except OSError as error:
            raise ConfigError(f"socket={public}: cannot be taken over ({error.strerror}).") from error
    raise ConfigError(f"socket={public}: another program listens there; stop it or choose another path.")

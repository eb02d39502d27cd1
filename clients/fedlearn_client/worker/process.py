"""The daemon's end of one worker process. Needs no numpy."""

from __future__ import annotations

import math
import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Final

from google.protobuf.message import DecodeError

from fedlearn.errors import MessageTooLarge, WorkerFailed
from fedlearn.proto import worker_pb2 as pb
from fedlearn_client.worker.frames import HEAD, checked_length, frame

STOP_CHECK_S: Final = 1.0
_PART: Final = 1 << 20
_MOST_STDERR: Final = 4096

Monotonic = Callable[[], float]


class Gone(WorkerFailed):
    """The process ended before it said anything to this request."""


class Patience:
    """How long one request may take, and who may cut it short.

    Args:
        monotonic: seconds that never go back.
        seconds: for the whole request.
        stop: asked first and then about once a second; true ends it.
    """

    def __init__(self, monotonic: Monotonic, seconds: float, stop: Callable[[], bool] | None = None) -> None:
        self._monotonic = monotonic
        self._until = monotonic() + seconds
        self._stop = stop
        self._asked = -math.inf

    def wait_for(self, pipe: int, event: int) -> None:
        """Wait until a pipe is ready.

        Raises:
            WorkerFailed: stopped, or out of time.
        """
        while True:
            now = self._monotonic()
            if self._stop is not None and now - self._asked >= STOP_CHECK_S:
                self._asked = now
                if self._stop():
                    raise WorkerFailed("worker: was stopped.")
            if now >= self._until:
                raise WorkerFailed("worker: took too long.")
            if _ready(pipe, event, min(self._until - now, STOP_CHECK_S)):
                return


class WorkerProcess:
    """One child and the two pipes to it. One request at a time.

    Args:
        arguments: after ``-m fedlearn_client.worker``.
        monotonic: seconds that never go back.
        command: how to start a worker; tests start others.

    Raises:
        WorkerFailed: the process cannot be started.
    """

    def __init__(self, arguments: list[str], monotonic: Monotonic, command: list[str] | None = None) -> None:
        self._monotonic = monotonic
        started = command or [sys.executable, "-I", "-m", "fedlearn_client.worker"]
        try:
            self._child = subprocess.Popen(  # noqa: S603 - our own interpreter and module, or a test's
                [*started, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                close_fds=True,
                start_new_session=True,
                bufsize=0,
                env=clean_environment(),
                cwd="/",
            )
        except OSError as error:
            raise WorkerFailed(
                f"worker: cannot be started ({type(error).__name__}); may the daemon's user run {started[0]}, and is "
                "memory left?"
            ) from None
        for pipe in (self._in, self._out):
            os.set_blocking(pipe, False)
        self._busy = threading.Lock()
        self._closing = False
        # a thread of its own waits, so that no ended child stays behind as a zombie
        threading.Thread(target=self._child.wait, name="worker-reaper", daemon=True).start()

    @property
    def _in(self) -> int:
        return _number(self._child.stdin)

    @property
    def _out(self) -> int:
        return _number(self._child.stdout)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._child.pid

    def first_words(self, deadline_s: float) -> frozenset[str]:
        """Return the layers of the sandbox that a fresh worker reports.

        Raises:
            WorkerFailed: it says something else, or nothing in time; the message has its last line of error output,
                which cannot be about data: it was given none.
        """
        with self._busy:
            try:
                reply = self._parsed(self._read(Patience(self._monotonic, deadline_s)))
            except WorkerFailed as error:
                self.kill()
                raise WorkerFailed(f"{error} {self._last_line()}".strip()) from None
            _close(self._child.stderr)
        if reply.WhichOneof("body") != "ready":
            self.kill()
            raise WorkerFailed("worker: began with another message than what confines it.")
        return frozenset(reply.ready.layers)

    def ask(self, request: bytes, deadline_s: float, stop: Callable[[], bool] | None = None) -> pb.Reply:
        """Send one request and return the reply.

        The child is killed on every fault: after one it cannot be told what a pipe still holds.

        Args:
            request: a ``worker.proto`` Request.
            deadline_s: seconds for all of it.
            stop: asked about once a second; true kills the child.

        Raises:
            Gone: the process had ended before.
            WorkerFailed: it died, took too long, was stopped, or answered nonsense.
        """
        patience = Patience(self._monotonic, deadline_s, stop)
        try:
            framed = frame(request)
        except MessageTooLarge as error:
            raise WorkerFailed(f"worker: {error}") from None
        try:
            with self._busy:
                self._require_silence()
                self._write(framed, patience)
                data = self._read(patience)
        except BaseException:
            self.kill()
            raise
        finally:
            if self._closing:
                self.close()
        return self._parsed(data)

    def kill(self) -> None:
        """End the process at once and wait for its end; may be called from any thread, and again."""
        self._child.kill()
        self._child.wait()

    def close(self) -> None:
        """End the process and give its pipes back; never waits for a thread that is asking, which gets WorkerFailed."""
        self._closing = True
        self.kill()
        if not self._busy.acquire(blocking=False):
            return  # who is asking gives them back on its way out
        try:
            for pipe in (self._child.stdin, self._child.stdout, self._child.stderr):
                _close(pipe)
        finally:
            self._busy.release()

    def _parsed(self, data: bytes) -> pb.Reply:
        try:
            return pb.Reply.FromString(data)
        except DecodeError:
            self.kill()
            raise WorkerFailed("worker: answered nonsense.") from None

    def _require_silence(self) -> None:
        """Refuse a worker that speaks unasked, or whose pipes were given back."""
        if self._child.stdout is None or self._child.stdout.closed:
            raise Gone("worker: had ended.")
        if not _ready(self._out, select.POLLIN, 0):
            return
        if os.read(self._out, 1) == b"":
            raise Gone("worker: had ended.")
        raise WorkerFailed("worker: spoke unasked.")

    def _write(self, data: bytes, patience: Patience) -> None:
        rest = memoryview(data)
        while rest:
            patience.wait_for(self._in, select.POLLOUT)
            try:
                rest = rest[os.write(self._in, rest[:_PART]) :]
            except BlockingIOError:
                continue
            except OSError:
                raise Gone("worker: had ended.") from None

    def _read(self, patience: Patience) -> bytes:
        length = HEAD.unpack(self._exactly(HEAD.size, patience))[0]
        try:
            checked_length(length)
        except MessageTooLarge as error:
            raise WorkerFailed(f"worker: {error}") from None
        return self._exactly(length, patience)

    def _exactly(self, count: int, patience: Patience) -> bytes:
        data = bytearray()
        while len(data) < count:
            patience.wait_for(self._out, select.POLLIN)
            part = os.read(self._out, min(count - len(data), _PART))
            if not part:
                raise WorkerFailed("worker: ended before it had answered.")
            data += part
        return bytes(data)

    def _last_line(self) -> str:
        """Return the end of what a worker that never began said about it."""
        data = b""
        if self._child.stderr is not None:
            os.set_blocking(self._child.stderr.fileno(), False)
            data = self._child.stderr.read(_MOST_STDERR * 16) or b""
        lines = data[-_MOST_STDERR:].decode(errors="replace").strip().splitlines()
        return f"It said: {lines[-1][:300]}" if lines else ""


def clean_environment() -> dict[str, str]:
    """Return what a worker's environment is: nothing of the daemon's.

    One thread for numpy; no telemetry of onnxruntime, which is on by default on Linux; one memory arena, and what is
    larger than 1 MiB apart from it, so that a catalogue leaves no holes.
    """
    return {
        "LANG": "C.UTF-8",
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": "1048576",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "ORT_DISABLE_TELEMETRY": "1",
    }


def _ready(pipe: int, event: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(pipe, event)
    return bool(poll.poll(seconds * 1000))


def _number(pipe: object) -> int:
    return int(pipe.fileno())  # type: ignore[attr-defined]


def _close(pipe: object) -> None:
    if pipe is not None:
        pipe.close()  # type: ignore[attr-defined]

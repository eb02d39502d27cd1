"""How the kit speaks as one caller: directly, or through a child process of another user."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import grpc

from fedlearn_client.conformance.cases import NotServed

TIMEOUT_S: Final = 60.0
_OPTIONS: Final = (("grpc.max_send_message_length", 1 << 26), ("grpc.max_receive_message_length", 1 << 26))


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: the name of a gRPC status code, its message, and the reply's bytes."""

    code: str
    details: str
    body: bytes


class Line(Protocol):
    """A caller's connection to the target."""

    def call(self, method: str, request: bytes) -> Answer:
        """Call a method by its path."""
        ...

    def watch(self, method: str, request: bytes, count: int) -> Iterator[Answer]:
        """Yield up to ``count`` messages of a stream, each when it arrives; the last may be a refusal."""
        ...

    def close(self) -> None:
        """End the connection."""
        ...


class Direct:
    """Calls from this process."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, _OPTIONS)

    def call(self, method: str, request: bytes) -> Answer:
        """Call a method by its path."""
        try:
            # not through the stubs: a case may send bytes that are no message
            return Answer("OK", "", self._channel.unary_unary(method)(request, timeout=TIMEOUT_S))
        except grpc.RpcError as error:
            return Answer(error.code().name, error.details() or "", b"")

    def watch(self, method: str, request: bytes, count: int) -> Iterator[Answer]:
        """Yield up to ``count`` messages of a stream."""
        stream = self._channel.unary_stream(method)(request, timeout=TIMEOUT_S)
        try:
            for _ in range(count):
                yield Answer("OK", "", next(stream))
        except StopIteration:
            yield Answer("OUT_OF_RANGE", "the stream ended", b"")
        except grpc.RpcError as error:
            yield Answer(error.code().name, error.details() or "", b"")
        finally:
            stream.cancel()

    def close(self) -> None:
        """End the connection."""
        self._channel.close()


class Child:
    """Calls from a child process that became another user. Needs root."""

    def __init__(self, address: str, uid: int) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, with a number and an address
            [sys.executable, "-I", "-m", "fedlearn_client.conformance.caller", str(uid), address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def call(self, method: str, request: bytes) -> Answer:
        """Call a method by its path."""
        self._send(method, request, 0)
        return self._receive()

    def watch(self, method: str, request: bytes, count: int) -> Iterator[Answer]:
        """Yield up to ``count`` messages of a stream."""
        self._send(method, request, count)
        for _ in range(count):
            answer = self._receive()
            yield answer
            if answer.code != "OK":
                return

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _send(self, method: str, request: bytes, count: int) -> None:
        if self._process.stdin is None:
            raise OSError("the caller's process has no input")
        self._process.stdin.write(json.dumps([method, request.hex(), count]) + "\n")
        self._process.stdin.flush()

    def _receive(self) -> Answer:
        line = "" if self._process.stdout is None else self._process.stdout.readline()
        if not line:
            raise OSError("the caller's process ended")
        code, details, body = json.loads(line)
        return Answer(code, details, bytes.fromhex(body))


def open_line(address: str, uid: int | None) -> Line:
    """Return a connection as the user ``uid``; None: as whoever runs the kit.

    Raises:
        NotServed: this process may not become that user.
    """
    if uid is None or uid == os.geteuid():
        return Direct(address)
    if os.geteuid() != 0:
        raise NotServed(f"only root can call as uid {uid}")
    return Child(address, uid)

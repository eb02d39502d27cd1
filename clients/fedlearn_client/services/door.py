"""One way in: every call is identified, allowed, bounded and decoded here, before a servicer sees it. ::

    peer -> caller -> role of the method -> size -> calls under way -> decoded request -> servicer -> reply or refusal

Calls wait in an asyncio loop and hold no thread until their request has arrived whole, so that a caller who begins
calls and never ends them holds up nobody else. Servicers are plain functions that run on a few threads.
"""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import grpc
from google.protobuf.message import DecodeError, Message
from grpc import aio

from fedlearn.errors import CallerRefused, ConfigError, FedlearnError, MalformedMessage, MessageTooLarge, RateLimited
from fedlearn_client import limits
from fedlearn_client.hooks import AuditSink, Caller, CallerIdentity
from fedlearn_client.memory import give_back
from fedlearn_client.services.methods import METHODS, Method
from fedlearn_client.services.refusals import refusal_of

THREADS: Final = 8
"""More than the calls that can take long (a training, two destructions) and those of one app together."""

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", limits.PUSH_REQUEST_BYTES),
    ("grpc.max_send_message_length", limits.PUSH_REQUEST_BYTES),
    ("grpc.max_concurrent_streams", 4),  # a connection; the relay bounds connections
    ("grpc.max_metadata_size", 8 * 1024),
    ("grpc.max_connection_idle_ms", 5 * 60 * 1000),
    # a call that never ends is ended at last; a client connects again by itself
    ("grpc.max_connection_age_ms", 60 * 60 * 1000),
    ("grpc.max_connection_age_grace_ms", 15 * 60 * 1000),
    ("grpc.so_reuseport", 0),
)
_WATCH_S: Final = 0.2
_QUIET_S: Final = 5.0

Handler = Callable[[Caller, Any], Message]


class Changes(Protocol):
    """What a watcher watches."""

    @property
    def generation(self) -> int:
        """Rises with every change."""
        ...


@dataclass(frozen=True, slots=True)
class Servicers:
    """What answers.

    Args:
        handlers: path -> servicer; of a stream, what makes one message of it.
        changes: of what the streams show.
    """

    handlers: Mapping[str, Handler]
    changes: Changes


class Door:
    """Identifies, allows, bounds and decodes calls.

    Args:
        callers: says who is behind a peer.
        audit: hears of refusals, by method, app and code.
        servicers: what answers; must have every method of the table, and no other.

    Raises:
        ConfigError: a method of the table has no servicer, or a servicer no place in the table.
    """

    def __init__(self, callers: CallerIdentity, audit: AuditSink, servicers: Servicers) -> None:
        if set(servicers.handlers) != set(METHODS):
            odd = sorted(set(servicers.handlers) ^ set(METHODS))
            raise ConfigError(f"services: no place in the table of methods, or no servicer: {', '.join(odd)}.")
        self._callers = callers
        self._audit = audit
        self._servicers = servicers
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="call")
        self._under_way: Counter[str] = Counter()  # used in the loop's thread only
        self._watchers = 0
        self._giving_back: asyncio.TimerHandle | None = None

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return the table as gRPC wants it; requests and replies are bytes."""
        made = {}
        for path, method in METHODS.items():
            if method.streams:
                made[path] = grpc.unary_stream_rpc_method_handler(self._streaming(method))
            else:
                made[path] = grpc.unary_unary_rpc_method_handler(self._unary(method))
        return _Table(made)

    def close(self) -> None:
        """Wait for calls that run; the server must have stopped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _unary(self, method: Method) -> Any:
        async def call(data: bytes, context: aio.ServicerContext[bytes, bytes]) -> bytes:
            try:
                caller = self._admit(method, context.peer(), data)
                reply = await self._run(method, caller, self._decode(method, data))
            except Exception as error:  # noqa: BLE001 - whatever it is, the caller hears a status
                await self._refuse(method, error, context)
            return reply

        return call

    def _streaming(self, method: Method) -> Any:
        async def call(data: bytes, context: aio.ServicerContext[bytes, bytes]) -> AsyncIterator[bytes]:
            watching = False
            try:
                caller = self._admit(method, context.peer(), data)
                request = self._decode(method, data)
                self._begin_watch(method)
                watching = True
                while True:
                    seen = self._servicers.changes.generation
                    yield await self._run(method, caller, request)
                    while self._servicers.changes.generation == seen:
                        await asyncio.sleep(_WATCH_S)
            except Exception as error:  # noqa: BLE001
                await self._refuse(method, error, context)
            finally:
                self._watchers -= watching

        return call

    def _begin_watch(self, method: Method) -> None:
        if self._watchers >= limits.WATCHERS:
            raise RateLimited(f"{method.name}: {limits.WATCHERS} watch already; end one first.")
        self._watchers += 1

    def _admit(self, method: Method, peer: str, data: bytes) -> Caller:
        caller = self._callers.caller(peer)
        if caller.role not in method.roles:
            allowed = " or ".join(sorted(method.roles))
            raise CallerRefused(f"{method.service}.{method.name} is for role {allowed}; the caller's is {caller.role}.")
        if len(data) > method.max_bytes:
            raise MessageTooLarge(f"{method.name}: the request has {len(data)} bytes, at most {method.max_bytes}.")
        if self._under_way[caller.app] >= limits.CALLS_PER_APP:
            raise RateLimited(f"{limits.CALLS_PER_APP} calls of this app are under way; wait for one to end.")
        return caller

    @staticmethod
    def _decode(method: Method, data: bytes) -> Message:
        try:
            return method.request.FromString(data)
        except DecodeError:
            # its own message may quote the bytes
            raise MalformedMessage(f"{method.name}: the bytes are no {method.request.DESCRIPTOR.name}.") from None

    async def _run(self, method: Method, caller: Caller, request: Message) -> bytes:
        handler = self._servicers.handlers[method.path]
        loop = asyncio.get_running_loop()
        self._under_way[caller.app] += 1
        work = loop.run_in_executor(self._pool, lambda: handler(caller, request).SerializeToString())
        work.add_done_callback(lambda _: self._done(caller))  # also where the caller has long gone
        work.add_done_callback(lambda _: self._give_back_soon(loop))
        return await asyncio.shield(work)

    def _give_back_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give memory back once it has been quiet for a while, and gRPC has let go of its own buffers too."""
        if self._giving_back is not None:
            self._giving_back.cancel()
        self._giving_back = loop.call_later(_QUIET_S, loop.run_in_executor, self._pool, give_back)

    def _done(self, caller: Caller) -> None:
        self._under_way[caller.app] -= 1
        if self._under_way[caller.app] <= 0:
            del self._under_way[caller.app]

    async def _refuse(self, method: Method, error: Exception, context: aio.ServicerContext[bytes, bytes]) -> None:
        refusal = refusal_of(error)
        fields: dict[str, str | int | float | bool] = {"method": method.path, "status": refusal.status.name}
        if isinstance(error, FedlearnError):
            fields["code"] = error.code
        else:  # kind and place, not the words: they may hold what the caller sent
            last = traceback.extract_tb(error.__traceback__)[-1]
            fields |= {"error": type(error).__name__, "place": f"{Path(last.filename).name}:{last.lineno}"}
        self._audit.record("refused", fields)
        await context.abort(refusal.status, refusal.details)


class _Table(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    def __init__(self, made: Mapping[str, grpc.RpcMethodHandler]) -> None:
        self._made = made

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return self._made.get(handler_call_details.method)


class Server:
    """The gRPC server, in a loop and a thread of its own.

    Args:
        door: what calls go through.
        address: to listen on, e.g. ``unix:/run/fedlearn/device.sock.d/grpc``.
        also: further handlers; what they serve does not go through the door.
    """

    def __init__(self, door: Door, address: str, also: Sequence[grpc.GenericRpcHandler] = ()) -> None:
        self._door = door
        self._also = tuple(also)
        self._address = address
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._grace = 0.0

    def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: the address cannot be listened on.
        """
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._serve, args=(ready,), name="grpc", daemon=True)
        self._thread.start()
        ready.result()

    def stop(self, grace_s: float) -> None:
        """Take no more calls, give those under way ``grace_s`` seconds, and wait for the end."""
        thread, self._thread = self._thread, None
        if thread is None or self._loop is None or self._stop is None:
            return
        self._grace = grace_s
        self._loop.call_soon_threadsafe(self._stop.set)
        thread.join()

    def _serve(self, ready: Future[None]) -> None:
        try:
            asyncio.run(self._main(ready))
        except Exception as error:  # noqa: BLE001 - handed to the thread that waits
            if not ready.done():
                ready.set_exception(error)

    async def _main(self, ready: Future[None]) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = aio.server(options=_OPTIONS)
        server.add_generic_rpc_handlers((self._door.handlers(), *self._also))
        try:
            server.add_insecure_port(self._address)
            await server.start()
        except RuntimeError as error:
            raise ConfigError(f"socket: {self._address} cannot be listened on.") from error
        ready.set_result(None)
        await self._stop.wait()
        await server.stop(self._grace)

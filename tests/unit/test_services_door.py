"""The door over a real socket: roles, bounds, decoding, and what a caller hears when something breaks."""

from __future__ import annotations

import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedlearn import errors
from fedlearn.errors import ConfigError, Refusal, StoreFailed, TaskRefused
from fedlearn.proto import device_pb2 as pb
from fedlearn_client import limits
from fedlearn_client.fakes import FakeAuditSink, FakeCallers
from fedlearn_client.hooks import Caller, Role
from fedlearn_client.services.door import Door, Server, Servicers
from fedlearn_client.services.methods import METHODS
from fedlearn_client.services.refusals import INTERNAL, OtherType, UnknownName, refusal_of
from fedlearn_client.store.opening import StoreFull

PUSH = "/fedlearn.device.v1.Signals/Push"
WATCH = "/fedlearn.device.v1.Consent/Watch"
STATUS = "/fedlearn.device.v1.Runtime/Status"


ADDRESSES: list[str] = []


class World:
    """Servicers that do what the test says, and a caller of any role."""

    def __init__(self) -> None:
        self.act: Callable[[Caller, Message], Message] = lambda _caller, _request: pb.PushReply(received=1)
        self.callers = FakeCallers({"unix:": Caller("app", Role.APP)})
        self.audit = FakeAuditSink()
        self.generation = 0
        self.calls = 0

    def handle(self, caller: Caller, request: Message) -> Message:
        self.calls += 1
        return self.act(caller, request)

    def role(self, role: Role) -> None:
        self.callers.callers["unix:"] = Caller("app", role)


@contextmanager
def served(world: World, addresses: list[str] | None = None) -> Iterator[grpc.Channel]:
    with tempfile.TemporaryDirectory(prefix="fedlearn-") as folder:
        address = f"unix:{folder}/s"
        door = Door(world.callers, world.audit, Servicers(dict.fromkeys(METHODS, world.handle), world))
        server = Server(door, address)
        server.start()
        if addresses is not None:
            addresses.append(address)
        try:
            with grpc.insecure_channel(address) as channel:
                yield channel
        finally:
            server.stop(0.1)
            door.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[World, grpc.Channel]]:
    world = World()
    with served(world, ADDRESSES) as channel:
        yield world, channel


@pytest.fixture
def world(shared: tuple[World, grpc.Channel]) -> World:
    fresh = World()
    world = shared[0]
    world.act, world.calls = fresh.act, 0
    world.role(Role.APP)
    world.audit.events.clear()
    return world


@pytest.fixture
def second(shared: tuple[World, grpc.Channel]) -> Iterator[grpc.Channel]:
    """A connection of its own: the server takes a few calls at a time from each."""
    with grpc.insecure_channel(ADDRESSES[0], [("grpc.use_local_subchannel_pool", 1)]) as made:
        yield made


@pytest.fixture
def channel(shared: tuple[World, grpc.Channel]) -> grpc.Channel:
    return shared[1]


def call(channel: grpc.Channel, path: str = PUSH, request: bytes = b"") -> bytes:
    return bytes(channel.unary_unary(path)(request, timeout=20))


def refused(channel: grpc.Channel, path: str = PUSH, request: bytes = b"") -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as error:
        call(channel, path, request)
    return error.value.code(), error.value.details()


def status_of(channel: grpc.Channel, path: str = PUSH, request: bytes = b"") -> grpc.StatusCode:
    return channel.unary_unary(path).future(request, timeout=20).code()


def test_a_call_goes_through(world: World, channel: grpc.Channel) -> None:
    assert pb.PushReply.FromString(call(channel)).received == 1
    assert world.audit.events == []


def test_the_table_has_every_method_of_the_contract_and_no_other() -> None:
    contract = {
        f"/{service.full_name}/{method.name}": method
        for service in pb.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert set(METHODS) == set(contract)
    for path, method in contract.items():
        assert METHODS[path].request.DESCRIPTOR is method.input_type
        assert METHODS[path].streams == method.server_streaming


def test_each_role_may_call_its_own_services_alone(world: World, channel: grpc.Channel) -> None:
    allowed = {
        Role.APP: {"Signals", "Recommend"},
        Role.SURFACE: {"Recommend"},
        Role.SETTINGS: {"Consent", "Audit"},
        Role.SYSTEM: {"Runtime"},
    }
    for role, services in allowed.items():
        world.role(role)
        for path, method in METHODS.items():
            if method.streams:
                continue
            if method.service in services:
                call(channel, path)
            else:
                assert refused(channel, path)[0] is grpc.StatusCode.PERMISSION_DENIED
    world.callers.callers.clear()
    before = world.calls
    for path in METHODS:
        assert refused(channel, path)[0] is grpc.StatusCode.PERMISSION_DENIED
    assert world.calls == before
    world.role(Role.APP)


def test_a_servicer_without_a_place_or_a_place_without_a_servicer_is_refused() -> None:
    world = World()
    for handlers in (
        {**dict.fromkeys(METHODS, world.handle), "/fedlearn.device.v1.Signals/Steal": world.handle},
        {path: world.handle for path in METHODS if path != PUSH},
    ):
        with pytest.raises(ConfigError, match="table of methods"):
            Door(world.callers, world.audit, Servicers(handlers, world))


def test_undecodable_and_oversized_requests_do_not_reach_a_servicer(world: World, channel: grpc.Channel) -> None:
    status, details = refused(channel, request=b"\xff\xff secret")
    assert status is grpc.StatusCode.INVALID_ARGUMENT
    assert details == "FL301 Push: the bytes are no PushRequest."
    not_utf8 = b"\x0a\x02\xff\xfe"  # field 1, two bytes that are not UTF-8
    assert refused(channel, request=not_utf8)[1].startswith("FL301")
    world.role(Role.SYSTEM)
    too_large = bytes(limits.SMALL_REQUEST_BYTES + 1)
    assert refused(channel, STATUS, too_large)[1].startswith("FL302")
    world.role(Role.APP)
    assert refused(channel, request=bytes(limits.PUSH_REQUEST_BYTES + 1))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert world.calls == 0


def test_an_unexpected_error_says_nothing_and_is_logged_by_kind_and_place(world: World, channel: grpc.Channel) -> None:
    def broken(_caller: Caller, _request: Message) -> Message:
        raise KeyError("marmalade")

    world.act = broken
    assert refused(channel) == (grpc.StatusCode.INTERNAL, INTERNAL)
    (event,) = world.audit.events
    assert event.fields["error"] == "KeyError"
    assert re.fullmatch(r"test_services_door\.py:\d+", str(event.fields["place"]))
    assert "marmalade" not in repr(event)


def test_calls_of_one_app_at_a_time_are_bounded_and_freed(
    world: World, channel: grpc.Channel, second: grpc.Channel
) -> None:
    go_on, begun = threading.Event(), threading.Semaphore(0)

    def slow(_caller: Caller, _request: Message) -> Message:
        begun.release()
        go_on.wait(20)
        return pb.PushReply()

    world.act = slow
    waiting = [channel.unary_unary(PUSH).future(b"", timeout=20) for _ in range(limits.CALLS_PER_APP)]
    for _ in waiting:
        assert begun.acquire(timeout=20)
    assert refused(second)[1].startswith("FL908")
    go_on.set()
    for one in waiting:
        one.result()
    call(channel)


def test_a_call_that_is_given_up_counts_until_it_has_ended(world: World, channel: grpc.Channel) -> None:
    go_on, begun = threading.Event(), threading.Semaphore(0)

    def slow(_caller: Caller, _request: Message) -> Message:
        begun.release()
        go_on.wait(20)
        return pb.PushReply()

    world.act = slow
    for _ in range(limits.CALLS_PER_APP):
        one = channel.unary_unary(PUSH).future(b"", timeout=20)
        assert begun.acquire(timeout=20)
        one.cancel()
    assert refused(channel)[1].startswith("FL908")
    go_on.set()
    until = time.monotonic() + 20
    while status_of(channel) is not grpc.StatusCode.OK and time.monotonic() < until:
        time.sleep(0.01)
    call(channel)


def test_requests_that_never_end_hold_up_nobody(world: World, channel: grpc.Channel) -> None:
    never = threading.Event()

    def requests() -> Iterator[bytes]:
        never.wait(60)
        yield b""

    streams = [channel.stream_unary(PUSH).future(requests(), timeout=60) for _ in range(3)]
    time.sleep(0.2)
    call(channel)
    for one in streams:
        one.cancel()
    never.set()


def test_watchers_are_bounded_and_see_each_change() -> None:
    world = World()
    world.role(Role.SETTINGS)
    world.act = lambda _caller, _request: pb.ListReply(personal_off=world.generation > 0)
    with served(world) as first:
        streams = [first.unary_stream(WATCH)(b"", timeout=30) for _ in range(limits.WATCHERS)]
        states = [pb.ListReply.FromString(next(one)) for one in streams]
        assert [one.personal_off for one in states] == [False] * limits.WATCHERS
        world.generation += 1
        assert pb.ListReply.FromString(next(streams[0])).personal_off
        for one in streams:
            one.cancel()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(data=st.binary(max_size=300), path=st.sampled_from(sorted(set(METHODS) - {WATCH})))
def test_any_bytes_get_a_reply_or_a_status(world: World, channel: grpc.Channel, data: bytes, path: str) -> None:
    world.role(next(iter(METHODS[path].roles)))
    outcome = channel.unary_unary(path).future(data, timeout=20)
    if outcome.code() is not grpc.StatusCode.OK:
        assert outcome.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert outcome.details().startswith("FL301")


def test_bytes_that_are_no_http2_end_the_connection() -> None:
    with tempfile.TemporaryDirectory(prefix="fedlearn-") as folder:
        world = World()
        door = Door(world.callers, world.audit, Servicers(dict.fromkeys(METHODS, world.handle), world))
        server = Server(door, f"unix:{folder}/s")
        server.start()
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(f"{folder}/s")
            client.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
            while client.recv(4096):
                pass
        with grpc.insecure_channel(f"unix:{folder}/s") as channel:
            call(channel)
        server.stop(0.1)
        door.close()


def test_an_address_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    world = World()
    door = Door(world.callers, world.audit, Servicers(dict.fromkeys(METHODS, world.handle), world))
    with pytest.raises(ConfigError, match="cannot be listened on"):
        Server(door, f"unix:{tmp_path}/missing/s").start()
    door.close()


S = grpc.StatusCode


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.CallerRefused("x"), S.PERMISSION_DENIED),
        (errors.SignalRefused("x"), S.INVALID_ARGUMENT),
        (UnknownName("x"), S.NOT_FOUND),
        (OtherType("x"), S.ALREADY_EXISTS),
        (errors.ConsentRefused("x"), S.FAILED_PRECONDITION),
        (StoreFailed("x"), S.UNAVAILABLE),
        (StoreFull("x"), S.RESOURCE_EXHAUSTED),
        (errors.RateLimited("x"), S.RESOURCE_EXHAUSTED),
        (errors.BundleRefused("x"), S.FAILED_PRECONDITION),
        (errors.StatusRefused("x"), S.FAILED_PRECONDITION),
        (TaskRefused(Refusal.BUDGET, "x"), S.FAILED_PRECONDITION),
        (errors.WorkerFailed("x"), S.UNAVAILABLE),
        (errors.TransportFailed("x"), S.UNAVAILABLE),
        (errors.MessageTooLarge("x"), S.INVALID_ARGUMENT),
        (errors.OutOfRange("x"), S.INVALID_ARGUMENT),
    ],
)
def test_errors_have_their_status_and_code(error: errors.FedlearnError, status: grpc.StatusCode) -> None:
    found = refusal_of(error)
    assert found.status is status
    assert found.details == f"{error.code} {error}"


def test_every_other_error_is_internal_and_says_nothing() -> None:
    for error in (ValueError("secret"), errors.LedgerDamaged("secret"), MemoryError(), OSError(28, "secret")):
        found = refusal_of(error)
        assert found.status is S.INTERNAL
        assert found.details == INTERNAL
    assert len(refusal_of(errors.SignalRefused("x" * 10_000)).details) == 500

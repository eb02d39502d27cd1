"""The fake gateway: honest tasks, counted uploads, and every lie it can be told to tell."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedlearn.device.requests import signed_bytes
from fedlearn.device.task_codec import open_task
from fedlearn.errors import TaskRefused, TransportFailed
from fedlearn.proto import gateway_pb2 as pb
from fedlearn_client.fakes import FakeClock, FakeGateway, FakeKeyStore, Fault
from fedlearn_client.hooks import Method

_spec = importlib.util.spec_from_file_location("device_town", Path(__file__).with_name("device_town.py"))
assert _spec is not None
assert _spec.loader is not None
town: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(town)

ACCEPTED, LATE, REJECTED = (
    pb.UploadReply.OUTCOME_ACCEPTED,
    pb.UploadReply.OUTCOME_LATE,
    pb.UploadReply.OUTCOME_REJECTED,
)


KEYS = FakeKeyStore()


def signed(request: Any, keys: FakeKeyStore = KEYS) -> Any:
    """Fill in what every phone does."""
    request.nonce, request.device_key = os.urandom(16), keys.public_key()
    request.signature = keys.sign(signed_bytes(request))
    return request


class Talk:
    """A gateway and someone who talks to it."""

    def __init__(self) -> None:
        self.clock = FakeClock(town.NOW)
        self.gateway = FakeGateway(town.small_plan(), town.weights(), town.operator_key(), clock_rng=self.clock)

    def check_in(self, **changes: Any) -> pb.CheckInReply:
        asked = signed(pb.CheckInRequest(version=1, population=town.POPULATION, purpose=town.TRAIN, **changes))
        return pb.CheckInReply.FromString(self.gateway.call(Method.CHECK_IN, asked.SerializeToString()))

    def task(self) -> Any:
        return open_task(self.check_in().task.SerializeToString(), town.operator_key().public)

    def fetch(self, offset: int = 0, most: int = 2**20, digest: bytes = b"") -> pb.FetchReply:
        named = digest or hashlib.sha256(self.gateway.weights).digest()
        asked = pb.FetchRequest(digest=named, offset=offset, max_bytes=most)
        return pb.FetchReply.FromString(self.gateway.call(Method.FETCH, asked.SerializeToString()))

    def upload(self, token: bytes, contribution: bytes = b"c") -> pb.UploadReply:
        sent = pb.UploadRequest(token=token, contribution=contribution)
        return pb.UploadReply.FromString(self.gateway.call(Method.UPLOAD, sent.SerializeToString()))


@pytest.fixture
def talk() -> Talk:
    return Talk()


def test_tasks_go_on_step_by_step(talk: Talk) -> None:
    first, second = talk.task(), talk.task()
    assert (first.step, first.attempt, first.mechanism) == (0, 0, town.small_plan().mechanism)
    assert first.token != second.token
    talk.gateway.advance(3)
    assert talk.task().step == 3
    talk.gateway.advance(97)
    assert not talk.check_in().HasField("task")  # the run is over
    other = signed(pb.CheckInRequest(version=1, population="elsewhere", purpose=town.TRAIN)).SerializeToString()
    assert not pb.CheckInReply.FromString(talk.gateway.call(Method.CHECK_IN, other)).HasField("task")


def test_weights_by_range(talk: Talk) -> None:
    whole = talk.fetch()
    assert (whole.data, whole.total) == (talk.gateway.weights, len(talk.gateway.weights))
    assert talk.fetch(offset=8, most=4).data == talk.gateway.weights[8:12]
    assert talk.fetch(digest=bytes(32)).total == 0


def test_an_upload_counts_once(talk: Talk) -> None:
    task = talk.task()
    assert talk.upload(task.token).outcome == ACCEPTED
    assert talk.upload(task.token).outcome == ACCEPTED
    other = talk.upload(task.token, b"other")
    assert (other.outcome, other.reason) == (REJECTED, "token_used")
    assert talk.upload(bytes(16)).outcome == REJECTED
    assert talk.gateway.contributions == {task.token: b"c"}


def test_late_uploads(talk: Talk) -> None:
    task, other = talk.task(), talk.task()
    talk.clock.advance(3601.0)
    assert talk.upload(task.token).outcome == LATE
    talk.clock.advance(-3601.0)
    talk.gateway.advance()
    assert talk.upload(other.token).outcome == LATE
    assert talk.gateway.contributions == {}


def test_every_fault(talk: Talk) -> None:
    gateway = talk.gateway
    gateway.fail_next(Method.CHECK_IN, Fault.UNREACHABLE)
    with pytest.raises(TransportFailed):
        talk.check_in()
    assert gateway.requests == []
    gateway.fail_next(Method.CHECK_IN, Fault.REPLY_LOST)
    with pytest.raises(TransportFailed):
        talk.check_in()
    assert len(gateway.requests) == 1
    gateway.fail_next(Method.CHECK_IN, Fault.NO_TASK, times=2)
    assert [talk.check_in().HasField("task") for _ in range(3)] == [False, False, True]
    gateway.fail_next(Method.CHECK_IN, Fault.EMPTY)
    assert talk.check_in() == pb.CheckInReply()
    gateway.fail_next(Method.CHECK_IN, Fault.BAD_SIGNATURE)
    with pytest.raises(TaskRefused, match="signature"):
        talk.task()
    gateway.fail_next(Method.CHECK_IN, Fault.EXPIRED)
    assert talk.task().expires < town.NOW
    token = talk.task().token
    gateway.fail_next(Method.CHECK_IN, Fault.REPLAYED_TOKEN)
    assert talk.task().token in gateway.tasks
    gateway.fail_next(Method.FETCH, Fault.WRONG_WEIGHTS)
    assert len(talk.fetch().data) == len(gateway.weights)
    assert talk.fetch().data == gateway.weights
    gateway.fail_next(Method.FETCH, Fault.ENDLESS_WEIGHTS)
    assert talk.fetch().total == 2**40
    gateway.fail_next(Method.UPLOAD, Fault.LATE)
    gateway.fail_next(Method.UPLOAD, Fault.REJECTED)
    assert [talk.upload(token).outcome for _ in range(3)] == [LATE, REJECTED, ACCEPTED]
    gateway.alter = lambda task: dataclasses.replace(task, round_size=1)
    assert talk.task().round_size == 1


def test_a_newer_status_goes_to_those_who_lack_it(talk: Talk) -> None:
    talk.gateway.offer_status(b"envelope", 4)
    assert talk.check_in(status_version=3).status == b"envelope"
    assert talk.check_in(status_version=4).status == b""


def test_it_keeps_what_arrived(talk: Talk) -> None:
    talk.check_in(runtime="canary-1")
    talk.fetch()
    assert b"canary-1" in talk.gateway.received()
    assert b"canary-1" not in talk.gateway.received(Method.FETCH)
    assert "canary" not in repr(talk.gateway.requests)


def test_garbage_is_garbage(talk: Talk) -> None:
    from google.protobuf.message import DecodeError

    for method, kind in ((Method.CHECK_IN, pb.CheckInReply), (Method.UPLOAD, pb.UploadReply)):
        for _ in range(50):
            talk.gateway.fail_next(method, Fault.GARBAGE)
            with pytest.raises(DecodeError):
                kind.FromString(talk.gateway.call(method, b""))


def test_what_a_request_that_is_none_gets(talk: Talk) -> None:
    with pytest.raises(TransportFailed, match="no message"):
        talk.gateway.call(Method.CHECK_IN, b"\xff")


def test_the_whole_uplink_needs_no_numpy() -> None:
    """What this part of the daemon imports, in a process of its own."""
    names = ("fakes", "scheduler", "uplink", "calls", "egress", "conditions", "readiness", "network")
    hooks = ("linux.conditions", "linux.clock", "linux.audit", "linux.attestation")
    lines = [f"import fedlearn_client.{name}" for name in (*names, *hooks)]
    heavy = "{'numpy', 'onnxruntime', 'torch', 'flwr', 'securesystemslib', 'fedlearn_server', 'hydra'}"
    code = "\n".join(["import sys", *lines, f"print(sorted({heavy} & set(sys.modules)))"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""An app's calls that change its streams have a bucket: they make work, and news, for everybody else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf.message import Message

from fedlearn.errors import RateLimited
from fedlearn.proto import device_pb2 as pb
from fedlearn_client.buckets import Buckets
from fedlearn_client.fakes import FakeClock
from fedlearn_client.hooks import Caller, Role
from fedlearn_client.services import table

PREFIX = "/fedlearn.device.v1.Signals/"


class Anything:
    """A servicer each of whose methods answers, and counts."""

    def __init__(self, clock_rng: FakeClock) -> None:
        self.clock_rng = clock_rng
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        def method(_caller: Caller, _request: Any) -> Message:
            self.calls += 1
            return pb.PushReply()

        return method


def test_register_restrict_and_purge_share_one_bucket_of_an_app() -> None:
    clock = FakeClock(1_800_000_000.0)
    signals = Anything(clock)
    served = table.handlers(signals, *(Anything(clock) for _ in range(4)), control=Buckets(1.0, 120, clock.monotonic))
    one, two = Caller("chat", Role.APP), Caller("maps", Role.APP)
    limited = [served[f"{PREFIX}{name}"] for name in ("Register", "Restrict", "Purge")]
    for turn in range(120):
        limited[turn % 3](one, SimpleNamespace())
    for call in limited:
        with pytest.raises(RateLimited):
            call(one, SimpleNamespace())
    assert signals.calls == 120
    served[f"{PREFIX}Push"](one, SimpleNamespace())  # has limits of its own
    limited[0](two, SimpleNamespace())
    clock.advance(1.001)
    limited[1](one, SimpleNamespace())
    with pytest.raises(RateLimited):
        limited[1](one, SimpleNamespace())

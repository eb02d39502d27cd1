"""Frames of every kind at every method: each is refused or is what the contract allows, and the daemon goes on."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import grpc
import pytest

from fedlearn_client.services import signals as signals_module
from fedlearn_client.services.methods import METHODS

sys.path.insert(0, str(Path(__file__).parent))
import device_fuzz as fuzz
import device_world as worlds

FRAMES = 300


@pytest.fixture(scope="module", autouse=True)
def _prepared() -> Iterator[None]:
    yield
    worlds.forget_prepared()


@pytest.fixture(scope="module")
def fuzzer() -> Iterator[Any]:
    with worlds.world() as phone:
        yield fuzz.Fuzzer(phone, random.Random(2026))


def test_every_method_is_fuzzed() -> None:
    assert {f"{one.service}/{one.name}" for one in METHODS.values() if not one.streams} == set(fuzz.CALLERS)


@pytest.mark.parametrize("method", sorted(fuzz.CALLERS))
def test_frames_at_the_door(fuzzer: Any, method: str) -> None:
    codes = fuzzer.send(method, FRAMES, fuzzer.phone.at_the_door)
    assert sum(codes.values()) == FRAMES
    assert sum(count for code, count in codes.items() if code != "OK") > FRAMES // 20
    good = fuzzer.good(method)
    assert fuzzer.phone.at_the_door(fuzz.CALLERS[method], method, good.SerializeToString()) in {"OK", *fuzz.REFUSALS}
    assert fuzzer.phone.status().version


def test_frames_through_the_channel(fuzzer: Any) -> None:
    """The same through gRPC and the relay, and noise that is no gRPC at all."""
    phone = fuzzer.phone
    for method in fuzz.CALLERS:
        fuzzer.send(method, 10, fuzzer.through_the_channel)
    for path, _ in phone.config().sockets.values():
        for _ in range(10):
            fuzz.noise_at(path, fuzzer.chance)
    assert phone.status().version


def test_frames_at_the_stream(fuzzer: Any) -> None:
    phone = fuzzer.phone
    with grpc.insecure_channel(f"unix:{phone.config().sockets[worlds.SETTINGS][0]}") as channel:
        watch = channel.unary_stream("/fedlearn.device.v1.Consent/Watch")
        for _ in range(40):
            frame = fuzz.damaged(fuzzer.chance.randbytes(5), fuzzer.chance)
            stream = watch(frame, timeout=30)
            code = fuzz.code_of(partial(next, stream))
            assert code in fuzz.REFUSALS | {"OK"}
            stream.cancel()


def test_an_unchecked_field_is_found(fuzzer: Any) -> None:
    """Without the daemon's own checks of a push the rules of the contract are broken, and that is seen."""
    with patch.object(signals_module, "check_signals", lambda *_: None), pytest.raises(AssertionError):
        fuzzer.send("Signals/Push", 2000, fuzzer.phone.at_the_door)


def test_mutated_bundles_are_refused() -> None:
    assert fuzz.refuse_bundles(each=2) > 60

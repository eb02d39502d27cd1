"""weights.bin: flat order, size, digest, finite values."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest

from fedlearn.device.plan import ParameterSpec, Scope
from fedlearn.device.weights import all_finite, expected_bytes, offsets, require_weights
from fedlearn.errors import Refusal, TaskRefused
from fedlearn.models.base import flatten

SPECS = (
    ParameterSpec("a", (2, 3), Scope.SHARED),
    ParameterSpec("b", (), Scope.SHARED),
    ParameterSpec("c", (4,), Scope.SHARED),
)


def test_the_bytes_are_those_of_the_flat_vector() -> None:
    arrays = {spec.name: np.random.default_rng(1).normal(size=spec.shape).astype(np.float32) for spec in SPECS}
    data = flatten(arrays).astype("<f4").tobytes()
    assert len(data) == expected_bytes(SPECS) == 44
    for name, (start, stop) in offsets(SPECS).items():
        assert np.frombuffer(data[start:stop], "<f4").reshape(arrays[name].shape).tolist() == arrays[name].tolist()
    assert offsets(SPECS[::-1]) == offsets(SPECS)
    require_weights(data, SPECS, hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("data", [b"", bytes(40), bytes(48), bytes(43)])
def test_size(data: bytes) -> None:
    with pytest.raises(TaskRefused, match="the plan's parameters have 44") as refused:
        require_weights(data, SPECS, hashlib.sha256(data).hexdigest())
    assert refused.value.reason is Refusal.WEIGHTS


@pytest.mark.parametrize("digest", ["", "00" * 32, hashlib.sha256(bytes(44)).hexdigest().upper()])
def test_digest(digest: str) -> None:
    with pytest.raises(TaskRefused, match="not those whose digest") as refused:
        require_weights(bytes(44), SPECS, digest)
    assert refused.value.reason is Refusal.WEIGHTS


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 5, 10])
def test_not_finite(value: float, place: int) -> None:
    values = [1.0] * 11
    values[place] = value
    data = struct.pack("<11f", *values)
    with pytest.raises(TaskRefused, match="not finite"):
        require_weights(data, SPECS, hashlib.sha256(data).hexdigest())


def test_finite_over_many_chunks() -> None:
    data = bytearray(4 * 200_000)
    assert all_finite(bytes(data))
    assert all_finite(struct.pack("<3f", 3.4e38, -3.4e38, 1e-45))
    data[-4:] = struct.pack("<f", float("nan"))
    assert not all_finite(bytes(data))
    assert not all_finite(bytes(5))
    assert all_finite(b"")

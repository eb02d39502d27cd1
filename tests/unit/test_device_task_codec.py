"""Signed tasks: one encoding each, nothing read before the signature is good, every field judged."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import random
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from fedlearn.device.task import SIGNING_CONTEXT, DeviceTask
from fedlearn.device.task_codec import MOST_TASK_BYTES, open_task, sign_task, task_bytes, task_from_bytes, with_digest
from fedlearn.errors import Refusal, TaskRefused
from fedlearn.policy.keys import PLACEHOLDER_KEY
from fedlearn.privacy.factorization import Blt, Toeplitz, Tree
from fedlearn.proto import gateway_pb2 as pb

_spec = importlib.util.spec_from_file_location("device_town", Path(__file__).with_name("device_town.py"))
town = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(town)


def signed_bytes(data: bytes, key: Any = None, context: bytes = SIGNING_CONTEXT) -> bytes:
    """Whatever bytes, properly signed: what ``sign_task`` would have refused to make."""
    signature = bytes.fromhex((key or town.operator_key()).sign(context + data))
    return pb.SignedTask(task=data, signature=signature).SerializeToString(deterministic=True)


def edited(edit: Callable[[Any], object]) -> bytes:
    body = pb.DeviceTask.FromString(task_bytes(town.task()))
    edit(body)
    return signed_bytes(body.SerializeToString(deterministic=True))


def opened(data: bytes) -> DeviceTask:
    return open_task(data, town.operator_key().public)


def refusal(data: bytes, key: str | None = None) -> TaskRefused:
    with pytest.raises(TaskRefused) as refused:
        open_task(data, town.operator_key().public if key is None else key)
    return refused.value


@pytest.mark.parametrize(
    "mechanism",
    [
        town.mechanism(),
        town.mechanism(kind="gaussian"),
        town.mechanism(kind="banded", factorization=Toeplitz((1.0, 0.5, 1 / 3))),
        town.mechanism(kind="blt", factorization=Blt((0.99, 0.7), (0.3, 0.2)), min_separation=20),
        town.mechanism(kind="tree", factorization=Tree()),
    ],
)
def test_round_trip(mechanism: Any) -> None:
    task = town.task(step=7, attempt=2, shuffle_seed=-(2**63), mechanism=mechanism)
    assert opened(sign_task(task, town.operator_key())) == task
    assert task_from_bytes(task_bytes(task)) == task
    assert task.digest == hashlib.sha256(task_bytes(task)).digest()


def test_the_digest_is_that_of_what_was_signed_and_depends_on_every_field() -> None:
    base = town.task(step=7)
    others = {
        "run_id": "other",
        "population": "other",
        "purpose": "other",
        "recipient": "other",
        "step": 8,
        "attempt": 1,
        "plan_digest": "00" * 32,
        "weights_digest": "00" * 32,
        "token": bytes(16),
        "issued": base.issued + 0.001,
        "expires": base.expires + 0.001,
        "round_size": 101,
        "mechanism": town.mechanism(kind="gaussian"),
        "shuffle_seed": 0,
    }
    assert set(others) | {"digest"} == {field.name for field in fields(DeviceTask)}
    digests = {with_digest(replace(base, **{name: value})).digest for name, value in others.items()}
    assert len(digests | {base.digest}) == len(others) + 1
    assert with_digest(replace(base, digest=b"nonsense")) == base


def test_times_are_whole_milliseconds() -> None:
    task = town.task(issued=town.NOW + 0.00049, expires=town.NOW + 9.9996)
    assert (task.issued, task.expires) == (town.NOW, town.NOW + 10.0)


def test_the_token_is_in_no_repr() -> None:
    assert "token" not in repr(town.task())


def test_signed_by_the_operator_and_nobody_else() -> None:
    data = town.signed_task()
    assert opened(data) == town.task()
    for key in (
        town.Key().public,
        town.root_key().public,
        "",
        "00",
        PLACEHOLDER_KEY,
        town.operator_key().public.upper(),
    ):
        assert refusal(data, key).reason is Refusal.SIGNATURE
    assert refusal(town.signed_task(signer=town.Key())).reason is Refusal.SIGNATURE


def test_a_signature_for_something_else_is_not_one_for_a_task() -> None:
    data = task_bytes(town.task())
    assert opened(signed_bytes(data)) == town.task()
    for context in (b"", b"fedlearn.receipt.v1\x00", b"fedlearn.task.v1", b"fedlearn.task.v2\x00"):
        assert refusal(signed_bytes(data, context=context)).reason is Refusal.SIGNATURE


def test_a_key_for_which_anybody_can_sign_signs_nothing() -> None:
    """Identity point as key: R = identity, S = 0 verifies under many libraries for any message."""
    weak = "01" + "00" * 31
    forged = pb.SignedTask(task=task_bytes(town.task()), signature=bytes.fromhex(weak) + bytes(32))
    assert refusal(forged.SerializeToString(), weak).reason is Refusal.SIGNATURE


def test_every_byte_counts() -> None:
    data = town.signed_task()
    for place in range(len(data)):
        for flip in (1, 0x80):
            refusal(data[:place] + bytes([data[place] ^ flip]) + data[place + 1 :])
    for length in range(len(data)):
        refusal(data[:length])


def test_a_task_has_one_encoding() -> None:
    """Each of these parses to the same message; only the one that ``task_bytes`` gives is a task."""
    data = task_bytes(town.task())
    run = pb.DeviceTask(run_id=town.task().run_id).SerializeToString()
    for other in (
        data + run,  # a field twice
        run + data,
        data[2:] + data[:2],  # another order: version last
        data + b"\xfa\x3e\x03abc",  # an unknown field
        data + b"\x30\x00",  # step = 0, spelled out
        b"\x08\x81\x00" + data[2:],  # version 1 in two bytes
    ):
        if other != data + b"\xfa\x3e\x03abc":
            assert pb.DeviceTask.FromString(other) == pb.DeviceTask.FromString(data)
        assert refusal(signed_bytes(other)).reason is Refusal.PLAN
    nested = pb.DeviceTask.FromString(data)
    nested.mechanism.MergeFromString(b"\xfa\x3e\x03abc")
    assert refusal(signed_bytes(nested.SerializeToString(deterministic=True))).reason is Refusal.PLAN
    good = town.signed_task()
    for other in (good + b"\xfa\x3e\x03abc", good + good, good + b"\x0a\x00"):
        assert refusal(other).reason is Refusal.SIGNATURE


def test_an_unsigned_or_empty_task() -> None:
    for data in (
        b"",
        pb.SignedTask(task=task_bytes(town.task())).SerializeToString(),
        pb.SignedTask(task=task_bytes(town.task()), signature=bytes(64)).SerializeToString(),
        pb.SignedTask(task=task_bytes(town.task()), signature=bytes(63)).SerializeToString(),
    ):
        assert refusal(data).reason is Refusal.SIGNATURE
    assert refusal(signed_bytes(b"")).reason is Refusal.PLAN


def test_size_is_judged_before_the_signature() -> None:
    assert "at most" in str(refusal(bytes(MOST_TASK_BYTES + 257)))
    with pytest.raises(TaskRefused, match="at most"):
        task_from_bytes(bytes(MOST_TASK_BYTES + 1))


def test_the_largest_task_fits() -> None:
    coefficients = tuple(1 / (1 + 0.0001234567890123 * i) for i in range(4096))
    mechanism = town.mechanism(kind="banded", factorization=Toeplitz(coefficients), steps=5000)
    data = town.signed_task(mechanism=mechanism)
    assert opened(data).mechanism == mechanism
    assert len(data) < MOST_TASK_BYTES
    with pytest.raises(TaskRefused, match="more than 4096"):
        town.signed_task(mechanism=replace(mechanism, factorization=Toeplitz((*coefficients, 0.0))))


REFUSED = [
    ("version", lambda b: setattr(b, "version", 0)),
    ("version", lambda b: setattr(b, "version", 2)),
    ("run_id", lambda b: b.ClearField("run_id")),
    ("run_id", lambda b: setattr(b, "run_id", "a\n")),
    ("run_id", lambda b: setattr(b, "run_id", "a" * 129)),
    ("population", lambda b: b.ClearField("population")),
    ("purpose", lambda b: b.ClearField("purpose")),
    ("recipient", lambda b: b.ClearField("recipient")),
    ("step", lambda b: setattr(b, "step", 100)),
    ("step", lambda b: setattr(b, "step", 2**64 - 1)),
    ("attempt", lambda b: setattr(b, "attempt", 2**31)),
    ("plan_digest", lambda b: setattr(b, "plan_digest", bytes(31))),
    ("plan_digest", lambda b: b.ClearField("plan_digest")),
    ("weights_digest", lambda b: setattr(b, "weights_digest", bytes(33))),
    ("token", lambda b: setattr(b, "token", bytes(15))),
    ("token", lambda b: b.ClearField("token")),
    ("issued_ms", lambda b: b.ClearField("issued_ms")),
    ("issued_ms", lambda b: setattr(b, "issued_ms", -1)),
    ("expires_ms", lambda b: setattr(b, "expires_ms", 2**63 - 1)),
    ("expires_ms", lambda b: setattr(b, "expires_ms", b.issued_ms)),
    ("round_size", lambda b: b.ClearField("round_size")),
    ("round_size", lambda b: setattr(b, "round_size", 2**64 - 1)),
    ("mechanism: absent", lambda b: b.ClearField("mechanism")),
    (r"mechanism\.kind", lambda b: b.mechanism.ClearField("kind")),
    (r"mechanism\.kind", lambda b: setattr(b.mechanism, "kind", "tree")),
    (r"mechanism\.factorization", lambda b: b.mechanism.ClearField("factorization")),
    (r"mechanism\.factorization", lambda b: setattr(b.mechanism, "factorization", "[" * 90_000)),
    (r"mechanism\.factorization", lambda b: setattr(b.mechanism, "factorization", '{"kind":"tree","kind":"tree"}')),
    (
        r"mechanism\.factorization: not canonical",
        lambda b: setattr(b.mechanism, "factorization", '{"kind": "toeplitz", "coefficients": [1.0]}'),
    ),
    (
        r"mechanism\.factorization: not canonical",
        lambda b: setattr(b.mechanism, "factorization", '{"coefficients":[1],"kind":"toeplitz"}'),
    ),
    (
        r"mechanism\.factorization",
        lambda b: setattr(b.mechanism, "factorization", '{"coefficients":[1.0,NaN],"kind":"toeplitz"}'),
    ),
    (r"mechanism\.noise_multiplier", lambda b: setattr(b.mechanism, "noise_multiplier", math.nan)),
    (r"mechanism\.noise_multiplier", lambda b: setattr(b.mechanism, "noise_multiplier", math.inf)),
    (r"mechanism\.noise_multiplier", lambda b: b.mechanism.ClearField("noise_multiplier")),
    (r"mechanism\.l2_clip_norm", lambda b: setattr(b.mechanism, "l2_clip_norm", -1.0)),
    (r"mechanism\.grid_step", lambda b: setattr(b.mechanism, "grid_step", 0.3)),
    (r"mechanism\.steps", lambda b: b.mechanism.ClearField("steps")),
    (r"mechanism\.steps", lambda b: setattr(b.mechanism, "steps", 2**63)),
    (r"mechanism\.min_separation", lambda b: b.mechanism.ClearField("min_separation")),
    (r"mechanism\.max_participations", lambda b: b.mechanism.ClearField("max_participations")),
]


@pytest.mark.parametrize(("names", "edit"), REFUSED)
def test_refused_though_properly_signed(names: str, edit: Callable[[Any], object]) -> None:
    refused = refusal(edited(edit))
    assert refused.reason is Refusal.PLAN
    assert refused.code == "FL905"
    with pytest.raises(TaskRefused, match=rf"task\.{names}"):
        opened(edited(edit))


def test_the_edits_start_from_a_task_that_opens() -> None:
    assert opened(edited(lambda body: None)) == town.task()


@pytest.mark.parametrize(
    "change",
    [
        {"run_id": ""},
        {"run_id": 7},
        {"step": -1},
        {"step": 100},
        {"step": 1.5},
        {"plan_digest": "xyz"},
        {"plan_digest": "00"},
        {"token": b"short"},
        {"issued": math.nan},
        {"expires": math.inf},
        {"expires": 0.0},
        {"round_size": 0},
        {"shuffle_seed": 2**63},
        {"mechanism": town.mechanism(noise_multiplier=0.0)},
        {"mechanism": town.mechanism(kind="blt")},
    ],
)
def test_an_invalid_task_cannot_be_signed(change: dict[str, Any]) -> None:
    with pytest.raises(TaskRefused) as refused:
        sign_task(replace(town.task(), **change), town.operator_key())
    assert refused.value.reason is Refusal.PLAN


def test_no_mangled_task_is_accepted_and_none_crashes() -> None:
    rng, good = random.Random(7), town.signed_task(step=5)
    for _ in range(1500):
        data = bytearray(good)
        for _ in range(rng.randrange(1, 6)):
            start = rng.randrange(len(data) + 1)
            stop = min(len(data), start + rng.choice((0, 1, 1, 2, 30)))
            data[start:stop] = rng.randbytes(rng.choice((0, 1, 1, 4)))
        if bytes(data) != good:
            refusal(bytes(data))


def test_no_mangled_task_crashes_even_where_the_operator_signed_it() -> None:
    """Accepted or refused by name, and what is accepted has that one encoding."""
    rng, good, accepted = random.Random(8), task_bytes(town.task(step=5)), 0
    for _ in range(1500):
        data = bytearray(good)
        place = rng.randrange(len(data))
        data[place : place + rng.randrange(2)] = rng.randbytes(rng.randrange(3))
        try:
            task = opened(signed_bytes(bytes(data)))
        except TaskRefused:
            continue
        accepted += 1
        assert task_bytes(task) == bytes(data)
    assert accepted > 100, "the mangling is so coarse that no field is reached"

"""Any message survives the wire bit for bit; no bytes at all make a reader do anything but return or refuse."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import fields

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedlearn.errors import Reason, WireError
from fedlearn.task import CohortReply, RoundTask
from fedlearn.terms import CohortSchedule, ExamplePrivacy, TrainingTerms
from fedlearn.types import Contribution, Level
from fedlearn.wire import (
    decode_contribution,
    decode_reply,
    decode_task,
    encode_contribution,
    encode_reply,
    encode_task,
    task_digest,
)

FINITE = st.floats(allow_nan=False, allow_infinity=False)
POSITIVE = st.floats(min_value=1e-300, max_value=1e300)
COUNTS = st.integers(0, 2**63)
DTYPES = {"f32": "<f4", "f64": "<f8", "grid64": "<i8"}
FUZZED_FRAMES = 6000

tasks = st.builds(
    RoundTask,
    run_id=st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
    step=COUNTS,
    attempt=COUNTS,
    seed=st.integers(-(2**63), 2**63 - 1),
    parameters=st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=8),
        hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3, max_side=4)),
        min_size=1,
        max_size=3,
    ),
    training=st.builds(
        TrainingTerms,
        epochs=st.integers(1, 2**32 - 1),
        batch_size=st.integers(1, 2**32 - 1),
        learning_rate=POSITIVE,
        shuffle=st.booleans(),
        candidates=st.integers(2, 2**32 - 1),
        example_privacy=st.none() | st.builds(ExamplePrivacy, noise_multiplier=POSITIVE, l2_clip_norm=POSITIVE),
    ),
    l2_clip_norm=POSITIVE,
    grid_step=st.none() | POSITIVE,
    sampling_probability=st.floats(min_value=0.0, max_value=1.0, exclude_min=True),
    round_key=st.binary(min_size=32, max_size=32),
    participation=st.none()
    | st.builds(CohortSchedule, min_separation=st.integers(1, 2**63), availability=st.floats(1e-300, 1.0)),
    count_scale=st.none() | POSITIVE,
)


@st.composite
def contributions(draw: st.DrawFn) -> Contribution:
    codec = draw(st.sampled_from(sorted(DTYPES)))
    return Contribution(
        codec=codec,
        scale=draw(FINITE),
        level=draw(st.sampled_from(Level)),
        count=draw(COUNTS),
        l2_bound=draw(st.floats(min_value=0.0, allow_nan=False, allow_infinity=False)),
        task_digest=draw(st.binary(min_size=32, max_size=32)),
        nonce=draw(st.binary(min_size=16, max_size=16)),
        values=draw(hnp.arrays(np.dtype(DTYPES[codec]), st.integers(0, 9))),
    )


@st.composite
def replies(draw: st.DrawFn) -> CohortReply:
    contribution = draw(contributions())
    inside = st.integers(0, contribution.count)
    return CohortReply(
        contribution=contribution,
        loss_sum=draw(FINITE),
        trained=draw(inside),
        clipped=draw(inside),
        norm_sum=draw(FINITE),
        rejected=draw(st.dictionaries(st.sampled_from(Reason), COUNTS)),
    )


def same(left: Contribution, right: Contribution) -> bool:
    scalars = [field.name for field in fields(Contribution) if field.name != "values"]
    return (
        all(getattr(left, name) == getattr(right, name) for name in scalars)
        and left.values.dtype == right.values.dtype
        and left.values.tobytes() == right.values.tobytes()
    )


@settings(derandomize=True, deadline=None, max_examples=150)
@given(tasks)
def test_task(task: RoundTask) -> None:
    frame = encode_task(task)
    found = decode_task(frame)
    assert encode_task(found) == frame
    assert task_digest(found) == task_digest(task)
    assert (found.run_id, found.seed, found.grid_step) == (task.run_id, task.seed, task.grid_step)
    assert found.training == task.training
    assert (found.participation, found.count_scale) == (task.participation, task.count_scale)
    assert {name: array.shape for name, array in found.parameters.items()} == {
        name: array.shape for name, array in task.parameters.items()
    }


@settings(derandomize=True, deadline=None, max_examples=150)
@given(contributions())
def test_contribution(contribution: Contribution) -> None:
    assert same(decode_contribution(encode_contribution(contribution)), contribution)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(replies())
def test_reply(reply: CohortReply) -> None:
    found = decode_reply(encode_reply(reply))
    assert same(found.contribution, reply.contribution)
    assert (found.loss_sum, found.trained, found.clipped) == (reply.loss_sum, reply.trained, reply.clipped)
    assert found.rejected == reply.rejected


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    for decode in (decode_task, decode_contribution, decode_reply):
        refused_or_read(decode, data)


def test_mutated_frames() -> None:
    """A fixed-seed fuzz: flips, cuts, insertions, copies and splices of real frames."""
    chance = random.Random(20240229)
    frames = [encode_task(TASK), encode_contribution(REPLY.contribution), encode_reply(REPLY)]
    outcomes = {True: 0, False: 0}
    for turn in range(FUZZED_FRAMES):
        data = mutated(frames[turn % 3], frames, chance)
        for decode in (decode_task, decode_contribution, decode_reply):
            outcomes[refused_or_read(decode, data)] += 1
    # both branches were reached: the mutations are neither all fatal nor all harmless
    assert outcomes[True] > 100
    assert outcomes[False] > FUZZED_FRAMES


def refused_or_read(decode: Callable[[bytes], object], data: bytes) -> bool:
    try:
        decode(data)
    except WireError:
        return False
    return True


def mutated(frame: bytes, frames: list[bytes], chance: random.Random) -> bytes:
    data = bytearray(frame)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(6):
            case 0 if data:
                data[at % len(data)] ^= 1 << chance.randrange(8)
            case 1 if data:
                data[at % len(data)] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                del data[at : at + chance.randrange(1, 9)]
            case 3:
                data[at:at] = chance.randbytes(chance.randrange(1, 9))
            case 4:
                data[at:at] = data[at : at + chance.randrange(1, 40)]
            case _:
                other = chance.choice(frames)
                start = chance.randrange(len(other))
                data[at:at] = other[start : start + chance.randrange(1, 40)]
    return bytes(data)


TASK = RoundTask(
    run_id="run",
    step=3,
    attempt=0,
    seed=1,
    parameters={"a": np.ones((2, 2), np.float32), "b": np.zeros(1, np.float32)},
    training=TrainingTerms(1, 4, 0.5, True, 8),
    l2_clip_norm=1.0,
    grid_step=2.0**-30,
    sampling_probability=0.5,
    round_key=bytes(range(32)),
)
REPLY = CohortReply(
    Contribution(
        "grid64", 2.0**-30, Level.COHORT, 9, 9.0, task_digest(TASK), bytes(16), np.arange(5, dtype="<i8") * 10**6
    ),
    loss_sum=4.5,
    trained=8,
    clipped=2,
    norm_sum=3.5,
    rejected={Reason.NOT_FINITE: 1},
)

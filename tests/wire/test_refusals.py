"""What a reader refuses, each with its own code, before anything is computed from the message."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlearn import wire
from fedlearn.codec import codec_by_name
from fedlearn.errors import CodecRefused, MalformedMessage, MessageTooLarge, VersionUnsupported, WireError
from fedlearn.proto import wire_pb2 as pb
from fedlearn.wire import decode_contribution, decode_reply, decode_task, encode_contribution, encode_task

_spec = importlib.util.spec_from_file_location("wire_examples", Path(__file__).with_name("wire_examples.py"))
examples = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(examples)

DECODE: dict[str, Callable[[bytes], Any]] = {
    "task": decode_task,
    "contribution": decode_contribution,
    "reply": decode_reply,
}
FRAME = {
    "task": examples.FRAMES["task_private"],
    "contribution": examples.FRAMES["contribution_grid64_phone"],
    "reply": examples.FRAMES["reply"],
}


def edited(kind: str, edit: Callable[[Any], object]) -> bytes:
    """Return the frame of that kind with its body edited, as a foreign writer could have made it."""
    envelope = pb.Envelope.FromString(FRAME[kind])
    edit(getattr(envelope, kind))
    return envelope.SerializeToString()


@pytest.mark.parametrize("kind", DECODE)
@pytest.mark.parametrize("version", [0, 2, 2**32 - 1])
def test_another_version(kind: str, version: int) -> None:
    envelope = pb.Envelope.FromString(FRAME[kind])
    envelope.version = version
    with pytest.raises(VersionUnsupported, match=str(version)) as refused:
        DECODE[kind](envelope.SerializeToString())
    assert refused.value.code == "FL303"


@pytest.mark.parametrize("kind", DECODE)
def test_every_truncation(kind: str) -> None:
    for length in range(len(FRAME[kind])):
        with pytest.raises(WireError):
            DECODE[kind](FRAME[kind][:length])


@pytest.mark.parametrize("kind", DECODE)
@pytest.mark.parametrize("other", DECODE)
def test_another_body(kind: str, other: str) -> None:
    if kind == other:
        DECODE[kind](FRAME[other])
        return
    with pytest.raises(MalformedMessage, match=f"expected a {kind}, found {other}"):
        DECODE[kind](FRAME[other])


@pytest.mark.parametrize("kind", DECODE)
@pytest.mark.parametrize("data", [b"", b"\x00", b"not a message at all", b"\xff" * 64, b"\x08\x01"])
def test_garbage(kind: str, data: bytes) -> None:
    with pytest.raises(WireError) as refused:
        DECODE[kind](data)
    assert refused.value.code in {"FL301", "FL303"}


@pytest.mark.parametrize("kind", DECODE)
def test_oversize_is_found_before_parsing(kind: str) -> None:
    with pytest.raises(MessageTooLarge) as refused:
        DECODE[kind](b"\xff" * 100_000, max_bytes=99_999)
    assert refused.value.code == "FL302"
    DECODE[kind](FRAME[kind], max_bytes=len(FRAME[kind]))
    with pytest.raises(MessageTooLarge):
        DECODE[kind](FRAME[kind], max_bytes=len(FRAME[kind]) - 1)


def test_a_writer_refuses_what_no_reader_would_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_MESSAGE_BYTES", 64)
    with pytest.raises(MessageTooLarge):
        encode_task(examples.TASKS["task_private"])


REFUSED_TASK = [
    ("run_id is empty", lambda b: b.ClearField("run_id")),
    ("round_key has 0 bytes", lambda b: b.ClearField("round_key")),
    ("round_key has 31 bytes", lambda b: setattr(b, "round_key", bytes(31))),
    ("round_key has 33 bytes", lambda b: setattr(b, "round_key", bytes(33))),
    ("parameters is empty", lambda b: b.ClearField("parameters")),
    ("names a tensor twice", lambda b: b.parameters.append(b.parameters[0])),
    ("does not fill shape", lambda b: setattr(b.parameters[0], "f32", b"\x00" * 5)),
    ("does not fill shape", lambda b: b.parameters[0].shape.append(2**63)),
    ("is empty", lambda b: (b.parameters[0].shape.extend([0, 2**64 - 1]), b.parameters[0].ClearField("f32"))),
    ("over 8 dimensions", lambda b: b.parameters[0].shape.extend([1] * 70)),
    ("l2_clip_norm", lambda b: b.ClearField("l2_clip_norm")),
    ("l2_clip_norm", lambda b: setattr(b, "l2_clip_norm", math.nan)),
    ("l2_clip_norm", lambda b: setattr(b, "l2_clip_norm", -1.0)),
    ("grid_step", lambda b: setattr(b, "grid_step", math.inf)),
    ("grid_step", lambda b: setattr(b, "grid_step", -(2.0**-30))),
    ("sampling_probability", lambda b: b.ClearField("sampling_probability")),
    ("sampling_probability", lambda b: setattr(b, "sampling_probability", 1.0000001)),
    ("sampling_probability", lambda b: setattr(b, "sampling_probability", math.nan)),
    ("epochs >= 1", lambda b: b.ClearField("training")),
    ("batch_size >= 1", lambda b: b.training.ClearField("batch_size")),
    ("learning_rate", lambda b: setattr(b.training, "learning_rate", math.inf)),
    ("candidates", lambda b: setattr(b.training, "candidates", 1)),
    ("count_scale", lambda b: setattr(b, "count_scale", -0.1)),
    ("count_scale", lambda b: setattr(b, "count_scale", math.inf)),
    (r"cohort\.min_separation=0", lambda b: setattr(b.participation, "availability", 0.5)),
    (r"cohort\.availability=0", lambda b: setattr(b.participation, "min_separation", 3)),
    (
        r"cohort\.availability=nan",
        lambda b: b.participation.MergeFrom(pb.CohortSchedule(min_separation=1, availability=math.nan)),
    ),
    (r"example_privacy\.noise_multiplier", lambda b: setattr(b.training.example_privacy, "l2_clip_norm", 1.0)),
    (r"example_privacy\.clip", lambda b: setattr(b.training.example_privacy, "noise_multiplier", 1.0)),
]


@pytest.mark.parametrize(("message", "edit"), REFUSED_TASK)
def test_task_fields(message: str, edit: Callable[[Any], object]) -> None:
    with pytest.raises(MalformedMessage, match=message) as refused:
        decode_task(edited("task", edit))
    assert refused.value.code == "FL301"


REFUSED_CONTRIBUTION = [
    ("level is absent", lambda b: b.ClearField("level")),
    ("level is absent", lambda b: setattr(b, "level", 7)),
    ("task_digest needs 32", lambda b: b.ClearField("task_digest")),
    ("task_digest needs 32", lambda b: setattr(b, "task_digest", bytes(31))),
    ("task_digest needs 32", lambda b: setattr(b, "task_digest", bytes(33))),
    ("nonce needs 16", lambda b: b.ClearField("nonce")),
    ("nonce needs 16", lambda b: setattr(b, "nonce", bytes(15))),
    ("nonce needs 16", lambda b: setattr(b, "nonce", bytes(17))),
    ("l2_bound", lambda b: setattr(b, "l2_bound", math.nan)),
    ("l2_bound", lambda b: setattr(b, "l2_bound", -1.0)),
    ("does not fill its dimension", lambda b: b.ClearField("values")),
    ("does not fill its dimension", lambda b: setattr(b, "values", b.values + b"\x00")),
    ("does not fill its dimension", lambda b: setattr(b, "dimension", 2**64 - 1)),
]


@pytest.mark.parametrize(("message", "edit"), REFUSED_CONTRIBUTION)
@pytest.mark.parametrize("kind", ["contribution", "reply"])
def test_contribution_fields(kind: str, message: str, edit: Callable[[Any], object]) -> None:
    def inside(body: Any) -> None:
        edit(body if kind == "contribution" else body.contribution)

    with pytest.raises(MalformedMessage, match=message):
        DECODE[kind](edited(kind, inside))


REFUSED_REPLY = [
    ("contribution is absent", lambda b: b.ClearField("contribution")),
    ("must be finite", lambda b: setattr(b, "loss_sum", math.nan)),
    ("must be finite", lambda b: setattr(b, "norm_sum", math.inf)),
    ("unknown reason", lambda b: b.rejected.update({"made_up": 1})),
    ("over the count", lambda b: setattr(b, "trained", 1001)),
    ("over the count", lambda b: setattr(b, "clipped", 1001)),
]


@pytest.mark.parametrize(("message", "edit"), REFUSED_REPLY)
def test_reply_fields(message: str, edit: Callable[[Any], object]) -> None:
    with pytest.raises(MalformedMessage, match=message):
        decode_reply(edited("reply", edit))


@pytest.mark.parametrize(("codec", "message"), [("ring64", "reserved"), ("", "unknown"), ("pickle", "unknown")])
def test_codecs(codec: str, message: str) -> None:
    with pytest.raises(CodecRefused, match=message) as refused:
        decode_contribution(edited("contribution", lambda b: setattr(b, "codec", codec)))
    assert refused.value.code == "FL304"
    with pytest.raises(CodecRefused, match=message):
        codec_by_name(codec)
    with pytest.raises(CodecRefused, match=message):
        encode_contribution(replace(examples.CONTRIBUTIONS["contribution_f32_phone"], codec=codec))


def test_a_writer_refuses_values_of_another_dtype() -> None:
    contribution = examples.CONTRIBUTIONS["contribution_f32_phone"]
    for wrong in ("<f8", "<i8", ">f4", "<i4"):
        with pytest.raises(MalformedMessage, match="f32 needs"):
            encode_contribution(replace(contribution, values=contribution.values.astype(wrong)))


def test_the_refused_codec_is_named_with_a_way_out() -> None:
    with pytest.raises(CodecRefused, match=r"ring64.*grid64"):
        codec_by_name("ring64")


def test_unknown_fields_are_let_through() -> None:
    """A newer writer of the same version may add fields."""
    frame = FRAME["contribution"] + b"\xfa\x3e\x03abc"
    assert np.array_equal(decode_contribution(frame).values, decode_contribution(FRAME["contribution"]).values)

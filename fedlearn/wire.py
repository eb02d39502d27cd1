"""Versioned, size-capped bytes for every message; no pickle, nothing executable.

A reader refuses, in this order: a message over the cap, bytes that do not parse, another version, another body, an
absent required field. Frozen examples lie in ``tests/wire``.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
from google.protobuf.message import DecodeError

from fedlearn.codec import codec_by_name
from fedlearn.errors import MalformedMessage, MessageTooLarge, OutOfRange, Reason, VersionUnsupported
from fedlearn.proto import wire_pb2 as pb
from fedlearn.task import CohortReply, RoundTask
from fedlearn.terms import CohortSchedule, ExamplePrivacy, TrainingTerms
from fedlearn.types import Contribution, Level

WIRE_VERSION = 1
MAX_MESSAGE_BYTES = 256 * 2**20
DIGEST_BYTES = 32
NONCE_BYTES = 16
KEY_BYTES = 32
MOST_CHECKPOINT_BYTES = 4096

MAX_TENSOR_DIMENSIONS = 8

_LEVEL_TO_WIRE = {Level.PHONE: pb.Contribution.LEVEL_PHONE, Level.COHORT: pb.Contribution.LEVEL_COHORT}
_LEVEL_FROM_WIRE = {value: level for level, value in _LEVEL_TO_WIRE.items()}


def encode_task(task: RoundTask) -> bytes:
    """Return the task's bytes, secret round key included: only for nodes inside the trusted base."""
    return _seal(pb.Envelope(version=WIRE_VERSION, task=_task_to_proto(task)))


def decode_task(data: bytes, max_bytes: int = MAX_MESSAGE_BYTES) -> RoundTask:
    """Return the task, or raise a WireError."""
    body = _open(data, "task", max_bytes).task
    _require(bool(body.run_id), "task.run_id is empty")
    _require(len(body.round_key) == KEY_BYTES, f"task.round_key has {len(body.round_key)} bytes, expected {KEY_BYTES}")
    _require(len(body.parameters) > 0, "task.parameters is empty")
    names = {tensor.name for tensor in body.parameters}
    _require(len(names) == len(body.parameters), "task.parameters names a tensor twice")
    _require(_positive(body.l2_clip_norm), "task.l2_clip_norm must be finite and > 0")
    _require(0.0 < body.sampling_probability <= 1.0, "task.sampling_probability must be in (0, 1]")
    _require(body.grid_step == 0.0 or _positive(body.grid_step), "task.grid_step must be 0 or finite and > 0")
    _require(len(body.ledger_checkpoint) <= MOST_CHECKPOINT_BYTES, "task.ledger_checkpoint is too long")
    _require(body.count_scale == 0.0 or _positive(body.count_scale), "task.count_scale must be 0 or finite and > 0")
    return RoundTask(
        run_id=body.run_id,
        step=body.step,
        attempt=body.attempt,
        seed=body.seed,
        parameters={tensor.name: _tensor_from_proto(tensor) for tensor in body.parameters},
        training=_training_from_proto(body.training),
        l2_clip_norm=body.l2_clip_norm,
        grid_step=body.grid_step or None,
        sampling_probability=body.sampling_probability,
        round_key=body.round_key,
        participation=_schedule_from_proto(body.participation) if body.HasField("participation") else None,
        count_scale=body.count_scale or None,
        ledger_checkpoint=body.ledger_checkpoint,
    )


def task_digest(task: RoundTask) -> bytes:
    """SHA-256 of the task without its secret key, so that the digest may be logged and echoed."""
    public = _task_to_proto(task)
    public.ClearField("round_key")
    public.ClearField("ledger_checkpoint")
    return hashlib.sha256(public.SerializeToString(deterministic=True)).digest()


def encode_contribution(contribution: Contribution) -> bytes:
    """Return the contribution's bytes."""
    return _seal(pb.Envelope(version=WIRE_VERSION, contribution=_contribution_to_proto(contribution)))


def decode_contribution(data: bytes, max_bytes: int = MAX_MESSAGE_BYTES) -> Contribution:
    """Return the contribution, or raise a WireError. Norm, digest and duplicates are the fold's to check."""
    return _contribution_from_proto(_open(data, "contribution", max_bytes).contribution)


def encode_reply(reply: CohortReply) -> bytes:
    """Return a node's answer as bytes."""
    body = pb.CohortReply(
        contribution=_contribution_to_proto(reply.contribution),
        loss_sum=reply.loss_sum,
        trained=reply.trained,
        clipped=reply.clipped,
        norm_sum=reply.norm_sum,
        rejected={reason.value: phones for reason, phones in reply.rejected.items()},
    )
    return _seal(pb.Envelope(version=WIRE_VERSION, reply=body))


def decode_reply(data: bytes, max_bytes: int = MAX_MESSAGE_BYTES) -> CohortReply:
    """Return a node's answer, or raise a WireError."""
    body = _open(data, "reply", max_bytes).reply
    _require(body.HasField("contribution"), "reply.contribution is absent")
    _require(math.isfinite(body.loss_sum) and math.isfinite(body.norm_sum), "reply.loss_sum, norm_sum: must be finite")
    _require(set(body.rejected) <= set(Reason), f"reply.rejected: unknown reason among {sorted(body.rejected)}")
    count = body.contribution.count
    _require(body.trained <= count and body.clipped <= count, f"reply.trained, clipped: over the count {count}")
    return CohortReply(
        contribution=_contribution_from_proto(body.contribution),
        loss_sum=body.loss_sum,
        trained=body.trained,
        clipped=body.clipped,
        norm_sum=body.norm_sum,
        rejected={Reason(reason): phones for reason, phones in body.rejected.items()},
    )


def _seal(envelope: pb.Envelope) -> bytes:
    data = envelope.SerializeToString(deterministic=True)
    if len(data) > MAX_MESSAGE_BYTES:
        raise MessageTooLarge(f"message of {len(data)} bytes is over the cap of {MAX_MESSAGE_BYTES} bytes.")
    return data


def _open(data: bytes, body: str, max_bytes: int) -> pb.Envelope:
    if len(data) > max_bytes:
        raise MessageTooLarge(f"message of {len(data)} bytes is over the cap of {max_bytes} bytes.")
    try:
        envelope = pb.Envelope.FromString(data)
    except DecodeError as error:
        raise MalformedMessage(f"not a fedlearn message: {error}.") from error
    if envelope.version != WIRE_VERSION:
        raise VersionUnsupported(f"message has wire version {envelope.version}, this side speaks {WIRE_VERSION}.")
    found = envelope.WhichOneof("body")
    _require(found == body, f"expected a {body}, found {found or 'nothing'}")
    return envelope


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise MalformedMessage(f"{problem}.")


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0.0


def _task_to_proto(task: RoundTask) -> pb.RoundTask:
    schedule = task.participation
    return pb.RoundTask(
        run_id=task.run_id,
        step=task.step,
        attempt=task.attempt,
        seed=task.seed,
        parameters=[
            pb.Tensor(name=name, shape=array.shape, f32=array.astype("<f4").tobytes())
            for name, array in sorted(task.parameters.items())
        ],
        training=_training_to_proto(task.training),
        l2_clip_norm=task.l2_clip_norm,
        grid_step=task.grid_step or 0.0,
        sampling_probability=task.sampling_probability,
        round_key=task.round_key,
        # None leaves the field absent: a task without the field has the bytes it had before the field existed
        participation=None
        if schedule is None
        else pb.CohortSchedule(min_separation=schedule.min_separation, availability=schedule.availability),
        count_scale=task.count_scale or 0.0,
        ledger_checkpoint=task.ledger_checkpoint,
    )


def _training_to_proto(terms: TrainingTerms) -> pb.LocalTraining:
    privacy = terms.example_privacy
    return pb.LocalTraining(
        epochs=terms.epochs,
        batch_size=terms.batch_size,
        learning_rate=terms.learning_rate,
        shuffle=terms.shuffle,
        candidates=terms.candidates,
        example_privacy=None
        if privacy is None
        else pb.ExamplePrivacy(noise_multiplier=privacy.noise_multiplier, l2_clip_norm=privacy.l2_clip_norm),
    )


def _training_from_proto(terms: pb.LocalTraining) -> TrainingTerms:
    _require(terms.epochs >= 1 and terms.batch_size >= 1, "task.training needs epochs >= 1 and batch_size >= 1")
    _require(_positive(terms.learning_rate), "task.training.learning_rate must be finite and > 0")
    _require(terms.candidates >= 2, "task.training.candidates must be >= 2")
    privacy = None
    if terms.HasField("example_privacy"):
        try:
            privacy = ExamplePrivacy(terms.example_privacy.noise_multiplier, terms.example_privacy.l2_clip_norm)
        except OutOfRange as error:
            raise MalformedMessage(f"task.training.example_privacy: {error}") from error
    return TrainingTerms(
        terms.epochs, terms.batch_size, terms.learning_rate, terms.shuffle, terms.candidates, example_privacy=privacy
    )


def _schedule_from_proto(body: pb.CohortSchedule) -> CohortSchedule:
    try:
        return CohortSchedule(body.min_separation, body.availability)
    except OutOfRange as error:
        raise MalformedMessage(f"task.participation: {error}") from error


def _tensor_from_proto(tensor: pb.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    shape = tuple(tensor.shape)
    _require(len(shape) <= MAX_TENSOR_DIMENSIONS, f"tensor {tensor.name!r}: over {MAX_TENSOR_DIMENSIONS} dimensions")
    _require(all(shape), f"tensor {tensor.name!r}: shape {shape} is empty")
    _require(len(tensor.f32) == 4 * math.prod(shape), f"tensor {tensor.name!r}: data does not fill shape {shape}")
    return np.frombuffer(tensor.f32, dtype="<f4").reshape(shape).astype(np.float32)


def _contribution_to_proto(contribution: Contribution) -> pb.Contribution:
    dtype = codec_by_name(contribution.codec).dtype
    if contribution.values.dtype != dtype:
        raise MalformedMessage(f"codec {contribution.codec} needs {dtype}, found {contribution.values.dtype}.")
    return pb.Contribution(
        codec=contribution.codec,
        scale=contribution.scale,
        level=_LEVEL_TO_WIRE[contribution.level],
        count=contribution.count,
        l2_bound=contribution.l2_bound,
        task_digest=contribution.task_digest,
        nonce=contribution.nonce,
        dimension=contribution.values.size,
        values=contribution.values.tobytes(),
    )


def _contribution_from_proto(body: pb.Contribution) -> Contribution:
    dtype = codec_by_name(body.codec).dtype
    _require(body.level in _LEVEL_FROM_WIRE, "contribution.level is absent")
    _require(len(body.task_digest) == DIGEST_BYTES, f"contribution.task_digest needs {DIGEST_BYTES} bytes")
    _require(len(body.nonce) == NONCE_BYTES, f"contribution.nonce needs {NONCE_BYTES} bytes")
    _require(math.isfinite(body.l2_bound) and body.l2_bound >= 0.0, "contribution.l2_bound must be finite and >= 0")
    _require(len(body.values) == body.dimension * dtype.itemsize, "contribution.values does not fill its dimension")
    return Contribution(
        codec=body.codec,
        scale=body.scale,
        level=_LEVEL_FROM_WIRE[body.level],
        count=body.count,
        l2_bound=body.l2_bound,
        task_digest=body.task_digest,
        nonce=body.nonce,
        values=np.frombuffer(body.values, dtype=dtype),
    )

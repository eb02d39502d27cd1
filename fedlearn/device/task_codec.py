"""``DeviceTask`` as bytes, signed by the operator. One task has exactly one encoding; any other is refused."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Final, NoReturn, Protocol, TypeVar

from google.protobuf.message import DecodeError, Message

from fedlearn.device.fields import checked_text
from fedlearn.device.mechanism import MechanismTerms
from fedlearn.device.mechanism_codec import MOST_STEPS, mechanism_from_json
from fedlearn.device.task import SIGNING_CONTEXT, TOKEN_BYTES, VERSION, DeviceTask
from fedlearn.errors import BundleRefused, PolicyInvalid, Refusal, TaskRefused
from fedlearn.policy.canonical import canonical_bytes, parse_strict
from fedlearn.policy.keys import is_key, is_weak
from fedlearn.privacy.factorization import factorization_to_json
from fedlearn.proto import gateway_pb2 as pb

MOST_TASK_BYTES: Final = 192 * 1024
"""Room for 4096 coefficients; a task of a shipped mechanism has a few hundred bytes."""

_MOST_ATTEMPT: Final = 2**31 - 1
_MOST_ROUND_SIZE: Final = 2**40
_LATEST_MS: Final = 4_102_444_800_000  # the year 2100
_SIGNATURE_BYTES: Final = 64
_DIGEST_BYTES: Final = 32

M = TypeVar("M", bound=Message)


class Signer(Protocol):
    """Who signs: ``fedlearn.ledger.signing.SigningKey`` fits."""

    def sign(self, message: bytes) -> str:
        """Return the Ed25519 signature in 128 hexadecimal digits."""
        ...


def task_bytes(task: DeviceTask) -> bytes:
    """Return the bytes that are signed. ``task.digest`` is not part of them; times are rounded to milliseconds.

    Raises:
        TaskRefused: PLAN: a phone would refuse the task; the message names the field.
    """
    try:
        body = pb.DeviceTask(
            version=VERSION,
            run_id=task.run_id,
            population=task.population,
            purpose=task.purpose,
            recipient=task.recipient,
            step=task.step,
            attempt=task.attempt,
            plan_digest=bytes.fromhex(task.plan_digest),
            weights_digest=bytes.fromhex(task.weights_digest),
            token=task.token,
            issued_ms=round(task.issued * 1000),
            expires_ms=round(task.expires * 1000),
            round_size=task.round_size,
            mechanism=_mechanism_to_proto(task.mechanism),
            shuffle_seed=task.shuffle_seed,
        )
    except (ValueError, TypeError, OverflowError) as error:
        raise TaskRefused(Refusal.PLAN, "task: a field has a type or range that its message does not.") from error
    data = body.SerializeToString(deterministic=True)
    task_from_bytes(data)
    return data


def task_from_bytes(data: bytes) -> DeviceTask:
    """Read a task whose signature is known to be good.

    Args:
        data: what was signed.

    Raises:
        TaskRefused: PLAN: not a task of this version; a field that is absent, unknown or out of range; other bytes
            than ``task_bytes`` gives. The message names the field.
    """
    if len(data) > MOST_TASK_BYTES:
        _refuse(f"task: {len(data)} bytes; at most {MOST_TASK_BYTES}.")
    body = _parse(pb.DeviceTask, data, Refusal.PLAN)
    if body.version != VERSION:
        _refuse(f"task.version: must be {VERSION}; update the runtime.")
    if not body.HasField("mechanism"):
        _refuse("task.mechanism: absent.")
    _require_ranges(body)
    try:
        task = DeviceTask(
            run_id=checked_text(body.run_id, "task.run_id"),
            population=checked_text(body.population, "task.population"),
            purpose=checked_text(body.purpose, "task.purpose"),
            recipient=checked_text(body.recipient, "task.recipient"),
            step=body.step,
            attempt=body.attempt,
            plan_digest=body.plan_digest.hex(),
            weights_digest=body.weights_digest.hex(),
            token=body.token,
            issued=body.issued_ms / 1000,
            expires=body.expires_ms / 1000,
            round_size=body.round_size,
            mechanism=_mechanism_from_proto(body.mechanism),
            shuffle_seed=body.shuffle_seed,
            digest=hashlib.sha256(data).digest(),
        )
    except BundleRefused as error:
        raise TaskRefused(Refusal.PLAN, str(error)) from error
    if task.step >= task.mechanism.steps:
        _refuse(f"task.step: {task.step}; the mechanism has {task.mechanism.steps} steps, counted from 0.")
    return task


def with_digest(task: DeviceTask) -> DeviceTask:
    """Return ``task`` as a phone reads it: its digest set, its times in whole milliseconds."""
    return task_from_bytes(task_bytes(replace(task, digest=b"")))


def sign_task(task: DeviceTask, signer: Signer) -> bytes:
    """Return a ``SignedTask``: the task and ``signer``'s signature over ``SIGNING_CONTEXT`` and its bytes.

    Raises:
        TaskRefused: as ``task_bytes``.
    """
    data = task_bytes(task)
    signature = bytes.fromhex(signer.sign(SIGNING_CONTEXT + data))
    return pb.SignedTask(task=data, signature=signature).SerializeToString(deterministic=True)


def open_task(data: bytes, public_key_hex: str) -> DeviceTask:
    """Return a signed task, after its signature and its form were checked; what it asks is the guard's to judge.

    Guarantee: no field is read before the signature is good, and no two byte strings give the same task and key unless
    Ed25519 is broken: a task with a changed, added or repeated field is refused.

    Args:
        data: a ``SignedTask``.
        public_key_hex: ``task_key`` of the policy's recipient, 64 hexadecimal digits.

    Raises:
        TaskRefused: SIGNATURE: not a signed task, or not signed by that key; PLAN: as ``task_from_bytes``.
    """
    if len(data) > MOST_TASK_BYTES + 256:
        raise TaskRefused(Refusal.SIGNATURE, f"signed task: {len(data)} bytes; at most {MOST_TASK_BYTES + 256}.")
    signed = _parse(pb.SignedTask, data, Refusal.SIGNATURE)
    if not _verified(public_key_hex, signed.signature, SIGNING_CONTEXT + signed.task):
        raise TaskRefused(Refusal.SIGNATURE, "signed task: not signed by the task_key of the policy's recipient.")
    return task_from_bytes(signed.task)


def _verified(public_key_hex: str, signature: bytes, message: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415  # optional
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415

    if len(signature) != _SIGNATURE_BYTES or not is_key(public_key_hex) or is_weak(public_key_hex):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key_hex)).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _parse(kind: type[M], data: bytes, reason: Refusal) -> M:
    """Return the message if ``data`` is its one encoding: no unknown field, no repeated one, no other order."""
    try:
        body = kind.FromString(data)
    except DecodeError as error:
        raise TaskRefused(reason, f"{kind.DESCRIPTOR.name}: not such a message.") from error
    body.DiscardUnknownFields()  # else they would be written again
    if body.SerializeToString(deterministic=True) != data:
        raise TaskRefused(reason, f"{kind.DESCRIPTOR.name}: an unknown field, or not the one encoding that it has.")
    return body


def _require_ranges(body: pb.DeviceTask) -> None:
    sizes = (("plan_digest", _DIGEST_BYTES), ("weights_digest", _DIGEST_BYTES), ("token", TOKEN_BYTES))
    for name, size in sizes:
        if len(getattr(body, name)) != size:
            _refuse(f"task.{name}: must have {size} bytes.")
    ranges = (
        ("step", 0, MOST_STEPS),
        ("attempt", 0, _MOST_ATTEMPT),
        ("issued_ms", 1, _LATEST_MS),
        ("expires_ms", 1, _LATEST_MS),
        ("round_size", 1, _MOST_ROUND_SIZE),
    )
    for name, least, most in ranges:
        if not least <= getattr(body, name) <= most:
            _refuse(f"task.{name}: must be in [{least}, {most}].")
    if body.expires_ms <= body.issued_ms:
        _refuse("task.expires_ms: must be after issued_ms.")


def _mechanism_to_proto(terms: MechanismTerms) -> pb.Mechanism:
    return pb.Mechanism(
        kind=terms.kind,
        factorization=canonical_bytes(factorization_to_json(terms.factorization)).decode("ascii"),
        noise_multiplier=terms.noise_multiplier,
        l2_clip_norm=terms.l2_clip_norm,
        grid_step=terms.grid_step,
        steps=terms.steps,
        min_separation=terms.min_separation,
        max_participations=terms.max_participations,
    )


def _mechanism_from_proto(body: pb.Mechanism) -> MechanismTerms:
    """Judge by the same reader as a plan's mechanism."""
    text = body.factorization.encode()
    try:
        factorization = parse_strict(text, MOST_TASK_BYTES, "task.mechanism.factorization")
    except PolicyInvalid as error:
        raise BundleRefused(str(error)) from error
    read = {
        "kind": body.kind,
        "factorization": factorization,
        "noise_multiplier": body.noise_multiplier,
        "l2_clip_norm": body.l2_clip_norm,
        "grid_step": body.grid_step,
        "steps": body.steps,
        "min_separation": body.min_separation,
        "max_participations": body.max_participations,
    }
    terms = mechanism_from_json(read, "task.mechanism")
    if canonical_bytes(factorization_to_json(terms.factorization)) != text:
        raise BundleRefused("task.mechanism.factorization: not canonical JSON.")
    return terms


def _refuse(detail: str) -> NoReturn:
    raise TaskRefused(Refusal.PLAN, detail)

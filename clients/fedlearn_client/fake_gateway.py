"""``FakeGateway``: the other end of ``Transport``, in memory.

It speaks ``gateway.proto`` bytes, checks the signatures of check-ins, hands out signed tasks of one run step by step,
and keeps every request's bytes so that a test can search them for what must not leave. It can be told to misbehave:
``fail_next`` for one of the ``Fault`` kinds, ``alter`` for any lie in a task, ``denial`` for a gateway that gives none.
With ``credentials`` it knows only phones that enrolled with one of them. ::

    gateway = FakeGateway(plan, weights, signing_key, clock_rng=FakeClock())
    gateway.fail_next(Method.UPLOAD, Fault.REPLY_LOST)
    gateway.alter = lambda task: dataclasses.replace(task, round_size=1)
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from google.protobuf.message import DecodeError

from fedlearn.device.plan import DevicePlan
from fedlearn.device.plan_codec import plan_digest
from fedlearn.device.requests import Denial, Signed, is_signed
from fedlearn.device.task import TOKEN_BYTES, DeviceTask
from fedlearn.device.task_codec import Signer, sign_task
from fedlearn.errors import TransportFailed
from fedlearn.proto import gateway_pb2 as pb
from fedlearn_client.hooks import ClockAndRng, Method

DAY: Final = 86_400.0


class Fault(StrEnum):
    """How one call goes wrong."""

    UNREACHABLE = "unreachable"  # nothing arrives at the gateway
    REPLY_LOST = "reply_lost"  # the gateway does its part, and the phone hears nothing
    GARBAGE = "garbage"  # the reply is no message
    EMPTY = "empty"  # the reply is a message without a field
    NO_TASK = "no_task"  # CheckIn: come again later
    REPLAYED_TOKEN = "replayed_token"  # noqa: S105  # CheckIn: the token of an earlier task
    BAD_SIGNATURE = "bad_signature"  # CheckIn
    EXPIRED = "expired"  # CheckIn: a task that expired yesterday
    WRONG_WEIGHTS = "wrong_weights"  # Fetch: one changed byte
    ENDLESS_WEIGHTS = "endless_weights"  # Fetch: says that there are many more bytes
    LATE = "late"  # Upload: dropped unread
    REJECTED = "rejected"  # Upload
    DENIED = "denied"  # an error that names a denial, instead of a reply


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as it arrived."""

    method: Method
    body: bytes = field(repr=False)


class FakeGateway:
    """A gateway of one run, as a ``Transport``.

    Args:
        plan: the approved plan; tasks carry its digest and mechanism.
        weights: of every step, unless ``weights`` is changed.
        signer: the operator's key; its public half is ``task_key`` of the recipient in the policy.
        clock_rng: for issue and expiry of tasks, and for tokens.
        run_id: of the run.
        round_size: that tasks promise.
        task_seconds: life of a task.
        retry_after_s: what a reply without a task says.
        credentials: that phones may enrol with, each for one key; None: every phone is known, and none need enrol.

    ``step`` and ``attempt`` are what the next task says; ``advance`` goes on to the next step. ``requests`` has every
    request that arrived, ``contributions`` what was accepted, by token. ``on_call`` is called before each call, for a
    test that moves the clock or withdraws consent while a request is on its way. ``denial`` is why no check-in gets a
    task; ``checkpoint`` is the ledger's, with each task and acknowledgement; ``known`` has the enrolled keys.
    """

    def __init__(
        self,
        plan: DevicePlan,
        weights: bytes,
        signer: Signer,
        *,
        clock_rng: ClockAndRng,
        run_id: str = "run-1",
        round_size: int = 1_000,
        task_seconds: float = 3_600.0,
        retry_after_s: int = 900,
        credentials: Collection[bytes] | None = None,
    ) -> None:
        self.plan = plan
        self.weights = weights
        self.run_id = run_id
        self.round_size = round_size
        self.task_seconds = task_seconds
        self.retry_after_s = retry_after_s
        self.step = 0
        self.attempt = 0
        self.status = b""
        self.status_version = 0
        self.denial: Denial | None = None
        self.checkpoint = b""
        self.known: dict[bytes, bytes] = {}
        self.hangups = 0
        self.alter: Callable[[DeviceTask], DeviceTask] = _unchanged
        self.on_call: Callable[[Method], None] = _nothing
        self.requests: list[Seen] = []
        self.tasks: dict[bytes, DeviceTask] = {}
        self.contributions: dict[bytes, bytes] = {}
        self._credentials = credentials
        self._nonces: set[bytes] = set()
        self._signer = signer
        self._clock_rng = clock_rng
        self._faults: dict[Method, deque[Fault]] = {method: deque() for method in Method}

    def call(self, method: Method, request: bytes) -> bytes:
        self.on_call(method)
        faults = self._faults[method]
        fault = faults.popleft() if faults else None
        if fault is Fault.UNREACHABLE:
            raise TransportFailed("The gateway cannot be reached.")
        self.requests.append(Seen(method, bytes(request)))
        if fault is Fault.DENIED:
            raise TransportFailed("The gateway denied the call.", denial=str(self.denial or Denial.BUSY))
        answers = (self._enrol, self._check_in, self._fetch, self._upload)
        try:
            reply = dict(zip(Method, answers, strict=True))[method](request, fault)
        except DecodeError as error:
            raise TransportFailed(f"The gateway answered that the {method} request is no message.") from error
        if fault is Fault.REPLY_LOST:
            raise TransportFailed("The connection broke before the reply.")
        if fault is Fault.GARBAGE:
            return b"\xff\xfe" + self._clock_rng.random_bytes(62)
        return b"" if fault is Fault.EMPTY else reply

    def hang_up(self) -> None:
        self.hangups += 1

    def fail_next(self, method: Method, fault: Fault, times: int = 1) -> None:
        """Let the next ``times`` calls of ``method`` go wrong; further orders queue behind."""
        self._faults[method].extend([fault] * times)

    def advance(self, steps: int = 1) -> None:
        """Go on by ``steps`` mechanism steps; uploads for earlier ones are late from now on."""
        self.step += steps
        self.attempt = 0

    def offer_status(self, envelope: bytes, version: int) -> None:
        """Hand ``envelope`` to every phone whose status is older than ``version``."""
        self.status, self.status_version = envelope, version

    def received(self, method: Method | None = None) -> bytes:
        """Return all bytes that arrived, or those of one method, in order: to be searched."""
        return b"".join(seen.body for seen in self.requests if method is None or seen.method is method)

    def _enrol(self, request: bytes, fault: Fault | None) -> bytes:
        del fault
        asked = pb.EnrolRequest.FromString(request)
        denial = self._signature_denial(asked) or self.denial
        used_by = {credential: key for key, credential in self.known.items()}
        is_good = asked.credential in (self._credentials or ())
        if denial is None and not (is_good and used_by.get(asked.credential, asked.device_key) == asked.device_key):
            denial = Denial.CREDENTIAL
        if denial is not None:
            return pb.EnrolReply(outcome=pb.EnrolReply.OUTCOME_REFUSED, reason=denial).SerializeToString()
        self.known[asked.device_key] = asked.credential
        return pb.EnrolReply(outcome=pb.EnrolReply.OUTCOME_ENROLLED).SerializeToString()

    def _signature_denial(self, asked: Signed) -> Denial | None:
        """Return what is wrong with a signed request, whoever sent it. Its time is not looked at: clocks are moved."""
        if not is_signed(asked):
            return Denial.SIGNATURE
        if asked.nonce in self._nonces:
            return Denial.REPLAYED
        self._nonces.add(asked.nonce)
        return None

    def _check_in(self, request: bytes, fault: Fault | None) -> bytes:
        asked = pb.CheckInRequest.FromString(request)
        reply = pb.CheckInReply(retry_after_s=self.retry_after_s)
        if asked.status_version < self.status_version:
            reply.status = self.status
        denial = self._signature_denial(asked)
        if denial is None and self._credentials is not None and asked.device_key not in self.known:
            denial = Denial.UNKNOWN
        denial = denial or self.denial
        if denial is not None:
            reply.reason, reply.time_ms = denial, round(self._clock_rng.now() * 1000)
            return reply.SerializeToString()
        wanted = (asked.population, asked.purpose) == (self.plan.population, self.plan.purpose)
        if wanted and self.step < self.plan.mechanism.steps and fault is not Fault.NO_TASK:
            reply.task.ParseFromString(self._signed_task(fault))
            reply.ledger_checkpoint = self.checkpoint
        return reply.SerializeToString()

    def _signed_task(self, fault: Fault | None) -> bytes:
        task = self.alter(self._task(fault))
        self.tasks.setdefault(task.token, task)
        signed = sign_task(task, self._signer)
        if fault is Fault.BAD_SIGNATURE:
            changed = pb.SignedTask.FromString(signed)
            changed.signature = bytes([changed.signature[0] ^ 1]) + changed.signature[1:]
            return changed.SerializeToString()
        return signed

    def _task(self, fault: Fault | None) -> DeviceTask:
        now = self._clock_rng.now() - (DAY if fault is Fault.EXPIRED else 0.0)
        replayed = fault is Fault.REPLAYED_TOKEN and self.tasks
        return DeviceTask(
            run_id=self.run_id,
            population=self.plan.population,
            purpose=self.plan.purpose,
            recipient=self.plan.recipient,
            step=self.step,
            attempt=self.attempt,
            plan_digest=plan_digest(self.plan),
            weights_digest=hashlib.sha256(self.weights).hexdigest(),
            token=next(iter(self.tasks)) if replayed else self._clock_rng.random_bytes(TOKEN_BYTES),
            issued=now,
            expires=now + self.task_seconds,
            round_size=self.round_size,
            mechanism=self.plan.mechanism,
            shuffle_seed=self.step + 1,
            digest=b"",
        )

    def _fetch(self, request: bytes, fault: Fault | None) -> bytes:
        asked = pb.FetchRequest.FromString(request)
        if asked.digest != hashlib.sha256(self.weights).digest():
            return pb.FetchReply().SerializeToString()
        data = self.weights[asked.offset : asked.offset + asked.max_bytes]
        if fault is Fault.WRONG_WEIGHTS:
            data = data[:-1] + bytes([data[-1] ^ 1])
        total = 2**40 if fault is Fault.ENDLESS_WEIGHTS else len(self.weights)
        return pb.FetchReply(data=data, total=total).SerializeToString()

    def _upload(self, request: bytes, fault: Fault | None) -> bytes:
        sent = pb.UploadRequest.FromString(request)
        outcome, reason = self._take(sent, fault)
        return pb.UploadReply(outcome=outcome, reason=reason, ledger_checkpoint=self.checkpoint).SerializeToString()

    def _take(self, sent: pb.UploadRequest, fault: Fault | None) -> tuple[pb.UploadReply.Outcome, str]:
        task = self.tasks.get(sent.token)
        if task is None or fault is Fault.REJECTED:
            return pb.UploadReply.OUTCOME_REJECTED, "unknown_token" if task is None else "rejected"
        earlier = self.contributions.get(sent.token)
        if earlier is not None:
            same = earlier == sent.contribution
            return (pb.UploadReply.OUTCOME_ACCEPTED, "") if same else (pb.UploadReply.OUTCOME_REJECTED, "token_used")
        if fault is Fault.LATE or task.step != self.step or self._clock_rng.now() > task.expires:
            return pb.UploadReply.OUTCOME_LATE, ""
        self.contributions[sent.token] = sent.contribution
        return pb.UploadReply.OUTCOME_ACCEPTED, ""


def _unchanged(task: DeviceTask) -> DeviceTask:
    return task


def _nothing(_: Method) -> None:
    return None

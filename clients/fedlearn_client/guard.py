"""What a phone refuses, whatever the server says: before training, after the fetch, and before the first byte leaves.

Three checks, each of signed or exact facts only: the task against policy, approved plan, status and the phone's own
history; the weights against the task; the trainer's contribution against all of it, byte by byte and in integers. None
charges anything; ``participation`` does, before an example is read.
"""

from __future__ import annotations

import math
import sys
from array import array
from fractions import Fraction
from operator import mul
from typing import TYPE_CHECKING, Final, NoReturn

from google.protobuf.message import DecodeError

from fedlearn.device.plan import DevicePlan
from fedlearn.device.task import TOKEN_BYTES, DeviceTask
from fedlearn.device.weights import require_weights
from fedlearn.errors import Refusal, StatusRefused, TaskRefused, WorkerFailed
from fedlearn.policy.floors import UPLOAD_BYTES_PER_WEIGHT, UPLOAD_OVERHEAD_BYTES, breaches
from fedlearn.policy.status import Status, require_live
from fedlearn.policy.times import parse_time
from fedlearn.proto import wire_pb2 as pb
from fedlearn_client.hooks import ClockAndRng
from fedlearn_client.participation import Admission, Participations, Store

if TYPE_CHECKING:
    from fedlearn.device.bundle import Bundle

LONGEST_VALIDITY_S: Final = 7 * 86_400.0
MAX_AHEAD_S: Final = 300.0
DAY_S: Final = 86_400.0
WIRE_VERSION: Final = 1
CODEC: Final = "grid64"
NONCE_BYTES: Final = 16
_VALUE_BYTES: Final = 8


class Guard:
    """Checks tasks, weights and contributions.

    Args:
        participations: the phone's own ledger.
        database: the encrypted store: used tokens, rounds of the day.
        clock_rng: the phone's clock.
    """

    def __init__(self, participations: Participations, database: Store, clock_rng: ClockAndRng) -> None:
        self._participations = participations
        self._database = database
        self._clock_rng = clock_rng

    def check_task(
        self, task: DeviceTask, bundle: Bundle, status: Status | None, now: float | None = None
    ) -> Admission:
        """Return what the task's participation will cost, or refuse it.

        In this order: the clock; the status; the bundle's and the policy's expiry; whom the task names; plan and
        mechanism, which must be exactly the approved ones; the policy's floors; the task's own times; its token; the
        day's rounds; and the phone's history, b, k and budget (``Participations.admit``).

        Args:
            task: whose signature by the policy's recipient is good (``open_task``).
            bundle: the approved bundle.
            status: the newest signed status, or None where none has arrived.
            now: seconds since the Unix epoch; by default the phone's clock.

        Raises:
            TaskRefused: the first check that fails; nothing was charged. A run's first sight is noted all the same.
            StoreFailed: something could not be read or noted.
        """
        now = self._clock_rng.now() if now is None else now
        self._participations.notice_time(now, max(task.issued, task.issued if status is None else status.issued_at))
        try:
            require_live(status, bundle.digests, now)
        except StatusRefused as error:
            raise TaskRefused(Refusal.STATUS, str(error)) from error
        policy = bundle.verified.policy
        if not (now < bundle.expires and now < parse_time(policy.expires, "policy.expires")):
            raise TaskRefused(Refusal.EXPIRED, "bundle or policy: expires has passed; install a newer one.")
        _require_plan(task, bundle)
        broken = breaches(
            policy,
            mechanism=task.mechanism,
            population=task.population,
            purpose=task.purpose,
            recipient=task.recipient,
            round_size=task.round_size,
        )
        if broken:
            raise TaskRefused(Refusal.POLICY, " ".join(broken))
        _require_valid_now(task, now)
        self._require_unused(task)
        self._require_rounds_left(policy.device.max_rounds_per_day, now)
        return self._participations.admit(task, caps=policy.device)

    def check_weights(self, data: bytes, plan: DevicePlan, task: DeviceTask) -> None:
        """Refuse weights of another size than the plan's shared parameters or another digest than the task's.

        Raises:
            TaskRefused: WEIGHTS.
        """
        require_weights(data, plan.shared, task.weights_digest)

    def check_contribution(self, data: bytes, task: DeviceTask, plan: DevicePlan) -> None:
        """Refuse a contribution that is not exactly what the task asks for; see ``check_contribution``."""
        check_contribution(data, task, plan)

    def _require_unused(self, task: DeviceTask) -> None:
        if len(task.token) != TOKEN_BYTES:
            raise TaskRefused(Refusal.PLAN, f"task.token: must have {TOKEN_BYTES} bytes.")
        if self._database.rows("SELECT 1 FROM tokens WHERE token = ?", (task.token,)):
            raise TaskRefused(Refusal.TOKEN, "task.token: was used before; a task is good for one contribution.")

    def _require_rounds_left(self, most: int, now: float) -> None:
        """Count rounds that trained in the last 24 hours; those of a clock that was ahead are of today too."""
        found = self._database.rows("SELECT COUNT(*) FROM runs WHERE examples > 0 AND time > ?", (now - DAY_S,))
        rounds = max(int(found[0][0]), self._participations.since(now - DAY_S))
        if rounds >= most:
            raise TaskRefused(
                Refusal.SEPARATION, f"{rounds} rounds in 24 hours; device.max_rounds_per_day={most}; come back later."
            )


def check_contribution(data: bytes, task: DeviceTask, plan: DevicePlan) -> None:
    """Refuse a contribution of the trainer that is not exactly what the task asks for.

    Guarantee: the bytes have one meaning and nothing beside it: one envelope in its one encoding, of the one level and
    count a phone may send, bound to this task; and the vector they encode has an L2 norm of at most the clip, in exact
    arithmetic. The nonce's 16 bytes, drawn at random, are all that is not determined.

    Args:
        data: from the worker, which is not trusted.
        task: what was asked.
        plan: the approved one.

    Raises:
        WorkerFailed: the message names the field and no value of the vector.
    """
    dimension = sum(math.prod(spec.shape) for spec in plan.shared)
    if len(data) > UPLOAD_BYTES_PER_WEIGHT * dimension + UPLOAD_OVERHEAD_BYTES:
        _nonsense(f"{len(data)} bytes are too many for {dimension} weights")
    body = _only_contribution(data)
    terms = task.mechanism
    expected = (
        ("codec", CODEC),
        ("scale", terms.grid_step),
        ("level", pb.Contribution.LEVEL_PHONE),
        ("count", 1),
        ("l2_bound", terms.l2_clip_norm),
        ("task_digest", task.digest),
        ("dimension", dimension),
    )
    for name, value in expected:
        if getattr(body, name) != value:
            _nonsense(f"{name} is not the task's")
    if len(body.nonce) != NONCE_BYTES:
        _nonsense(f"nonce does not have {NONCE_BYTES} bytes")
    if len(body.values) != _VALUE_BYTES * dimension:
        _nonsense("values do not fill the dimension")
    if not within_norm(body.values, terms.grid_step, terms.l2_clip_norm):
        _nonsense("values are longer than l2_clip_norm")


def within_norm(values: bytes, step: float, bound: float) -> bool:
    """Return whether the L2 norm of little-endian 64-bit integers, times ``step``, is at most ``bound``: exactly."""
    numbers = array("q", values)
    if sys.byteorder == "big":
        numbers.byteswap()
    squares: int = sum(map(mul, numbers, numbers))
    return squares * Fraction(step) ** 2 <= Fraction(bound) ** 2


def _only_contribution(data: bytes) -> pb.Contribution:
    try:
        envelope = pb.Envelope.FromString(data)
    except DecodeError as error:
        raise WorkerFailed("the worker's contribution is no message; the round is abandoned.") from error
    envelope.DiscardUnknownFields()  # they would survive, and hide, in the comparison below
    if envelope.version != WIRE_VERSION or envelope.WhichOneof("body") != "contribution":
        _nonsense(f"it is no contribution of wire version {WIRE_VERSION}")
    if envelope.SerializeToString(deterministic=True) != data:
        _nonsense("it has an unknown field, or is not in its one encoding")
    return envelope.contribution


def _nonsense(detail: str) -> NoReturn:
    raise WorkerFailed(f"the worker's contribution was refused: {detail}.")


def _require_plan(task: DeviceTask, bundle: Bundle) -> None:
    plan = bundle.plan
    for name in ("population", "purpose", "recipient"):
        if getattr(task, name) != getattr(plan, name):
            raise TaskRefused(Refusal.PLAN, f"task.{name}: not that of the installed bundle.")
    if task.plan_digest != bundle.plan_digest:
        raise TaskRefused(Refusal.PLAN, "task.plan_digest: not the approved plan; install its bundle.")
    if task.mechanism != plan.mechanism:
        raise TaskRefused(Refusal.PLAN, "task.mechanism: not exactly the approved plan's.")
    if not 0 <= task.step < task.mechanism.steps:
        raise TaskRefused(Refusal.PLAN, f"task.step={task.step}: the run has {task.mechanism.steps} steps, from 0.")
    if not task.run_id:
        raise TaskRefused(Refusal.PLAN, "task.run_id: is empty.")


def _require_valid_now(task: DeviceTask, now: float) -> None:
    """Refuse a task that holds not yet, no more, or too long; comparisons are such that a NaN is refused."""
    if not task.issued <= now + MAX_AHEAD_S:
        raise TaskRefused(Refusal.EXPIRED, "task.issued: more than 5 minutes ahead of this clock; set the clock.")
    if not now < task.expires:
        raise TaskRefused(Refusal.EXPIRED, "task.expires: has passed; ask for a new task.")
    if not 0 < task.expires - task.issued <= LONGEST_VALIDITY_S:
        raise TaskRefused(Refusal.EXPIRED, "task.expires: must be at most 7 days after issued.")

"""One local round, from the check-in to the acknowledged upload, and what is left of one after a crash.

The participation, the token, the egress entry with the exact bytes and the run's own log entry become durable in one
transaction, and the KeyStore's anchor after it, before the first byte of an upload leaves. Consent is read again in the
transaction in which the upload departs. So whatever happens, and whenever: nothing is uploaded that was not charged and
logged, nothing is charged twice, and nothing leaves once the streams it came from are no longer granted.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn

from fedlearn.device.bundle import PLAN, PRIVATE
from fedlearn.device.task_codec import open_task, task_bytes
from fedlearn.errors import FedlearnError, Refusal, StoreFailed, TaskRefused, TrustError, WorkerFailed
from fedlearn.proto import gateway_pb2 as pb
from fedlearn.proto import worker_pb2
from fedlearn_client import runs
from fedlearn_client.handover import HandOver, basis_of
from fedlearn_client.hooks import Method, Occasion
from fedlearn_client.outcomes import Outcome, Retry, ending_of
from fedlearn_client.readiness import Obstacle
from fedlearn_client.runs import Run
from fedlearn_client.transport import padded
from fedlearn_client.workers import occasion_message

if TYPE_CHECKING:
    from fedlearn.device.bundle import Bundle
    from fedlearn.device.task import DeviceTask
    from fedlearn.policy.status import Status
    from fedlearn_client.egress import Connection, Entry
    from fedlearn_client.participation import Admission
    from fedlearn_client.rooms import Rooms

LONGEST_S: Final = 585.0
"""A local round trains no longer than 9 minutes 45 seconds, whatever the policy says."""


@dataclass(slots=True)
class _Round:
    """What is known of the round under way."""

    purpose: str
    task: DeviceTask | None = None
    examples: int = 0
    charged: bool = False
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Job:
    """A task that the guard let through."""

    bundle: Bundle
    task: DeviceTask
    admission: Admission


@dataclass(frozen=True, slots=True)
class _Material:
    """What is trained on, and the consent under which it was read."""

    generation: int
    basis: str
    occasions: tuple[Occasion, ...] = field(repr=False)
    sources: frozenset[str]


class _Over(Exception):
    """The round ends here."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.words)
        self.outcome = outcome


class LocalRound:
    """Runs local rounds, one at a time.

    Args:
        rooms: what it works with.
        egress_hold_s: seconds, >= 0, that a prepared upload waits before it leaves, so that the owner can read it.
        wait: sleeps; for tests.
    """

    def __init__(self, rooms: Rooms, *, egress_hold_s: float = 0.0, wait: Callable[[float], None] = time.sleep) -> None:
        self._rooms = rooms
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._hand_over = HandOver(rooms, egress_hold_s=egress_hold_s, wait=wait, ending=self._ending)

    def end(self) -> None:
        """Let the round under way end within a second, and begin no other."""
        self._ending.set()

    def run(self, purpose: str) -> str:
        """Run one round for a training purpose and return its outcome, as ``LocalRun.outcome``."""
        return self.attempt(purpose).words

    def attempt(self, purpose: str) -> Outcome:
        """Run one round and return its outcome, and when to try again. Raises none of fedlearn's errors."""
        if not self._lock.acquire(blocking=False):
            return Outcome(f"refused: {Obstacle.RUNNING}", Retry.TRANSIENT, asked=False)
        try:
            going = _Round(purpose)
            try:
                outcome = self._round(going)
            except _Over as over:
                outcome = over.outcome
            except FedlearnError as error:
                outcome = ending_of(error)
            self._log(going, outcome)
            return outcome.after(going.retry_after_s)
        finally:
            self._lock.release()

    def resume(self) -> list[Outcome]:
        """Finish what a crash, a dead transport or a pause left: the very same bytes, or nothing.

        An upload leaves again only while its task has not expired and the streams it was made from are the granted
        ones. The gateway counts a token once, so sending twice is harmless; it was charged already.

        Raises:
            StoreFailed: the store cannot be written; nothing left.
        """
        if not self._lock.acquire(blocking=False):
            return [Outcome(f"refused: {Obstacle.RUNNING}", Retry.TRANSIENT)]
        try:
            self._tidy()
            return [self._hand_over.send(entry) for entry in self._rooms.egress.pending()]
        finally:
            self._lock.release()

    def tidy(self) -> None:
        """Give up what can not leave any more, and forget bytes that are kept no longer; nothing leaves.

        Raises:
            StoreFailed: as ``resume``.
        """
        if self._lock.acquire(blocking=False):
            try:
                self._tidy()
            finally:
                self._lock.release()

    def _tidy(self) -> None:
        rooms = self._rooms
        rooms.egress.settle()
        rooms.egress.expire(rooms.clock_rng.now())
        rooms.runs.settle()

    def _round(self, going: _Round) -> Outcome:
        bundle = self._eligible(going)
        reply = self._check_in(going, bundle)
        status = self._live_status(reply, bundle)
        task = self._open(going, reply, bundle)
        admission = self._rooms.guard.check_task(task, bundle, status, self._rooms.clock_rng.now())
        job = _Job(bundle, task, admission)
        watch = _Watch(self._rooms, bundle, self._ending)
        weights = self._rooms.calls.weights(task, bundle, watch.require)
        material = self._material(bundle, watch)
        trained = self._train(going, job, weights, material, watch)
        self._rooms.guard.check_contribution(trained.contribution, task, bundle.plan)
        entry = self._charge(going, job, material, trained.contribution)
        return self._hand_over.send(entry, trained.private_parameters)

    def _eligible(self, going: _Round) -> Bundle:
        bundle = self._rooms.installed.bundle_for(going.purpose)
        if bundle is None:
            _refuse(Obstacle.NO_BUNDLE, asked=False)
        obstacle = self._rooms.readiness.beginning(bundle)
        if obstacle is not None:
            _refuse(obstacle, asked=False)
        return bundle

    def _check_in(self, going: _Round, bundle: Bundle) -> pb.CheckInReply:
        status = self._rooms.installed.status()
        reply = self._rooms.calls.check_in(bundle, 0 if status is None else status.version)
        going.retry_after_s = float(reply.retry_after_s)
        if reply.status:
            try:
                self._rooms.installed.update_status(reply.status)
            except TrustError as error:
                self._rooms.audit.record("status_refused", {"code": error.code})
        return reply

    def _live_status(self, reply: pb.CheckInReply, bundle: Bundle) -> Status:
        obstacle = self._rooms.readiness.trust(bundle)
        if obstacle is not None:
            _refuse(obstacle)
        if not reply.HasField("task"):
            raise _Over(Outcome(runs.NO_TASK, Retry.TRANSIENT))
        status = self._rooms.installed.status()
        if status is None:
            _refuse(Obstacle.STATUS_OLD)
        return status

    def _open(self, going: _Round, reply: pb.CheckInReply, bundle: Bundle) -> DeviceTask:
        recipient = bundle.plan.recipient
        keys = [one.task_key for one in bundle.verified.policy.recipients if one.id == recipient and one.task_key]
        if not keys:
            raise TaskRefused(Refusal.POLICY, "policy.recipients: the plan's recipient has no task_key.")
        going.task = open_task(reply.task.SerializeToString(deterministic=True), keys[0])
        return going.task

    def _material(self, bundle: Bundle, watch: _Watch) -> _Material:
        """Read the occasions, and before them the consent under which they are read."""
        plan, rooms = bundle.plan, self._rooms
        watch.require()
        basis = basis_of(rooms.consent, bundle)
        limit = plan.training.max_examples
        occasions = tuple(rooms.examples.occasions(plan.purpose, plan.recipient, limit))
        if not occasions:
            _abandon(Obstacle.NO_EXAMPLES)
        return _Material(watch.generation, basis, occasions, rooms.examples.sources(plan.purpose, plan.recipient))

    def _train(
        self, going: _Round, job: _Job, weights: bytes, material: _Material, watch: _Watch
    ) -> worker_pb2.TrainReply:
        rooms, bundle = self._rooms, job.bundle
        own = b""
        if bundle.plan.private:
            own = rooms.private.load(bundle.plan_digest) or bundle.files[PRIVATE]
        going.examples = len(material.occasions)
        request = worker_pb2.TrainRequest(
            plan=bundle.files[PLAN],
            step=bundle.step,
            weights=weights,
            private_parameters=own,
            occasions=[occasion_message(occasion) for occasion in material.occasions],
            sources=sorted(material.sources),
            task=task_bytes(job.task),
            catalogue=rooms.installed.catalogue().catalogue_bytes,
        )
        deadline_s = min(LONGEST_S, float(bundle.verified.policy.device.max_training_seconds))
        try:
            return rooms.workers.train(request, deadline_s, watch)
        except WorkerFailed:
            watch.require()  # a worker that was killed by a withdrawal is no fault of its own
            raise

    def _charge(self, going: _Round, job: _Job, material: _Material, contribution: bytes) -> Entry:
        """Make participation, token, egress entry and run durable together, if nothing has changed since."""
        rooms, task, now = self._rooms, job.task, self._rooms.clock_rng.now()
        if now >= task.expires:
            _abandon(Obstacle.NO_TIME)
        body = padded(pb.UploadRequest(token=task.token, contribution=contribution))
        with rooms.database.transaction() as connection:
            if rooms.consent.generation != material.generation:
                _abandon(Obstacle.CONSENT_CHANGED)
            rooms.participations.record(job.admission, task, connection)
            _use_token(task, connection)
            number = rooms.egress.prepare(
                Method.UPLOAD,
                task.purpose,
                task.recipient,
                run_id=task.run_id,
                step=task.step,
                body=body,
                expires=task.expires,
                connection=connection,
                basis=material.basis,
            )
            rooms.runs.add(_run(task, now, runs.PREPARED, going.examples), connection)
            entry = next(one for one in rooms.egress.pending() if one.id == number)
        going.charged = True
        return entry

    def _log(self, going: _Round, outcome: Outcome) -> None:
        """Log a round that ended before it was charged; one that was charged has its entry."""
        fields: dict[str, str | int | float | bool] = {"purpose": going.purpose, "outcome": outcome.words}
        self._rooms.audit.record("round", fields)
        if going.task is not None and not going.charged:
            run = _run(going.task, self._rooms.clock_rng.now(), outcome.words, going.examples)
            with contextlib.suppress(StoreFailed):  # the outcome may be just that
                self._rooms.runs.add(run)


class _Watch:
    """Looks each second whether a round may go on."""

    def __init__(self, rooms: Rooms, bundle: Bundle, ending: threading.Event) -> None:
        self._rooms = rooms
        self._ending = ending
        self._bundle = bundle
        self.generation = rooms.consent.generation

    def __call__(self) -> bool:
        return self._obstacle() is not None

    def require(self) -> None:
        """End the round if it may not go on."""
        obstacle = self._obstacle()
        if obstacle is not None:
            _abandon(obstacle)

    def _obstacle(self) -> Obstacle | None:
        if self._ending.is_set():
            return Obstacle.STOPPING
        if self._rooms.consent.generation != self.generation:
            return Obstacle.CONSENT_CHANGED
        return self._rooms.readiness.going_on(self._bundle)


def _refuse(obstacle: Obstacle, *, asked: bool = True) -> NoReturn:
    retry = Retry.PERMANENT if obstacle in {Obstacle.STOPPED, Obstacle.EXPIRED} else Retry.TRANSIENT
    raise _Over(Outcome(f"refused: {obstacle}", retry, asked=asked))


def _abandon(obstacle: Obstacle) -> NoReturn:
    raise _Over(Outcome(f"abandoned: {obstacle}", Retry.TRANSIENT))


def _use_token(task: DeviceTask, connection: Connection) -> None:
    cursor = connection.execute(
        "INSERT OR IGNORE INTO tokens (token, expires) VALUES (?, ?)", (task.token, task.expires)
    )
    if cursor.rowcount != 1:
        raise TaskRefused(Refusal.TOKEN, "task.token: was used before.")


def _run(task: DeviceTask, now: float, outcome: str, examples: int) -> Run:
    return Run(now, task.purpose, task.recipient, task.run_id, task.step, outcome, examples)

"""One local round, from the check-in to the acknowledged upload, and what is left of one after a crash.

The participation, the token and the run's own log entry become durable in one transaction, and the KeyStore's anchor
after it, before the owner's data are read. From then on, whether an upload leaves does not depend on what the data say:
a training that fails for whatever reason uploads zeros, as long as every other contribution. Otherwise a gateway could
choose weights with which training fails if the owner wrote of something, and read that from the missing upload, without
noise and uncharged.

The exact bytes are in the egress log before the first of them leaves. Consent is read again in the transaction in which
the upload departs. So whatever happens, and whenever: nothing is uploaded that was not charged and logged, nothing is
charged twice, and nothing leaves once the streams it came from are no longer granted.

A task counts only on top of the operator's ledger as this phone saw it last (``pins``).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fedlearn.device.bundle import PLAN, PRIVATE
from fedlearn.device.padding import padded
from fedlearn.device.task_codec import open_task, task_bytes
from fedlearn.errors import FedlearnError, Refusal, StoreFailed, TaskRefused, TrustError, WorkerFailed
from fedlearn.proto import gateway_pb2 as pb
from fedlearn.proto import worker_pb2
from fedlearn_client import runs
from fedlearn_client.asking import Asking
from fedlearn_client.handover import HandOver, basis_of, private_basis_of
from fedlearn_client.hooks import Method
from fedlearn_client.outcomes import Outcome, Retry, ending_of
from fedlearn_client.readiness import Obstacle, outcome_for_others
from fedlearn_client.runs import Run
from fedlearn_client.watch import Over, Watch, abandon, refuse
from fedlearn_client.workers import occasion_message
from fedlearn_client.zeros import zero_contribution

if TYPE_CHECKING:
    from fedlearn.device.bundle import Bundle
    from fedlearn.device.task import DeviceTask
    from fedlearn.policy.status import Status
    from fedlearn_client.egress import Connection, Entry
    from fedlearn_client.participation import Admission
    from fedlearn_client.rooms import Rooms

LONGEST_S: Final = 585.0
"""A local round trains no longer than 9 minutes 45 seconds, whatever the policy says."""

SPARE_S: Final = 60.0
"""A training ends so long before its task expires: even one that takes all its time is followed by an upload."""


@dataclass(slots=True)
class _Round:
    """What is known of the round under way."""

    purpose: str
    task: DeviceTask | None = None
    examples: int = 0
    charged: bool = False
    prepared: bool = False
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Job:
    """A task that the guard let through, and the consent under which it is trained for.

    Args:
        bundle: the approved bundle.
        task: what was asked.
        admission: what it will cost.
        watch: knows the consent that held before ``basis`` was taken.
        basis: as ``Entry.basis``.
    """

    bundle: Bundle
    task: DeviceTask
    admission: Admission
    watch: Watch
    basis: str


class LocalRound:
    """Runs local rounds, one at a time.

    Args:
        rooms: what it works with.
        egress_hold_s: seconds, >= 0, that a prepared upload waits before it leaves, so that the owner can read it.
        wait: sleeps; for tests.
    """

    def __init__(self, rooms: Rooms, *, egress_hold_s: float = 0.0, wait: Callable[[float], None] = time.sleep) -> None:
        self._rooms = rooms
        self._hold_s = egress_hold_s
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._asking = Asking(rooms)
        self._hand_over = HandOver(rooms, egress_hold_s=egress_hold_s, wait=wait, ending=self._ending)

    def end(self) -> None:
        """Let the round under way end within a second, and begin no other. What is on the wire is cut off."""
        self._ending.set()
        self._rooms.calls.hang_up()

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
            except Over as over:
                outcome = over.outcome
            except FedlearnError as error:
                outcome = ending_of(error)
            self._log(going, outcome)
            return outcome.after(going.retry_after_s)
        finally:
            self._rooms.calls.hang_up()
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
            self._rooms.calls.hang_up()
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
        rooms.private.expire()
        rooms.runs.settle()

    def _round(self, going: _Round) -> Outcome:
        bundle = self._eligible(going)
        reply = self._check_in(going, bundle)
        status = self._live_status(reply, bundle)
        task = self._open(going, reply, bundle)
        self._rooms.pins.require(reply.ledger_checkpoint, bundle)
        admission = self._rooms.guard.check_task(task, bundle, status, self._rooms.clock_rng.now())
        watch = Watch(self._rooms, bundle, self._ending)
        job = _Job(bundle, task, admission, watch, basis_of(self._rooms.consent, bundle))
        weights = self._rooms.calls.weights(task, bundle, watch.require)
        self._rooms.calls.hang_up()  # not held open while the phone trains
        watch.require()
        self._charge(going, job)
        trained = self._learn(going, job, weights)
        entry = self._prepare(going, job, trained.contribution)
        return self._hand_over.send(entry, trained.private_parameters)

    def _eligible(self, going: _Round) -> Bundle:
        bundle = self._rooms.installed.bundle_for(going.purpose)
        if bundle is None:
            refuse(Obstacle.NO_BUNDLE, asked=False)
        obstacle = self._rooms.readiness.beginning(bundle)
        if obstacle is not None:
            refuse(obstacle, asked=False)
        self._asking.require_standing(bundle)
        return bundle

    def _check_in(self, going: _Round, bundle: Bundle) -> pb.CheckInReply:
        reply = self._asking.check_in(bundle)
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
            refuse(obstacle)
        self._asking.require_task(reply)
        status = self._rooms.installed.status()
        if status is None:
            refuse(Obstacle.STATUS_OLD)
        return status

    def _open(self, going: _Round, reply: pb.CheckInReply, bundle: Bundle) -> DeviceTask:
        recipient = bundle.plan.recipient
        keys = [one.task_key for one in bundle.verified.policy.recipients if one.id == recipient and one.task_key]
        if not keys:
            raise TaskRefused(Refusal.POLICY, "policy.recipients: the plan's recipient has no task_key.")
        going.task = open_task(reply.task.SerializeToString(deterministic=True), keys[0])
        return going.task

    def _training_s(self, job: _Job) -> float:
        """Return how long the training may take; not so long that its task expires before the upload."""
        left_s = job.task.expires - self._rooms.clock_rng.now() - self._hold_s - SPARE_S
        return min(LONGEST_S, float(job.bundle.verified.policy.device.max_training_seconds), left_s)

    def _charge(self, going: _Round, job: _Job) -> None:
        """Make participation, token and run durable, and the anchor after them, before the owner's data are read."""
        rooms, task = self._rooms, job.task
        if not self._training_s(job) > 0.0:
            abandon(Obstacle.NO_TIME)
        with rooms.database.transaction() as connection:
            job.watch.require_consent()
            rooms.participations.record(job.admission, task, connection)
            _use_token(task, connection)
            rooms.runs.add(_run(task, rooms.clock_rng.now(), runs.CHARGED, 0), connection)
        going.charged = True
        rooms.participations.seal()

    def _learn(self, going: _Round, job: _Job, weights: bytes) -> worker_pb2.TrainReply:
        """Return what the trainer made, or zeros where anything at all went wrong with it: silence would tell why.

        Only what the owner's data have no part in ends the round: the catalogue is gone, the store fails, or the watch.
        """
        rooms, task, plan = self._rooms, job.task, job.bundle.plan
        catalogue = rooms.installed.catalogue().catalogue_bytes
        try:
            trained = self._train(going, job, weights, catalogue)
            rooms.guard.check_contribution(trained.contribution, task, plan)
        except (Over, StoreFailed):
            raise
        except Exception:  # noqa: BLE001  # whatever it is, the data may have caused it
            job.watch.require()  # a worker that was killed by a withdrawal is no fault of its own
            going.examples = 0  # in the owner's log; the AuditSink is the phone maker's, and learns nothing of it
            nothing = zero_contribution(task, plan, rooms.clock_rng)
            rooms.guard.check_contribution(nothing, task, plan)
            return worker_pb2.TrainReply(contribution=nothing)
        return trained

    def _train(self, going: _Round, job: _Job, weights: bytes, catalogue: bytes) -> worker_pb2.TrainReply:
        rooms, bundle = self._rooms, job.bundle
        plan = bundle.plan
        occasions = tuple(rooms.examples.occasions(plan.purpose, plan.recipient, plan.training.max_examples))
        if not occasions:
            raise WorkerFailed("there is nothing to learn from any more.")
        own = b""
        if plan.private:
            basis = private_basis_of(rooms.consent, bundle)
            own = rooms.private.load(bundle.plan_digest, basis) or bundle.files[PRIVATE]
        going.examples = len(occasions)
        request = worker_pb2.TrainRequest(
            plan=bundle.files[PLAN],
            step=bundle.step,
            weights=weights,
            private_parameters=own,
            occasions=[occasion_message(occasion) for occasion in occasions],
            sources=sorted(rooms.examples.sources(plan.purpose, plan.recipient)),
            task=task_bytes(job.task),
            catalogue=catalogue,
        )
        return rooms.workers.train(request, self._training_s(job), job.watch)

    def _prepare(self, going: _Round, job: _Job, contribution: bytes) -> Entry:
        """Write down the upload with its exact bytes, if nothing has changed since the round was charged."""
        rooms, task = self._rooms, job.task
        if rooms.clock_rng.now() >= task.expires:
            abandon(Obstacle.NO_TIME)
        body = padded(pb.UploadRequest(token=task.token, contribution=contribution))
        with rooms.database.transaction() as connection:
            job.watch.require_consent()
            number = rooms.egress.prepare(
                Method.UPLOAD,
                task.purpose,
                task.recipient,
                run_id=task.run_id,
                step=task.step,
                body=body,
                expires=task.expires,
                connection=connection,
                basis=job.basis,
            )
            rooms.runs.advance(task, runs.PREPARED, going.examples, connection)
            entry = next(one for one in rooms.egress.pending() if one.id == number)
        going.prepared = True
        return entry

    def _log(self, going: _Round, outcome: Outcome) -> None:
        """Log how a round ended; one whose upload was prepared has its entry."""
        words = outcome_for_others(outcome.words)
        self._rooms.audit.record("round", {"purpose": going.purpose, "outcome": words})
        if going.task is None or going.prepared:
            return
        with contextlib.suppress(StoreFailed):  # the outcome may be just that
            if going.charged:
                self._rooms.runs.advance(going.task, outcome.words, going.examples)
            else:
                self._rooms.runs.add(_run(going.task, self._rooms.clock_rng.now(), outcome.words, going.examples))


def _use_token(task: DeviceTask, connection: Connection) -> None:
    cursor = connection.execute(
        "INSERT OR IGNORE INTO tokens (token, expires) VALUES (?, ?)", (task.token, task.expires)
    )
    if cursor.rowcount != 1:
        raise TaskRefused(Refusal.TOKEN, "task.token: was used before.")


def _run(task: DeviceTask, now: float, outcome: str, examples: int) -> Run:
    return Run(now, task.purpose, task.recipient, task.run_id, task.step, outcome, examples)

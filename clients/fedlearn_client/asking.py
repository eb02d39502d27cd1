"""Asking the gateway for work: the check-in, the one enrolment that may come before it, and what a denial means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedlearn.device.requests import Denial
from fedlearn.proto import gateway_pb2 as pb
from fedlearn_client import runs
from fedlearn_client.outcomes import Outcome, Retry
from fedlearn_client.standing import denial_of, outcome_of
from fedlearn_client.watch import Over, refuse

if TYPE_CHECKING:
    from fedlearn.device.bundle import Bundle
    from fedlearn_client.rooms import Rooms


class Asking:
    """Asks for work for a bundle that may be trained: the caller has seen to grants and conditions.

    Args:
        rooms: what it works with.
    """

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    def require_standing(self, bundle: Bundle) -> None:
        """End the round before any request where the gateway has denied this phone for good.

        Raises:
            Over: it has, no longer ago than a day, and nothing has changed since.
        """
        obstacle = self._rooms.standing.bars(bundle.plan.purpose)
        if obstacle is not None:
            refuse(obstacle, asked=False)

    def check_in(self, bundle: Bundle) -> pb.CheckInReply:
        """Check in; where the gateway does not know this phone, enrol and check in again, once. Notes the answer.

        Raises:
            Over: it may not enrol.
            TransportFailed: no reply.
            StoreFailed: an entry or the standing could not be written.
        """
        reply = self._ask(bundle)
        if _denial(reply) is Denial.UNKNOWN and self._rooms.calls.may_enrol:
            self._enrol(bundle)
            reply = self._ask(bundle)
        denial = _denial(reply)
        self._rooms.standing.note(bundle.plan.purpose, denial)
        if denial not in {None, Denial.NO_TASK}:
            self._log(denial, reply)
        return reply

    def require_task(self, reply: pb.CheckInReply) -> None:
        """End the round where there is no task; raise Over, its outcome naming the denial."""
        denial = _denial(reply)
        if denial is Denial.NO_TASK:
            raise Over(Outcome(runs.NO_TASK, Retry.TRANSIENT))
        if denial is not None:
            raise Over(outcome_of(denial))

    def _ask(self, bundle: Bundle) -> pb.CheckInReply:
        status = self._rooms.installed.status()
        return self._rooms.calls.check_in(bundle, 0 if status is None else status.version)

    def _enrol(self, bundle: Bundle) -> None:
        answer = self._rooms.calls.enrol(bundle)
        if answer.outcome == pb.EnrolReply.OUTCOME_ENROLLED:
            self._rooms.audit.record("enrolled", {"population": bundle.plan.population})
            return
        denial = denial_of(answer.reason)
        if denial in {Denial.NO_TASK, Denial.UNKNOWN}:  # neither is a reason not to enrol
            denial = Denial.CREDENTIAL
        self._rooms.standing.note(bundle.plan.purpose, denial)
        self._rooms.audit.record("enrolment_denied", {"reason": denial.value})
        raise Over(outcome_of(denial))

    def _log(self, denial: Denial | None, reply: pb.CheckInReply) -> None:
        fields: dict[str, str | int | float | bool] = {"reason": str(denial)}
        if denial is Denial.CLOCK and reply.time_ms:
            fields["ahead_s"] = round(self._rooms.clock_rng.now() - reply.time_ms / 1000.0, 1)
        self._rooms.audit.record("check_in_denied", fields)


def _denial(reply: pb.CheckInReply) -> Denial | None:
    """Return why there is no task, or None where there is one."""
    return None if reply.HasField("task") else denial_of(reply.reason)

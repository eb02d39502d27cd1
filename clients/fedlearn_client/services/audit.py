"""``Audit``: what the phone did and what left it, for its owner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedlearn.policy.document import Policy
from fedlearn.proto import device_pb2 as pb
from fedlearn_client import limits
from fedlearn_client.egress import EgressLog, Entry
from fedlearn_client.hooks import Caller
from fedlearn_client.participation import Participations
from fedlearn_client.receipts import Receipts
from fedlearn_client.runs import RunLog
from fedlearn_client.services import checks
from fedlearn_client.services.wire import milliseconds, receipt_message
from fedlearn_client.zcdp import epsilon

NO_POLICY_DELTA = 1e-6
"""What epsilon is told at while no policy is in force."""


@dataclass(frozen=True, slots=True)
class AuditServicer:
    """Reads; changes nothing.

    Args:
        run_log: local rounds.
        participations: the phone's own account.
        egress: what left.
        receipts: what was signed.
        policy: in force, or None: its caps.
    """

    run_log: RunLog
    participations: Participations
    egress_log: EgressLog
    receipts_issued: Receipts
    policy: Callable[[], Policy | None]

    def runs(self, caller: Caller, request: pb.RunsRequest) -> pb.RunsReply:  # noqa: ARG002
        """Return local rounds, newest first."""
        return pb.RunsReply(
            runs=[
                pb.LocalRun(
                    time_ms=milliseconds(run.time),
                    purpose=run.purpose,
                    recipient=run.recipient,
                    run_id=run.run_id,
                    step=run.step,
                    outcome=run.outcome,
                    examples=run.examples,
                )
                for run in self.run_log.newest(checks.rows_wanted(request.limit))
            ]
        )

    def budget(self, caller: Caller, request: pb.BudgetRequest) -> pb.BudgetReply:  # noqa: ARG002
        """Return what was spent over all purposes, and the cap."""
        spent = self.participations.spent()
        policy = self.policy()
        delta = NO_POLICY_DELTA if policy is None else policy.device.delta
        return pb.BudgetReply(
            rho=spent.rho,
            epsilon=epsilon(spent.rho, delta),
            delta=delta,
            epsilon_cap=0.0 if policy is None else policy.device.epsilon,  # without a policy nothing trains
            participations=spent.participations,
            history_lost=spent.history_lost,
        )

    def egress(self, caller: Caller, request: pb.EgressRequest) -> pb.EgressReply:  # noqa: ARG002
        """Return what left, newest first; bodies until they fill the reply."""
        entries = self.egress_log.entries(checks.rows_wanted(request.limit), request.with_bytes)
        room = limits.LOG_BODY_BYTES
        replies = []
        for entry in entries:
            room -= len(entry.body or b"")
            replies.append(_entry(entry, entry.body if room >= 0 else None))
        return pb.EgressReply(entries=replies)

    def receipts(self, caller: Caller, request: pb.ReceiptsRequest) -> pb.ReceiptsReply:  # noqa: ARG002
        """Return signed receipts, newest first."""
        newest = self.receipts_issued.all(limits.LOG_ROWS)
        return pb.ReceiptsReply(receipts=[receipt_message(one) for one in newest])


def _entry(entry: Entry, body: bytes | None) -> pb.EgressEntry:
    return pb.EgressEntry(
        id=entry.id,
        time_ms=milliseconds(entry.time),
        method=entry.method,
        purpose=entry.purpose,
        recipient=entry.recipient,
        run_id=entry.run_id,
        step=entry.step,
        size=entry.size,
        sha256=entry.sha256,
        state=entry.state,
        body=body or b"",
    )

"""``fedlearn-device log``: what the phone did and what left it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from fedlearn.proto import device_pb2 as pb
from fedlearn.proto.device_pb2_grpc import AuditStub
from fedlearn_client.commands.connection import TIMEOUT_S, connected, moment, parser, show, table


def main(arguments: Sequence[str]) -> int:
    """Show runs, what left, the budget, or receipts."""
    made = parser("log", "What the phone did and what left it. For the settings screen.")
    made.add_argument("what", choices=["runs", "egress", "budget", "receipts"], nargs="?", default="runs")
    made.add_argument("--limit", type=int, default=20)
    made.add_argument("--bytes", action="store_true", help="egress: the exact bytes, in hexadecimal")
    given = made.parse_args(arguments)
    with connected(given.device) as channel:
        audit = AuditStub(channel)
        if given.what == "runs":
            runs = audit.Runs(pb.RunsRequest(limit=given.limit), timeout=TIMEOUT_S)
            show(runs, given.json, lambda: _runs(runs))
        elif given.what == "egress":
            left = audit.Egress(pb.EgressRequest(limit=given.limit, with_bytes=given.bytes), timeout=TIMEOUT_S)
            show(left, given.json, lambda: _egress(left, given.bytes))
        elif given.what == "budget":
            budget = audit.Budget(pb.BudgetRequest(), timeout=TIMEOUT_S)
            show(budget, given.json, lambda: _budget(budget))
        else:
            receipts = audit.Receipts(pb.ReceiptsRequest(), timeout=TIMEOUT_S)
            show(receipts, given.json, lambda: _receipts(receipts))
    return 0


def _runs(reply: pb.RunsReply) -> Iterator[str]:
    yield table(
        [
            {"time (UTC)": moment(run.time_ms), "purpose": run.purpose, "run": run.run_id, "step": run.step}
            | {"examples": run.examples, "outcome": run.outcome}
            for run in reply.runs
        ]
    )


def _egress(reply: pb.EgressReply, with_bytes: bool) -> Iterator[str]:
    yield table(
        [
            {"time (UTC)": moment(entry.time_ms), "method": entry.method, "bytes": entry.size, "state": entry.state}
            | {"sha-256": entry.sha256.hex()[:16], "run": entry.run_id, "step": entry.step}
            for entry in reply.entries
        ]
    )
    if with_bytes:
        for entry in reply.entries:
            yield f"\n{entry.id} {entry.sha256.hex()}\n{entry.body.hex() or '(no longer kept)'}"


def _budget(reply: pb.BudgetReply) -> Iterator[str]:
    yield f"epsilon {reply.epsilon:.3f} of {reply.epsilon_cap:g} at delta {reply.delta:g} (zCDP {reply.rho:.4g})"
    yield f"participations {reply.participations}"
    if reply.history_lost:
        yield "a wiped or restored store was noticed: the phone waits before it trains again"


def _receipts(reply: pb.ReceiptsReply) -> Iterator[str]:
    for receipt in reply.receipts:
        yield f"signed by {receipt.public_key.hex()[:16]}"
        yield json.dumps(json.loads(receipt.statement), indent=1, ensure_ascii=False)
    if not reply.receipts:
        yield "no receipts"

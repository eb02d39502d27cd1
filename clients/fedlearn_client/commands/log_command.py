"""``fedlearn-device log``: what the phone did and what left it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from fedlearn.errors import ConfigError
from fedlearn.proto import device_pb2 as pb
from fedlearn.proto.device_pb2_grpc import AuditStub
from fedlearn_client import limits
from fedlearn_client.commands.arguments import whole
from fedlearn_client.commands.connection import TIMEOUT_S, connected, moment, parser, show, table


def main(arguments: Sequence[str]) -> int:
    """Show runs, what left, the budget, or receipts."""
    made = parser("log", "What the phone did and what left it, newest first. For the settings screen. Times are UTC.")
    made.add_argument("what", choices=["runs", "egress", "budget", "receipts"], nargs="?", default="runs")
    made.add_argument("--limit", type=whole(1, limits.LOG_ROWS), default=20, metavar="ROWS", help="of runs or egress")
    made.add_argument("--bytes", action="store_true", help="egress: the exact bytes, in hexadecimal")
    given = made.parse_args(arguments)
    if given.bytes and given.what != "egress":
        raise ConfigError(f"--bytes: `log {given.what}` has none; say `log egress --bytes`.")
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
    if not reply.runs:
        yield "no round has begun yet; `fedlearn-device status` says why"
        return
    yield table(
        [
            {"time": moment(run.time_ms), "outcome": run.outcome, "examples": run.examples, "step": run.step}
            | {"run": run.run_id, "purpose": run.purpose}
            for run in reply.runs
        ],
        right=("examples", "step"),
    )


def _egress(reply: pb.EgressReply, with_bytes: bool) -> Iterator[str]:
    if not reply.entries:
        yield "nothing has left this phone"
        return
    yield table(
        [
            {"time": moment(entry.time_ms), "method": entry.method, "bytes": entry.size, "state": entry.state}
            | {"sha-256": entry.sha256.hex()[:12], "step": entry.step, "run": entry.run_id}
            for entry in reply.entries
        ],
        right=("bytes", "step"),
    )
    for entry in reply.entries if with_bytes else []:
        yield f"\n{entry.id} {entry.sha256.hex()}\n{entry.body.hex() or '(no longer kept)'}"


def _budget(reply: pb.BudgetReply) -> Iterator[str]:
    cap = f"of {reply.epsilon_cap:g}" if reply.epsilon_cap else "spent, no cap as no task bundle is installed,"
    yield f"epsilon {reply.epsilon:.3f} {cap} at delta {reply.delta:g} (zCDP {reply.rho:.4g})"
    yield f"took part {reply.participations} times"
    if reply.history_lost:
        yield "a wiped or restored store was noticed: the phone waits before it trains again"


def _receipts(reply: pb.ReceiptsReply) -> Iterator[str]:
    for receipt in reply.receipts:
        yield f"signed by {receipt.public_key.hex()[:16]}"
        yield json.dumps(json.loads(receipt.statement), indent=1, ensure_ascii=False)
    if not reply.receipts:
        yield "no receipts"

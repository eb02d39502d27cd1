"""``fedlearn-device train-now``."""

from __future__ import annotations

from collections.abc import Sequence

from fedlearn.proto import device_pb2 as pb
from fedlearn.proto.device_pb2_grpc import RuntimeStub
from fedlearn_client.commands.connection import connected, parser, show

TIMEOUT_S = 620.0


def main(arguments: Sequence[str]) -> int:
    """Run one local round now; exit 0 only if its upload was acknowledged."""
    made = parser("train-now", "One local round now, if consent, policy, budget and conditions allow it.")
    made.add_argument("purpose")
    given = made.parse_args(arguments)
    with connected(given.device) as channel:
        reply = RuntimeStub(channel).TrainNow(pb.TrainNowRequest(purpose=given.purpose), timeout=TIMEOUT_S)
    show(reply, given.json, lambda: iter([reply.outcome]))
    return 0 if reply.outcome == "acknowledged" else 1

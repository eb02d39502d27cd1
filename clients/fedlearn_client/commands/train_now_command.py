"""``fedlearn-device train-now``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fedlearn.errors import (
    DeviceError,
    FedlearnError,
    Refusal,
    StoreFailed,
    TaskRefused,
    TransportFailed,
    WorkerFailed,
)
from fedlearn.proto import device_pb2 as pb
from fedlearn.proto.device_pb2_grpc import RuntimeStub
from fedlearn_client.commands.arguments import exit_status
from fedlearn_client.commands.connection import connected, parser, show
from fedlearn_client.readiness import WORDS

TIMEOUT_S: Final = 620.0

_DONE: Final = "acknowledged"
_KINDS: Final[dict[str, type[DeviceError]]] = {
    "transport": TransportFailed,
    "store": StoreFailed,
    "worker": WorkerFailed,
}

_WHY: Final[dict[str, str]] = dict(WORDS) | {
    Refusal.POLICY: "the server asked for less than the policy demands",
    Refusal.PLAN: "the server's task is not of the approved plan",
    Refusal.SIGNATURE: "the server's task is not signed by the operator of the policy",
    Refusal.STATUS: "the signed status is too old, stopped it, or revoked it",
    Refusal.EXPIRED: "the server's task has expired",
    Refusal.TOKEN: "the server's task was used before",
    Refusal.WEIGHTS: "the weights are not those that the task names",
    Refusal.SEPARATION: "this phone took part too short a time ago",
    Refusal.PARTICIPATIONS: "this phone took part as often as the run allows",
    Refusal.BUDGET: "this phone's privacy budget is used up",
    Refusal.HISTORY: "the phone's history was lost; it waits before it trains again",
    Refusal.CONSENT: "nothing is granted for it",
    Refusal.CLOCK: "the phone's clock moved",
    "transport": "the gateway cannot be reached; this runtime's Transport is the phone maker's to provide",
    "store": "the encrypted store could not be written",
    "worker": "the worker failed",
    "contribution": "what was computed failed its check",
}


def main(arguments: Sequence[str]) -> int:
    """Run one local round now; exit 0 only if its upload was acknowledged."""
    made = parser(
        "train-now",
        "One local round now, if consent, policy, budget and conditions allow it. Exit 0: its upload was acknowledged; "
        "3: refused or abandoned; 1: gateway or worker failed.",
    )
    made.add_argument("purpose", help="of kind train, as `fedlearn-device status` names it")
    given = made.parse_args(arguments)
    with connected(given.device) as channel:
        reply = RuntimeStub(channel).TrainNow(pb.TrainNowRequest(purpose=given.purpose), timeout=TIMEOUT_S)
    if given.json or reply.outcome == _DONE:
        show(reply, given.json, lambda: iter([reply.outcome]))
        return 0 if reply.outcome == _DONE else exit_status(_error(reply.outcome))
    raise _error(reply.outcome)


def _error(outcome: str) -> FedlearnError:
    """Return an outcome that is not the wished one as an error, with the reason in words."""
    kind, _, reason = outcome.partition(": ")
    words = f"{_WHY[reason]}." if reason in _WHY else "`fedlearn-device log runs` has it."
    if kind == "refused" and reason in set(Refusal):
        return TaskRefused(Refusal(reason), words)
    return _KINDS.get(reason, DeviceError)(f"{outcome}: {words}")

"""``fedlearn-device pause``."""

from __future__ import annotations

from collections.abc import Sequence

from fedlearn.proto import device_pb2 as pb
from fedlearn.proto.device_pb2_grpc import RuntimeStub
from fedlearn_client.commands.connection import TIMEOUT_S, connected, parser, show


def main(arguments: Sequence[str]) -> int:
    """Pause, or go on."""
    made = parser("pause", "Stop training and uploads; survives a restart.")
    made.add_argument("--off", action="store_true", help="go on")
    given = made.parse_args(arguments)
    with connected(given.device) as channel:
        reply = RuntimeStub(channel).Pause(pb.PauseRequest(paused=not given.off), timeout=TIMEOUT_S)
    words = "not paused: rounds run when everything allows it" if given.off else "paused: no training, no upload"
    show(reply, given.json, lambda: iter([words]))
    return 0

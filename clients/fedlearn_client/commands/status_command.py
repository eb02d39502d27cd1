"""``fedlearn-device status``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fedlearn.proto import device_pb2 as pb
from fedlearn.proto.device_pb2_grpc import RuntimeStub
from fedlearn_client.commands.connection import TIMEOUT_S, connected, moment, parser, show
from fedlearn_client.commands.words import missing


def main(arguments: Sequence[str]) -> int:
    """Show what is installed, and why no round runs now."""
    given = parser(
        "status", "What is installed, and why no round runs now. For the phone maker's processes. Times are UTC."
    ).parse_args(arguments)
    with connected(given.device) as channel:
        reply = RuntimeStub(channel).Status(pb.StatusRequest(), timeout=TIMEOUT_S)
    show(reply, given.json, lambda: _lines(reply))
    return 0


def _lines(reply: pb.StatusReply) -> Iterator[str]:
    yield f"runtime     {reply.version}{'   PAUSED' if reply.paused else ''}"
    for bundle in reply.bundles:
        until = moment(bundle.expires_ms)
        yield f"bundle      {bundle.purpose}: {bundle.model} for {bundle.population}, until {until}"
        yield f"            {bundle.digest}"
    if not reply.bundles:
        yield "bundle      none"
    yield f"catalogue   {reply.catalogue or 'none'}"
    yield f"status      {_status(reply)}"
    yield f"signals     {reply.signals} kept"
    yield f"last round  {moment(reply.last_round_ms) or 'never'}"
    yield f"next round  {reply.next_round if reply.bundles else 'none: no task bundle is installed'}"
    for step in missing(reply):
        yield f"next: {step}"


def _status(reply: pb.StatusReply) -> str:
    if not reply.status_version:
        return "none"
    fresh = "fresh" if reply.status_fresh else "too old: no round runs"
    return f"version {reply.status_version} of {moment(reply.status_time_ms)}, {fresh}"

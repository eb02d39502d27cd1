"""What comes back through the ``Transport`` hook: replies, checked. What goes out is ``fedlearn.device.padding``'s."""

from __future__ import annotations

from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from fedlearn.device.padding import KIB, MIB
from fedlearn.errors import TransportFailed
from fedlearn.proto import gateway_pb2 as pb
from fedlearn_client.hooks import Method

PROTOCOL_VERSION: Final = 1
ENROL_OUTCOMES: Final = frozenset({pb.EnrolReply.OUTCOME_ENROLLED, pb.EnrolReply.OUTCOME_REFUSED})
OUTCOMES: Final = frozenset(
    {pb.UploadReply.OUTCOME_ACCEPTED, pb.UploadReply.OUTCOME_LATE, pb.UploadReply.OUTCOME_REJECTED}
)
MAX_CHECK_IN_REPLY_BYTES: Final = 256 * KIB
MAX_UPLOAD_REPLY_BYTES: Final = 64 * KIB
MAX_ENROL_REPLY_BYTES: Final = KIB
FETCH_BYTES: Final = MIB
MAX_REPLY_BYTES: Final = FETCH_BYTES + 64
"""Of a FetchReply, the largest there is: its data and what is around them."""

_Reply = TypeVar("_Reply", bound=Message)


class NoTransport:
    """A ``Transport`` for a phone without an uplink: every call fails, so nothing can leave."""

    def call(self, method: Method, request: bytes) -> bytes:  # noqa: ARG002  # the hook's signature
        raise TransportFailed(f"{method}: this phone has no uplink; set a Transport.")

    def hang_up(self) -> None:
        return None


def read_enrol(data: bytes) -> pb.EnrolReply:
    """Return the reply to Enrol; raise TransportFailed for what is none, or has no outcome that is known here."""
    reply = _read(data, pb.EnrolReply, MAX_ENROL_REPLY_BYTES)
    if reply.outcome not in ENROL_OUTCOMES:
        raise TransportFailed("EnrolReply.outcome is absent or unknown; update the runtime.")
    return reply


def read_check_in(data: bytes) -> pb.CheckInReply:
    """Return the reply to CheckIn; raise TransportFailed for what is none."""
    return _read(data, pb.CheckInReply, MAX_CHECK_IN_REPLY_BYTES)


def read_fetch(data: bytes) -> pb.FetchReply:
    """Return the reply to Fetch; raise TransportFailed for what is none, or holds more than was asked for."""
    return _read(data, pb.FetchReply, MAX_REPLY_BYTES)


def read_upload(data: bytes) -> pb.UploadReply:
    """Return the reply to Upload; raise TransportFailed for what is none, or has no outcome that is known here."""
    reply = _read(data, pb.UploadReply, MAX_UPLOAD_REPLY_BYTES)
    if reply.outcome not in OUTCOMES:
        raise TransportFailed("UploadReply.outcome is absent or unknown; update the runtime.")
    return reply


def _read(data: bytes, kind: type[_Reply], max_bytes: int) -> _Reply:
    name = kind.DESCRIPTOR.name
    if len(data) > max_bytes:
        raise TransportFailed(f"{name} has {len(data)} bytes, at most {max_bytes} are read.")
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise TransportFailed(f"{name}: the gateway's bytes are no such message.") from error

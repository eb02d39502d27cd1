"""What goes through the ``Transport`` hook: requests of fixed sizes out, checked replies in.

Every request is padded to a size class, so that its length tells an observer of the network nothing but the class.
"""

from __future__ import annotations

from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from fedlearn.errors import MessageTooLarge, TransportFailed
from fedlearn.proto import gateway_pb2 as pb
from fedlearn_client.hooks import Method

PROTOCOL_VERSION: Final = 1
OUTCOMES: Final = frozenset(
    {pb.UploadReply.OUTCOME_ACCEPTED, pb.UploadReply.OUTCOME_LATE, pb.UploadReply.OUTCOME_REJECTED}
)
KIB: Final = 1024
MIB: Final = 1024 * KIB
SIZE_CLASSES: Final = (256, KIB, 4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB)
"""Lengths of requests in bytes; above the last one whole MiB."""

MAX_REQUEST_BYTES: Final = 256 * MIB
MAX_CHECK_IN_REPLY_BYTES: Final = 256 * KIB
MAX_UPLOAD_REPLY_BYTES: Final = 64 * KIB
FETCH_BYTES: Final = MIB
_OVERHEAD_BYTES: Final = 64  # of a FetchReply around its data

Request = pb.CheckInRequest | pb.FetchRequest | pb.UploadRequest
_Reply = TypeVar("_Reply", bound=Message)


class NoTransport:
    """A ``Transport`` for a phone without an uplink: every call fails, so nothing can leave."""

    def call(self, method: Method, request: bytes) -> bytes:  # noqa: ARG002  # the hook's signature
        raise TransportFailed(f"{method}: this phone has no uplink; set a Transport.")


def size_class(size: int) -> int:
    """Return the least size class >= ``size`` bytes.

    Raises:
        MessageTooLarge: over ``MAX_REQUEST_BYTES``.
    """
    if size > MAX_REQUEST_BYTES:
        raise MessageTooLarge(f"A request of {size} bytes is over the cap of {MAX_REQUEST_BYTES} bytes.")
    fits = next((limit for limit in SIZE_CLASSES if size <= limit), None)
    return fits if fits is not None else -(-size // MIB) * MIB


def padded(request: Request) -> bytes:
    """Return the bytes of ``request``, their number exactly a size class; zeros in ``padding`` fill it up.

    The field's own tag and length take 2 bytes or more, and a longer filling may need one more byte to say how long it
    is, so a few lengths just under a class cannot be reached: such a request goes into the next class.

    Raises:
        MessageTooLarge: over ``MAX_REQUEST_BYTES``.
    """
    request.ClearField("padding")
    size = request.ByteSize()
    target = size_class(size)
    while size != target:
        filling = _filling(target - size)
        if filling is not None:
            request.padding = bytes(filling)
            break
        target = size_class(target + 1)
    return request.SerializeToString(deterministic=True)


def _filling(room: int) -> int | None:
    """Return how many bytes of padding make a request ``room`` bytes longer, or None where no number does."""
    for length_bytes in range(1, 6):
        count = room - 1 - length_bytes
        if count >= 1 and _varint_bytes(count) == length_bytes:
            return count
    return None


def _varint_bytes(value: int) -> int:
    return max(1, -(-value.bit_length() // 7))


def read_check_in(data: bytes) -> pb.CheckInReply:
    """Return the reply to CheckIn; raise TransportFailed for what is none."""
    return _read(data, pb.CheckInReply, MAX_CHECK_IN_REPLY_BYTES)


def read_fetch(data: bytes) -> pb.FetchReply:
    """Return the reply to Fetch; raise TransportFailed for what is none, or holds more than was asked for."""
    return _read(data, pb.FetchReply, FETCH_BYTES + _OVERHEAD_BYTES)


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

"""How long a phone's requests are: fixed size classes, so that a length tells an observer nothing but the class."""

from __future__ import annotations

from typing import Final

from fedlearn.errors import MessageTooLarge
from fedlearn.proto import gateway_pb2 as pb

KIB: Final = 1024
MIB: Final = 1024 * KIB
SIZE_CLASSES: Final = (256, KIB, 4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB)
"""Lengths of requests in bytes; above the last one whole MiB."""

MAX_REQUEST_BYTES: Final = 256 * MIB

Request = pb.EnrolRequest | pb.CheckInRequest | pb.FetchRequest | pb.UploadRequest


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

    What is signed takes 1 KiB or more: it is about 256 bytes long, and would fall now on one side of that, now on the
    other. So an enrolment looks like a check-in.

    Raises:
        MessageTooLarge: over ``MAX_REQUEST_BYTES``.
    """
    request.ClearField("padding")
    size = request.ByteSize()
    target = size_class(max(size, KIB if isinstance(request, pb.EnrolRequest | pb.CheckInRequest) else 0))
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

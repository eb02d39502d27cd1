"""Length-prefixed messages over a pipe: four bytes, little-endian, then so many bytes."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from fedlearn.errors import MalformedMessage, MessageTooLarge

MAX_FRAME_BYTES: Final = 64 * 2**20
"""Either way. A task of a million weights with its catalogue and a thousand examples needs 15 MB."""

HEAD: Final = struct.Struct("<I")


def frame(body: bytes) -> bytes:
    """Return one message with its length before it.

    Raises:
        MessageTooLarge: over ``MAX_FRAME_BYTES``.
    """
    return HEAD.pack(checked_length(len(body))) + body


def checked_length(length: int) -> int:
    """Return a frame's length, or raise MessageTooLarge."""
    if length > MAX_FRAME_BYTES:
        raise MessageTooLarge(f"a worker's frame of {length} bytes is over the cap of {MAX_FRAME_BYTES} bytes.")
    return length


def read_frame(read: Callable[[int], bytes]) -> bytes | None:
    """Return the next message, or None where the pipe ends between two messages.

    Args:
        read: returns at most so many bytes, at least one, and b"" at the end.

    Raises:
        MessageTooLarge: the length is over the cap; nothing was allocated for it.
        MalformedMessage: the pipe ends inside a message.
    """
    head = _exactly(read, HEAD.size)
    if not head:
        return None
    if len(head) < HEAD.size:
        raise MalformedMessage("a worker's pipe ended inside a frame's length.")
    length = checked_length(HEAD.unpack(head)[0])
    body = _exactly(read, length)
    if len(body) < length:
        raise MalformedMessage("a worker's pipe ended inside a frame.")
    return body


def _exactly(read: Callable[[int], bytes], count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = read(min(count - len(data), 1 << 20))
        if not part:
            break
        data += part
    return bytes(data)

"""``weights.bin``: parameters as one block of bytes, the same in a bundle, in a fetch and in a digest.

Little-endian f32, row-major, one parameter after the other in the sorted order of their names; no header. A task's
``weights_digest`` is the SHA-256 of exactly these bytes.
"""

from __future__ import annotations

import hashlib
import math
import sys
from array import array
from collections.abc import Sequence

from fedlearn.device.plan import ParameterSpec
from fedlearn.errors import Refusal, TaskRefused

ITEM_BYTES = 4
_CHUNK_BYTES = 1 << 18


def expected_bytes(specs: Sequence[ParameterSpec]) -> int:
    """Return the size of the block: 4 bytes a weight."""
    return ITEM_BYTES * sum(math.prod(spec.shape) for spec in specs)


def offsets(specs: Sequence[ParameterSpec]) -> dict[str, tuple[int, int]]:
    """Return name -> (first byte, byte after the last), in flat order."""
    found, start = {}, 0
    for spec in sorted(specs, key=lambda spec: spec.name):
        stop = start + expected_bytes((spec,))
        found[spec.name] = (start, stop)
        start = stop
    return found


def all_finite(data: bytes) -> bool:
    """Return whether every f32 of the block is finite; a block that is no whole number of them is not."""
    if len(data) % ITEM_BYTES:
        return False
    for start in range(0, len(data), _CHUNK_BYTES):
        values = array("f", data[start : start + _CHUNK_BYTES])
        if sys.byteorder == "big":
            values.byteswap()
        if not all(map(math.isfinite, values)):
            return False
    return True


def require_weights(data: bytes, specs: Sequence[ParameterSpec], digest: str) -> None:
    """Refuse weights that are not the ones a task names.

    Args:
        data: what was fetched.
        specs: the plan's shared parameters.
        digest: ``weights_digest`` of the signed task, 64 hexadecimal digits.

    Raises:
        TaskRefused: WEIGHTS: another size, another digest, or a value that is not finite.
    """
    expected = expected_bytes(specs)
    if len(data) != expected:
        raise TaskRefused(Refusal.WEIGHTS, f"weights: {len(data)} bytes; the plan's parameters have {expected}.")
    if hashlib.sha256(data).hexdigest() != digest:
        raise TaskRefused(Refusal.WEIGHTS, "weights: not those whose digest the task names.")
    if not all_finite(data):
        raise TaskRefused(Refusal.WEIGHTS, "weights: a value is not finite.")

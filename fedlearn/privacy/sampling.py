"""Who is in the cohort: an independent secret draw per (device, step, attempt).

Privacy amplification by sampling holds only while nobody outside the trusted base can tell who was drawn. The draws
are therefore keyed by bytes from the operating system, never by a seed, and the key shows itself to nobody by accident.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import struct
from collections.abc import Sequence
from fractions import Fraction
from typing import ClassVar, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import OutOfRange, PrivacyError
from fedlearn.rng import os_bytes

KEY_BYTES: Final = 32


class _Secret:
    """32 bytes that neither print, pickle nor copy; ``reveal`` is the one, greppable, way out."""

    __slots__ = ("_key",)
    _name: ClassVar[str] = "secret"

    def __init__(self, key: bytes) -> None:
        if not isinstance(key, bytes) or len(key) != KEY_BYTES:
            raise OutOfRange(f"{self._name}: must be exactly {KEY_BYTES} bytes.")
        self._key = key

    def reveal(self) -> bytes:
        """Return the 32 bytes. Call it only to store the key secretly or to send it to a trusted node."""
        return self._key

    def __repr__(self) -> str:
        return f"{type(self).__name__}(<hidden>)"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and isinstance(other, _Secret) and hmac.compare_digest(self._key, other._key)

    __hash__: ClassVar[None]  # type: ignore[assignment]  # a hash would be a fingerprint of the key

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise PrivacyError(f"{type(self).__name__} is secret and cannot be pickled or copied; use reveal().")


class RoundKey(_Secret):
    """What a node needs to draw one round's cohort; says nothing about any other round."""

    __slots__ = ()
    _name = "round key"


class SamplingKey(_Secret):
    """The run's secret, from which each round's key is derived. It stays with the server."""

    __slots__ = ()
    _name = "sampling key"

    @classmethod
    def fresh(cls) -> SamplingKey:
        """Return a new key from the operating system's CSPRNG."""
        return cls(os_bytes(KEY_BYTES))

    def round_key(self, step: int, attempt: int) -> RoundKey:
        """Return the key of one attempt at one step; the same arguments give the same key.

        Args:
            step: mechanism step, >= 0.
            attempt: charges made for this step before, >= 0. It advances only after a charge: a cohort drawn again
                because a run failed would depend on who made it fail.
        """
        if step < 0 or attempt < 0:
            raise OutOfRange(f"step={step}, attempt={attempt}: both must be >= 0.")
        message = struct.pack("<qq", step, attempt)
        digest = hashlib.blake2b(message, key=self._key, digest_size=KEY_BYTES, person=b"fedlearn-round")
        return RoundKey(digest.digest())


def included(round_key: RoundKey, device_ids: Sequence[str], sampling_probability: float) -> NDArray[np.bool_]:
    """Draw which devices join the cohort.

    A device joins when the first 64 bits of BLAKE2b keyed by ``round_key`` over its id, as an integer, lie below
    floor(q * 2^64): a pseudo-random draw of its own, the same on any node, in any order or shard layout, and with
    probability at most q (RFC 7693: keyed BLAKE2b is a pseudo-random function).

    Args:
        round_key: key of this step and attempt.
        device_ids: ids, distinct inside the population.
        sampling_probability: q in (0, 1]; 1 includes every device.

    Returns:
        bool[len(device_ids)]: whether each device joins. Secret.

    Raises:
        OutOfRange: q is outside (0, 1].
    """
    if not 0 < sampling_probability <= 1:
        raise OutOfRange(f"sampling_probability={sampling_probability}: must be in (0, 1].")
    if sampling_probability == 1:
        return np.ones(len(device_ids), dtype=np.bool_)
    threshold = math.floor(Fraction(sampling_probability) * 2**64)
    keyed = hashlib.blake2b(key=round_key.reveal(), digest_size=8, person=b"fedlearn-device")
    draws = bytearray()
    for device_id in device_ids:
        draw = keyed.copy()
        draw.update(device_id.encode())
        draws += draw.digest()
    values: NDArray[np.uint64] = np.frombuffer(bytes(draws), dtype="<u8").astype(np.uint64)
    return values < np.uint64(threshold)

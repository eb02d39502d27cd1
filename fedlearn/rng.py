"""Two kinds of randomness that must never meet.

``simulation_rng`` is seeded and keyed by (seed, round, phone, purpose), so that a result does not depend on which node
ran a phone, or in which order. ``os_bytes`` protects people: it comes from the operating system and has no seed.
"""

from __future__ import annotations

import hashlib
import os

import numpy as np


def simulation_rng(seed: int, round_number: int, phone: str, purpose: str) -> np.random.Generator:
    """Return the generator for one purpose on one phone in one round.

    Args:
        seed: the run's seed, any integer.
        round_number: 0-based round; use -1 for randomness that is not tied to a round.
        phone: device id; "" for the server.
        purpose: e.g. ``"shuffle"``, ``"negatives"``.
    """
    text = "\x1f".join((str(seed), str(round_number), phone, purpose))
    key = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=16).digest(), dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def os_bytes(count: int) -> bytes:
    """Return ``count`` bytes from the operating system's CSPRNG."""
    return os.urandom(count)

"""AES-256-GCM over what may be destroyed by destroying a key: bodies of signals and this phone's own parameters."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedlearn.errors import StoreFailed

KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_SIGNAL: Final = struct.Struct(">qd")


class Sealer:
    """One key. Nothing prints it.

    Nonces are random: at 50,000 rows a stream, renewed every 30 days, a key sees far fewer than the 2^32 seals that
    NIST SP 800-38D allows with 96 random bits.
    """

    def __init__(self, key: bytes, random_bytes: Callable[[int], bytes]) -> None:
        self._cipher = AESGCM(key)
        self._random = random_bytes

    def seal(self, body: bytes, context: bytes) -> bytes:
        """Return ``body`` encrypted, bound to ``context``."""
        nonce = self._random(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, body, context)

    def open(self, sealed: bytes, context: bytes) -> bytes:
        """Undo ``seal``; raise StoreFailed unless key and context are the same."""
        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], context)
        except (InvalidTag, ValueError):
            raise StoreFailed("store: a sealed row does not fit its key; purge the stream it belongs to.") from None


def signal_context(stream: int, mark: bytes, time: float) -> bytes:
    """What a signal's body is bound to: no row can be passed off as another."""
    return _SIGNAL.pack(stream, time) + mark

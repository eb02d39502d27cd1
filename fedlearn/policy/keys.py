"""Public keys as documents write them: Ed25519 (RFC 8032), 64 lower-case hexadecimal digits."""

from __future__ import annotations

import re
from typing import Final

from fedlearn.errors import PolicyInvalid

PLACEHOLDER_KEY: Final = "0" * 64
"""Stands where a key has not been made yet. Nobody's key, and everybody can sign for it: see ``is_weak``."""

_SHAPE: Final = re.compile(r"[0-9a-f]{64}")
_FIELD: Final = 2**255 - 19
_SIGN: Final = 1 << 255
# y of the points of order 8; those of order 1, 2 and 4 have y = 1, -1 and 0 (Bernstein et al. 2012, and RFC 7748, 6.1)
_ORDER_EIGHT: Final = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_WEAK: Final = frozenset({0, 1, _FIELD - 1, _ORDER_EIGHT, _FIELD - _ORDER_EIGHT})


def is_weak(key: str) -> bool:
    """Return whether ``key`` is a point of small order, for which anybody can make a signature that verifies.

    Both signs and the encodings above 2^255 - 19 are covered.
    """
    y = int.from_bytes(bytes.fromhex(key), "little") & (_SIGN - 1)
    return y % _FIELD in _WEAK


def is_key(key: str) -> bool:
    """Return whether ``key`` is written as public keys are."""
    return _SHAPE.fullmatch(key) is not None


def require_key(key: str, field: str, *, weak: bool = False) -> None:
    """Check one key.

    Args:
        key: as written.
        field: for the message.
        weak: whether a placeholder, or another key of small order, may stand.

    Raises:
        PolicyInvalid: not 64 lower-case hexadecimal digits, or of small order.
    """
    if not is_key(key):
        raise PolicyInvalid(f"{field}={key[:20]!r}: write an Ed25519 public key, 64 lower-case hexadecimal digits.")
    if not weak and is_weak(key):
        raise PolicyInvalid(f"{field}={key[:16]}...: a placeholder, for which anybody can sign; put the real key.")

"""The KeyStore's one anchor, for two tenants: what the phone spent, and the ledgers that it pinned.

The first line is the history (``anchor``), as it always was; pins, where there are any, are a second line. A runtime
from before the second line takes such an anchor for a damaged one, and waits as after a loss: it charges too much
rather than too little.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final, Protocol

from fedlearn.errors import StoreFailed
from fedlearn_client.hooks import KeyStore

MAX_PINS_BYTES: Final = 2 * 1024
"""``anchor.MAX_BYTES`` and this are what a KeyStore holds."""


class Anchor(Protocol):
    """One tenant's part; also a whole KeyStore, to a tenant that is alone."""

    def read_anchor(self) -> bytes | None:
        """Return what was written last, or None."""
        ...

    def write_anchor(self, data: bytes) -> None:
        """Replace it, durably and as a whole; raise StoreFailed where that fails."""
        ...


class SharedAnchor:
    """Splits the anchor. Safe to use from several threads.

    Args:
        keystore: keeps it.
    """

    def __init__(self, keystore: KeyStore) -> None:
        lock = threading.Lock()
        self.history: Anchor = _Line(keystore, lock, _with_history, 0)
        self.pins: Anchor = _Line(keystore, lock, _with_pins, 1)


class _Line:
    def __init__(
        self, keystore: KeyStore, lock: threading.Lock, put: Callable[[list[bytes], bytes], bytes], number: int
    ) -> None:
        self._keystore = keystore
        self._lock = lock
        self._put = put
        self._number = number

    def read_anchor(self) -> bytes | None:
        with self._lock:
            return self._lines()[self._number] or None

    def write_anchor(self, data: bytes) -> None:
        with self._lock:
            self._keystore.write_anchor(self._put(self._lines(), data))

    def _lines(self) -> list[bytes]:
        history, _, pins = (self._keystore.read_anchor() or b"").partition(b"\n")
        return [history, pins]


def _with_history(lines: list[bytes], data: bytes) -> bytes:
    return _joined(data, lines[1])


def _with_pins(lines: list[bytes], data: bytes) -> bytes:
    if len(data) > MAX_PINS_BYTES:
        raise StoreFailed(f"anchor: {len(data)} bytes of pins; at most {MAX_PINS_BYTES} outlive a wiped store.")
    return _joined(lines[0], data)


def _joined(history: bytes, pins: bytes) -> bytes:
    return history + b"\n" + pins if pins else history

"""Weights and bundles in memory, so that a piece of one does not read all of it from the store."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

KEPT_S: Final = 30.0
"""What was taken out of the store is handed out no longer than this."""


class ObjectCache:
    """Bytes by digest, for so long and so many.

    Args:
        load: reads from the store, by digest; None: there is no such object.
        max_bytes: kept in all; a larger object is read each time.
        clock: monotonic seconds.
    """

    def __init__(
        self, load: Callable[[bytes], bytes | None], max_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._load = load
        self._max_bytes = max_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._loading = threading.Lock()  # a hundred phones that ask for new weights at once read them once
        self._kept: OrderedDict[bytes, tuple[float, bytes]] = OrderedDict()
        self._bytes = 0

    def get(self, digest: bytes) -> bytes | None:
        """Return the object, or None where there is none; raises what ``load`` raises."""
        found = self._fresh(digest)
        if found is not None:
            return found
        with self._loading:
            found = self._fresh(digest)
            if found is not None:
                return found
            data = self._load(digest)
            self._keep(digest, data)
            return data

    def _fresh(self, digest: bytes) -> bytes | None:
        with self._lock:
            found = self._kept.get(digest)
            if found is None or found[0] < self._clock() - KEPT_S:
                return None
            self._kept.move_to_end(digest)
            return found[1]

    def _keep(self, digest: bytes, data: bytes | None) -> None:
        with self._lock:
            old = self._kept.pop(digest, None)
            self._bytes -= 0 if old is None else len(old[1])
            if data is None or len(data) > self._max_bytes:
                return
            self._kept[digest] = (self._clock(), data)
            self._bytes += len(data)
            while self._bytes > self._max_bytes:
                self._bytes -= len(self._kept.popitem(last=False)[1][1])

"""A lock that serves who came first: an app that pushes a lot waits its turn between two pieces, like everybody."""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType


class Turns:
    """A mutual exclusion lock, first come, first served; for ``with``. Not reentrant."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[threading.Event] = deque()
        self._taken = False

    def __enter__(self) -> None:
        with self._lock:
            if not self._taken:
                self._taken = True
                return
            turn = threading.Event()
            self._waiting.append(turn)
        turn.wait()  # whoever leaves hands the lock on, still taken

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._taken = False

"""Many callers, one writer: a commit costs one flush to the disk however many wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from fedlearn.errors import StoreFailed

T = TypeVar("T")


@dataclass(slots=True)
class _Waiting(Generic[T]):
    job: T
    size: int
    done: bool = False
    error: Exception | None = field(default=None)


class GroupCommit(Generic[T]):
    """Commits jobs in groups, in the order in which they came.

    Args:
        commit: keeps all of a group durably, or raises and keeps none.
        group_size: a group is closed when its jobs' sizes reach this.
        linger_s: or when its first job has waited this long.
    """

    def __init__(self, commit: Callable[[Sequence[T]], None], group_size: int, linger_s: float) -> None:
        self._commit = commit
        self._group_size = group_size
        self._linger_s = linger_s
        self._condition = threading.Condition()
        self._queue: list[_Waiting[T]] = []
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, job: T, size: int) -> None:
        """Return when ``job`` is durable; raise StoreFailed if it was not kept."""
        waiting = _Waiting(job, size)
        with self._condition:
            if self._closed:
                raise StoreFailed("store: closing; restart the daemon.")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
                self._thread.start()
            self._queue.append(waiting)
            self._condition.notify_all()
            self._condition.wait_for(lambda: waiting.done)
        if waiting.error is not None:
            raise StoreFailed(str(waiting.error)) from waiting.error

    def close(self) -> None:
        """Commit what waits, take in no more, and end the writer."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while True:
            group = self._next_group()
            if not group:
                return
            error: Exception | None = None
            try:
                self._commit([waiting.job for waiting in group])
            except Exception as caught:  # noqa: BLE001 - whatever it is, the callers must hear of it and not wait for ever
                error = caught
            with self._condition:
                for waiting in group:
                    waiting.done, waiting.error = True, error
                self._condition.notify_all()

    def _next_group(self) -> list[_Waiting[T]]:
        """Wait for a group; empty when closed and nothing is left."""
        with self._condition:
            self._condition.wait_for(lambda: bool(self._queue) or self._closed)
            self._condition.wait_for(
                lambda: self._closed or sum(waiting.size for waiting in self._queue) >= self._group_size,
                timeout=self._linger_s,
            )
            size, end = 0, 0
            while end < len(self._queue) and size < self._group_size:
                size += self._queue[end].size
                end += 1
            group, self._queue = self._queue[:end], self._queue[end:]
            return group

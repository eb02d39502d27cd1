"""A wish to stop that a signal handler may express: an Event must not be set there, it could hold its own lock."""

from __future__ import annotations

import os
import select
from types import TracebackType
from typing import Self


class Stop:
    """Wakes everybody who waits for it, for good."""

    def __init__(self) -> None:
        self._wished = False
        self._read, self._write = os.pipe()

    def wish(self) -> None:
        """Ask for an end; safe in a signal handler."""
        if not self._wished:
            self._wished = True
            os.write(self._write, b"!")

    @property
    def wished(self) -> bool:
        """Whether an end is asked for."""
        return self._wished

    def wait(self, seconds: float) -> bool:
        """Wait, at most until an end is asked for; return whether it is."""
        poll = select.poll()  # one of its own: two threads must not wait on the same one
        poll.register(self._read, select.POLLIN)
        poll.poll(1000.0 * seconds)
        return self._wished

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the pipe."""
        os.close(self._read)
        os.close(self._write)

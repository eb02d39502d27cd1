"""Linux default of the ``ClockAndRng`` hook."""

from __future__ import annotations

import os
import time


class LinuxClock:
    """The system's clocks and the kernel's generator."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        # counts on while the phone sleeps, unlike time.monotonic()
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def random_bytes(self, count: int) -> bytes:
        return os.urandom(count)

"""Time as an argument: code that needs the time takes a ``Clock``."""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], float]
"""Seconds since the Unix epoch."""

system_clock: Clock = time.time

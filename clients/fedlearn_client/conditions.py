"""What the phone maker's system processes know better than the phone itself, and may only make stricter."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import Final

from fedlearn.errors import OutOfRange
from fedlearn_client.hooks import Conditions, ConditionsNow, Thermal

_WARMTH: Final = list(Thermal)


@dataclass(frozen=True, slots=True)
class Override:
    """What to believe instead, where that is stricter; None: what the phone reports.

    Raises:
        OutOfRange: a battery outside 0..1.
    """

    charging: bool | None = None
    idle: bool | None = None
    unmetered: bool | None = None
    battery: float | None = None
    thermal: Thermal | None = None

    def __post_init__(self) -> None:
        if self.battery is not None and not (math.isfinite(self.battery) and 0.0 <= self.battery <= 1.0):
            raise OutOfRange(f"battery={self.battery}: must be in [0, 1].")


class StricterConditions:
    """``Conditions`` with an override that can forbid a round, never allow one. Forgotten when the daemon ends.

    Args:
        conditions: the hook.
    """

    def __init__(self, conditions: Conditions) -> None:
        self._conditions = conditions
        self._lock = threading.Lock()
        self._override = Override()

    def override(self, override: Override) -> None:
        """Replace the override; ``Override()`` clears it."""
        with self._lock:
            self._override = override

    def now(self) -> ConditionsNow:
        found = self._conditions.now()
        with self._lock:
            said = self._override
        return ConditionsNow(
            charging=found.charging and said.charging is not False,
            idle=found.idle and said.idle is not False,
            unmetered=found.unmetered and said.unmetered is not False,
            battery=found.battery if said.battery is None else min(found.battery, said.battery),
            thermal=found.thermal if said.thermal is None else max(found.thermal, said.thermal, key=_WARMTH.index),
        )

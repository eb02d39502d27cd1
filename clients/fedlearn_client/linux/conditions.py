"""Linux default of the ``Conditions`` hook, from sysfs and procfs alone: no daemon is asked.

What cannot be told counts as not fit. A phone maker who knows better (a screen lock, a metered Wi-Fi, skin temperature)
writes a hook of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fedlearn_client.hooks import ConditionsNow, Thermal

LIGHT_MARGIN_C: Final = 5.0
PASSIVE_MARGIN_C: Final = 20.0
IDLE_LOAD_PER_CPU: Final = 0.5
_TRIPS: Final = frozenset({"passive", "hot", "critical"})
_CHARGERS: Final = frozenset({"Mains", "USB", "USB_C", "USB_PD", "USB_PD_DRP", "USB_DCP", "USB_CDP", "Wireless"})


class LinuxConditions:
    """Reads the kernel's files at each call.

    - charging: a power supply that is a charger is online.
    - battery: the emptiest battery of the machine itself; 0 where none reports.
    - thermal: temperatures against the trip points of each zone: at ``passive`` moderate, at ``hot`` or ``critical``
      severe, 5 degrees Celsius below ``passive`` light; a zone without ``passive`` has it 20 degrees below its lowest
      trip point. Severe where no zone can be read.
    - idle: every display that reports is off, one at least does, and the load average of the last minute is below 0.5
      a processor.
    - unmetered: the default route goes through a wired interface, or one of ``unmetered``. A Wi-Fi does not say whether
      it is somebody's phone, so it counts only when it is named.

    Args:
        root: of the file system; for tests.
        unmetered: names of interfaces that cost nothing, e.g. ``{"wlan0"}``.
    """

    def __init__(self, root: Path = Path("/"), unmetered: frozenset[str] = frozenset()) -> None:
        self._class = root / "sys" / "class"
        self._proc = root / "proc"
        self._unmetered = unmetered

    def now(self) -> ConditionsNow:
        return ConditionsNow(
            charging=self._charging(),
            idle=self._idle(),
            unmetered=self._is_unmetered(),
            battery=self._battery(),
            thermal=self._thermal(),
        )

    def _supplies(self) -> Iterator[Path]:
        for supply in _entries(self._class / "power_supply"):
            if _word(supply / "scope") != "Device":  # of a mouse or a pen
                yield supply

    def _charging(self) -> bool:
        return any(
            _word(supply / "type") in _CHARGERS and (_number(supply / "online") or 0.0) > 0.0
            for supply in self._supplies()
        )

    def _battery(self) -> float:
        charges = [_number(supply / "capacity") for supply in self._supplies() if _word(supply / "type") == "Battery"]
        if not charges or any(charge is None for charge in charges):
            return 0.0
        return min(max(min(charge for charge in charges if charge is not None) / 100.0, 0.0), 1.0)

    def _thermal(self) -> Thermal:
        found = [status for zone in _entries(self._class / "thermal") if (status := _zone_status(zone)) is not None]
        return max(found, key=list(Thermal).index) if found else Thermal.SEVERE

    def _idle(self) -> bool:
        displays = [lit for path in self._displays() if (lit := _is_lit(path)) is not None]
        load = _word(self._proc / "loadavg")
        processors = sum(1 for line in _lines(self._proc / "cpuinfo") if line.startswith("processor"))
        if not displays or any(displays) or load is None or processors == 0:
            return False
        first = _parsed(load.split()[0])
        return first is not None and first < IDLE_LOAD_PER_CPU * processors

    def _displays(self) -> Iterator[Path]:
        yield from _entries(self._class / "backlight")
        for connector in _entries(self._class / "drm"):
            if _word(connector / "status") == "connected":
                yield connector

    def _is_unmetered(self) -> bool:
        routes = {line.split()[0] for line in _lines(self._proc / "net" / "route")[1:] if _is_default(line)}
        return bool(routes) and all(self._costs_nothing(name) for name in routes)

    def _costs_nothing(self, name: str) -> bool:
        if name in self._unmetered:
            return True
        interface = self._class / "net" / name
        uevent = _lines(interface / "uevent")
        wired = _word(interface / "type") == "1" and (interface / "device").exists()
        # a modem, a Wi-Fi, a bridge or a tunnel names its DEVTYPE; a wired card has none
        return wired and bool(uevent) and not any(line.startswith("DEVTYPE=") for line in uevent)


def _zone_status(zone: Path) -> Thermal | None:
    """Return the zone's status; None for what is no zone, or has no trip point to compare with."""
    temperature = _number(zone / "temp")
    trips = {
        kind: limit
        for path in sorted(zone.glob("trip_point_*_type"), reverse=True)
        if (kind := _word(path)) in _TRIPS
        and (limit := _number(path.with_name(path.name.replace("_type", "_temp")))) is not None
        and limit > 0.0  # zero and below mean: not set
    }
    if temperature is None or not trips:
        return None
    if any(temperature >= trips[kind] for kind in ("hot", "critical") if kind in trips):
        return Thermal.SEVERE
    passive = trips.get("passive", min(trips.values()) - 1000.0 * PASSIVE_MARGIN_C)
    if temperature >= passive:
        return Thermal.MODERATE
    return Thermal.LIGHT if temperature >= passive - 1000.0 * LIGHT_MARGIN_C else Thermal.NONE


def _is_lit(display: Path) -> bool | None:
    """Return whether a display is on; None where it does not say."""
    dpms = _word(display / "dpms")
    if dpms is not None:
        return dpms != "Off"
    power, brightness = _number(display / "bl_power"), _number(display / "actual_brightness")
    if power is None and brightness is None:
        return None
    return power in {None, 0.0} and brightness != 0.0


def _is_default(line: str) -> bool:
    fields = line.split()
    return len(fields) > 7 and fields[1] == "00000000" and fields[7] == "00000000"


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []


def _word(path: Path) -> str | None:
    lines = _lines(path)
    return lines[0].strip() if lines else None


def _number(path: Path) -> float | None:
    word = _word(path)
    return None if word is None else _parsed(word)


def _parsed(word: str) -> float | None:
    try:
        number = float(word)
    except ValueError:
        return None
    return number if math.isfinite(number) else None

"""Whom the kit can be: a file that says how it connects as each caller. TOML, or JSON with the same content::

    keys = "keys"                       # directory of --prepare; beside this file

    [chat]
    address = "unix:/run/kit/s"         # without it: the address of --target
    uid = 21001                         # without it: as whoever runs the kit

and likewise ``reading``, ``other``, ``surface``, ``settings``, ``system`` and ``stranger``, whom the target does not
know. Where the target tells callers apart by the socket they come through, each has an address of its own and no uid.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fedlearn.errors import ConfigError, OutOfRange, UnknownSetting
from fedlearn_client.conformance.cases import NotServed
from fedlearn_client.conformance.lines import Line, open_line
from fedlearn_client.conformance.town import ROLES, STRANGER

NAMES: Final = (*ROLES, STRANGER)
_LARGEST_FILE: Final = 64 * 1024
_LARGEST_UID: Final = 2**32 - 2


@dataclass(frozen=True, slots=True)
class Entry:
    """How one caller connects; None: as ``Callers`` says."""

    address: str | None = None
    uid: int | None = None


@dataclass(slots=True)
class Callers:
    """Connections by the caller's name, each opened once.

    Args:
        target: address of those that name none.
        entries: who is listed.
        keys: directory of the keys that sign the kit's documents, or None.
    """

    target: str
    entries: Mapping[str, Entry] = field(default_factory=dict)
    keys: Path | None = None
    _lines: dict[str, Line] = field(default_factory=dict)

    def line(self, name: str) -> Line:
        """Return the connection of a caller.

        Raises:
            NotServed: it is not listed, or the kit may not become it.
        """
        if name not in self._lines:
            self._lines[name] = self.another(name)
        return self._lines[name]

    def another(self, name: str) -> Line:
        """Return one more connection of a caller, which the kit's user closes; raises as ``line``."""
        if name not in self.entries:
            raise NotServed(f"the callers file does not say how to connect as {name}")
        entry = self.entries[name]
        return open_line(entry.address or self.target, entry.uid)

    def close(self) -> None:
        """End all connections."""
        for line in self._lines.values():
            line.close()
        self._lines.clear()


def read_callers(path: Path, target: str) -> Callers:
    """Read a callers file.

    Raises:
        ConfigError: it cannot be read, or is no such table.
        UnknownSetting: a caller or a field that does not exist.
        OutOfRange: a value of the wrong type or range.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"--callers {path}: cannot be read ({error.strerror}).") from error
    if len(data) > _LARGEST_FILE:
        raise ConfigError(f"--callers {path}: larger than 64 KiB.")
    try:
        table = json.loads(data) if path.suffix == ".json" else tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--callers {path}: not {path.suffix.lstrip('.').upper() or 'TOML'}: {error}") from error
    if not isinstance(table, dict):
        raise ConfigError(f"--callers {path}: must be a table of callers.")
    keys = table.pop("keys", None)
    if not isinstance(keys, str | None):
        raise OutOfRange("keys: must be a path.")
    entries = {name: _entry(name, row) for name, row in table.items()}
    return Callers(target, entries, None if keys is None else path.parent / keys)


def _entry(name: str, row: Any) -> Entry:
    if name not in NAMES:
        raise UnknownSetting(f"{name}: is not a caller of the kit; there are {', '.join(NAMES)}.")
    if not isinstance(row, dict):
        raise OutOfRange(f"{name}: must hold address, uid, or both.")
    for key in row:
        if key not in {"address", "uid"}:
            raise UnknownSetting(f"{name}.{key}: is not known; there are address and uid.")
    address, uid = row.get("address"), row.get("uid")
    if not isinstance(address, str | None) or address == "":
        raise OutOfRange(f'{name}.address: must be a gRPC address, e.g. "unix:/run/fedlearn/device.sock".')
    if uid is not None and (not isinstance(uid, int) or isinstance(uid, bool) or not 0 <= uid <= _LARGEST_UID):
        raise OutOfRange(f"{name}.uid: must be 0 to {_LARGEST_UID}.")
    return Entry(address, uid)

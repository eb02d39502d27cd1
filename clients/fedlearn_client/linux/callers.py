"""Callers on Linux: the uid that the relay read from SO_PEERCRED, looked up in a table that the phone maker wrote.

The file, TOML or JSON by its ending::

    [10001]
    app = "org.example.chat"
    role = "app"            # app, settings, surface or system

    [1000]
    app = "org.example.settings"
    role = "settings"
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from fedlearn.errors import CallerRefused, ConfigError, OutOfRange, UnknownSetting
from fedlearn_client.hooks import Caller, Role
from fedlearn_client.relay import uid_of_peer

_LARGEST_FILE: Final = 1024 * 1024
_LARGEST_UID: Final = 2**32 - 2  # 2^32 - 1 means "no user"
_OVERFLOW_UID: Final = 65534
_APP: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class CallersFile:
    """The uid table; read once, at the start.

    Several uids may be one app with one role. Who is not in the table is nobody.

    Args:
        path: the file; it must belong to root or to the daemon's user, and only the owner may write it.
        public: the socket that apps connect to (``relay``).

    Raises:
        ConfigError: the file cannot be read, is open to others, or holds something else than such a table.
    """

    def __init__(self, path: Path, public: Path) -> None:
        self._public = public
        self._callers = _table(_read(path), path)

    def caller(self, peer: str) -> Caller:
        """Return who is behind ``peer``; see ``hooks.CallerIdentity``.

        Raises:
            CallerRefused: it did not come through the relay, or its uid is not in the table.
        """
        uid = uid_of_peer(peer, self._public)
        found = self._callers.get(uid)
        if found is None:
            raise CallerRefused(f"uid {uid} is not a known caller; the phone maker's callers file must list it.")
        return found


class SocketCallers:
    """One socket a caller: who can open it is that caller. For containers that share a uid, and for demonstrations.

    The file system decides, by mode and owner of the socket's folder; the relay's sockets themselves are open to all.

    Args:
        callers: public socket -> who uses it.
    """

    def __init__(self, callers: Mapping[Path, Caller]) -> None:
        self._callers = dict(callers)

    def caller(self, peer: str) -> Caller:
        """Return who is behind ``peer``; see ``hooks.CallerIdentity``."""
        for public, caller in self._callers.items():
            with contextlib.suppress(CallerRefused):
                uid_of_peer(peer, public)
                return caller
        raise CallerRefused("The connection came through no socket of a known caller.")


def _read(path: Path) -> dict[str, object]:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise ConfigError(f"callers={path}: cannot be read ({error.strerror}).") from error
    try:
        found = os.fstat(handle)  # of what was opened, not of what lies at the path now
        if not stat.S_ISREG(found.st_mode) or found.st_uid not in {0, os.geteuid()} or found.st_mode & 0o022:
            raise ConfigError(f"callers={path}: must be a file of root or the daemon's user that others cannot write.")
        data = os.read(handle, _LARGEST_FILE + 1)
    finally:
        os.close(handle)
    if len(data) > _LARGEST_FILE:
        raise ConfigError(f"callers={path}: larger than 1 MiB.")
    try:
        text = data.decode()
        table = json.loads(text, object_pairs_hook=_no_twice) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"callers={path}: not {path.suffix.lstrip('.').upper()}: {error}") from error
    if not isinstance(table, dict):
        raise ConfigError(f"callers={path}: must be a table of uids.")
    return table


def _no_twice(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name stands there twice")
    return table


def _table(raw: Mapping[str, object], path: Path) -> dict[int, Caller]:
    callers = {}
    for name, row in raw.items():
        uid = int(name) if re.fullmatch(r"0|[1-9][0-9]{0,9}", name) else -1
        if not 0 <= uid <= _LARGEST_UID:
            raise OutOfRange(f"callers={path}: [{name}] must be a uid, e.g. [10001].")
        if uid == _overflow_uid():
            raise OutOfRange(f"callers={path}: [{name}] is what the kernel calls every user it cannot name.")
        if not isinstance(row, dict):
            raise OutOfRange(f"callers={path}: [{name}] must hold app and role.")
        for key in row:
            if key not in {"app", "role"}:
                raise UnknownSetting(f"callers={path}: [{name}] {key} is not known; there are app and role.")
        callers[uid] = Caller(_app(row.get("app"), name, path), _role(row.get("role"), name, path))
    return callers


def _app(value: object, name: str, path: Path) -> str:
    if not isinstance(value, str) or not _APP.fullmatch(value):
        raise OutOfRange(f"callers={path}: [{name}] app must be 1 to 128 letters, digits and . _ -.")
    return value


def _role(value: object, name: str, path: Path) -> Role:
    try:
        return Role(value)  # type: ignore[arg-type]  # anything else is a ValueError too
    except ValueError:
        raise OutOfRange(f"callers={path}: [{name}] role must be one of {', '.join(Role)}.") from None


def _overflow_uid() -> int:
    try:
        return int(Path("/proc/sys/kernel/overflowuid").read_text())
    except (OSError, ValueError):
        return _OVERFLOW_UID

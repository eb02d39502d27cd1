"""Settings of the daemon: one TOML file, every key known, every value in range. ::

directory = "/var/lib/fedlearn"
socket = "/run/fedlearn/device.sock"
callers = "/etc/fedlearn/callers.toml"
root_keys = ["8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c"]
gateway = ["gateway.example.org:443"]
gateway_ca = "/etc/fedlearn/gateway-ca.pem"
credential = "/etc/fedlearn/credential.json"
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedlearn.errors import OutOfRange
from fedlearn.toml_settings import from_table, read_toml

_ROOT_KEY: Final = re.compile(r"[0-9a-f]{64}")
_MOST_ROOT_KEYS: Final = 8
_ADDRESS: Final = re.compile(r"([A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\]):([0-9]{1,5})")
_MOST_GATEWAYS: Final = 16
_LAST_PORT: Final = 65_535


@dataclass(frozen=True, slots=True)
class Settings:
    """Where things lie and how much is allowed.

    Args:
        directory: of the daemon's state, mode 0700, absolute; holds the encrypted store.
        socket: that apps connect to, absolute.
        callers: uid table (``linux.callers``), absolute.
        root_keys: the phone maker's Ed25519 root keys, 64 lower-case hexadecimal digits each; 1 to 8.
        keys: directory of the Linux KeyStore, or None: ``keys`` beside the store. Keep it out of backups.
        log: file of the Linux AuditSink, or None: ``log.jsonl`` in ``directory``.
        gateway: addresses of the gateways, ``host:port``, ``[IPv6]:port``; tried in turn. None: no uplink but a
            ``Transport`` of the phone maker's. At most 16.
        gateway_ca: PEM file with the certificates that alone vouch for a gateway, absolute; with ``gateway``, and only
            then. The system's are not asked.
        credential: file with the credential that the phone maker issued to this phone, absolute; None: it cannot enrol.
        unmetered: network interfaces that cost nothing, e.g. ``["wlan0"]``.
        recommend_rate: rankings and feedback of one app, a second, on average, > 0.
        recommend_burst: at once, >= 1.
        control_rate: calls of one app to Register, Restrict and Purge together, a second, on average, > 0.
        control_burst: at once, >= 1; an app has at most 32 streams.
        store_max_bytes: the store grows no larger, >= 32 MiB.
        connections: to the socket at a time, 1..1024.
        connections_per_uid: of one app, 1..connections.
        train: whether the scheduler runs; without it rounds run by Runtime.TrainNow alone.
        egress_hold_s: a prepared upload waits so long before it leaves, for the owner to read it, 0..86400.
        allow_weak_sandbox: go on where the kernel cannot confine the worker. For development only.
        conformance: also serve ``fedlearn.conformance.v1.Numerics`` to whoever reaches the socket; test builds only.

    Raises:
        OutOfRange: names the setting.
    """

    directory: Path
    socket: Path
    callers: Path
    root_keys: tuple[str, ...]
    keys: Path | None = None
    log: Path | None = None
    gateway: tuple[str, ...] = ()
    gateway_ca: Path | None = None
    credential: Path | None = None
    unmetered: tuple[str, ...] = ()
    recommend_rate: float = 10.0
    recommend_burst: int = 20
    control_rate: float = 1.0
    control_burst: int = 120
    store_max_bytes: int = 256 * 1024 * 1024
    connections: int = 64
    connections_per_uid: int = 4
    train: bool = True
    egress_hold_s: float = 0.0
    allow_weak_sandbox: bool = False
    conformance: bool = False

    def __post_init__(self) -> None:
        for name in ("directory", "socket", "callers", "keys", "log", "gateway_ca", "credential"):
            path = getattr(self, name)
            if path is not None and not path.is_absolute():
                raise OutOfRange(f"{name}={path}: must be an absolute path.")
        if not 1 <= len(self.root_keys) <= _MOST_ROOT_KEYS or len(set(self.root_keys)) != len(self.root_keys):
            raise OutOfRange(f"root_keys: list 1 to {_MOST_ROOT_KEYS} keys, none twice.")
        for position, key in enumerate(self.root_keys):
            if not _ROOT_KEY.fullmatch(key):
                raise OutOfRange(f"root_keys[{position}]: must be 64 lower-case hexadecimal digits.")
        self._require_gateways()
        self._within("recommend_rate", 0.01, 10_000)
        self._within("recommend_burst", 1, 10_000)
        self._within("control_rate", 0.01, 10_000)
        self._within("control_burst", 1, 10_000)
        self._within("store_max_bytes", 32 * 1024 * 1024, 2**40)
        self._within("connections", 1, 1024)
        self._within("egress_hold_s", 0, 86_400)
        self._within("connections_per_uid", 1, self.connections)

    def _require_gateways(self) -> None:
        if len(self.gateway) > _MOST_GATEWAYS or len(set(self.gateway)) != len(self.gateway):
            raise OutOfRange(f"gateway: list at most {_MOST_GATEWAYS} addresses, none twice.")
        for position, address in enumerate(self.gateway):
            found = _ADDRESS.fullmatch(address)
            if found is None or not 1 <= int(found[3]) <= _LAST_PORT:
                raise OutOfRange(f"gateway[{position}]={address[:80]!r}: must be host:port, e.g. gw.example.org:443.")
        if bool(self.gateway) != (self.gateway_ca is not None):
            raise OutOfRange("gateway_ca: set it and `gateway`, or neither; the system's certificates are not used.")

    def _within(self, name: str, least: float, most: float) -> None:
        value = getattr(self, name)
        if not (math.isfinite(value) and least <= value <= most):
            raise OutOfRange(f"{name}={value}: must be {least:g} to {most:g}.")

    @property
    def key_directory(self) -> Path:
        """Where the Linux KeyStore lies."""
        return self.directory / "keys" if self.keys is None else self.keys

    @property
    def log_file(self) -> Path:
        """Where the Linux AuditSink writes."""
        return self.directory / "log.jsonl" if self.log is None else self.log


def load_settings(path: Path) -> Settings:
    """Read a settings file.

    Raises:
        UnknownSetting: a key that does not exist.
        OutOfRange: a value of the wrong type or outside its range.
        ConfigError: no such file, or not TOML; or a required key is absent.
    """
    return settings_from_table(read_toml(path))


def settings_from_table(table: Mapping[str, Any]) -> Settings:
    """Return settings from a TOML table; raises as ``load_settings``."""
    return from_table(Settings, table)

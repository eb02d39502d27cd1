"""Settings of a gateway: one TOML file, every key known, every value in range. ::

listen = "0.0.0.0:9443"
certificate = "/etc/fedlearn/gateway.crt"
key = "/etc/fedlearn/gateway.key"
store = "/var/lib/fedlearn/gateway.db"
populations = ["city"]
issuers = ["8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c"]
task_key = "/etc/fedlearn/operator.key"
superlink = "superlink.example.org:9092"
superlink_ca = "/etc/fedlearn/ca.crt"
node_key = "/etc/fedlearn/node.key"
directory = "/var/lib/fedlearn/node"
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fedlearn.errors import OutOfRange, PolicyInvalid
from fedlearn.policy.keys import require_key
from fedlearn.toml_settings import from_table, read_toml

_MOST_ISSUERS: Final = 8
_MOST_POPULATIONS: Final = 64
_LONGEST_NAME: Final = 128
_KIB: Final = 1024
_MIB: Final = 1024 * _KIB


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """Where things lie, whom to believe, and how much is allowed.

    Args:
        listen: HOST:PORT for phones; port 0 picks a free one. An IPv6 host is in brackets.
        certificate: PEM chain of this gateway, its own certificate first; a file that is replaced is taken up.
        key: PEM of its private key.
        store: path of a SQLite file, or ``postgresql://`` URL, that all gateways of a population share.
        populations: ids in the policy that are served here; 1 to 64.
        issuers: the phone maker's Ed25519 keys that sign credentials, 64 lower-case hexadecimal digits; 1 to 8.
        task_key: file of the operator's private key, the policy's ``task_key``.
        superlink: HOST:PORT of its Fleet API.
        superlink_ca: PEM of the authority of its certificate.
        node_key: this gateway's private key as a node, PEM.
        directory: of the node's state; one per gateway.
        attestation: name of an installed verifier (entry point in ``fedlearn.attestation``), or "": none is asked for.
        status: file of the signed status, or None.
        checkpoint: file of the ledger's newest checkpoint, or None.
        release: file of the newest signed model release, or None.
        device_rate: check-ins of one device, a second, on average, > 0.
        device_burst: at once, >= 1.
        peer_rate: calls from one address (IPv6: one /64), a second, on average, > 0; a whole operator's phones may
            share an address.
        peer_burst: at once, >= 1.
        max_upload_bytes: largest contribution message, 4 KiB to 255 MiB.
        max_cache_bytes: of weights and bundles kept in memory, 0 to 64 GiB.
        retry_after_s: when a phone that got no task should come again, 1..86400.
        threads: calls that are answered at a time, 1..1024; as many again may wait.
        drain_s: uploads are still taken so long after SIGTERM, 0..600.
        metrics_port: on 127.0.0.1; 0 picks a free one.
        unprotected_figures: also export counts of who took part. For simulated populations only.

    Raises:
        OutOfRange: names the setting.
    """

    listen: str
    certificate: Path
    key: Path
    store: str = field(repr=False)  # may hold a password
    populations: tuple[str, ...]
    issuers: tuple[str, ...]
    task_key: Path
    superlink: str
    superlink_ca: Path
    node_key: Path
    directory: Path
    attestation: str = ""
    status: Path | None = None
    checkpoint: Path | None = None
    release: Path | None = None
    device_rate: float = 0.1
    device_burst: int = 20
    peer_rate: float = 50.0
    peer_burst: int = 500
    max_upload_bytes: int = 16 * _MIB
    max_cache_bytes: int = 256 * _MIB
    retry_after_s: int = 900
    threads: int = 32
    drain_s: float = 10.0
    metrics_port: int = 0
    unprotected_figures: bool = False

    def __post_init__(self) -> None:
        for name in (one.name for one in dataclasses.fields(self)):
            value = getattr(self, name)
            if isinstance(value, Path) and not value.is_absolute():
                raise OutOfRange(f"{name}={value}: must be an absolute path.")
        if not self.store or ("://" not in self.store and not Path(self.store).is_absolute()):
            raise OutOfRange("store: must be an absolute path, or a postgresql:// URL.")
        split_address("listen", self.listen, least_port=0)
        split_address("superlink", self.superlink, least_port=1)
        self._require_names()
        self._within("device_rate", 1e-6, 1e6)
        self._within("device_burst", 1, 1_000_000)
        self._within("peer_rate", 1e-3, 1e6)
        self._within("peer_burst", 1, 1_000_000)
        self._within("max_upload_bytes", 4 * _KIB, 255 * _MIB)
        self._within("max_cache_bytes", 0, 2**36)
        self._within("retry_after_s", 1, 86_400)
        self._within("threads", 1, 1024)
        self._within("drain_s", 0, 600)
        self._within("metrics_port", 0, 65_535)

    def _require_names(self) -> None:
        for name, values, most in (
            ("populations", self.populations, _MOST_POPULATIONS),
            ("issuers", self.issuers, _MOST_ISSUERS),
        ):
            if not 1 <= len(values) <= most or len(set(values)) != len(values):
                raise OutOfRange(f"{name}: list 1 to {most}, none twice.")
        for position, population in enumerate(self.populations):
            if not 1 <= len(population) <= _LONGEST_NAME:
                raise OutOfRange(f"populations[{position}]: must have 1 to {_LONGEST_NAME} characters.")
        for position, issuer in enumerate(self.issuers):
            try:
                require_key(issuer, f"issuers[{position}]")
            except PolicyInvalid as error:
                raise OutOfRange(str(error)) from error

    def _within(self, name: str, least: float, most: float) -> None:
        value = getattr(self, name)
        if not (math.isfinite(value) and least <= value <= most):
            raise OutOfRange(f"{name}={value}: must be {least:g} to {most:g}.")


def split_address(name: str, address: str, *, least_port: int) -> tuple[str, int]:
    """Return host and port of HOST:PORT; raise OutOfRange, which names the setting, for anything else."""
    host, colon, port = address.rpartition(":")
    bare = not host.startswith("[") and ":" in host
    if not (host and colon and port.isascii() and port.isdecimal() and least_port <= int(port) < 2**16) or bare:
        raise OutOfRange(f"{name}={address}: must be HOST:PORT, e.g. 127.0.0.1:9443 or [::1]:9443.")
    if "/" in address or any(character.isspace() for character in address):
        raise OutOfRange(f"{name}={address}: must be HOST:PORT without anything else.")
    return host, int(port)


def load_settings(path: Path) -> GatewaySettings:
    """Read a settings file.

    Raises:
        UnknownSetting: a key that does not exist.
        OutOfRange: a value of the wrong type or outside its range.
        ConfigError: no such file, or not TOML; or a required key is absent.
    """
    return settings_from_table(read_toml(path))


def settings_from_table(table: Mapping[str, Any]) -> GatewaySettings:
    """Return settings from a TOML table; raises as ``load_settings``."""
    return from_table(GatewaySettings, table)

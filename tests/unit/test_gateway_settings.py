"""A gateway's settings: each key known, each value in range; certificates that would not work are refused before."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fedlearn.errors import ConfigError, OutOfRange, UnknownSetting
from fedlearn_server.deployment.certificates import ensure_certificates, issue_server, make_authority, now_utc
from fedlearn_server.deployment.layout import make_private
from fedlearn_server.gateway import settings as module
from fedlearn_server.gateway.process import verifier_named
from fedlearn_server.gateway.settings import GatewaySettings, load_settings, settings_from_table, split_address
from fedlearn_server.gateway.tls import CertificateFiles, read_pair

KEY = "8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c"


def table(**changes: Any) -> dict[str, Any]:
    values = {
        "listen": "127.0.0.1:0",
        "certificate": "/etc/gateway.crt",
        "key": "/etc/gateway.key",
        "store": "/var/gateway.db",
        "populations": ["city"],
        "issuers": [KEY],
        "task_key": "/etc/operator.key",
        "superlink": "127.0.0.1:9092",
        "superlink_ca": "/etc/ca.crt",
        "node_key": "/etc/node.key",
        "directory": "/var/node",
    }
    return {name: value for name, value in {**values, **changes}.items() if value is not None}


def test_the_example_is_read(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text((module.__doc__ or "").split("::")[1], encoding="utf-8")
    found = load_settings(path)
    assert (found.listen, found.populations, found.status) == ("0.0.0.0:9443", ("city",), None)


def test_values_are_converted() -> None:
    found = settings_from_table(table(device_rate=2, status="/etc/status", unprotected_figures=True))
    assert (found.device_rate, found.status, found.unprotected_figures) == (2.0, Path("/etc/status"), True)
    assert isinstance(found.device_rate, float)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "port": ({"listen": "127.0.0.1"}, "listen"),
    "no host": ({"listen": ":9443"}, "listen"),
    "large port": ({"listen": "127.0.0.1:65536"}, "listen"),
    "signed port": ({"listen": "127.0.0.1:-1"}, "listen"),
    "bare IPv6": ({"listen": "::1:9443"}, "listen"),
    "a URL": ({"listen": "https://gateway:9443"}, "listen"),
    "a space": ({"listen": "gateway .org:9443"}, "listen"),
    "no SuperLink": ({"superlink": "127.0.0.1:0"}, "superlink"),
    "relative": ({"certificate": "gateway.crt"}, "certificate"),
    "relative, may be absent": ({"status": "status.json"}, "status"),
    "relative store": ({"store": "gateway.db"}, "store"),
    "empty store": ({"store": ""}, "store"),
    "no population": ({"populations": []}, "populations"),
    "one twice": ({"populations": ["city", "city"]}, "populations"),
    "nameless": ({"populations": [""]}, r"populations\[0\]"),
    "long": ({"populations": ["c" * 129]}, r"populations\[0\]"),
    "no text": ({"populations": [1]}, "populations"),
    "text": ({"populations": "city"}, "populations"),
    "no issuer": ({"issuers": []}, "issuers"),
    "nine issuers": ({"issuers": [f"{one:064x}" for one in range(9)]}, "issuers"),
    "short issuer": ({"issuers": [KEY[:-1]]}, r"issuers\[0\]"),
    "issuer in capitals": ({"issuers": [KEY, KEY.upper()]}, r"issuers\[1\]"),
    "everybody's issuer": ({"issuers": ["0" * 64]}, r"issuers\[0\]"),
    "rate": ({"device_rate": 0.0}, "device_rate"),
    "endless rate": ({"peer_rate": float("inf")}, "peer_rate"),
    "no rate": ({"peer_rate": float("nan")}, "peer_rate"),
    "burst": ({"device_burst": 0}, "device_burst"),
    "half a burst": ({"peer_burst": 1.5}, "peer_burst"),
    "truth for a number": ({"retry_after_s": True}, "retry_after_s"),
    "number for a truth": ({"unprotected_figures": 1}, "unprotected_figures"),
    "upload": ({"max_upload_bytes": 2**28}, "max_upload_bytes"),
    "threads": ({"threads": 0}, "threads"),
    "patience": ({"drain_s": 601}, "drain_s"),
    "metrics port": ({"metrics_port": 65_536}, "metrics_port"),
    "path as a number": ({"key": 7}, "key"),
    "no path": ({"key": ""}, "key"),
}


@pytest.mark.parametrize(("changes", "field"), WRONG.values(), ids=WRONG)
def test_what_is_out_of_range_is_named(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(OutOfRange, match=f"^{field}"):
        settings_from_table(table(**changes))


def test_keys(tmp_path: Path) -> None:
    with pytest.raises(UnknownSetting, match="isuers: is not a setting; there are listen"):
        settings_from_table(table(isuers=[KEY]))
    for name in table():
        with pytest.raises(ConfigError, match=f"^{name}: must be set"):
            settings_from_table(table(**{name: None}))


@pytest.mark.parametrize(
    "content", [b"\xff", b"a = ", b"a = " + b"[" * 5_000, b"#" * 70_000], ids=["bytes", "half", "deep", "long"]
)
def test_files_that_are_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "gateway.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="settings="):
        load_settings(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(tmp_path / "absent")


def test_a_password_is_not_shown() -> None:
    found = settings_from_table(table(store="postgresql://gateway:canary-9d2e@db/fleet"))
    assert "canary-9d2e" not in repr(found)


def test_the_page_has_every_setting_and_its_default(repository: Path) -> None:
    page = (repository / "docs/gateway.md").read_text(encoding="utf-8")
    section = page.split("## Settings")[1].split("\n## ")[0]
    told: dict[str, str] = {}
    for names, defaults in re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (.*?) \|", section, re.MULTILINE):
        found = re.findall(r"`(\w+)`", names)
        each = defaults.split(", ") if "," in defaults else [defaults] * len(found)
        told.update(zip(found, each, strict=True))
    expected = {one.name: _shown(one.name, one.default) for one in dataclasses.fields(GatewaySettings)}
    assert told == expected


def _shown(name: str, default: object) -> str:
    if default is dataclasses.MISSING:
        return "required"
    if default is None or default == "":
        return "none"
    if name.endswith("_bytes") and isinstance(default, int):
        return f"{default // 2**20} MiB"
    return f"{default:g}" if isinstance(default, float) else str(default).lower()


def test_addresses() -> None:
    assert split_address("listen", "[::1]:9443", least_port=1) == ("[::1]", 9443)
    assert split_address("listen", "gateway.example.org:1", least_port=1) == ("gateway.example.org", 1)


def test_a_verifier_must_be_installed() -> None:
    with pytest.raises(UnknownSetting, match="attestation='none-such'"):
        verifier_named("none-such")


class TestCertificates:
    def replaced(self, directory: Path) -> None:
        """A new pair of the same authority, and a time stamp that differs."""
        issue_server(directory, now_utc())
        for name in ("server.crt", "server.key"):
            os.utime(directory / name, ns=(1, 1))

    def test_a_new_pair_is_taken_up_and_half_of_one_is_not(self, tmp_path: Path) -> None:
        ensure_certificates(tmp_path, now_utc())
        files = CertificateFiles(tmp_path / "server.crt", tmp_path / "server.key")
        assert files._fetch() is None
        old = (tmp_path / "server.crt").read_bytes()
        self.replaced(tmp_path)
        new = (tmp_path / "server.crt").read_bytes()
        (tmp_path / "server.crt").write_bytes(old)
        assert files._fetch() is None, "the key is another certificate's"
        assert files._fetch() is None, "told once"
        (tmp_path / "server.crt").write_bytes(new)
        assert files._fetch() is not None
        assert files._fetch() is None

    def damage(self, directory: Path) -> dict[str, Callable[[], object]]:
        return {
            "absent": (directory / "server.crt").unlink,
            "no PEM": lambda: (directory / "server.key").write_bytes(b"x"),
            "another key": lambda: (directory / "server.key").write_bytes((directory / "ca.key").read_bytes()),
        }

    @pytest.mark.parametrize("name", ["absent", "no PEM", "another key"])
    def test_what_is_no_pair_is_refused(self, tmp_path: Path, name: str) -> None:
        ensure_certificates(tmp_path, now_utc())
        self.damage(tmp_path)[name]()
        with pytest.raises(ConfigError, match=r"certificate=.*no pair"):
            CertificateFiles(tmp_path / "server.crt", tmp_path / "server.key")

    @pytest.mark.parametrize("days", [366, -2], ids=["expired", "not valid yet"])
    def test_what_is_not_valid_is_refused(self, tmp_path: Path, days: int) -> None:
        make_private(tmp_path)
        make_authority(tmp_path, now_utc())
        issue_server(tmp_path, now_utc())
        pair = tmp_path / "server.crt", tmp_path / "server.key"
        read_pair(*pair, now_utc())
        with pytest.raises(ConfigError, match=r"valid to .* not now"):
            read_pair(*pair, now_utc() + timedelta(days))

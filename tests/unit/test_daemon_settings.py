"""Settings are strict: every key known, every value of its type and in range, each error by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedlearn.errors import ConfigError, OutOfRange, StoreFailed, UnknownSetting
from fedlearn_client.daemon import make_private
from fedlearn_client.settings import load_settings, settings_from_table

GOOD: dict[str, object] = {
    "directory": "/var/lib/fedlearn",
    "socket": "/run/fedlearn/device.sock",
    "callers": "/etc/fedlearn/callers.toml",
    "root_keys": ["8a" * 32],
}


def test_the_least_and_the_most() -> None:
    least = settings_from_table(GOOD)
    assert least.directory == Path("/var/lib/fedlearn")
    assert least.key_directory == Path("/var/lib/fedlearn/keys")
    assert least.log_file == Path("/var/lib/fedlearn/log.jsonl")
    more = {"keys": "/k", "log": "/l", "unmetered": ["wlan0"], "train": False, "recommend_rate": 5, "connections": 9}
    most = settings_from_table({**GOOD, **more})
    assert (most.key_directory, most.log_file, most.unmetered) == (Path("/k"), Path("/l"), ("wlan0",))
    assert most.recommend_rate == 5.0


@pytest.mark.parametrize("address", ["gw.example.org:443", "127.0.0.1:1", "[::1]:65535", "a:9092"])
def test_an_uplink(address: str) -> None:
    made = settings_from_table({**GOOD, "gateway": [address], "gateway_ca": "/ca.pem", "credential": "/c"})
    assert (made.gateway, made.gateway_ca, made.credential) == ((address,), Path("/ca.pem"), Path("/c"))


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("sockett", "/x", UnknownSetting),
        ("directory", "relative", OutOfRange),
        ("directory", 5, OutOfRange),
        ("root_keys", [], OutOfRange),
        ("root_keys", ["8A" * 32], OutOfRange),
        ("root_keys", ["8a" * 31], OutOfRange),
        ("root_keys", ["8a" * 32] * 2, OutOfRange),
        ("root_keys", "8a" * 32, OutOfRange),
        ("root_keys", [5], OutOfRange),
        ("recommend_rate", 0, OutOfRange),
        ("recommend_rate", float("nan"), OutOfRange),
        ("recommend_rate", True, OutOfRange),
        ("recommend_burst", 0, OutOfRange),
        ("recommend_burst", 1.5, OutOfRange),
        ("store_max_bytes", 5, OutOfRange),
        ("connections", 0, OutOfRange),
        ("connections_per_uid", 65, OutOfRange),
        ("egress_hold_s", -1, OutOfRange),
        ("gateway", ["gw.example.org"], OutOfRange),
        ("gateway", ["gw.example.org:0"], OutOfRange),
        ("gateway", ["gw.example.org:65536"], OutOfRange),
        ("gateway", ["https://gw.example.org:443"], OutOfRange),
        ("gateway", ["unix:/run/x:1"], OutOfRange),
        ("gateway", ["a:1"] * 2, OutOfRange),
        ("gateway", [f"a:{port}" for port in range(1, 18)], OutOfRange),
        ("gateway", "a:1", OutOfRange),
        ("gateway", ["a:1"], OutOfRange),  # names no certificates
        ("gateway_ca", "/ca.pem", OutOfRange),  # and no gateway
        ("gateway_ca", "ca.pem", OutOfRange),
        ("credential", "credential.json", OutOfRange),
        ("train", 1, OutOfRange),
        ("unmetered", "wlan0", OutOfRange),
    ],
)
def test_a_wrong_value_is_named(name: str, value: object, kind: type[ConfigError]) -> None:
    with pytest.raises(kind, match=name):
        settings_from_table({**GOOD, name: value})


@pytest.mark.parametrize("name", sorted(GOOD))
def test_what_has_no_default_must_be_there(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: must be set"):
        settings_from_table({key: value for key, value in GOOD.items() if key != name})


def test_a_file_that_is_none_or_no_toml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(path)
    for text in (b"no toml", b"\xff", b"#" * 70_000):
        path.write_bytes(text)
        with pytest.raises(ConfigError, match="settings="):
            load_settings(path)
    path.write_text('directory = "/a"\nsocket = "/b"\ncallers = "/c"\nroot_keys = ["' + "8a" * 32 + '"]\n')
    assert load_settings(path).socket == Path("/b")


def test_the_state_directory_is_made_private_and_an_open_one_refused(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    make_private(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o755)
    with pytest.raises(StoreFailed, match="mode 0700"):
        make_private(folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreFailed, match="cannot be made"):
        make_private(tmp_path / "file" / "x")

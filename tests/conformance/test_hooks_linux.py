"""The Linux defaults do what the hooks ask."""

from __future__ import annotations

import importlib.util
import json
import stat
from pathlib import Path
from typing import Any

import pytest

from fedlearn_client.fakes import FakeClock
from fedlearn_client.hooks import Caller, KeyStore, Role, Thermal
from fedlearn_client.linux.attestation import NoAttestation
from fedlearn_client.linux.audit import JsonLines
from fedlearn_client.linux.callers import CallersFile
from fedlearn_client.linux.clock import LinuxClock
from fedlearn_client.linux.conditions import LinuxConditions
from fedlearn_client.linux.keystore import FileKeyStore
from fedlearn_client.relay import backend_path
from fedlearn_client.transport import NoTransport

_spec = importlib.util.spec_from_file_location("hook_conformance", Path(__file__).with_name("hook_conformance.py"))
assert _spec is not None
assert _spec.loader is not None
hooks: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(hooks)


class TestFileKeyStore(hooks.KeyStoreConformance):
    def make(self, tmp_path: Path) -> FileKeyStore:
        return FileKeyStore(tmp_path / "keys")

    def reopened(self, keystore: KeyStore, tmp_path: Path) -> FileKeyStore:
        return FileKeyStore(tmp_path / "keys")


class TestNoAttestation(hooks.AttestationConformance):
    def make(self) -> NoAttestation:
        return NoAttestation()


class TestNoTransport(hooks.TransportConformance):
    def dead(self) -> NoTransport:
        return NoTransport()


class TestLinuxClock(hooks.ClockAndRngConformance):
    def make(self) -> LinuxClock:
        return LinuxClock()


class TestCallersFile(hooks.CallerIdentityConformance):
    def make(self, tmp_path: Path) -> CallersFile:
        path = tmp_path / "callers.toml"
        path.write_text('[10001]\napp = "org.city.chat"\nrole = "app"\n')
        path.chmod(0o600)
        return CallersFile(path, tmp_path / "s")

    def known(self, tmp_path: Path) -> dict[str, Caller]:
        backend = backend_path(tmp_path / "s")
        return {f"unix:{backend.parent}/10001-7-1": Caller("org.city.chat", Role.APP)}

    def unknown(self, tmp_path: Path) -> list[str]:
        backend = backend_path(tmp_path / "s")
        return [f"unix:{backend.parent}/10002-7-1", f"unix:{tmp_path}/elsewhere/10001-7-1"]

    test_everybody_else_is_refused = (
        None  # a longer connection number is the same uid; tests/unit/test_relay_callers.py
    )


class TestJsonLines(hooks.AuditSinkConformance):
    def make(self, tmp_path: Path) -> JsonLines:
        return JsonLines(tmp_path / "audit.jsonl", FakeClock())

    def test_one_line_an_event_for_this_user_only(self, tmp_path: Path) -> None:
        sink = self.make(tmp_path)
        sink.record("round", {"outcome": "acknowledged", "step": 3, "share": float("inf"), "kind": "no"})
        sink.record("note", {"text": "two\nlines" + "x" * 1000})
        path = tmp_path / "audit.jsonl"
        first, second = map(json.loads, path.read_text().splitlines())
        assert first == {"time": 1.7e9, "kind": "round", "outcome": "acknowledged", "step": 3, "share": "inf"}
        assert len(second["text"]) == 200
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_it_is_rotated(self, tmp_path: Path) -> None:
        sink = JsonLines(tmp_path / "audit.jsonl", FakeClock(), max_bytes=1000)
        for number in range(100):
            sink.record("call", {"number": number})
        text = "".join((tmp_path / name).read_text() for name in ("audit.jsonl.1", "audit.jsonl"))
        lines = [json.loads(line) for line in text.splitlines()]
        assert [line["number"] for line in lines] == list(range(100 - len(lines), 100))
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2000
        assert sink.dropped == 0

    def test_a_disk_that_fails_is_counted(self, tmp_path: Path) -> None:
        sink = JsonLines(tmp_path / "absent" / "audit.jsonl", FakeClock())
        sink.record("call", {})
        assert sink.dropped == 1


class TestLinuxConditions(hooks.ConditionsConformance):
    def make(self, tmp_path: Path) -> LinuxConditions:
        return LinuxConditions()  # of this machine, whatever it is


def write(root: Path, files: dict[str, str]) -> LinuxConditions:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return LinuxConditions(root, frozenset({"wlan0"}))


POWER = "sys/class/power_supply"
PANEL = "sys/class/backlight/panel"
PHONE = {
    f"{POWER}/usb/type": "USB\n",
    f"{POWER}/usb/online": "1\n",
    f"{POWER}/battery/type": "Battery\n",
    f"{POWER}/battery/capacity": "80\n",
    "sys/class/thermal/thermal_zone0/temp": "31000\n",
    "sys/class/thermal/thermal_zone0/trip_point_0_type": "passive\n",
    "sys/class/thermal/thermal_zone0/trip_point_0_temp": "45000\n",
    "sys/class/thermal/thermal_zone0/trip_point_1_type": "critical\n",
    "sys/class/thermal/thermal_zone0/trip_point_1_temp": "60000\n",
    f"{PANEL}/bl_power": "4\n",
    f"{PANEL}/actual_brightness": "0\n",
    "proc/loadavg": "0.31 0.2 0.1 1/99 1\n",
    "proc/cpuinfo": "processor : 0\n\nprocessor : 1\n",
    "proc/net/route": "Iface Destination Gateway Flags RefCnt Use Metric Mask\n"
    "wlan0 00000000 0101A8C0 0003 0 0 600 00000000 0 0 0\n"
    "wwan0 0001A8C0 00000000 0001 0 0 600 00FFFFFF 0 0 0\n",
}


def test_a_phone_at_night(tmp_path: Path) -> None:
    now = write(tmp_path, PHONE).now()
    assert (now.charging, now.idle, now.unmetered, now.battery, now.thermal) == (True, True, True, 0.8, Thermal.NONE)


def test_a_machine_that_says_nothing_is_not_fit(tmp_path: Path) -> None:
    now = LinuxConditions(tmp_path).now()
    assert (now.charging, now.idle, now.unmetered, now.battery, now.thermal) == (
        False,
        False,
        False,
        0.0,
        Thermal.SEVERE,
    )


DECIDE_ALONE = sorted(name for name in PHONE if "trip_point" not in name and "backlight" not in name)


@pytest.mark.parametrize("name", sorted(PHONE))
@pytest.mark.parametrize("content", [None, "", "garbage\n", "nan\n", "-1\n"])
def test_a_file_that_says_nothing_makes_no_phone_fitter(tmp_path: Path, name: str, content: str | None) -> None:
    files = {**PHONE, name: content}
    if content is None:
        del files[name]
    now, whole = write(tmp_path / "odd", files).now(), write(tmp_path / "whole", PHONE).now()
    assert now.charging <= whole.charging
    assert now.battery <= whole.battery
    if name in DECIDE_ALONE and content in {None, "", "garbage\n"}:
        assert now != whole


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({f"{POWER}/usb/online": "0\n"}, "charging", False),
        ({f"{POWER}/usb/type": "Battery\n"}, "charging", False),
        ({f"{POWER}/usb/scope": "Device\n"}, "charging", False),
        ({f"{POWER}/second/type": "Battery\n", f"{POWER}/second/capacity": "12\n"}, "battery", 0.12),
        ({f"{POWER}/second/type": "Battery\n"}, "battery", 0.0),
        ({f"{POWER}/pen/type": "Battery\n", f"{POWER}/pen/scope": "Device\n"}, "battery", 0.8),
        ({f"{POWER}/battery/capacity": "180\n"}, "battery", 1.0),
        ({"sys/class/thermal/thermal_zone0/temp": "41000\n"}, "thermal", Thermal.LIGHT),
        ({"sys/class/thermal/thermal_zone0/temp": "45000\n"}, "thermal", Thermal.MODERATE),
        ({"sys/class/thermal/thermal_zone0/temp": "60000\n"}, "thermal", Thermal.SEVERE),
        (
            {
                "sys/class/thermal/thermal_zone1/temp": "90000\n",
                "sys/class/thermal/thermal_zone1/trip_point_0_type": "passive\n",
                "sys/class/thermal/thermal_zone1/trip_point_0_temp": "80000\n",
            },
            "thermal",
            Thermal.MODERATE,
        ),
        (
            {f"{PANEL}/bl_power": "0\n", f"{PANEL}/actual_brightness": "9\n"},
            "idle",
            False,
        ),
        ({"sys/class/drm/card0-HDMI/status": "connected\n", "sys/class/drm/card0-HDMI/dpms": "On\n"}, "idle", False),
        ({"sys/class/drm/card0-HDMI/status": "connected\n", "sys/class/drm/card0-HDMI/dpms": "Off\n"}, "idle", True),
        ({"proc/loadavg": "1.20 0.2 0.1 1/99 1\n"}, "idle", False),
        ({"proc/loadavg": "nan 0.2 0.1 1/99 1\n"}, "idle", False),
        (
            {"proc/net/route": PHONE["proc/net/route"] + "wwan0 00000000 0101A8C0 0003 0 0 700 00000000 0 0 0\n"},
            "unmetered",
            False,
        ),
        ({"proc/net/route": PHONE["proc/net/route"].replace("wlan0", "wlan1")}, "unmetered", False),
    ],
)
def test_each_condition(tmp_path: Path, changes: dict[str, str], field: str, value: object) -> None:
    assert getattr(write(tmp_path, {**PHONE, **changes}).now(), field) == value


def test_a_wired_card_costs_nothing_and_a_bridge_may(tmp_path: Path) -> None:
    wired = {
        "proc/net/route": PHONE["proc/net/route"].replace("wlan0", "eth0"),
        "sys/class/net/eth0/type": "1\n",
        "sys/class/net/eth0/uevent": "INTERFACE=eth0\nIFINDEX=2\n",
        "sys/class/net/eth0/device/vendor": "0x8086\n",
    }
    assert write(tmp_path / "wired", {**PHONE, **wired}).now().unmetered
    bridge = {**wired, "sys/class/net/eth0/uevent": "DEVTYPE=bridge\nINTERFACE=eth0\n"}
    assert not write(tmp_path / "bridge", {**PHONE, **bridge}).now().unmetered
    del wired["sys/class/net/eth0/device/vendor"]
    assert not write(tmp_path / "virtual", {**PHONE, **wired}).now().unmetered

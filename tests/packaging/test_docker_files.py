"""What the images and the compose file promise, read from the files; `make docker-test` runs them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedlearn_client.settings import load_settings as load_device
from fedlearn_server.gateway.settings import load_settings as load_gateway

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
FINAL = ("server", "gateway", "device", "reviewer")


def stages() -> dict[str, list[str]]:
    """Stage -> its lines, continued ones joined."""
    text = (DOCKER / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        begun = re.fullmatch(r"FROM (\S+) AS ([a-z-]+)", line)
        if begun:
            found[begun[2]] = [line]
        elif found and line and not line.startswith("#"):
            found[list(found)[-1]].append(line)
    return found


def test_nothing_is_pulled_but_the_base() -> None:
    made = stages()
    assert {line.split()[1] for lines in made.values() for line in lines[:1]} - set(made) == {"${BASE}"}
    assert re.search(r"^ARG BASE$", (DOCKER / "Dockerfile").read_text(), re.M), "no default: whoever builds pins one"
    assert not re.search(r"^# *syntax", (DOCKER / "Dockerfile").read_text(), re.M | re.I), "it would be pulled"


@pytest.mark.parametrize("name", FINAL)
def test_an_image_runs_as_nobody(name: str) -> None:
    lines = stages()[name]
    users = [line for line in lines if line.startswith("USER")]
    assert users == ["USER 10001:10001"]
    assert any(line.startswith("HEALTHCHECK") for line in lines)
    assert not [line for line in lines if line.startswith(("RUN", "ADD"))], "made in a stage before, and copied"


def test_packages_are_pinned_and_no_build_tool_ships() -> None:
    made = stages()
    installs = [line for lines in made.values() for line in lines if " install --quiet" in line]
    assert len(installs) == 5
    assert all("-c constraints.txt" in line or "-c /src/constraints.txt" in line for line in installs)
    for name in ("gateway-packages", "device-packages", "reviewer-packages"):
        assert "venv --without-pip /app" in " ".join(made[name])


def test_the_context_is_a_list_of_what_is_needed() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert next(line for line in lines if line and not line.startswith("#")) == "*"
    copied = {
        source
        for lines in stages().values()
        for line in lines
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    }
    allowed = {line[1:] for line in lines if line.startswith("!")}
    assert all(any(source == one or source.startswith(f"{one}/") for one in allowed) for source in copied), copied


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_service_is_fenced(name: str) -> None:
    service = SERVICES[name]
    assert service["user"] == "10001:10001"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["ulimits"] == {"core": 0}
    assert not {"privileged", "cap_add", "devices", "pid", "ipc", "ports"} & set(service)
    assert re.fullmatch(r"fedlearn-(server|gateway|device|reviewer):\$\{FEDLEARN_TAG:-0\.1\.0\}", service["image"])


def test_phones_reach_gateways_only() -> None:
    on = {
        network: {n for n, s in SERVICES.items() if network in s.get("networks", ())} for network in COMPOSE["networks"]
    }
    assert on["phones"] == {"device", "gateway-1", "gateway-2"}
    assert on["fleet"] == {"superlink", "register", "node-1", "node-2", "gateway-1", "gateway-2"}
    assert all(network["internal"] for network in COMPOSE["networks"].values())
    rest = set(SERVICES) - on["phones"] - on["fleet"]
    assert rest == {"init", "reviewer"}
    assert {SERVICES[name]["network_mode"] for name in rest} == {"none"}


def test_keys_lie_where_they_are_needed() -> None:
    """The operator's volume, with the authority's key, is SuperLink's and the two steps that make and register keys."""
    holders: dict[str, set[str]] = {}
    for name, service in SERVICES.items():
        for volume in service.get("volumes", ()):
            holders.setdefault(volume.split(":")[0], set()).add(name)
    assert holders["operator"] == {"init", "superlink", "register"}
    for name in ("node-1", "node-2", "gateway-1", "gateway-2"):
        assert holders[name] == {"init", name}
    assert holders["runs"] == {"superlink", "reviewer"}
    assert SERVICES["reviewer"]["volumes"] == ["runs:/var/lib/fedlearn/runs:ro"]


def test_every_volume_has_its_folder_in_the_image() -> None:
    """A volume takes its owner from there; one of root's could not be written."""
    made = re.search(r"install -d -m 0700 -o 10001 -g 10001 ([^&\n]*operator[^&\n]*)", " ".join(stages()["flower"]))
    assert made
    folders = {f"/var/lib/fedlearn/{name}" for name in made[1].split()} | {"/var/lib/fedlearn"}
    mounted = {
        volume.split(":")[1]
        for service in SERVICES.values()
        for volume in service.get("volumes", ())
        if re.match(r"[a-z]", volume)
    }
    assert mounted <= folders


@pytest.mark.parametrize("name", ["gateway", "device"])
def test_the_examples_are_settings_once_filled_in(name: str, tmp_path: Path) -> None:
    text = (DOCKER / name / f"{name}.toml").read_text(encoding="utf-8")
    filled, places = re.subn(r"PUT THE 64 [^\"]*", "8a" * 32, text)
    assert places == 1
    path = tmp_path / "settings.toml"
    path.write_text(filled, encoding="utf-8")
    if name == "device":
        assert load_device(path).socket == Path("/run/fedlearn/device.sock")
        return
    settings = load_gateway(path)
    assert settings.superlink == "superlink:9092"
    volume = {Path(v.split(":")[1]) for v in SERVICES["gateway-1"]["volumes"] if v.startswith("gateway-1:")}
    assert {settings.certificate.parent, settings.key.parent, settings.node_key.parent} == volume
    assert settings.metrics_port == 9102, "health.py asks there"

"""Runs compose.yaml: TLS made at the first start, one training, its ledger checked, and the walls tried."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fedlearn.errors import RunError
from fedlearn.ledger.signing import SigningKey
from tools.images.build import ROOT, TAG, image
from tools.images.daemon import Docker

PROJECT: Final = "fedlearn-test"
WELL_S: Final = 240.0
POLL_S: Final = 2.0
UID: Final = 10001
RUN: Final = "/var/lib/fedlearn/runs/first"
TRAIN: Final = (
    *("fedlearn", "train", "experiment=city_quick", "runtime=superlink", "runtime.shards=2", "cohort.rounds=2"),
    *("evaluation.controls=false", f"run.dir={RUN}"),
)
REGISTER: Final = ("register", "python", "/usr/local/lib/fedlearn/fleet.py", "register")
Say = Callable[[str], None]

PROBE: Final = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 5): print("reached")
"""
HANDSHAKE: Final = """
import os, socket, ssl
context = ssl.create_default_context(cadata=os.environ["CA"])
with socket.create_connection(("gateway-1", 9443), 5) as plain:
    print(context.wrap_socket(plain, server_hostname="gateway-1").version())
"""
LAYERS: Final = """
import os
from fedlearn_client.worker import layers, sandbox
held = (*sandbox.isolate(), *sandbox.seal(cpu_s=None))
os.write(1, repr((held, layers.missing(frozenset(held)))).encode())
"""


class Fleet:
    """One composed fleet.

    Args:
        docker: of a daemon with networks.
        folder: for settings of gateways and the phone.
        say: told what is going on.
    """

    def __init__(self, docker: Docker, folder: Path, say: Say) -> None:
        self._docker = docker
        self._folder = folder
        self._say = say
        self._environment = {
            "FEDLEARN_TAG": TAG,
            "FEDLEARN_GATEWAY_CONFIG": str(folder / "gateway"),
            "FEDLEARN_DEVICE_CONFIG": str(folder / "device"),
        }

    def check(self) -> None:
        """Start, use and try everything, and take it down again.

        Raises:
            RunError: something does not hold; the message says what.
        """
        self._write_settings()
        try:
            self._start()
            self._train()
            self._walls()
            self._again()
            self._gateways()
            self._phone()
            self._revoked()
        finally:
            self._compose("down", "--volumes", "--timeout", "5")

    def _start(self) -> None:
        self._say("fleet: certificates, SuperLink, two nodes")
        self._compose("up", "--detach")
        self._well("superlink", "node-1", "node-2")
        for service in ("superlink", "node-1", "node-2"):
            self._fenced(service)

    def _fenced(self, service: str) -> None:
        """No rights, no way to get any, and nothing to write on but what it was given."""
        status = self._exec(service, "cat", "/proc/self/status")
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        _require(fields["Uid"].split() == [str(UID)] * 4, f"{service}: uid {fields['Uid']}")
        _require(int(fields["CapBnd"], 16) == 0 and fields["NoNewPrivs"] == "1", f"{service}: may gain rights")
        for place in ("/app", "/etc", "/usr/local/lib/fedlearn"):
            self._refused(f"{service}: {place} can be written", "exec", "-T", service, "touch", f"{place}/written")
        self._exec(service, "touch", "/tmp/written")  # noqa: S108 - the control, in the container

    def _train(self) -> None:
        self._say("fleet: a training of two rounds at epsilon 3")
        self._exec("superlink", *TRAIN)
        self._say("fleet: a reviewer checks its ledger")
        said = self._compose("run", "--rm", "reviewer", "ledger", "verify", RUN)
        _require(said.rstrip().endswith("VERIFIED"), f"the verifier says {said[-300:]}")
        self._say("fleet: " + next(line for line in said.splitlines() if line.startswith("whole scope")))

    def _walls(self) -> None:
        """A phone's network does not reach SuperLink, by name or by address; a node's does."""
        self._say("fleet: what reaches SuperLink")
        network = f"{PROJECT}_fleet"
        shown = json.loads(self._docker.run("docker", "inspect", f"{PROJECT}_superlink_1"))[0]
        address = str(shown["NetworkSettings"]["Networks"][network]["IPAddress"])
        for place in ("superlink", address):
            _require("reached" in self._probe("fleet", place), f"the control: a node does not reach {place}")
            try:
                self._probe("phones", place)
            except RunError:
                continue
            raise RunError(f"a phone reaches SuperLink at {place}")

    def _again(self) -> None:
        """A second start makes nothing anew, and nodes that were killed come back with their keys."""
        self._say("fleet: started again")
        ca = self._ca()
        self._compose("kill", "node-1", "superlink")
        self._compose("up", "--detach")
        self._well("superlink", "node-1", "node-2")
        _require(self._ca() == ca, "a second start made another authority")
        listed = json.loads(self._exec("superlink", "fedlearn", "nodes", "list", "--json"))
        online = {node["name"] for node in listed if node["state"] == "online"}
        _require({"node-1", "node-2"} <= online and len(listed) == 4, f"registered: {listed}")

    def _revoked(self) -> None:
        """Who is a node is decided beside SuperLink, and `register` does not bring back one that was revoked."""
        self._say("fleet: a node is revoked")
        self._exec("superlink", "fedlearn", "nodes", "revoke", "node-2")
        self._refused("a revoked key was registered again", "run", "--rm", *REGISTER, "node-2")
        listed = json.loads(self._exec("superlink", "fedlearn", "nodes", "list", "--json"))
        _require("node-2" not in {node["name"] for node in listed}, "node-2 is still a node")

    def _gateways(self) -> None:
        self._say("fleet: two gateways, and TLS from the phones' network")
        self._compose("--profile", "gateway", "up", "--detach", "gateway-1", "gateway-2")
        self._well("gateway-1", "gateway-2")
        self._fenced("gateway-1")
        network = f"--network={PROJECT}_phones"
        command = ("docker", "run", "--rm", network, "--env", f"CA={self._ca()}", "--entrypoint", "python")
        said = self._docker.run(*command, image("device"), "-c", HANDSHAKE)
        _require("TLSv1.3" in said, f"a phone and a gateway speak {said}")

    def _phone(self) -> None:
        self._say("fleet: a phone for trials")
        self._compose("--profile", "device", "up", "--detach", "device")
        self._well("device")
        self._fenced("device")
        _require("bundle      none" in self._exec("device", "fedlearn-device", "status"), "the phone says nothing")
        held = self._exec("device", "python", "-c", LAYERS)
        _require("seccomp" in held and held.endswith("())"), f"the worker's sandbox in a container: {held}")
        self._say(f"fleet: the worker's layers in a container: {held}")

    def _write_settings(self) -> None:
        """Fill in the example settings with keys of this test, as its users' own."""
        key = SigningKey.fresh()
        for name in ("gateway", "device"):
            folder = self._folder / name
            shutil.copytree(ROOT / "docker" / name, folder)
            for file in folder.glob("*.toml"):
                lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
                filled = [_filled(line, key.public) if "PUT THE 64" in line else line for line in lines]
                file.write_text("".join(filled), encoding="utf-8")
        task_key = self._folder / "gateway" / "task.key"
        task_key.touch(mode=0o600)
        task_key.write_bytes(SigningKey.fresh().pem())
        os.chown(task_key, UID, UID)

    def _well(self, *services: str) -> None:
        until = time.monotonic() + WELL_S
        for service in services:
            while (state := self._health(service)) != "healthy":
                if time.monotonic() > until:
                    log = self._compose("logs", "--no-color", "--tail", "20", service)
                    raise RunError(f"{service} is {state} after {WELL_S:.0f} s:\n{log}")
                time.sleep(POLL_S)

    def _health(self, service: str) -> str:
        shown = json.loads(self._docker.run("docker", "inspect", f"{PROJECT}_{service}_1"))[0]
        return str(shown["State"].get("Health", {}).get("Status"))

    def _probe(self, network: str, place: str) -> str:
        command = ("docker", "run", "--rm", f"--network={PROJECT}_{network}", "--entrypoint", "python")
        return self._docker.run(*command, image("device"), "-c", PROBE, place, "9092")

    def _ca(self) -> str:
        return self._exec("superlink", "cat", "/var/lib/fedlearn/operator/superlink/certs/ca.crt")

    def _exec(self, service: str, *command: str) -> str:
        return self._compose("exec", "-T", service, *command)

    def _refused(self, words: str, *arguments: str) -> None:
        try:
            self._compose(*arguments)
        except RunError:
            return
        raise RunError(words)

    def _compose(self, *arguments: str) -> str:
        file = str(ROOT / "docker" / "compose.yaml")
        command = ("docker-compose", "--project-name", PROJECT, "--file", file, *arguments)
        return self._docker.run(*command, environment=self._environment)


def _filled(line: str, public: str) -> str:
    return f'{line.partition("=")[0]}= ["{public}"]\n'


def _require(holds: bool, words: str) -> None:
    if not holds:
        raise RunError(words)

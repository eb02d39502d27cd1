"""The processes of a demonstration fleet: SuperLink, gateways and a swarm, on loopback."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedlearn.errors import DeploymentRefused
from fedlearn.lab.fleet_demo.paper import FleetSizes, Papers
from fedlearn_server.deployment import Deployment, down, up
from fedlearn_server.deployment.certificates import issue_server, now_utc
from fedlearn_server.deployment.nodes import Say
from fedlearn_server.deployment.processes import start, stop
from fedlearn_server.deployment.records import ProcessRecord
from fedlearn_server.deployment.superlink import environment, program
from fedlearn_server.gateway.beside import listening_port

PATIENCE_S = 30.0
TEMPLATE = "gateway.toml"
OVER_SELECTION = 1.6
"""A sixth of the swarm's tasks come to nothing, and a step should not wait for its deadline."""


@dataclass(frozen=True, slots=True)
class FleetWorld:
    """What runs.

    Args:
        deployment: SuperLink and its gateways.
        papers: what the parties hold.
        gateways: ``host:port`` of each, for phones.
    """

    deployment: Deployment
    papers: Papers
    gateways: tuple[str, ...]

    def train_overrides(self, sizes: FleetSizes, run: Path) -> list[str]:
        """Return the command line of the fleet's training."""
        fleet = {
            "bundle": self.papers.bundle,
            "root_key": self.papers.directory / "keys" / "root.key.pub",
            "population": sizes.population,
            "round_size": sizes.round_size,
            "over_selection": OVER_SELECTION,
            "attempt_s": sizes.attempt_s,
            "task_s": sizes.attempt_s,
        }
        return [
            *sizes.overrides(),
            "runtime=fleet",
            f"runtime.shards={sizes.gateways}",
            f"runtime.resend_s={2.0 * sizes.attempt_s + 10.0}",
            f"runtime.address='{self.deployment.address}'",
            f"runtime.ca={self.deployment.ca}",
            f"runtime.token={self.deployment.layout.operator_token}",
            *(f"runtime.fleet.{name}={value}" for name, value in fleet.items()),
            f"run.dir={run}",
        ]


@contextmanager
def running_fleet(papers: Papers, sizes: FleetSizes, say: Say) -> Iterator[FleetWorld]:
    """Start SuperLink and gateways below the papers' directory, and stop them afterwards."""
    directory = papers.directory / "deployment"
    deployment = up(directory, 0, say=say)
    try:
        # phones trust the same authority as the gateways' nodes do
        certificates = deployment.layout.certificates
        issue_server(certificates, now_utc(), stem="gateway")
        template = papers.directory / TEMPLATE
        template.write_text(_template(papers, certificates), encoding="utf-8")
        deployment = up(directory, sizes.gateways, say=say, gateways=template)
        yield FleetWorld(deployment, papers, _gateways(deployment))
    finally:
        down(deployment, stop_runs=True, say=say)


@contextmanager
def running_swarm(world: FleetWorld, sizes: FleetSizes, options: list[str]) -> Iterator[tuple[ProcessRecord, Path]]:
    """Run ``fedlearn swarm`` beside the fleet; what it did is in the file when it has ended."""
    papers, log = world.papers, world.papers.directory / "swarm.json"
    log.unlink(missing_ok=True)
    gateways = [part for address in world.gateways for part in ("--gateway", address)]
    command = [
        *(program("fedlearn"), "swarm", "--json"),
        *("--devices", str(sizes.devices)),
        *gateways,
        *("--ca", str(world.deployment.ca)),
        *("--bundle", str(papers.bundle)),
        *("--root-key", str(papers.directory / "keys" / "root.key.pub")),
        *("--credentials", str(papers.credentials)),
        *options,
        *sizes.overrides(),
    ]
    process = start(command, environment(world.deployment), papers.directory, log)
    try:
        yield process, log
    finally:
        stop([process], PATIENCE_S)


def _gateways(deployment: Deployment) -> tuple[str, ...]:
    until = time.monotonic() + PATIENCE_S
    while True:
        ports = [listening_port(node.state) for node in deployment.nodes]
        if None not in ports:
            return tuple(f"127.0.0.1:{port}" for port in ports)
        if time.monotonic() > until:
            raise DeploymentRefused(f"{deployment.directory}: a gateway does not listen; see nodes/*/node.log there.")
        time.sleep(0.1)


def _template(papers: Papers, certificates: Path) -> str:
    said: dict[str, object] = {
        "listen": "127.0.0.1:0",
        "certificate": str((certificates / "gateway.crt").absolute()),
        "key": str((certificates / "gateway.key").absolute()),
        "store": str((papers.directory / "gateways.db").absolute()),
        "populations": [papers.opened.plan.population],
        "issuers": [papers.issuer],
        "task_key": str(papers.task_key.absolute()),
        "status": str(papers.status.absolute()),
        "retry_after_s": 1,
        "device_rate": 10.0,
        "device_burst": 50,
        "peer_rate": 2000.0,
        "peer_burst": 4000,
        "unprotected_figures": True,
    }
    # a JSON text, list, number or truth is the same in TOML
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in said.items())

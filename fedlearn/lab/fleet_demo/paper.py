"""The papers of a demonstration fleet: policy, bundle, keys and credentials, held by one person."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from fedlearn import __version__
from fedlearn.clock import system_clock
from fedlearn.device.bundle import Bundle, open_bundle
from fedlearn.lab.commands.export import main as export
from fedlearn.lab.commands.train import main as train
from fedlearn.lab.configs import packaged_configs
from fedlearn.ledger.signing import make_key_pair, read_public
from fedlearn_server.gateway.credentials_command import main as credentials

NAME: Final = "city-fleet"


@dataclass(frozen=True, slots=True)
class FleetSizes:
    """How large a demonstration is.

    Args:
        devices: phones of the swarm, >= 1.
        daemons: real daemons beside them, >= 0.
        gateways: >= 1.
        steps: of the training, >= 1.
        cohort: phones wanted in a step.
        round_size: least phones in a sum that may be released.
        min_separation: b.
        epsilon: of the training.
        attempt_s: seconds that a gateway waits for a cohort, and a phone has for its task: a daemon keeps a minute of
            it for the upload.
    """

    devices: int = 200
    daemons: int = 3
    gateways: int = 2
    steps: int = 10
    cohort: int = 60
    round_size: int = 30
    min_separation: int = 2
    epsilon: float = 3.0
    attempt_s: float = 120.0

    @property
    def population(self) -> int:
        """All phones."""
        return self.devices + self.daemons

    def overrides(self) -> list[str]:
        """Return what the config of both trainings says: the simulated one that is exported, and the fleet's."""
        return [
            "experiment=city_bounded",
            f"data.devices={self.devices}",
            f"cohort.rounds={self.steps}",
            "cohort.fraction=null",
            f"cohort.size={self.cohort}",
            f"privacy.epsilon={self.epsilon:g}",
            f"privacy.delta={0.1 / self.population:.1g}",
            f"privacy.min_separation={self.min_separation}",
            f"evaluation.every={self.steps}",
            "evaluation.controls=false",
            "evaluation.users=1000",
        ]


@dataclass(frozen=True, slots=True)
class Papers:
    """What the parties of a fleet hold.

    Args:
        directory: where all of it lies.
        bundle: the signed task bundle.
        catalogue: the signed catalogue.
        status: the signed status.
        root: the root's public key.
        task_key: file of the operator's private key.
        issuer: the phone maker's public key for credentials.
        credentials: folder with one credential for each phone.
        opened: the bundle, checked.
    """

    directory: Path
    bundle: Path
    catalogue: Path
    status: Path
    root: str
    task_key: Path
    issuer: str
    credentials: Path
    opened: Bundle


def make_papers(directory: Path, sizes: FleetSizes) -> Papers:
    """Train a small private model in simulation, export and sign it, and issue credentials; made once."""
    run, out, keys = directory / "simulated", directory / "bundle", directory / "keys"
    policy, issued, issuer = directory / "policy.yaml", directory / "credentials", directory / "issuer.key"
    directory.mkdir(parents=True, exist_ok=True)
    if not policy.exists():
        policy.write_text(yaml.safe_dump(_policy(sizes), sort_keys=False, allow_unicode=True), encoding="utf-8")
    if not (run / "summary.json").exists():
        train([*sizes.overrides(), f"run.dir={run}", f"run.name={NAME}"])
    if not (out / f"{NAME}.task.flb").exists():
        export([str(run), "--policy", str(policy), "--dev-keys", str(keys), "--out", str(out)])
    if not issuer.exists():
        make_key_pair(issuer)
    population = str(_policy(sizes)["population"]["id"])
    if not issued.exists():
        asked = {"--key": issuer, "--population": population, "--out": issued, "--count": sizes.population}
        credentials(["issue", *(str(part) for pair in asked.items() for part in pair)])
    root = read_public(str(keys / "root.key.pub"))
    bundle = out / f"{NAME}.task.flb"
    return Papers(
        directory=directory,
        bundle=bundle,
        catalogue=out / f"{NAME}.catalogue.flb",
        status=keys / "status.dsse.json",
        root=root,
        task_key=keys / "task.key",
        issuer=read_public(str(issuer.with_name(issuer.name + ".pub"))),
        credentials=issued,
        opened=open_bundle(bundle.read_bytes(), root_keys=[root], now=system_clock(), runtime=__version__),
    )


def _policy(sizes: FleetSizes) -> dict[str, Any]:
    """Return the city's policy with the floors of a population this small: it compares methods, and says so."""
    plain: dict[str, Any] = yaml.safe_load((packaged_configs() / "policy" / "city.yaml").read_text(encoding="utf-8"))
    plain["name"] = NAME
    plain["population"]["minimum_devices"] = sizes.population
    plain["mechanism"] |= {
        "min_round_size": sizes.round_size,
        "min_separation": sizes.min_separation,
        "max_participations": -(-sizes.steps // sizes.min_separation),
    }
    plain["device"]["max_rounds_per_day"] = 24
    return plain

"""The signed bundle of the demonstration: a small private training, exported under keys that one person holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedlearn import __version__
from fedlearn.clock import system_clock
from fedlearn.device.bundle import Bundle, open_bundle
from fedlearn.lab.commands.export import main as export
from fedlearn.lab.commands.train import main as train
from fedlearn.lab.configs import packaged_configs
from fedlearn.ledger.signing import SigningKey, read_key, read_public

NAME: Final = "city-bounded"
OVERRIDES: Final = (
    "experiment=city_bounded",
    "policy=city",
    "data.devices=1000",
    "privacy.epsilon=3",
    "privacy.delta=1e-4",
    "evaluation.every=60",
    "evaluation.controls=false",
)


@dataclass(frozen=True, slots=True)
class Signed:
    """What the phone is given, and the keys that stand behind it.

    Args:
        task, catalogue, status: bytes to install.
        opened: the task bundle, checked.
        root: the root's public key.
        task_key: the operator's.
    """

    task: bytes
    catalogue: bytes
    status: bytes
    opened: Bundle
    root: str
    task_key: SigningKey


def make_signed(directory: Path) -> Signed:
    """Train, export and sign below ``directory``; a run that is there already is used again."""
    run, out, keys = directory / "run", directory / "bundle", directory / "keys"
    if not (run / "summary.json").exists():
        train([*OVERRIDES, f"run.dir={run}"])
    policy = packaged_configs() / "policy" / "city.yaml"
    export([str(run), "--policy", str(policy), "--dev-keys", str(keys), "--out", str(out)])
    root = read_public(str(keys / "root.key.pub"))
    task = (out / f"{NAME}.task.flb").read_bytes()
    return Signed(
        task=task,
        catalogue=(out / f"{NAME}.catalogue.flb").read_bytes(),
        status=(keys / "status.dsse.json").read_bytes(),
        opened=open_bundle(task, root_keys=[root], now=system_clock(), runtime=__version__),
        root=root,
        task_key=read_key(keys / "task.key"),
    )

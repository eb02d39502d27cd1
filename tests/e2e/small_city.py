"""A small city to train in, in this process or in one of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from fedlearn.lab import compose
from fedlearn.lab.config import ExperimentConfig
from fedlearn.lab.run import TrainedRun, resume, train

# A job in the background of a script starts with SIGINT ignored; these processes must hear it wherever tests run.
COMMAND = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from fedlearn.cli import main; sys.exit(main())"
)
SMALL = (
    "experiment=city_quick",
    "data.devices=60",
    "data.restaurants=500",
    "evaluation.controls=false",
    "evaluation.bootstrap=100",
)


@dataclass(frozen=True)
class SmallCity:
    """Trains in a city of 60 phones and 500 restaurants."""

    overrides: tuple[str, ...] = SMALL

    def config(self, directory: Path, *overrides: str) -> ExperimentConfig:
        """Return the experiment with its run in ``directory``."""
        return compose([*SMALL, f"run.dir={directory}", *overrides])

    def train(self, directory: Path, *overrides: str) -> TrainedRun:
        """Train in this process, silently."""
        return train(self.config(directory, *overrides), console=Console(quiet=True))

    def resume(self, directory: Path) -> TrainedRun:
        """Go on in this process, silently."""
        return resume(directory, console=Console(quiet=True))

    def start(self, directory: Path, *overrides: str) -> subprocess.Popen[str]:
        """Start ``fedlearn train`` as a process of its own."""
        return self.command("train", *SMALL, f"run.dir={directory}", *overrides)

    def command(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the ``fedlearn`` command."""
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def steps(self, directory: Path) -> list[int]:
        """Return the steps in ``metrics.jsonl``; a line that is being written does not count."""
        path = directory / "metrics.jsonl"
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line)["step"] for line in lines]

    def summary(self, directory: Path) -> dict[str, Any]:
        """Return ``summary.json``."""
        return json.loads((directory / "summary.json").read_text(encoding="utf-8"))

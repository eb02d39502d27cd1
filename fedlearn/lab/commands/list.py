"""``fedlearn list``: what a config can name."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from fedlearn.engine.optimizers import OPTIMIZERS
from fedlearn.lab.configs import experiments, groups
from fedlearn.lab.registry import available


def main(arguments: Sequence[str]) -> int:
    """Print experiments, config groups, data sets, models, metrics and server optimizers."""
    parser = argparse.ArgumentParser(prog="fedlearn list", description="What a config can name.")
    parser.add_argument("--json", action="store_true", help="for a machine to read")
    parsed = parser.parse_args(arguments)
    console = Console()
    found: Mapping[str, Mapping[str, str]] = {
        "experiment": experiments(),
        "config group": {name: ", ".join(choices) for name, choices in groups().items() if name != "experiment"},
        **{group.removeprefix("fedlearn."): names for group, names in available().items()},
        "server_opt": dict.fromkeys(OPTIMIZERS, "torch.optim"),
    }
    if parsed.json:
        console.print_json(json.dumps(found, ensure_ascii=False))
        return 0
    table = Table("kind", "name", "")
    for kind, names in found.items():
        for name, note in names.items():
            table.add_row(kind, name, note)
        table.add_section()
    console.print(table)
    return 0

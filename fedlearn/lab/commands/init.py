"""``fedlearn init DIR``: a copy of the configs to edit."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fedlearn.errors import RunDirectoryInUse
from fedlearn.lab.configs import packaged_configs


def main(arguments: Sequence[str]) -> int:
    """Copy the built-in configs into a new folder."""
    parser = argparse.ArgumentParser(prog="fedlearn init", description="Copy an editable set of configs.")
    parser.add_argument("directory", type=Path, metavar="DIR", help="new folder")
    directory: Path = parser.parse_args(arguments).directory
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise RunDirectoryInUse(f"{directory}: exists and is not empty; name a new folder.")
    shutil.copytree(packaged_configs(), directory, dirs_exist_ok=True)
    Console().print(
        f"{directory} holds the configs. Edit, then: fedlearn train --config-dir {directory} experiment=city_quick",
        markup=False,
    )
    return 0

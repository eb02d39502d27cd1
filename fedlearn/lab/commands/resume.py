"""``fedlearn resume RUN``: go on with an interrupted run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from fedlearn.errors import ResumeRefused
from fedlearn.lab.run import resume


def main(arguments: Sequence[str]) -> int:
    """Resume one run directory."""
    parser = argparse.ArgumentParser(prog="fedlearn resume", description="Go on with an interrupted run.")
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory")
    parsed, overrides = parser.parse_known_args(arguments)
    if overrides:
        raise ResumeRefused(
            f"{' '.join(overrides)}: a run is resumed with the config it began with; "
            "to change a setting, train anew in another run.dir."
        )
    resume(parsed.run)
    return 0

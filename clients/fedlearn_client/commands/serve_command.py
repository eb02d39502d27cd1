"""``fedlearn-device serve``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedlearn_client.daemon import linux_hooks, serve
from fedlearn_client.settings import load_settings


def main(arguments: Sequence[str]) -> int:
    """Run the daemon with the Linux hooks until SIGTERM."""
    # no socket of a daemon to talk to: this is one
    import argparse  # noqa: PLC0415

    made = argparse.ArgumentParser(prog="fedlearn-device serve", description="Run the daemon until it is told to stop.")
    made.add_argument("--settings", type=Path, required=True, metavar="FILE", help="TOML; see docs/device.md")
    settings = load_settings(made.parse_args(arguments).settings)
    serve(settings, linux_hooks(settings))
    return 0

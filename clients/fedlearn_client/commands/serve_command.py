"""``fedlearn-device serve``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedlearn_client.daemon import linux_hooks, serve
from fedlearn_client.settings import load_settings


def main(arguments: Sequence[str]) -> int:
    """Run the daemon with the Linux hooks until SIGTERM."""
    # no socket of a daemon to talk to: this is one
    import argparse  # noqa: PLC0415

    made = argparse.ArgumentParser(prog="fedlearn-device serve", description="Run the daemon until it is told to stop.")
    made.add_argument("--settings", type=Path, required=True, metavar="FILE", help="TOML; see docs/device.md")
    made.add_argument(
        "--conformance", action="store_true", help="also answer the conformance kit's numbers; for test builds only"
    )
    given = made.parse_args(arguments)
    settings = load_settings(given.settings)
    settings = replace(settings, conformance=settings.conformance or given.conformance)
    serve(settings, linux_hooks(settings))
    return 0

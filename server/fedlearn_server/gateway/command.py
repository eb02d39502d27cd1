"""``fedlearn gateway``: one gateway in the foreground, for a service manager to keep alive."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fedlearn.errors import FedlearnError
from fedlearn_server.gateway.settings import load_settings

HELP = """\
Runs until SIGTERM: enrols phones, gives them tasks, takes what they upload, and answers SuperLink with sums.

The first SIGTERM ends new work: the node says good-bye, uploads are taken for drain_s more seconds. A second one ends
it at once. Killed, it may be started again at once: what a phone was told is accepted is in the store.

Logs are JSON lines on stderr. DIRECTORY/status.json says what it is doing and where /metrics, /healthz and /readyz are.
"""


def main(arguments: Sequence[str]) -> int:
    """Run the gateway; return 0 after SIGTERM, 1 if a question had to be given up, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="fedlearn gateway",
        description="Where phones bring their contributions, in the foreground.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--settings", required=True, type=Path, metavar="FILE", help="TOML; docs/gateway.md has all")
    given = parser.parse_args(arguments)
    # gRPC's core writes lines of its own to stderr, one for each handshake that a stranger spoils
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from fedlearn_server.gateway.process import run  # noqa: PLC0415  # gRPC reads it when it is imported

    try:
        return run(load_settings(given.settings))
    except FedlearnError as error:
        print(f"error {error.code}: {error}", file=sys.stderr)  # noqa: T201 - the command's own output
        return 2

"""A gateway as a node of ``fedlearn up``: what a deployment decides is added to a template that all its gateways share.

    fedlearn up --nodes 2 --gateways gateway.toml

The template says everything but ``superlink``, ``superlink_ca``, ``node_key`` and ``directory``, which a deployment
gives each of its nodes. A port of 0 in ``listen`` becomes a free one, kept from start to start: phones know it.
"""

from __future__ import annotations

import argparse
import socket
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from fedlearn.errors import ConfigError, FedlearnError
from fedlearn.files import write_durably
from fedlearn_server.gateway.process import run
from fedlearn_server.gateway.settings import GatewaySettings, settings_from_table, split_address

GIVEN: Final = ("superlink", "superlink_ca", "node_key", "directory")
PORT_FILE: Final = "listen.port"


def main(arguments: Sequence[str]) -> int:
    """Run one gateway of a deployment; the options are those of a node, and ``--template``."""
    parser = argparse.ArgumentParser(prog="python -m fedlearn_server.gateway.beside", description=__doc__)
    for name in ("template", "ca", "key", "state"):
        parser.add_argument(f"--{name}", required=True, type=Path, metavar="FILE")
    parser.add_argument("--superlink", required=True, metavar="HOST:PORT")
    given = parser.parse_args(arguments)
    try:
        return run(settings_beside(given.template, given.superlink, given.ca, given.key, given.state))
    except FedlearnError as error:
        print(f"error {error.code}: {error}", file=sys.stderr)  # noqa: T201 - the command's own output
        return 2


def settings_beside(template: Path, superlink: str, ca: Path, key: Path, state: Path) -> GatewaySettings:
    """Return the settings of one gateway.

    Args:
        template: TOML shared by the deployment's gateways.
        superlink: ``host:port`` of SuperLink.
        ca: PEM of its authority.
        key: the node's private key.
        state: the node's directory.

    Raises:
        ConfigError: the template cannot be read, or says what the deployment decides; or as ``load_settings``.
    """
    table = read_template(template)
    table = {**table, "superlink": superlink, "superlink_ca": str(ca), "node_key": str(key), "directory": str(state)}
    settings_from_table(table)  # before a port is chosen
    host, port = split_address("listen", str(table["listen"]), least_port=0)
    if port == 0:
        table["listen"] = f"{host}:{_kept_port(state, host)}"
    return settings_from_table(table)


def read_template(template: Path) -> dict[str, Any]:
    """Return the template's table; raise ConfigError if it is none, or says what a deployment decides."""
    try:
        table = tomllib.loads(template.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--gateways {template}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise ConfigError(f"--gateways {template}: not TOML: {error}") from error
    said = [name for name in GIVEN if name in table]
    if said:
        raise ConfigError(f"--gateways {template}: {', '.join(said)}: the deployment gives these; leave them out.")
    return table


def listening_port(state: Path) -> int | None:
    """Return the port that was chosen for a gateway of a deployment; None before it began."""
    try:
        return int((state / PORT_FILE).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _kept_port(state: Path, host: str) -> int:
    kept = listening_port(state)
    if kept is not None:
        return kept
    with socket.socket() as free:
        free.bind((host.strip("[]"), 0))
        port = int(free.getsockname()[1])
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_durably(state / PORT_FILE, f"{port}\n".encode())
    return port


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The parts of a fleet in containers: ``python fleet.py init | superlink | register``; see compose.yaml.

It is ``fedlearn up`` taken apart. There one command makes keys and certificates, starts SuperLink and its nodes and
registers them; here each is a container with the volumes it needs and no others.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Final

import psutil
from cryptography import x509
from rich.console import Console

from fedlearn.errors import FedlearnError, SuperLinkRefused, SuperLinkUnreachable
from fedlearn_server.deployment import processes
from fedlearn_server.deployment.certificates import ensure_certificates, issue_server, now_utc, read_certificates
from fedlearn_server.deployment.keys import public_pem, write_node_key
from fedlearn_server.deployment.layout import Layout, claim, default_directory, locked, make_private, write_private
from fedlearn_server.deployment.operator import ensure_token, open_control
from fedlearn_server.deployment.records import Deployment, installed_versions, new_deployment, opened, saved
from fedlearn_server.deployment.superlink import environment

RENEW_BEFORE: Final = timedelta(days=30)
ANSWER_S: Final = 90.0
POLL_S: Final = 1.0
KEY: Final = "key.pem"
CA: Final = "ca.crt"


def init(given: argparse.Namespace) -> None:
    """Make what is missing: authority, certificates, operator's token, a key for each node and gateway.

    Safe to repeat. A certificate in its last 30 days is replaced, under the same authority: nodes and phones notice
    nothing, SuperLink and gateways use it from their next start.
    """
    layout = claim(default_directory())
    host = given.superlink.rpartition(":")[0]
    with locked(layout):
        made = opened(layout.directory) if layout.record.exists() else new_deployment(layout.directory)
        deployment = saved(replace(made, address=given.superlink, versions=installed_versions()))
        found = ensure_certificates(layout.certificates, now_utc(), (host,))
        if found.expires - now_utc() < RENEW_BEFORE or host not in found.names:
            issue_server(layout.certificates, now_utc(), (*read_certificates(layout.certificates).names, host))
        ensure_token(deployment)
        for folder in (layout.database.parent, layout.flower_home, _registrations(layout)):
            make_private(folder)
        for name in (*given.node, *given.gateway):
            _member(layout, name, given.volumes / name)
        for name in given.gateway:
            _door(layout, name, given.volumes / name)


def superlink(given: argparse.Namespace) -> None:
    """Become SuperLink: this process is replaced, and the record says so, for `fedlearn status` beside it."""
    del given
    layout = Layout(default_directory())
    deployment = opened(layout.directory)
    host, _, port = deployment.address.rpartition(":")
    saved(replace(deployment, superlink=processes.record_of(psutil.Process())))
    command = [
        *(sys.executable, "-m", "fedlearn_server.superlink"),
        *("--operator-token", str(layout.operator_token)),
        *("--ssl-ca-certfile", str(layout.ca)),
        *("--ssl-certfile", str(layout.certificates / "server.crt")),
        *("--ssl-keyfile", str(layout.certificates / "server.key")),
        *("--host", host, "--port", port),
        *("--database", str(layout.database)),
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
    ]
    os.chdir(layout.directory)
    os.execve(command[0], command, environment(deployment))  # noqa: S606 - our own program, no shell


def register(given: argparse.Namespace) -> None:
    """Register the nodes and gateways that ``init`` made keys for, and only those.

    Raises:
        SuperLinkRefused: SuperLink does not take one of the keys, e.g. because it was revoked; the others are taken.
        SuperLinkUnreachable: no answer in 90 s.
    """
    layout = Layout(default_directory())
    deployment = opened(layout.directory)
    refused: list[str] = []
    for name in given.name:
        try:
            _registered(deployment, name, (_registrations(layout) / f"{name}.pub").read_bytes())
        except SuperLinkRefused as error:
            refused.append(f"{name}: {error}")
    if refused:
        raise SuperLinkRefused(" ".join(refused))


def _registrations(layout: Layout) -> Path:
    return layout.directory / "registrations"


def _member(layout: Layout, name: str, volume: Path) -> None:
    """Give a node or gateway a key of its own and the authority's certificate; ``register`` gets the public half."""
    if not (volume / KEY).exists():
        write_node_key(volume / KEY)
    write_private(volume / CA, layout.ca.read_bytes())
    write_private(_registrations(layout) / f"{name}.pub", public_pem(volume / KEY))


def _door(layout: Layout, name: str, volume: Path) -> None:
    """Give a gateway the certificate by which phones know it; the authority's key never gets there."""
    certificate = volume / "server.crt"
    if certificate.exists():
        kept = x509.load_pem_x509_certificate(certificate.read_bytes())
        if kept.not_valid_after_utc - now_utc() > RENEW_BEFORE:
            return
    issue_server(layout.certificates, now_utc(), (name,), name)
    for suffix in ("key", "crt"):
        made = layout.certificates / f"{name}.{suffix}"
        write_private(volume / f"server.{suffix}", made.read_bytes())
        made.unlink()


def _registered(deployment: Deployment, name: str, pem: bytes) -> None:
    until = time.monotonic() + ANSWER_S
    while True:
        control = open_control(deployment)
        try:
            if pem not in {node.public_key for node in control.nodes()}:
                control.register_node(pem, name)
        except SuperLinkUnreachable:
            if time.monotonic() > until:
                raise
            time.sleep(POLL_S)
        else:
            return
        finally:
            control.close()


def main(arguments: Sequence[str]) -> int:
    """Run one part; 0 once it is done, 1 and one line if it cannot be."""
    parser = argparse.ArgumentParser(prog="fleet.py")
    commands = parser.add_subparsers(required=True)
    made = commands.add_parser("init")
    made.add_argument("--superlink", required=True, metavar="HOST:PORT")
    made.add_argument("--node", action="append", default=[], metavar="NAME")
    made.add_argument("--gateway", action="append", default=[], metavar="NAME")
    made.add_argument("--volumes", type=Path, default=Path("/var/lib/fedlearn"), metavar="DIR")
    made.set_defaults(command=init)
    commands.add_parser("superlink").set_defaults(command=superlink)
    known = commands.add_parser("register")
    known.add_argument("name", nargs="+", metavar="NAME")
    known.set_defaults(command=register)
    given = parser.parse_args(arguments)
    command: Callable[[argparse.Namespace], None] = given.command
    try:
        command(given)
    except FedlearnError as error:
        Console(stderr=True).print(f"error {error.code}: {error}", markup=False, soft_wrap=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

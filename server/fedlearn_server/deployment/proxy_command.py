"""``fedlearn proxy``: an nginx configuration that lets nodes elsewhere reach this machine's SuperLink."""

from __future__ import annotations

import argparse
import pwd
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from rich.console import Console

from fedlearn.errors import OutOfRange
from fedlearn_server.deployment.certificates import ALWAYS_NAMED, issue_server, now_utc
from fedlearn_server.deployment.layout import default_directory, locked, make_private, write_private
from fedlearn_server.deployment.proxy import BODY_MB, MAX_BODY_MB, ProxySettings, render_proxy
from fedlearn_server.deployment.records import Deployment, opened
from fedlearn_server.deployment.renewal import PROXY, names_in
from fedlearn_server.deployment.up import in_words

RENEW_BEFORE = timedelta(days=30)

EPILOG = """\
Nodes then use --superlink NAME:PORT with the deployment's ca.crt. Everything but the calls of a node stays private.
Without --certificate the proxy gets one from the deployment's authority, a new one in the last 30 days of the old.
"""


def main(arguments: Sequence[str]) -> int:
    """Write the configuration; 0 once it is there."""
    given = _parser().parse_args(arguments)
    with in_words(given.dir):
        deployment = opened(given.dir)
        with locked(deployment.layout):
            settings = _settings(given, deployment)
            if None in (given.work, given.log):  # others are made by whoever runs nginx, e.g. systemd
                make_private(deployment.directory / PROXY)
        write_private(given.out, render_proxy(settings).encode())
    console = Console()
    console.print(f"{len(settings.paths)} paths of {deployment.address} open at {settings.listen}", highlight=False)
    console.print(
        f"next: nginx -t -c {given.out} && nginx -c {given.out} -g 'daemon off;'", markup=False, soft_wrap=True
    )
    if given.user is not None and not _is_user(given.user):
        console.print(
            f"! --user {given.user}: no such user on this machine; nginx starts only where there is one",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    return 0


def _is_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _settings(given: argparse.Namespace, deployment: Deployment) -> ProxySettings:
    if (given.certificate is None) != (given.certificate_key is None):
        raise OutOfRange("--certificate and --certificate-key: give both, or neither.")
    settings = _as_typed(
        listen=given.listen,
        upstream=deployment.address,
        ca=deployment.ca,
        certificate=given.certificate or deployment.layout.certificates / f"{PROXY}.crt",
        key=given.certificate_key or deployment.layout.certificates / f"{PROXY}.key",
        work=given.work or deployment.directory / PROXY,
        log=given.log or deployment.directory / PROXY,
        stock_supernodes=given.stock_supernodes,
        max_body_mb=given.max_body_mb,
        nodes_per_address=given.nodes_per_address,
        user=given.user,
    )
    if given.certificate is None:
        _ensure_certificate(deployment, settings.certificate, given.name)
    return settings


def _as_typed(**fields: Any) -> ProxySettings:
    """Return settings; what is refused of them has the name of its option."""
    try:
        return ProxySettings(**fields)
    except OutOfRange as error:
        name, equals, words = str(error).partition("=")
        option = {"key": "certificate-key"}.get(name, name.replace("_", "-"))
        raise OutOfRange(f"--{option}{equals}{words}") from error


def _ensure_certificate(deployment: Deployment, certificate: Path, asked: Sequence[str]) -> None:
    found = names_in(certificate)
    wanted = {*ALWAYS_NAMED, *asked} if asked or not found else set(found)
    if wanted != set(found) or _is_old(certificate):
        issue_server(deployment.layout.certificates, now_utc(), sorted(wanted), PROXY)


def _is_old(certificate: Path) -> bool:
    loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
    return loaded.not_valid_after_utc - now_utc() < RENEW_BEFORE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedlearn proxy", description="An nginx configuration that lets nodes through.", epilog=EPILOG
    )
    parser.add_argument("--listen", required=True, metavar="IP:PORT", help="where nodes connect, e.g. 0.0.0.0:9443")
    parser.add_argument("--out", required=True, type=_absolute, metavar="FILE", help="configuration to write")
    parser.add_argument(
        "--name", action="append", default=[], help="host name or address that nodes use, for the certificate; again"
    )
    parser.add_argument("--stock-supernodes", action="store_true", help="also open get-run and get-fab")
    parser.add_argument(
        "--max-body-mb",
        type=int,
        default=BODY_MB,
        metavar="N",
        help=f"largest update: 8 bytes a weight, up to {MAX_BODY_MB} (default: %(default)s)",
    )
    parser.add_argument(
        "--nodes-per-address", type=int, default=16, metavar="N", help="behind one address (default: %(default)s)"
    )
    parser.add_argument("--certificate", type=_absolute, metavar="FILE", help="another certificate, with its chain")
    parser.add_argument("--certificate-key", type=_absolute, metavar="FILE", help="its key")
    parser.add_argument("--work", type=_absolute, metavar="DIR", help="for bodies on their way; best on a tmpfs")
    parser.add_argument("--log", type=_absolute, metavar="DIR", help="for access.log and error.log")
    parser.add_argument("--user", help="whom nginx's workers run as, if root starts it")
    parser.add_argument(
        "--dir", type=_absolute, default=default_directory(), help="of the deployment (default: %(default)s)"
    )
    return parser


def _absolute(text: str) -> Path:
    return Path(text).absolute()

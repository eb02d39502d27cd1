"""``fedlearn credentials``: what a phone maker gives phones so that they can enrol."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console

from fedlearn.device.credential import SERIAL_BYTES, Credential, issue_credential
from fedlearn.errors import OutOfRange
from fedlearn.ledger.signing import make_key_pair, read_key
from fedlearn.privacy.secret_files import create_private
from fedlearn.rng import os_bytes

SUFFIX: Final = ".credential"
MOST_AT_ONCE: Final = 1_000_000
MOST_DAYS: Final = 3650.0
_DAY: Final = 86_400.0


def main(arguments: Sequence[str]) -> int:
    """Run one sub-command and return its exit status."""
    given = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace, Console], int] = given.command
    return command(given, Console())


def _key(given: argparse.Namespace, console: Console) -> int:
    public = make_key_pair(given.file)
    _say(console, f"private key: {given.file} (stays with the phone maker)")
    _say(console, f"public key:  {public} (for `issuers` in a gateway's settings)")
    return 0


def _issue(given: argparse.Namespace, console: Console) -> int:
    if not 1 <= given.count <= MOST_AT_ONCE:
        raise OutOfRange(f"--count {given.count}: must be 1 to {MOST_AT_ONCE}.")
    if not 0.0 < given.days <= MOST_DAYS:
        raise OutOfRange(f"--days {given.days}: must be > 0 and at most {MOST_DAYS:g}.")
    signer = read_key(given.key)
    expires = time.time() + given.days * _DAY
    try:
        given.out.mkdir(mode=0o700, parents=True, exist_ok=True)
        for _ in range(given.count):
            credential = Credential(given.population, os_bytes(SERIAL_BYTES), expires)
            create_private(given.out / f"{credential.serial.hex()}{SUFFIX}", issue_credential(credential, signer))
    except OSError as error:
        raise OutOfRange(f"--out {given.out}: cannot be written ({error}); name a folder that can be.") from error
    _say(console, f"{given.count} credentials for {given.population}, good for {given.days:g} days, in {given.out}")
    return 0


def _say(console: Console, words: str) -> None:
    console.print(words, markup=False, highlight=False, soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedlearn credentials",
        description="Credentials with which phones enrol at a gateway: one each, for one key, once.",
        epilog="Whoever holds a credential can enrol with it, and whoever keeps a list can tell which phone it was: "
        "hand each to its phone as a secret, and keep no list that is not needed.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    key = commands.add_parser("key", help="a key pair that issues credentials")
    key.add_argument("file", type=Path, metavar="FILE", help="private key to write; FILE.pub gets the public one")
    key.set_defaults(command=_key)
    issue = commands.add_parser("issue", help="credentials, a file each")
    issue.add_argument("--key", required=True, type=Path, metavar="FILE", help="the private key")
    issue.add_argument("--population", required=True, metavar="ID", help="as in the policy")
    issue.add_argument("--out", required=True, type=Path, metavar="DIR", help="gets SERIAL.credential, mode 0600")
    issue.add_argument("--count", type=int, default=1, metavar="N", help="how many (default: %(default)s)")
    issue.add_argument("--days", type=float, default=365.0, metavar="D", help="to enrol within (default: %(default)g)")
    issue.set_defaults(command=_issue)
    return parser

"""``fedlearn backup`` and ``fedlearn restore``: a deployment's keys, certificates and database, and ledgers."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fedlearn_server.deployment.backup import make_backup
from fedlearn_server.deployment.layout import default_directory
from fedlearn_server.deployment.restore import Restored, restore_backup

REFUSED = 3

BACKUP = """\
The backup is secret: it holds the keys of nodes and of the authority. It does not hold what nodes sent, nor logs, nor
what must never be set back: $FEDLEARN_STATE with the operator's key, anchors and noise state.
"""
RESTORE = """\
Every file is checked against the manifest first. Who was revoked after the backup was made is a node again: look at
`fedlearn nodes list` and revoke again. `fedlearn up` then starts it.
"""


def backup_command(arguments: Sequence[str]) -> int:
    """Write a backup; 0 once it is whole and on the disk."""
    parser = _parser("backup", "Copy keys, certificates, database and ledgers to a new directory.", BACKUP)
    parser.add_argument("target", type=_absolute, metavar="DIR_OUT", help="directory to make")
    parser.add_argument(
        "--ledger",
        type=_absolute,
        action="append",
        default=[],
        metavar="PATH",
        help="also this ledger: a file or a run directory; again for more",
    )
    parser.add_argument("--while-running", action="store_true", help="also while a run is going")
    given = parser.parse_args(arguments)
    manifest = make_backup(given.dir, given.target, ledgers=given.ledger, while_running=given.while_running)
    console = Console()
    if given.json:
        console.print_json(manifest.to_json())
        return 0
    console.print(f"{len(manifest.files)} files in {given.target}", markup=False, highlight=False, soft_wrap=True)
    console.print("it holds private keys: keep it where only the operator can read it")
    return 0


def restore_command(arguments: Sequence[str]) -> int:
    """Bring a backup back; 0 once all of it can be used, 3 if a ledger that came back may not be spent from."""
    parser = _parser("restore", "Bring a backup back.", RESTORE)
    parser.add_argument("source", type=_absolute, metavar="DIR_IN", help="a backup")
    parser.add_argument("--force", action="store_true", help="move a deployment that is there aside first")
    parser.add_argument(
        "--ledger",
        type=_absolute,
        action="append",
        default=[],
        metavar="PATH",
        help="also the ledger that lay there, a file or a run directory, to there; never over one; again for more",
    )
    given = parser.parse_args(arguments)
    found = restore_backup(given.source, given.dir, force=given.force, ledgers=given.ledger)
    console = Console()
    if given.json:
        console.print_json(json.dumps(_plain(found)))
    else:
        _tell(console, found)
    return REFUSED if found.refused else 0


def _plain(found: Restored) -> dict[str, object]:
    return {
        "directory": str(found.deployment.directory),
        "made": found.manifest.made,
        "nodes": [node.name for node in found.deployment.nodes],
        "aside": None if found.aside is None else str(found.aside),
        "refused_ledgers": [str(place) for place in found.refused],
    }


def _tell(console: Console, found: Restored) -> None:
    lines = [f"{found.deployment.directory} is as it was at {found.manifest.made}"]
    if found.aside is not None:
        lines.append(f"what was there is in {found.aside}: it holds keys, remove it when it is not needed")
    lines += [
        f"{place}: charges were made since (FL603). It can be read, and nothing can be spent from it. With an "
        "authority: `fedlearn ledger recover`; without one, start a new run"
        for place in found.refused
    ]
    lines.append("next: fedlearn up; then fedlearn nodes list, and revoke again who was revoked since")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _parser(name: str, description: str, epilog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"fedlearn {name}", description=description, epilog=epilog)
    parser.add_argument(
        "--dir", type=_absolute, default=default_directory(), help="of the deployment (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="for a machine to read")
    return parser


def _absolute(text: str) -> Path:
    return Path(text).absolute()

"""``fedlearn nodes``: who may be a node of a deployment's SuperLink."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedlearn.errors import OutOfRange
from fedlearn_server.deployment.keys import public_pem, write_node_key
from fedlearn_server.deployment.layout import default_directory
from fedlearn_server.deployment.nodes import ONLINE
from fedlearn_server.deployment.operator import open_control
from fedlearn_server.deployment.records import Deployment, opened
from fedlearn_server.deployment.rotation import add_node, add_remote, revoke_node, rotate_node

CONSOLE_WORDS = "A key that was revoked is refused for ever: whoever returns needs a new one."


def main(arguments: Sequence[str]) -> int:
    """Run one sub-command and return its exit status."""
    given = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace, Console], int] = given.command
    return command(given, Console())


def _list(given: argparse.Namespace, console: Console) -> int:
    deployment = opened(given.dir)
    rows = _rows(deployment)
    if given.json:
        console.print_json(json.dumps(rows))
        return 0
    table = Table("name", "id", "state", "key")
    for row in rows:
        state = f"[green]{ONLINE}[/]" if row["state"] == ONLINE else escape(row["state"])
        table.add_row(escape(row["name"]), row["node_id"], state, row["key"])
    console.print(table)
    return 0


def _rows(deployment: Deployment) -> list[dict[str, str]]:
    """Return every registration; ids as texts, since they have 64 bits."""
    here = {node.node_id for node in deployment.nodes}
    control = open_control(deployment)
    try:
        known = control.nodes()
    finally:
        control.close()
    return [
        {
            "name": node.name,
            "node_id": str(node.node_id),
            "state": node.status,
            "key": "on this machine" if node.node_id in here else "elsewhere",
        }
        for node in sorted(known, key=lambda node: (node.name, node.node_id))
    ]


def _add(given: argparse.Namespace, console: Console) -> int:
    if given.key is not None:
        node_id = str(add_remote(given.dir, given.name, given.key))
        _tell(console, given, {"name": given.name, "node_id": node_id}, f"{given.name} is node {node_id}")
        if not given.json:
            console.print(f"it needs {opened(given.dir).ca} and an address that it reaches", soft_wrap=True)
        return 0
    deployment = add_node(given.dir, given.name)
    node_id = next(str(node.node_id) for node in deployment.nodes if node.name == given.name)
    _tell(console, given, {"name": given.name, "node_id": node_id}, f"{given.name} is node {node_id}, online")
    return 0


def _revoke(given: argparse.Namespace, console: Console) -> int:
    ids = [str(node_id) for node_id in revoke_node(given.dir, given.name)]
    _tell(console, given, {"name": given.name, "revoked": ids}, f"{given.name} is revoked: {', '.join(ids) or 'no id'}")
    return 0


def _rotate(given: argparse.Namespace, console: Console) -> int:
    if given.key is not None:
        new = str(add_remote(given.dir, given.name, given.key, beside=True))
        words = f"{given.name} may come as node {new} too; once it does, `fedlearn nodes revoke` its old id"
        _tell(console, given, {"name": given.name, "node_id": new}, words)
        return 0
    deployment = rotate_node(given.dir, given.name)
    new = next(str(node.node_id) for node in deployment.nodes if node.name == given.name)
    _tell(console, given, {"name": given.name, "node_id": new}, f"{given.name} has a new key and is node {new}, online")
    return 0


def _keygen(given: argparse.Namespace, console: Console) -> int:
    public = given.file.with_name(given.file.name + ".pub")
    for path in (given.file, public):
        if path.exists():
            raise OutOfRange(f"{path}: exists; a key is never overwritten, name another file.")
    try:
        write_node_key(given.file)
        public.write_bytes(public_pem(given.file))
    except OSError as error:
        raise OutOfRange(f"{given.file}: cannot be written ({error}); name a file in a folder that can be.") from error
    console.print(f"private key: {given.file} (stays on this machine)", markup=False, soft_wrap=True)
    console.print(f"public key:  {public} (for `fedlearn nodes add NAME --key`)", markup=False, soft_wrap=True)
    return 0


def _tell(console: Console, given: argparse.Namespace, plain: dict[str, object], words: str) -> None:
    if given.json:
        console.print_json(json.dumps(plain))
    else:
        console.print(escape(words), highlight=False, soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedlearn nodes", description="Who may be a node of this SuperLink.", epilog=CONSOLE_WORDS
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _on_deployment(commands, "list", "every node that is registered", _list)
    add = _on_deployment(commands, "add", "a node with a new key on this machine, or one elsewhere by its key", _add)
    add.add_argument("name", metavar="NAME")
    add.add_argument("--key", type=Path, metavar="PUBLIC.pem", help="public key of a node that runs elsewhere")
    revoke = _on_deployment(commands, "revoke", "a node is one no longer, at once", _revoke)
    revoke.add_argument("name", metavar="NAME", help="of a node, or the id of one registration")
    rotate = _on_deployment(commands, "rotate", "give a node another key; runs go on", _rotate)
    rotate.add_argument("name", metavar="NAME")
    rotate.add_argument("--key", type=Path, metavar="PUBLIC.pem", help="new public key of a node that runs elsewhere")
    keygen = commands.add_parser("keygen", help="a key pair for a node, made where it runs")
    keygen.add_argument("file", type=Path, metavar="FILE", help="private key to write; FILE.pub gets the public one")
    keygen.set_defaults(command=_keygen)
    return parser


def _on_deployment(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    words: str,
    command: Callable[[argparse.Namespace, Console], int],
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=words, description=words[0].upper() + words[1:] + ".")
    parser.add_argument(
        "--dir",
        type=lambda text: Path(text).absolute(),
        default=default_directory(),
        help="of the deployment (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="for a machine to read")
    parser.set_defaults(command=command)
    return parser

"""``fedlearn devices``: which phones are enrolled in a gateway's state, and which are so no longer."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedlearn.errors import OutOfRange
from fedlearn_server.gateway.settings import load_settings
from fedlearn_server.gateway.state import Device, GatewayState

SHOWN_DIGITS = 16


def main(arguments: Sequence[str]) -> int:
    """Run one sub-command and return its exit status."""
    given = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace, GatewayState, Console], int] = given.command
    state = GatewayState.open(_where(given))
    try:
        return command(given, state, Console())
    finally:
        state.disconnect()


def _where(given: argparse.Namespace) -> str:
    if given.settings is not None:
        return load_settings(given.settings).store
    where = str(given.store)
    if "://" not in where and not Path(where).is_file():
        raise OutOfRange(f"--store {where}: no such file; a gateway makes it. Name its `store`.")
    return where


def _list(given: argparse.Namespace, state: GatewayState, console: Console) -> int:
    rows = [_row(device) for device in state.devices() if given.population in {None, device.population}]
    if given.json:
        console.print_json(json.dumps(rows))
        return 0
    table = Table("key", "population", "enrolled", "revoked")
    for row in rows:
        table.add_row(row["key"], escape(str(row["population"])), row["enrolled"], row["revoked"] or "")
    console.print(table)
    return 0


def _row(device: Device) -> dict[str, str | None]:
    return {
        "key": device.key.hex(),
        "population": device.population,
        "enrolled": _time(device.enrolled),
        "revoked": None if device.revoked is None else _time(device.revoked),
    }


def _revoke(given: argparse.Namespace, state: GatewayState, console: Console) -> int:
    named = [device for device in state.devices() if device.key.hex().startswith(given.key)]
    if len(named) != 1 or len(given.key) < SHOWN_DIGITS:
        raise OutOfRange(
            f"KEY {given.key}: begins the key of {len(named)} devices; give {SHOWN_DIGITS} digits or more of one key "
            "that `fedlearn devices list` shows."
        )
    done = state.revoke(named[0].key, time.time())
    key = named[0].key.hex()
    if given.json:
        console.print_json(json.dumps({"key": key, "revoked": done}))
    else:
        words = "is revoked, its tasks too" if done else "was revoked before"
        console.print(f"{key[:SHOWN_DIGITS]}... {words}", highlight=False, soft_wrap=True)
    return 0


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedlearn devices",
        description="Phones in the state that gateways share.",
        epilog="A revoked key is refused from its next request on, for ever; the phone needs a new credential and a "
        "new key. What it contributed to a sum before stays there: single contributions are not kept.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    listed = _on_state(commands, "list", "every phone that was ever enrolled", _list)
    listed.add_argument("--population", metavar="ID", help="only these")
    revoke = _on_state(commands, "revoke", "a phone takes part no longer, at once", _revoke)
    revoke.add_argument("key", metavar="KEY", help=f"its key, or {SHOWN_DIGITS} digits or more of it")
    return parser


def _on_state(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    words: str,
    command: Callable[[argparse.Namespace, GatewayState, Console], int],
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=words, description=words[0].upper() + words[1:] + ".")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--settings", type=Path, metavar="FILE", help="of a gateway that uses the state")
    where.add_argument("--store", metavar="FILE|URL", help="the state itself")
    parser.add_argument("--json", action="store_true", help="for a machine to read")
    parser.set_defaults(command=command)
    return parser

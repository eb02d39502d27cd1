"""``fedlearn ledger``: make a ledger, show it, check it, and decide about its budget."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

from rich.console import Console

from fedlearn.errors import OutOfRange
from fedlearn.files import write_durably
from fedlearn.ledger import LEDGER_FILE, tables
from fedlearn.ledger.budget import budget_lines
from fedlearn.ledger.checkpoint import LedgerCheckpoint
from fedlearn.ledger.export import export_lines
from fedlearn.ledger.ledger import Ledger
from fedlearn.ledger.scope import GateKind, Kind, new_scope
from fedlearn.ledger.signing import make_key_pair, operator_key, read_key, read_public
from fedlearn.ledger.where import Where, open_store
from fedlearn.privacy.events import NeighboringRelation

VERIFIER: Final = Path(__file__).with_name("verifier.py")
REJECTED: Final = 3


def main(arguments: Sequence[str]) -> int:
    """Run one sub-command and return its exit status."""
    parsed = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = parsed.command
    return command(parsed)


def _create(given: argparse.Namespace) -> int:
    authority = None if given.authority_key is None else read_public(given.authority_key)
    scope = new_scope(
        given.population,
        given.epsilon,
        given.delta,
        operator_key().public,
        kind=Kind(given.kind),
        neighboring_relation=NeighboringRelation(given.relation),
        gate=None if given.gate is None else GateKind(given.gate),
        authority_key=authority,
    )
    with Ledger.create(_where(given), scope) as ledger:
        Console().print(f"Made {ledger.name}, ledger {scope.ledger_id}.", markup=False)
        Console().print(f"Operator key: {scope.operator_key}", markup=False, highlight=False)
    return 0


def _keygen(given: argparse.Namespace) -> int:
    public = make_key_pair(given.file)
    Console().print(f"Private key: {given.file} (keep it off this machine)", markup=False)
    Console().print(f"Public key:  {given.file}.pub, {public}", markup=False, highlight=False)
    return 0


def _show(given: argparse.Namespace) -> int:
    with _opened(given, writable=False) as ledger:
        if given.json:
            for row in ledger.rows():
                sys.stdout.write(row.body + "\n")
        else:
            tables.print_entries(ledger, Console())
    return 0


def _budget(given: argparse.Namespace) -> int:
    with _opened(given, writable=False) as ledger:
        lines = budget_lines(ledger.book)
        if given.json:
            sys.stdout.write(json.dumps(tables.budget_json(ledger, lines), indent=2) + "\n")
        else:
            tables.print_budget(ledger, lines, Console())
    return 0


def _verify(given: argparse.Namespace) -> int:
    """Let the verifier that shares no code with us judge an export of the raw rows; then check the anchor."""
    where = _where(given)
    if _is_export(where):  # somebody else's, most often: no anchor of this machine's to check
        status, verdict = _judge(Path(where), given)
        sys.stdout.write(verdict)
        return status
    with closing(open_store(where, writable=False)) as store, tempfile.TemporaryDirectory() as folder:
        export = Path(folder) / "export.jsonl"
        export.write_text("".join(f"{line}\n" for line in export_lines(store.rows())), encoding="ascii")
        status, verdict = _judge(export, given)
    if status == 0:  # what this machine knows may still contradict the record: then nothing says "verified"
        with Ledger.open(where, writable=False) as ledger:
            if given.checkpoint is not None:
                ledger.require(LedgerCheckpoint.from_json(given.checkpoint.read_text(encoding="utf-8")))
            ledger.require_anchor()
    sys.stdout.write(verdict)
    return status


def _judge(export: Path, given: argparse.Namespace) -> tuple[int, str]:
    """Run the verifier on an export; return the command's exit status and what the verifier printed."""
    options = [str(export)]
    for name in ("checkpoint", "operator_key", "authority_key"):
        value = getattr(given, name)
        if value is not None:
            options += [f"--{name.replace('_', '-')}", str(value if name == "checkpoint" else read_public(value))]
    for run in given.run:
        options += ["--run", str(run)]
    options += ["--json"] if given.json else []
    command = [sys.executable, "-X", "utf8", str(VERIFIER), *options]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, encoding="utf-8")  # noqa: S603 - our own file
    return {0: 0, 1: REJECTED}.get(done.returncode, 2), done.stdout


def _is_export(where: Where) -> bool:
    if "://" in str(where) or not Path(where).is_file():
        return False
    with Path(where).open("rb") as file:
        return file.read(1) == b"{"


def _export(given: argparse.Namespace) -> int:
    with _opened(given, writable=False) as ledger:
        text = "".join(f"{line}\n" for line in export_lines(ledger.rows()))
        if given.checkpoint is not None:
            _write(given.checkpoint, ledger.checkpoint().to_json() + "\n")
    if given.out is not None:
        _write(given.out, text)
    elif given.checkpoint is None:
        sys.stdout.write(text)
    return 0


def _grant(given: argparse.Namespace) -> int:
    with _opened(given) as ledger:
        ledger.grant(given.purpose, given.epoch, given.epsilon, read_key(given.authority_key))
        tables.print_budget(ledger, budget_lines(ledger.book), Console())
    return 0


def _recover(given: argparse.Namespace) -> int:
    with _opened(given) as ledger:
        ledger.recover(read_key(given.authority_key), given.reason)
        Console().print(f"{ledger.name}: recovered. What open runs had planned counts as spent.", markup=False)
    return 0


def _opened(given: argparse.Namespace, *, writable: bool = True) -> Ledger:
    return Ledger.open(_where(given), writable=writable)


def _where(given: argparse.Namespace) -> Where:
    where: str = given.ledger
    if "://" not in where and Path(where).is_dir():
        return Path(where) / LEDGER_FILE
    return where


def _write(path: Path, text: str) -> None:
    try:
        write_durably(path, text.encode("ascii"))
    except OSError as error:
        raise OutOfRange(f"{path}: cannot be written ({error}); name a file in a folder that can be.") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fedlearn ledger", description="Make, show and check a privacy ledger.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    keygen = commands.add_parser("keygen", help="a key pair for an authority that grants quotas and recoveries")
    keygen.add_argument("file", type=Path, help="private key to write; FILE.pub gets the public one")
    keygen.set_defaults(command=_keygen)

    create = _on_ledger(commands, "create", "a ledger that several runs share", _create)
    create.add_argument("--population", required=True, help="whose data, in words")
    create.add_argument("--epsilon", type=float, required=True, help="cap over everything that is ever spent")
    create.add_argument("--delta", type=float, required=True)
    create.add_argument("--kind", choices=[*Kind], default=Kind.SIMULATED.value)
    create.add_argument("--relation", choices=[*NeighboringRelation], default=NeighboringRelation.ADD_OR_REMOVE.value)
    create.add_argument("--gate", choices=[*GateKind], help="default: zcdp for zero_out, else rdp")
    create.add_argument("--authority-key", help="public key that signs grants: the .pub file or its 64 digits")

    show = _on_ledger(commands, "show", "its entries", _show)
    show.add_argument("--json", action="store_true", help="for a machine to read")
    budget = _on_ledger(commands, "budget", "cap, quotas, what is reserved, spent and left", _budget)
    budget.add_argument("--json", action="store_true", help="for a machine to read")

    verify = _on_ledger(commands, "verify", "check it with a verifier that shares no code with this package", _verify)
    verify.add_argument("--checkpoint", type=Path, help="signed checkpoint that you kept")
    verify.add_argument("--operator-key", help="the operator's public key, got out of band")
    verify.add_argument("--authority-key", help="the authority's public key, got out of band")
    verify.add_argument("--run", type=Path, action="append", default=[], metavar="DIR", help="run directory to compare")
    verify.add_argument("--json", action="store_true", help="for a machine to read")

    export = _on_ledger(commands, "export", "JSON lines, for a verifier on another machine", _export)
    export.add_argument("--out", type=Path, help="file to write; without it, to the standard output")
    export.add_argument("--checkpoint", type=Path, help="also write a signed checkpoint, to be kept elsewhere")

    grant = _on_ledger(commands, "grant", "a quota for (purpose, epoch), or its renewal", _grant)
    grant.add_argument("--purpose", required=True)
    grant.add_argument("--epoch", required=True)
    grant.add_argument("--epsilon", type=float, required=True)
    grant.add_argument("--authority-key", type=Path, required=True, help="private key file")

    recover = _on_ledger(commands, "recover", "make an older copy usable; all that was planned is spent", _recover)
    recover.add_argument("--authority-key", type=Path, required=True, help="private key file")
    recover.add_argument("--reason", required=True, help="what happened, for the record")
    return parser


def _on_ledger(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    words: str,
    command: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=words, description=words[0].upper() + words[1:] + ".")
    places = f"file, {'export, ' if name == 'verify' else ''}run directory, or postgresql://USER@HOST/DATABASE"
    parser.add_argument("ledger", metavar="LEDGER", help=places)
    parser.set_defaults(command=command)
    return parser

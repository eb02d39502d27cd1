"""The ``fedlearn`` command: thin, finds its sub-commands by entry points, imports them late.

A distribution adds a sub-command with an entry point in the group ``fedlearn.commands`` that names a function
``(arguments: Sequence[str]) -> int`` (its exit status). Exit status: 0 done, 1 a run or round failed (an
audit warns, a published figure is not reproduced), 2 bad input, 3 refused by the privacy budget, the ledger or
a signature (an audit alarms, a record is rejected), 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points

from fedlearn import __version__
from fedlearn.errors import (
    ConfigError,
    DataError,
    FedlearnError,
    LedgerError,
    MissingDependency,
    PolicyInvalid,
    PrivacyError,
    ResumeRefused,
    RunDirectoryInUse,
    RunInterrupted,
    TrustError,
)

COMMANDS = "fedlearn.commands"
EXIT_INTERRUPTED = 130

SUMMARIES = {
    "train": "train from a config: fedlearn train experiment=city_quick",
    "resume": "go on with an interrupted run: fedlearn resume RUN",
    "compare": "table and plot of several runs: fedlearn compare RUN...",
    "list": "what is available: data sets, models, metrics, experiments",
    "init": "copy an editable set of configs: fedlearn init DIR",
    "plan": "what a guarantee costs before anything is trained: noise, choices, days",
    "audit": "does the private path leak more than is claimed? canaries and probes",
    "policy": "write, check, sign and show the rules of a population: fedlearn policy lint FILE",
    "export": "signed task bundle for phones from a run",
    "credentials": "what a phone maker gives phones so that they can enrol",
    "demo-fleet": "phones, gateways and SuperLink on this machine: a training from enrolment to the verified ledger",
    "devices": "list and revoke the phones of a population",
    "gateway": "where phones bring their contributions, in the foreground",
    "swarm": "many phones in one process, against real gateways",
    "demo-device": "a phone on this machine: consent, a ranking, a night, a withdrawal",
    "ledger": "make, show and check a privacy ledger: fedlearn ledger verify RUN",
    "up": "start a SuperLink with TLS and resident nodes on this machine",
    "status": "what of SuperLink and its nodes is running, which runs there are, what has to be done",
    "down": "stop the SuperLink and the nodes that `fedlearn up` started",
    "nodes": "list, add, revoke and rotate the nodes of a SuperLink",
    "proxy": "an nginx config that shows nodes of a SuperLink what they need, and nothing else",
    "backup": "copy a deployment: database, keys, certificates, ledgers",
    "restore": "bring back a deployment that `fedlearn backup` copied",
    "node": "a resident node of a SuperLink, in the foreground",
    "bench": "measurements as ratios inside one run",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command and return its exit status; expected errors print one line, never a traceback."""
    # Flower reports usage to its vendor unless told not to before its first import.
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    commands = {point.name: point for point in entry_points(group=COMMANDS)}
    given = list(sys.argv[1:] if arguments is None else arguments)
    parsed = _parser(commands).parse_args(given[:1])
    try:
        return _load(commands[parsed.command])(given[1:])
    except FedlearnError as error:
        print(f"error {error.code}: {error}", file=sys.stderr)  # noqa: T201 - the command's own output
        return exit_status(error)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def exit_status(error: FedlearnError) -> int:
    """Return the process exit status that stands for ``error``."""
    if isinstance(error, RunInterrupted):
        return EXIT_INTERRUPTED
    if isinstance(error, ConfigError | DataError):
        return 2
    if isinstance(error, RunDirectoryInUse | ResumeRefused):
        return 2
    if isinstance(error, PolicyInvalid):
        return 2
    return 3 if isinstance(error, PrivacyError | LedgerError | TrustError) else 1


def _parser(commands: dict[str, EntryPoint]) -> argparse.ArgumentParser:
    known = "\n".join(f"  {name:<12}{SUMMARIES.get(name, '')}".rstrip() for name in sorted(commands))
    parser = argparse.ArgumentParser(
        prog="fedlearn",
        description="Federated learning for cross-app signals.",
        epilog=f"commands:\n{known}\n\nfedlearn COMMAND --help says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("command", choices=sorted(commands), metavar="COMMAND")
    return parser


def _load(point: EntryPoint) -> Callable[[Sequence[str]], int]:
    try:
        command: Callable[[Sequence[str]], int] = point.load()
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"`fedlearn {point.name}` needs the package {error.name!r}: pip install 'fedlearn[lab]'."
        ) from error
    return command

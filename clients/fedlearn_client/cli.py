"""The ``fedlearn-device`` command: runs the daemon, and talks to one as any other caller would.

Exit status: 0 done, 1 failed (nobody answers, the worker died), 2 bad input, 3 refused (caller, consent, signature,
policy, budget, store), 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fedlearn import __version__
from fedlearn.errors import ConfigError, FedlearnError, UnknownSetting
from fedlearn_client.commands.arguments import PROGRAM, Parser, exit_status

EXIT_INTERRUPTED: Final = 130

COMMANDS: Final = {
    "serve": "run the daemon until it is told to stop",
    "status": "what is installed, and why no round runs now",
    "install": "install a signed task or catalogue bundle, or a newer signed status",
    "consent": "list the switches, grant, withdraw (settings screen only)",
    "push": "hand over signals from a file of JSON lines",
    "import": "read your own chat export: show what would be kept and what would leave; store no text",
    "recommend": "a ranking, as the calling app would get it",
    "train-now": "one local round now, if everything allows it",
    "pause": "stop training and uploads, or go on",
    "log": "what the phone did and what left it",
    "conformance": "does an implementation of the contract behave and compute as it must?",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; every error prints one line, never a traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    _write_whatever_the_terminal_has()
    try:
        status = _run(given)
        if sys.stdout is not None:
            sys.stdout.flush()  # a closed pipe shows here, not when the process has ended
    except FedlearnError as error:
        _say(f"error {error.code}: {error}")
        return exit_status(error)
    except BrokenPipeError:
        _discard_output()
        return 1
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as error:  # noqa: BLE001 - its message, and a traceback's, could quote what the owner wrote
        import traceback  # noqa: PLC0415 - only now

        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        why = f"{type(error).__name__}{f', {error.strerror}' if isinstance(error, OSError) else ''}"
        _say(f"error FL000: cannot go on ({why} at {where}); if disk and memory are not full, please report it.")
        _discard_output()  # where it cannot be written, it must not be tried again
        return 1
    return status


def _run(given: list[str]) -> int:
    if given and not given[0].startswith("-") and given[0] not in COMMANDS:
        import difflib  # noqa: PLC0415 - only now

        near = difflib.get_close_matches(given[0], COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}."
        raise UnknownSetting(f"COMMAND={given[0]}: no such command; {hint}")
    if not given or (given[0].startswith("-") and given[0] not in {"-h", "--help", "--version"}):
        raise ConfigError(f"COMMAND: name one, and options after it; `{PROGRAM} --help` lists them.")
    parsed = _parser().parse_args(given[:1])
    # late: a command loads only what it needs
    module = importlib.import_module(f"fedlearn_client.commands.{parsed.command.replace('-', '_')}_command")
    return int(module.main(given[1:]))


def _parser() -> Parser:
    known = "\n".join(f"  {name:<13}{summary}" for name, summary in COMMANDS.items())
    parser = Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} COMMAND ...",
        description="The fedlearn runtime of one phone.",
        epilog=f"commands:\n{known}\n\n{PROGRAM} COMMAND --help says more.\n\n"
        "exit status: 0 done, 1 failed, 2 bad input, 3 refused, 130 interrupted",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("command", choices=list(COMMANDS), metavar="COMMAND", help="options of a command follow it")
    return parser


def _write_whatever_the_terminal_has() -> None:
    """A terminal that cannot show a character shows its number instead: item names are of any language."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _say(line: str) -> None:
    try:
        print(" ".join(line.split()), file=sys.stderr, flush=True)  # noqa: T201 - the command's own output
    except OSError:  # nobody hears it; the exit status still says it
        _discard_output()


def _discard_output() -> None:
    """Nobody reads any more: what is still buffered must not raise again when the interpreter ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            os.dup2(nowhere, stream.fileno())
        except (OSError, ValueError):  # no file behind it
            continue
    os.close(nowhere)

"""The ``fedlearn-device`` command: runs the daemon, and talks to one as any other caller would.

Exit status: 0 done, 1 failed, 2 bad input, 3 refused (caller, consent, policy, budget, store), 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Final

from fedlearn import __version__
from fedlearn.errors import ConfigError, DeviceError, FedlearnError, SignalRefused, TrustError

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
    """Run one command and return its exit status; expected errors print one line, never a traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parsed = _parser().parse_args(given[:1])
    # late: a command loads only what it needs
    module = importlib.import_module(f"fedlearn_client.commands.{parsed.command.replace('-', '_')}_command")
    try:
        return int(module.main(given[1:]))
    except FedlearnError as error:
        print(f"error {error.code}: {error}", file=sys.stderr)  # noqa: T201 - the command's own output
        return exit_status(error)
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def exit_status(error: FedlearnError) -> int:
    """Return the process exit status that stands for ``error``."""
    if isinstance(error, ConfigError | SignalRefused):
        return 2
    return 3 if isinstance(error, TrustError | DeviceError) else 1


def _parser() -> argparse.ArgumentParser:
    known = "\n".join(f"  {name:<13}{summary}" for name, summary in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="fedlearn-device",
        description="The fedlearn runtime of one phone.",
        epilog=f"commands:\n{known}\n\nfedlearn-device COMMAND --help says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("command", choices=sorted(COMMANDS), metavar="COMMAND")
    return parser

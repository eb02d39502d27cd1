"""``fedlearn-device serve``."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedlearn.errors import ConfigError
from fedlearn_client.commands.arguments import parser
from fedlearn_client.commands.example_settings import EXAMPLES
from fedlearn_client.settings import Settings, load_settings


def main(arguments: Sequence[str]) -> int:
    """Run the daemon with the Linux hooks until SIGTERM or Ctrl-C; or print an example of a file it needs."""
    made = parser("serve", "Run the daemon until SIGTERM or Ctrl-C. It prints one line when it serves.")
    made.add_argument("--settings", type=Path, metavar="FILE", help="TOML; see --example")
    made.add_argument(
        "--example", choices=list(EXAMPLES), help="print a commented settings file, or callers file, and serve nothing"
    )
    made.add_argument(
        "--conformance", action="store_true", help="also answer the conformance kit's numbers; for test builds only"
    )
    given = made.parse_args(arguments)
    if given.example is not None:
        print(EXAMPLES[given.example], end="")  # noqa: T201 - the command's own output
        return 0
    if given.settings is None:
        raise ConfigError("--settings: name a settings file; `fedlearn-device serve --example settings` prints one.")
    settings = load_settings(given.settings)
    settings = replace(settings, conformance=settings.conformance or given.conformance)
    _serve(settings)
    return 0


def _serve(settings: Settings) -> None:
    from fedlearn_client.daemon import linux_hooks, serve  # noqa: PLC0415 - an example needs no daemon

    words = f"serving unix:{settings.socket}, store in {settings.directory}"
    if settings.gateway:
        words += f", uplink to {', '.join(settings.gateway)}"
    if settings.conformance:
        words += "; CONFORMANCE: whoever reaches the socket may ask for numbers"
    if settings.allow_weak_sandbox:
        words += "; WEAK SANDBOX ALLOWED: for development only"

    def say() -> None:
        with contextlib.suppress(OSError):  # nobody reads it: no reason to stop
            print(words, flush=True)  # noqa: T201 - the command's own output; may be waited for

    serve(settings, linux_hooks(settings), say)

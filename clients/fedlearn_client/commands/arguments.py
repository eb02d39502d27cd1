"""How the commands read their arguments (what is wrong with them is one line), and what an exit status says."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Final, NoReturn

from fedlearn.errors import (
    ConfigError,
    DeviceError,
    FedlearnError,
    SignalRefused,
    TransportFailed,
    TrustError,
    WorkerFailed,
)

PROGRAM: Final = "fedlearn-device"


class Parser(argparse.ArgumentParser):
    """Raises ConfigError where argparse would print its usage and end the process."""

    def error(self, message: str) -> NoReturn:
        command = self.prog.removeprefix(PROGRAM).strip()
        raise ConfigError(f"{f'{command}: ' if command else ''}{message}; `{self.prog} --help` says more.")


def parser(name: str, description: str) -> Parser:
    """Return a sub-command's parser."""
    return Parser(prog=f"{PROGRAM} {name}", description=description, allow_abbrev=False)


def whole(least: int, most: int) -> Callable[[str], int]:
    """Return a reader of whole numbers in ``least..most``."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"must be a whole number in {least}..{most}")
        return number

    return read


def exit_status(error: FedlearnError) -> int:
    """Return the process exit status that stands for ``error``."""
    if isinstance(error, ConfigError | SignalRefused):
        return 2
    if isinstance(error, TransportFailed | WorkerFailed):
        return 1
    return 3 if isinstance(error, TrustError | DeviceError) else 1

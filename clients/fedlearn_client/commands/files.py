"""Files named on the command line."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fedlearn.errors import ConfigError


@contextmanager
def opened(path: Path, most_bytes: int, field: str) -> Iterator[BinaryIO]:
    """Yield a regular file, open for reading.

    Args:
        path: where it lies.
        most_bytes: a larger one is refused before it is read.
        field: name of the argument, for the message.

    Raises:
        ConfigError: it cannot be opened or read, is no regular file, or is too large.
    """
    try:
        # a pipe that nobody writes to must not be waited for
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                raise ConfigError(f"{field}={path}: not a regular file; name a file.")
            if found.st_size > most_bytes:
                raise ConfigError(f"{field}={path}: {found.st_size} bytes; at most {most_bytes}.")
            yield file
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else type(error).__name__
        raise ConfigError(f"{field}={path}: cannot be read ({why}).") from None


def contents(path: Path, most_bytes: int, field: str) -> bytes:
    """Return what a file holds; raises as ``opened``."""
    with opened(path, most_bytes, field) as file:
        return file.read(most_bytes)


def leave_no_core() -> None:
    """What the owner wrote is in this process now: should it crash, no core file is left behind."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

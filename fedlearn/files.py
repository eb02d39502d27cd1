"""Files: where those live that outlive a run directory, and how one is replaced so that a crash loses nothing.

The only importer of platformdirs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from fedlearn.errors import MissingDependency

APPLICATION: Final = "fedlearn"
CACHE_VARIABLE: Final = "FEDLEARN_CACHE"
STATE_VARIABLE: Final = "FEDLEARN_STATE"


def cache_directory() -> Path:
    """Return the directory for what can be computed again: $FEDLEARN_CACHE, else the user's cache directory."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen)
    try:
        from platformdirs import user_cache_path  # noqa: PLC0415  # optional
    except ImportError as error:
        raise _missing(CACHE_VARIABLE) from error
    return user_cache_path(APPLICATION)


def state_directory() -> Path:
    """Return the directory for secret state: $FEDLEARN_STATE, else the user's state directory."""
    chosen = os.environ.get(STATE_VARIABLE)
    if chosen:
        return Path(chosen)
    try:
        from platformdirs import user_state_path  # noqa: PLC0415  # optional
    except ImportError as error:
        raise _missing(STATE_VARIABLE) from error
    return user_state_path(APPLICATION)


def sync_directory(directory: Path) -> None:
    """Make a rename or link inside ``directory`` survive a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_durably(path: Path, data: bytes) -> None:
    """Replace ``path`` so that a crash, or a power cut, leaves either the old content or the new.

    Raises:
        OSError: the system's, always with the name of a file: a full disk has none in its own words.
    """
    partial = path.with_name(path.name + ".part")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _missing(variable: str) -> MissingDependency:
    return MissingDependency(f"Set {variable} to a directory, or: pip install 'fedlearn[privacy]'")

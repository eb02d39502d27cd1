"""Files that only their owner may read: made whole or not at all, replaced durably, overwritten before they go.

A journaling file system or an SSD may keep older copies of a block; encrypt the disk against that.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from typing import Final

from fedlearn.errors import PrivacyError
from fedlearn.files import sync_directory

_SUFFIX_DIGITS: Final = 16
_ZEROS: Final = bytes(1 << 16)


def make_private_directory(directory: Path) -> None:
    """Make a directory that its owner alone can enter."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)


def create_private(path: Path, content: bytes) -> None:
    """Make a file of mode 0600, durable on return, unless there is one: of two that start at once, one wins for both.

    Raises:
        PrivacyError: the file system knows no hard links.
    """
    temporary = _written_aside(path, content)
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        pass
    except OSError as error:
        raise PrivacyError(f"{path}: cannot be made ({error}); set FEDLEARN_STATE to a local disk.") from error
    finally:
        temporary.unlink()
    sync_directory(path.parent)


def replace_private(path: Path, content: bytes) -> None:
    """Replace a file of mode 0600: a crash, or a power cut, leaves either the old content or the new."""
    _written_aside(path, content).replace(path)
    sync_directory(path.parent)


def read_private(path: Path) -> bytes:
    """Return a file's content.

    Raises:
        PrivacyError: others can read it.
        FileNotFoundError: there is none.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        _require_mode(path, os.fstat(file.fileno()))
        return file.read()


def require_private(path: Path) -> Path:
    """Return the path of a file that its owner alone can read; raises what ``read_private`` raises."""
    _require_mode(path, path.lstat())
    return path


def _require_mode(path: Path, status: os.stat_result) -> None:
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise PrivacyError(f"{path}: mode {mode:o} lets others read a secret; it must be 600.")


def destroy_private(path: Path) -> None:
    """Overwrite and remove a file; does nothing if there is none.

    Killed inside, it leaves the file either whole or gone, never damaged; what is left under another name,
    ``clear_leftovers`` removes.
    """
    if path.exists():
        path.rename(_other_name(path))
        sync_directory(path.parent)
    clear_leftovers(path)


def clear_leftovers(path: Path) -> None:
    """Overwrite and remove copies of a file under other names: being made or destroyed when a process was killed."""
    for left in path.parent.glob(f".{path.name}.{'[0-9a-f]' * _SUFFIX_DIGITS}"):
        handle = os.open(left, os.O_WRONLY | os.O_NOFOLLOW)
        try:
            status = os.fstat(handle)
            if status.st_nlink == 1:  # else it is the file itself, linked and not yet unlinked
                _write(handle, _ZEROS, status.st_size)
                os.fsync(handle)
        finally:
            os.close(handle)
        left.unlink(missing_ok=True)
        sync_directory(path.parent)


def _written_aside(path: Path, content: bytes) -> Path:
    temporary = _other_name(path)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        _write(handle, content, len(content))
        os.fsync(handle)
    finally:
        os.close(handle)
    return temporary


def _write(handle: int, content: bytes, size: int) -> None:
    """Write ``size`` bytes, over and over those of ``content``."""
    view, written = memoryview(content), 0
    while written < size:
        start = written % len(view)
        written += os.write(handle, view[start : start + size - written])


def _other_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(_SUFFIX_DIGITS // 2)}")

"""Where the parts of a deployment lie, and the lock that lets one command at a time change them."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedlearn.errors import DeploymentRefused
from fedlearn.files import state_directory, write_durably

RECORD: Final = "deployment.json"
LOCK: Final = ".lock"
LOCK_WAIT_S: Final = 120.0
_LOCK_POLL_S: Final = 0.1


def default_directory() -> Path:
    """Return where `fedlearn up` keeps its deployment unless told otherwise."""
    return state_directory() / "superlink"


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of a deployment.

    Args:
        directory: mode 0700: SuperLink's database holds sums without noise, delivered ones too, until its files are
            overwritten.
    """

    directory: Path

    @property
    def record(self) -> Path:
        """What was started."""
        return self.directory / RECORD

    @property
    def certificates(self) -> Path:
        """Directory of the authority's and SuperLink's certificates and keys."""
        return self.directory / "certs"

    @property
    def ca(self) -> Path:
        """The authority's certificate: what a node needs to know SuperLink."""
        return self.certificates / "ca.crt"

    @property
    def operator_token(self) -> Path:
        """What an operator must know to start runs and register nodes."""
        return self.directory / "operator.token"

    @property
    def database(self) -> Path:
        """SuperLink's."""
        return self.directory / "superlink" / "state.db"

    @property
    def superlink_log(self) -> Path:
        """What SuperLink and its ServerApps write."""
        return self.directory / "superlink" / "superlink.log"

    @property
    def flower_home(self) -> Path:
        """Flower's own files, kept out of the user's home."""
        return self.directory / "flwr-home"

    def node(self, name: str) -> Path:
        """Return a node's directory."""
        return self.directory / "nodes" / name

    def node_key(self, name: str) -> Path:
        """Return a node's private key."""
        return self.node(name) / "key.pem"

    def node_identity(self, name: str) -> Path:
        """Return the file with the id that SuperLink gave a node."""
        return self.node(name) / "node.json"

    def node_status(self, name: str) -> Path:
        """Return the file in which a node says how it is."""
        return self.node(name) / "status.json"

    def node_log(self, name: str) -> Path:
        """Return a node's log."""
        return self.node(name) / "node.log"


def claim(directory: Path) -> Layout:
    """Make ``directory`` if there is none, closed to other users.

    Raises:
        DeploymentRefused: it holds something else, belongs to another user, or is no directory.
    """
    if directory.exists():
        _require_ours(directory)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    return Layout(directory)


def make_private(directory: Path) -> None:
    """Make a directory that only this user can enter."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)


def write_private(path: Path, data: bytes) -> None:
    """Replace a file durably so that at no moment anybody else can read it."""
    before = os.umask(0o077)
    try:
        write_durably(path, data)
    finally:
        os.umask(before)


@contextmanager
def locked(layout: Layout, wait_s: float = LOCK_WAIT_S) -> Iterator[None]:
    """Hold a deployment; wait for another command that holds it.

    Raises:
        DeploymentRefused: it is still held after ``wait_s`` seconds.
    """
    handle = os.open(layout.directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _take(handle, layout.directory, time.monotonic() + wait_s)
        yield
    finally:
        os.close(handle)


def _take(handle: int, directory: Path, until: float) -> None:
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise DeploymentRefused(
                    f"{directory}: another `fedlearn up` or `fedlearn down` works on it; try again when it has ended."
                ) from None
            time.sleep(_LOCK_POLL_S)
        else:
            return


def _require_ours(directory: Path) -> None:
    if not directory.is_dir():
        raise DeploymentRefused(f"--dir {directory}: not a directory; name another one.")
    if directory.stat().st_uid != os.getuid():
        raise DeploymentRefused(f"--dir {directory}: belongs to another user; name a directory of your own.")
    found = {entry.name for entry in directory.iterdir()}
    if found - {LOCK, RECORD + ".part"} and RECORD not in found:
        raise DeploymentRefused(
            f"--dir {directory}: holds files, but no deployment ({RECORD}); name an empty directory or a new one."
        )

"""The sources of a release: what git has, in a folder of its own, with the time of its commit."""

from __future__ import annotations

import subprocess
import tarfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from fedlearn.errors import OutOfRange


@dataclass(frozen=True, slots=True)
class Source:
    """Where a release comes from.

    Args:
        commit: git's id of it.
        epoch: time of the commit, seconds since 1970: the only time in what is built.
        dirty: files beside or other than those of the commit; () for a release.
    """

    commit: str
    epoch: int
    dirty: tuple[str, ...] = ()


def read_source(root: Path, *, allow_dirty: bool = False) -> Source:
    """Return what is checked out at ``root``.

    Raises:
        OutOfRange: files differ from the commit, or ``root`` is no git checkout.
    """
    changed = tuple(line[3:] for line in _git(root, "status", "--porcelain").decode().splitlines())
    if changed and not allow_dirty:
        shown = ", ".join(changed[:3]) + (", ..." if len(changed) > 3 else "")
        raise OutOfRange(f"{len(changed)} files are not as committed ({shown}): commit them, a release names a commit.")
    commit, epoch = _git(root, "log", "-1", "--format=%H %ct").decode().split()
    return Source(commit, int(epoch), changed)


def export(root: Path, source: Source, folder: Path) -> None:
    """Write the sources into an empty folder: the commit's; where it is dirty, the files that lie there."""
    folder.mkdir(parents=True)
    if not source.dirty:
        with tarfile.open(fileobj=BytesIO(_git(root, "archive", "--format=tar", source.commit))) as archive:
            archive.extractall(folder, filter="data")
        return
    listed = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard").decode()
    for name in filter(None, listed.split("\0")):
        if (root / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((root / name).read_bytes())


def _git(root: Path, *arguments: str) -> bytes:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, check=False, timeout=120)
    if done.returncode:
        raise OutOfRange(f"{root}: git {arguments[0]} failed ({done.stderr.decode().strip()}); use a git checkout.")
    return done.stdout

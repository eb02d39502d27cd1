"""Wheels and sdists, built twice as differently as one machine allows, and taken only if they are the same bytes."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from fedlearn.errors import TrustError

FOLDERS: Final = {"fedlearn": ".", "fedlearn-client": "clients", "fedlearn-server": "server"}
"""Distribution -> its folder in the sources."""
BUILD_S: Final = 300

_FIRST: Final = {"TZ": "UTC", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "1"}
_SECOND: Final = {"TZ": "Asia/Kathmandu", "LC_ALL": "C", "PYTHONHASHSEED": "2"}


def build_twice(
    export: Callable[[Path], None], folder: Path, epoch: int, distributions: Mapping[str, str] = FOLDERS
) -> Path:
    """Return a folder of distributions that come out the same from two builds.

    The builds differ in folder, file modes, time zone, language and hash seed; and the first makes each wheel from the
    sources, the second from the sdist.

    Args:
        export: writes the sources into a folder that it makes.
        folder: to work in; the caller removes it.
        epoch: SOURCE_DATE_EPOCH.
        distributions: name -> folder in the sources.

    Raises:
        TrustError: the builds differ, or one failed; the message names the file.
    """
    made: list[Path] = []
    for name, environment, umask in (("a", _FIRST, 0o022), ("b/elsewhere/deeper", _SECOND, 0o077)):
        sources, out = folder / name / "sources", folder / name / "out"
        before = os.umask(umask)
        try:
            export(sources)
            for place in distributions.values():
                _build(sources / place, out, {**environment, "SOURCE_DATE_EPOCH": str(epoch)}, whole=not made)
        finally:
            os.umask(before)
        made.append(out)
    require_equal(*made)
    return made[0]


def require_equal(first: Path, second: Path) -> None:
    """Raise TrustError unless two folders hold the same files, byte by byte."""
    left, right = digests(first), digests(second)
    differing = sorted(name for name in {*left, *right} if left.get(name) != right.get(name))
    if differing:
        raise TrustError(
            f"{', '.join(differing)}: two builds of the same sources differ; find what of the machine gets in "
            f"({first}, {second})."
        )


def digests(folder: Path) -> dict[str, str]:
    """Return path -> SHA-256 (hex) of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _build(project: Path, out: Path, environment: Mapping[str, str], *, whole: bool) -> None:
    """Build sdist and wheel; ``whole``: both from the sources, else the wheel from the sdist."""
    command = [sys.executable, "-m", "build", "--no-isolation", *(("--sdist", "--wheel") if whole else ())]
    done = subprocess.run(
        [*command, "--outdir", str(out), str(project)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=BUILD_S,
    )
    if done.returncode:
        raise TrustError(f"{project}: cannot be built: {(done.stdout + done.stderr).strip()[-500:]}")


def take(made: Path, release: Path) -> None:
    """Copy what was built to where a release is put together."""
    for path in sorted(made.iterdir()):
        shutil.copyfile(path, release / path.name)

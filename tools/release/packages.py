"""Metadata of the packages that something needs, in an environment that holds nothing else.

What lists packages and licences reads metadata only, so nothing is installed or downloaded: the metadata of each
package is copied from where it is installed and tested, our own from the wheels.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fedlearn.errors import MissingDependency


def closure(wanted: str) -> set[str]:
    """Return the names of everything that a requirement needs here, itself included, by what is installed.

    Raises:
        MissingDependency: a package that it needs is not installed, so that the list would lack it.
    """
    pending, seen = [Requirement(wanted)], set[tuple[str, str]]()
    while pending:
        requirement = pending.pop()
        for extra in ("", *requirement.extras):
            if (requirement.name, extra) in seen:
                continue
            seen.add((requirement.name, extra))
            try:
                lines = distribution(requirement.name).requires or []
            except PackageNotFoundError:
                raise MissingDependency(f"{wanted}: needs {requirement.name}, which is not installed here.") from None
            needed = map(Requirement, lines)
            pending += [need for need in needed if need.marker is None or need.marker.evaluate({"extra": extra})]
    return {canonicalize_name(name) for name, _ in seen}


def environment(folder: Path, names: Iterable[str], wheels: Mapping[str, Path]) -> Path:
    """Make an environment of metadata in a new folder and return its python.

    Args:
        folder: to make.
        names: of packages that are installed here.
        wheels: name -> wheel, for those that are in ``names`` and ours.
    """
    python = bare(folder)
    site = site_of(folder)
    for name in sorted(set(names)):
        if name in wheels:
            with zipfile.ZipFile(wheels[name]) as archive:
                archive.extractall(site, [inner for inner in archive.namelist() if ".dist-info/" in inner])
            continue
        for file in distribution(name).files or ():
            if ".dist-info" in file.parts[0]:
                target = site / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(Path(str(file.locate())), target)
    return python


def bare(folder: Path) -> Path:
    """Make an environment without any package and return its python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
    return folder / "bin" / "python"


def site_of(folder: Path) -> Path:
    """Return where an environment keeps its packages."""
    return next((folder / "lib").glob("python3*")) / "site-packages"

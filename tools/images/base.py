"""The base image of the test: this machine's own distribution, made by debootstrap and imported. Nothing is pulled."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Final

from fedlearn.errors import RunError
from tools.images.daemon import Docker

NAME: Final = "fedlearn-test-base:local"
INCLUDE: Final = "ca-certificates,python3,python3-venv"
BOOTSTRAP_S: Final = 1200


def import_base(docker: Docker, folder: Path) -> str:
    """Return the name of a base image of this machine's Debian release with its Python 3.11.

    Args:
        docker: of the daemon that gets it.
        folder: for the root file system; what is there is used again.

    Raises:
        RunError: debootstrap failed, or this is no Debian.
    """
    if docker.run("docker", "images", "--quiet", NAME).strip():
        return NAME
    root, done = folder / "root", folder / "root.done"
    if not done.exists():
        codename = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
        command = ["debootstrap", "--variant=minbase", f"--include={INCLUDE}", codename, str(root), _mirror(codename)]
        _checked(command, BOOTSTRAP_S)
        done.touch()
    archive = folder / "root.tar"
    try:
        _checked(["tar", "-C", str(root), "-cf", str(archive), "."], BOOTSTRAP_S)
        docker.run("docker", "import", str(archive), NAME)
    finally:
        archive.unlink(missing_ok=True)
    return NAME


def _mirror(codename: str) -> str:
    """Return where apt gets this release from; it is in its settings, and in no file of ours."""
    wanted = ("Created-By: Packages", f"Codename: {codename}", "Component: main")
    lines = _checked(["apt-get", "indextargets", "--format", "$(REPO_URI)", *wanted], 60).split()
    if not lines:
        raise RunError(
            f"apt has no source of {codename!r} on this machine; add one to its sources, or change CODENAME."
        )
    return lines[0]


def _checked(command: list[str], timeout_s: float) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s)
    if done.returncode:
        raise RunError(f"{command[0]}: exit status {done.returncode}: {(done.stdout + done.stderr).strip()[-1000:]}")
    return done.stdout

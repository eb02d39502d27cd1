"""``python -m tools.images``: lints, builds four images from an imported base and runs a fleet; never pulls a base."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console

from fedlearn.errors import FedlearnError, MissingDependency, RunError
from tools.images.base import import_base
from tools.images.build import FORBIDDEN, ROOT, build_images, check_image, write_image_inventory
from tools.images.daemon import building, networked, require_programs
from tools.images.fleet import Fleet, Say
from tools.images.pip_settings import build_secrets, installed_settings
from tools.release.sources import read_source

OUT: Final = ROOT / "build" / "images"
NEVER_PULLED: Final = "Public base images are never pulled here: only an imported one, given as ARG BASE, is tested."


def main(arguments: Sequence[str]) -> int:
    """Build and run everything; 0 if all of it holds, 1 with the step that failed."""
    parser = argparse.ArgumentParser(prog="python -m tools.images", description="Build the images and run a fleet.")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="for daemon and base image; kept (default: removed)")
    given = parser.parse_args(arguments)
    started = time.monotonic()
    console = Console(highlight=False, soft_wrap=True)

    def say(words: str) -> None:
        console.print(f"[{time.monotonic() - started:4.0f} s] {words}", markup=False)

    try:
        require_programs()
        _lint()
        say(NEVER_PULLED)
        with tempfile.TemporaryDirectory(prefix="fedlearn-images-") as made:
            folder = Path(made) if given.folder is None else given.folder.absolute()
            _images(folder, Path(made), say)
            with networked(folder / "docker") as docker:
                Fleet(docker, Path(made) / "settings", say).check()
    except FedlearnError as error:
        Console(stderr=True).print(f"error {error.code}: {error}", markup=False, highlight=False, soft_wrap=True)
        return 1
    say("images and fleet: all of it holds")
    return 0


def _lint() -> None:
    program = Path(sys.executable).parent / "hadolint"
    if not program.exists():
        raise MissingDependency("hadolint is not installed: pip install -c constraints.txt -e .[release]")
    done = subprocess.run([str(program), str(ROOT / "docker" / "Dockerfile")], check=False, timeout=60)
    if done.returncode:
        raise RunError("docker/Dockerfile: hadolint has something to say.")


def _images(folder: Path, work: Path, say: Say) -> None:
    epoch = read_source(ROOT, allow_dirty=True).epoch
    secret = work / "secrets"
    secret.mkdir(mode=0o700)
    with building(folder / "docker") as docker:
        say("base image: debootstrap and import")
        base = import_base(docker, folder)
        with build_secrets(secret, installed_settings()) as secrets:
            say("building four images")
            build_images(docker, base, secrets, epoch)
            for name in FORBIDDEN:
                check_image(docker, name, secrets)
        shutil.rmtree(OUT, ignore_errors=True)
        OUT.mkdir(parents=True)
        for name in FORBIDDEN:
            write_image_inventory(docker, name, work / f"inventory-{name}", OUT, epoch)
        say(
            docker.run("docker", "images", "--format", "{{.Repository}}:{{.Tag}} {{.Size}}").strip().replace("\n", ", ")
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""``python -m tools.release build --key KEY --out DIR`` and ``python -m tools.release verify DIR --key PUB``."""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Final

from rich.console import Console

from fedlearn import __version__
from fedlearn.errors import FedlearnError, OutOfRange, TrustError
from fedlearn.ledger.signing import SigningKey, read_key, read_public
from tools.release import manifest
from tools.release.distributions import build_twice, take
from tools.release.inventory import Subject, write_inventory
from tools.release.packages import closure, environment
from tools.release.sources import Source, export, read_source

ROOT: Final = Path(__file__).parents[2]
TOOLS: Final = ("build", "hatchling", "cyclonedx-bom", "pip-licenses")
IMAGES: Final = "images"
SUBJECTS: Final = {
    "fedlearn": "fedlearn",
    "fedlearn-review": "fedlearn[review]",
    "fedlearn-lab": "fedlearn[lab,postgres]",
    "fedlearn-client": "fedlearn-client",
    "fedlearn-server": "fedlearn-server",
}
"""Name of an inventory -> what it is of: each wheel with what it requires, and the extras that are rolled out."""


def main(arguments: Sequence[str]) -> int:
    """Make or check a release; 0 once it is there or holds, 2 for bad input, 3 if it may not be used."""
    given = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace, Console], None] = given.command
    console = Console(highlight=False, soft_wrap=True)
    try:
        command(given, console)
    except FedlearnError as error:
        Console(stderr=True).print(f"error {error.code}: {error}", markup=False, highlight=False, soft_wrap=True)
        return 3 if isinstance(error, TrustError) else 2
    return 0


def _build(given: argparse.Namespace, console: Console) -> None:
    key = read_key(given.key)  # before an hour of building, not after it
    source = read_source(ROOT, allow_dirty=given.dirty)
    if given.out.exists():
        raise OutOfRange(f"--out {given.out}: exists; a release is never changed. Name a new folder.")
    with tempfile.TemporaryDirectory(prefix="fedlearn-release-") as folder:
        work = Path(folder)
        console.print(f"building twice from {source.commit[:12]}" + (" and what differs" if source.dirty else ""))
        made = build_twice(partial(export, ROOT, source), work, source.epoch)
        release = work / "release"
        release.mkdir()
        take(made, release)
        wheels = {path.name.split("-")[0].replace("_", "-"): path for path in release.glob("*.whl")}
        (work / "environments").mkdir()
        for name, wanted in SUBJECTS.items():
            console.print(f"packages and licences of {wanted}", markup=False)
            wheel = wheels[wanted.partition("[")[0]]
            python = environment(work / "environments" / name, closure(wanted), wheels)
            subject = Subject(wanted, __version__, "library", hashlib.sha256(wheel.read_bytes()).hexdigest())
            write_inventory(subject, python, release / "wheels" / name, source.epoch)
        images = _take_images(given.images, wheels, release)
        (release / "release.json").write_text(_facts(source, images), encoding="utf-8")
        _finish(release, key, given.out)
    sums = (given.out / manifest.SUMS).read_text(encoding="utf-8")
    console.print(f"{given.out}: {len(sums.splitlines())} files, signed by {key.public}", markup=False)
    console.print(f"images: {', '.join(images) or 'none; `make docker-test` first, and they are in it'}")


def _verify(given: argparse.Namespace, console: Console) -> None:
    files = manifest.verify(given.release, read_public(given.key))
    console.print(f"{given.release}: {len(files)} files, unchanged and signed", markup=False)


def _take_images(made: Path, wheels: Mapping[str, Path], release: Path) -> tuple[str, ...]:
    """Copy the inventories of images that hold these very wheels; there may be none.

    Raises:
        TrustError: an image was built of other sources.
    """
    ours = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in wheels.values()}
    names = []
    for path in sorted(made.glob("*.image.json")):
        plain = json.loads(path.read_text(encoding="utf-8"))
        if plain["wheels"] != ours:
            raise TrustError(f"{path}: of an image with other wheels; `make docker-test` again, or remove {made}.")
        names.append(str(plain["name"]))
    if names:
        shutil.copytree(made, release / IMAGES)
    return tuple(names)


def _facts(source: Source, images: Sequence[str]) -> str:
    plain = {
        "format": 1,
        "version": __version__,
        "commit": source.commit,
        "dirty": list(source.dirty),
        "source_date_epoch": source.epoch,
        "python": platform.python_version(),
        "tools": {name: version(name) for name in TOOLS},
        "images": list(images),
    }
    return json.dumps(plain, indent=1, sort_keys=True) + "\n"


def _finish(release: Path, key: SigningKey, out: Path) -> None:
    manifest.sign(release, key)
    manifest.verify(release, key.public)
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(release, out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.release", description="Make a release, or check one.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    build = commands.add_parser("build", help="wheels, sdists, SBOMs, licences, sums and their signature")
    build.add_argument("--key", required=True, type=Path, metavar="FILE", help="private key of releases, Ed25519")
    build.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to make")
    build.add_argument(
        "--images", type=Path, default=ROOT / "build" / IMAGES, metavar="DIR", help="what `make docker-test` left"
    )
    build.add_argument(
        "--dirty", action="store_true", help="of files that are not committed: to try it, not to publish"
    )
    build.set_defaults(command=_build)
    verify = commands.add_parser("verify", help="is a release whole, unchanged and signed?")
    verify.add_argument("release", type=Path, metavar="DIR")
    verify.add_argument("--key", required=True, metavar="PUB", help="public key, or the file that holds it")
    verify.set_defaults(command=_verify)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

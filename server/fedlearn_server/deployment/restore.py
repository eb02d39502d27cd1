"""Bring a backup back: a deployment to where `up` starts it, ledgers to where they lay."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from fedlearn.errors import DeploymentRefused
from fedlearn.files import sync_directory
from fedlearn.ledger import Ledger
from fedlearn_server.deployment import processes
from fedlearn_server.deployment.layout import LOCK
from fedlearn_server.deployment.manifest import DEPLOYMENT, Manifest, checked_manifest
from fedlearn_server.deployment.records import Deployment, installed_versions, opened, saved
from fedlearn_server.deployment.up import in_words


@dataclass(frozen=True, slots=True)
class Restored:
    """What was brought back.

    Args:
        manifest: of the backup.
        deployment: nothing of it runs.
        aside: where what was there before is now, or None.
        refused: ledgers that lack charges of this machine: to be read, and nothing can be spent from them.
    """

    manifest: Manifest
    deployment: Deployment
    aside: Path | None
    refused: tuple[Path, ...]


def restore_backup(source: Path, directory: Path, *, force: bool = False, ledgers: bool = False) -> Restored:
    """Bring a backup back, after its digests were checked.

    Args:
        source: the backup.
        directory: of the deployment to be.
        force: if a deployment is there, which must not run, move it aside.
        ledgers: also bring ledgers back, each to where it lay. One that is there is never written over.

    Raises:
        DeploymentRefused: the backup is not whole or of a later Flower; or something is in the way.
    """
    with in_words(directory):
        manifest = checked_manifest(source)
        _require_not_newer(manifest)
        places = [Path(kept.place) for kept in manifest.ledgers] if ledgers else []
        _require_absent(places)
        aside = _moved_aside(directory, force)
        _copy(source / DEPLOYMENT, directory)

        # of a name of its own: `down` here must not take processes of what it was copied from for its own
        deployment = saved(replace(opened(directory), identity=uuid.uuid4().hex))
        for kept, place in zip(manifest.ledgers, places, strict=False):
            _copy(source / kept.file, place)
        return Restored(manifest, deployment, aside, _refused(places))


def _copy(source: Path, target: Path) -> None:
    """Copy so that the target is absent or whole."""
    before = os.umask(0o077)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".part")
        shutil.rmtree(partial, ignore_errors=True)
        if source.is_dir():
            shutil.copytree(source, partial)
        else:
            shutil.copyfile(source, partial)
        partial.rename(target)
        sync_directory(target.parent)
    finally:
        os.umask(before)


def _require_not_newer(manifest: Manifest) -> None:
    made, here = _release(manifest.versions[1]), _release(installed_versions()[1])
    if made > here:
        raise DeploymentRefused(
            f"the backup is of flwr {manifest.versions[1]}, here is {installed_versions()[1]}, which cannot read its "
            "database; install the one it was made with."
        )


def _release(version: str) -> tuple[int, ...]:
    numbers = version.split(".")[:2]
    if not all(number.isdecimal() for number in numbers):
        raise DeploymentRefused(f"the backup's manifest names flwr {version!r}, which is no version.")
    return tuple(int(number) for number in numbers)


def _require_absent(places: Sequence[Path]) -> None:
    for place in places:
        if any(place.with_name(place.name + suffix).exists() for suffix in ("", "-wal")):
            raise DeploymentRefused(
                f"{place}: a ledger is there, and a backup is older: it does not know what was spent since. Nothing "
                "was restored. Without --ledgers the ledger stays as it is."
            )


def _moved_aside(directory: Path, force: bool) -> Path | None:
    if not directory.exists() or (directory.is_dir() and not {path.name for path in directory.iterdir()} - {LOCK}):
        shutil.rmtree(directory, ignore_errors=True)
        return None
    if not force:
        raise DeploymentRefused(f"{directory}: is not empty; `fedlearn restore --force` moves it aside first.")
    _require_nothing_runs(directory)
    aside = directory.with_name(f"{directory.name}.replaced-{datetime.now(UTC):%Y%m%dT%H%M%S}")
    directory.rename(aside)
    return aside


def _require_nothing_runs(directory: Path) -> None:
    try:
        found = opened(directory)
    except DeploymentRefused:  # damaged: that is why it is being replaced
        return
    recorded = [found.superlink, *(node.process for node in found.nodes)]
    if any(map(processes.is_running, recorded)) or processes.marked(found.identity):
        raise DeploymentRefused(f"{directory}: is running; `fedlearn down` first.")


def _refused(places: Sequence[Path]) -> tuple[Path, ...]:
    refused = []
    for place in places:
        with Ledger.open(place, writable=False) as ledger:
            if ledger.restored:
                refused.append(place)
    return tuple(refused)

"""Bring a backup back: a deployment to where `up` starts it, ledgers to where they lay.

A manifest's digests are against accidents: whoever can write to a backup can write a manifest that fits. So it decides
neither who may read what comes back, nor where anything is written.
"""

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
from fedlearn.ledger import LEDGER_FILE, Ledger
from fedlearn_server.deployment import processes
from fedlearn_server.deployment.layout import LOCK
from fedlearn_server.deployment.manifest import DEPLOYMENT, KeptLedger, Manifest, checked_manifest
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


def restore_backup(source: Path, directory: Path, *, force: bool = False, ledgers: Sequence[Path] = ()) -> Restored:
    """Bring a backup back, after its digests were checked.

    Args:
        source: the backup.
        directory: of the deployment to be.
        force: if a deployment is there, which must not run, move it aside.
        ledgers: also bring back the ledgers that lay at these places: ledger files, or run directories that held one.
            One that is there is never written over.

    Raises:
        DeploymentRefused: the backup is not whole or of a later Flower, or has no such ledger; or something is in the
            way. Nothing was restored.
        LedgerError: a ledger of the backup cannot be read or contradicts itself. Nothing was restored.
    """
    with in_words(directory):
        if not source.is_dir():
            raise DeploymentRefused(f"{source}: no such directory; name the directory of a backup.")
        manifest = checked_manifest(source)
        _require_not_newer(manifest)
        kept = tuple(_kept_at(manifest, place) for place in ledgers)
        _require_absent(kept)
        refused = tuple(Path(found.place) for found in kept if _is_refused(source, found))
        aside = _moved_aside(directory, force)
        _copy(source / DEPLOYMENT, directory)

        # of a name of its own: `down` here must not take processes of what it was copied from for its own
        deployment = saved(replace(opened(directory), identity=uuid.uuid4().hex))
        for found in kept:
            _copy(source / found.file, Path(found.place))
        return Restored(manifest, deployment, aside, refused)


def _copy(source: Path, target: Path) -> None:
    """Copy so that the target is absent or whole, and at no moment anybody else's to read."""
    before = os.umask(0o077)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".part")
        shutil.rmtree(partial, ignore_errors=True)
        if source.is_dir():
            # a backup that was elsewhere may have lost its modes, and what it holds may be keys
            shutil.copytree(source, partial, copy_function=shutil.copyfile)
            for path in (partial, *partial.rglob("*")):
                path.chmod(0o700 if path.is_dir() else 0o600)
        else:
            shutil.copyfile(source, partial)
        partial.rename(target)
        sync_directory(target.parent)
    finally:
        os.umask(before)


def _kept_at(manifest: Manifest, place: Path) -> KeptLedger:
    """Return the ledger that lay at a place which the operator, not the manifest, names."""
    for kept in manifest.ledgers:
        if kept.place in {str(place.absolute()), str(place.absolute() / LEDGER_FILE)}:
            return kept
    places = ", ".join(kept.place for kept in manifest.ledgers) or "none"
    raise DeploymentRefused(f"--ledger {place}: the backup has no ledger from there. Those it has: {places}.")


def _is_refused(source: Path, kept: KeptLedger) -> bool:
    """Whether a backup's ledger, which must be the one that its manifest says, lacks charges of this machine."""
    with Ledger.open(source / kept.file, writable=False) as ledger:
        found = ledger.scope.ledger_id
        if found != kept.ledger_id:
            raise DeploymentRefused(
                f"{source / kept.file}: is ledger {found}, the manifest says {kept.ledger_id}; nothing was "
                "restored. Take another backup."
            )
        return ledger.restored


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


def _require_absent(ledgers: Sequence[KeptLedger]) -> None:
    for place in (Path(kept.place) for kept in ledgers):
        if any(place.with_name(place.name + suffix).exists() for suffix in ("", "-wal")):
            raise DeploymentRefused(
                f"{place}: a ledger is there, and a backup is older: it does not know what was spent since. Nothing "
                "was restored. Without --ledger for it, it stays as it is."
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

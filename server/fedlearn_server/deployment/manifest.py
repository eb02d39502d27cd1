"""What a backup holds: its files with their digests, and what it was made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

from fedlearn.errors import DeploymentRefused

FORMAT: Final = "fedlearn-backup"
VERSION: Final = 1
MANIFEST: Final = "manifest.json"
DEPLOYMENT: Final = "deployment"
LEDGERS: Final = "ledgers"


@dataclass(frozen=True, slots=True)
class KeptLedger:
    """A ledger in a backup.

    Args:
        file: in the backup.
        place: where it lay.
        ledger_id: its own name.
        length: its entries.
    """

    file: str
    place: str
    ledger_id: str
    length: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """A backup's own description.

    Args:
        made: ISO time, UTC.
        versions: of fedlearn and flwr that made it.
        identity: of the deployment.
        while_running: it was made while a run was going, or while nobody could say.
        files: path in the backup -> SHA-256 (hex).
        ledgers: in the order they were named.
    """

    made: str
    versions: tuple[str, str]
    identity: str
    while_running: bool
    files: Mapping[str, str] = field(default_factory=dict)
    ledgers: tuple[KeptLedger, ...] = ()

    def to_json(self) -> str:
        """Return it as it is written."""
        plain = {
            "format": FORMAT,
            "version": VERSION,
            "made": self.made,
            "fedlearn": self.versions[0],
            "flwr": self.versions[1],
            "identity": self.identity,
            "while_running": self.while_running,
            "files": dict(self.files),
            "ledgers": [
                {"file": kept.file, "place": kept.place, "ledger_id": kept.ledger_id, "length": kept.length}
                for kept in self.ledgers
            ],
        }
        return json.dumps(plain, indent=1, sort_keys=True) + "\n"


def digests_in(directory: Path) -> dict[str, str]:
    """Return path -> SHA-256 (hex) of every file below a directory, the manifest left out.

    Raises:
        DeploymentRefused: something there is neither a file nor a directory, e.g. a link that leads elsewhere.
    """
    found: dict[str, str] = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise DeploymentRefused(f"{path}: neither a file nor a directory; a backup holds nothing else.")
        if path.is_file() and name != MANIFEST:
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def checked_manifest(directory: Path) -> Manifest:
    """Return a backup's manifest, if every file of it is there, unchanged, and no other.

    Raises:
        DeploymentRefused: no backup, or one that was changed.
    """
    manifest = _read(directory / MANIFEST)
    found = digests_in(directory)
    for name in sorted({*manifest.files, *found}):
        if name not in found:
            raise DeploymentRefused(f"{directory}: {name} is missing; nothing was restored. Take another backup.")
        if name not in manifest.files:
            raise DeploymentRefused(f"{directory}: {name} is not of this backup; nothing was restored. Remove it.")
        if manifest.files[name] != found[name]:
            raise DeploymentRefused(f"{directory}: {name} was changed; nothing was restored. Take another backup.")
    return manifest


def _read(path: Path) -> Manifest:
    try:
        plain: Any = json.loads(path.read_text(encoding="utf-8"))
        _require_format(plain["format"], plain["version"])
        return Manifest(
            made=str(plain["made"]),
            versions=(str(plain["fedlearn"]), str(plain["flwr"])),
            identity=str(plain["identity"]),
            while_running=bool(plain["while_running"]),
            files={_inside(name): str(digest) for name, digest in plain["files"].items()},
            ledgers=tuple(
                KeptLedger(_inside(kept["file"]), str(kept["place"]), str(kept["ledger_id"]), int(kept["length"]))
                for kept in plain["ledgers"]
            ),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DeploymentRefused(f"{path}: not a backup's manifest ({error}); name the directory of a backup.") from None


def _require_format(name: object, version: object) -> None:
    if (name, version) != (FORMAT, VERSION):
        raise ValueError(f"{name!r} version {version!r}, this reads {FORMAT!r} version {VERSION}")


def _inside(name: object) -> str:
    if not isinstance(name, str) or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ValueError(f"path {name!r}")
    return name

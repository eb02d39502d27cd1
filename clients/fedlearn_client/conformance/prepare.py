"""Everything that a target needs before the kit is run against it: keys, settings, tables of callers, documents.

==========================  ============================================================================
``keys/``                   throw-away keys; the kit signs with them when it runs
``root.key.pub``            the root that the target must trust
``callers.toml``            how the kit connects as each caller (``--callers``); edit it for your platform
``device.toml``             settings of a fedlearn-device (``serve --settings``)
``device-callers.toml``     its table of uids
``documents/``              bundle, catalogue and status of today, for a look; the kit signs fresh ones
==========================  ============================================================================
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from fedlearn.errors import ConfigError
from fedlearn_client.conformance.keys import make_keys
from fedlearn_client.conformance.papers import Papers
from fedlearn_client.conformance.town import ROLES, STRANGER

FIRST_UID: Final = 21001
STRANGER_UID: Final = 21999
RATE: Final = 1000.0
"""Rankings a second: the kit asks more often than an app would."""


def prepare(directory: Path, now: float) -> Papers:
    """Write a directory; keys that are there stay.

    Args:
        directory: other users must be able to enter it, since the target's socket lies there.
        now: seconds since the Unix epoch.

    Raises:
        ConfigError: it cannot be written.
    """
    directory = directory.absolute()
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        papers = Papers(make_keys(directory / "keys"), now)
        (directory / "root.key.pub").write_text(f"{papers.root}\n")
        (directory / "callers.toml").write_text(_kits_callers())
        table = directory / "device-callers.toml"
        table.write_text(_devices_callers())
        table.chmod(0o644)
        (directory / "device.toml").write_text(_settings(directory, papers.root))
        documents = directory / "documents"
        documents.mkdir(exist_ok=True)
        (documents / "conformance.task.flb").write_bytes(papers.task_bundle())
        (documents / "conformance.catalogue.flb").write_bytes(papers.catalogue_bundle())
        (documents / "status.json").write_bytes(papers.status())
    except OSError as error:
        raise ConfigError(f"--prepare {directory}: cannot be written ({error.strerror}); name another.") from error
    return papers


def _uids() -> dict[str, int]:
    return {name: FIRST_UID + place for place, name in enumerate(ROLES)} | {STRANGER: STRANGER_UID}


def _kits_callers() -> str:
    lines = [
        "# How the kit connects as each caller. Without address: --target. Without uid: as whoever runs the kit.",
        'keys = "keys"',
    ]
    for name, uid in _uids().items():
        about = "whom the target does not know" if name == STRANGER else f"app {ROLES[name][0]}, role {ROLES[name][1]}"
        lines += ["", f"[{name}]  # {about}", f"uid = {uid}"]
    return "\n".join(lines) + "\n"


def _devices_callers() -> str:
    rows = (f'[{_uids()[name]}]\napp = "{app}"\nrole = "{role}"\n' for name, (app, role) in ROLES.items())
    return "\n".join(rows)


def _settings(directory: Path, root: str) -> str:
    table: dict[str, object] = {
        "directory": str(directory / "state"),
        "socket": str(directory / "s"),
        "callers": str(directory / "device-callers.toml"),
        "root_keys": [root],
        "recommend_rate": RATE,
        "recommend_burst": int(RATE),
        "train": False,
        "conformance": True,
    }
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in table.items())

"""A copy of what a deployment cannot make again: who its nodes are, its authority, its database; and ledgers.

Left out are messages: what nodes sent are sums without noise; why runs ended, and their tokens. Left out too is all
that must never be set back: anchors, tallies and noise state of a privacy ledger, and the operator's key.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from fedlearn.errors import DeploymentRefused, OutOfRange, SuperLinkRefused, SuperLinkUnreachable
from fedlearn.files import sync_directory
from fedlearn.ledger import LEDGER_FILE, Ledger
from fedlearn_server.deployment import processes
from fedlearn_server.deployment.layout import Layout, locked, write_private
from fedlearn_server.deployment.manifest import DEPLOYMENT, LEDGERS, MANIFEST, KeptLedger, Manifest, digests_in
from fedlearn_server.deployment.operator import open_control
from fedlearn_server.deployment.records import NOT_STARTED, Deployment, installed_versions, opened, saved
from fedlearn_server.deployment.up import in_words

CLEARED: Final = (
    "object_children",
    "run_objects",
    "objects",
    "object_push_session_pending",
    "object_push_session_roots",
    "object_push_sessions",
    "message",
    "message_ins",
    "message_res",
    "task_message",
    "task_logs",
)
"""Tables of SuperLink's database with what nodes and ServerApps sent, and their logs."""
KEPT: Final = frozenset(
    {
        "alembic_version",
        "automation",
        "compacted_contexts",
        "connector",
        "connector_oauth_session",
        "fab",
        "federation_app",
        "node",
        "nonce_store",
        "objectstore_locks",
        "run",
        "run_connector",
        "run_series",
        "series_context",
        "series_runs",
        "sqlite_sequence",
        "task",
        "task_event",
        "task_usage",
    }
)
BLANKED: Final = "UPDATE task SET details = '', token = NULL"
"""Why a ServerApp ended may quote nodes; its token, as that of a run that is going, lets its holder read sums."""
BUSY_S: Final = 10.0


def make_backup(
    directory: Path, target: Path, *, ledgers: Sequence[Path] = (), while_running: bool = False
) -> Manifest:
    """Copy a deployment, which may be running, and ledgers, into a new directory that only this user can read.

    Args:
        directory: of the deployment.
        target: is made.
        ledgers: ledger files, or run directories that hold one.
        while_running: also while a run is going: what nodes have sent for it is not in the copy.

    Returns:
        What was written to the backup's manifest.

    Raises:
        DeploymentRefused: a run is going, ``target`` exists, or the database has tables that are not known here.
        LedgerError: a ledger cannot be read or contradicts itself.
    """
    with in_words(directory), locked(opened(directory).layout):
        deployment = opened(directory)
        going = _is_a_run_going(deployment)
        if going and not while_running:
            raise DeploymentRefused(f"{going}; wait for the end, or `fedlearn backup --while-running`.")
        with _new_directory(target) as partial:
            _copy_deployment(deployment, partial / DEPLOYMENT)
            kept = tuple(_copy_ledger(place, partial, number) for number, place in enumerate(ledgers))
            manifest = Manifest(
                made=datetime.now(UTC).isoformat(timespec="seconds"),
                versions=installed_versions(),
                identity=deployment.identity,
                while_running=bool(going),
                files=digests_in(partial),
                ledgers=kept,
            )
            write_private(partial / MANIFEST, manifest.to_json().encode())
    return manifest


def copy_database(source: Path, target: Path, scratch: Path) -> None:
    """Write a copy of SuperLink's database, which may be in use, without what nodes and ServerApps sent.

    Args:
        source: the database.
        target: must not exist.
        scratch: a private file beside the database, for the while; what is cleared is never written elsewhere.

    Raises:
        DeploymentRefused: it cannot be read, or has tables of which nobody here knows what they hold.
    """
    try:
        with closing(_opened(source)) as live, closing(sqlite3.connect(scratch)) as copy:
            live.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")
            copy.execute("PRAGMA foreign_keys=OFF")
            _require_known(source, copy)
            with copy:
                for table in CLEARED:
                    copy.execute(f"DELETE FROM {table}")  # noqa: S608 - constants
                copy.execute(BLANKED)
            copy.execute("VACUUM INTO ?", (str(target),))
        target.chmod(0o600)
    except sqlite3.Error as error:
        raise DeploymentRefused(f"{source}: cannot be copied ({error}).") from error
    finally:
        for suffix in ("", "-journal", "-wal", "-shm"):
            scratch.with_name(scratch.name + suffix).unlink(missing_ok=True)


def _copy_deployment(deployment: Deployment, target: Path) -> None:
    layout, copied = deployment.layout, Layout(target)
    shutil.copytree(layout.certificates, copied.certificates)
    for node in deployment.nodes:
        copied.node(node.name).mkdir(parents=True)
        for path in (layout.node_key(node.name), layout.node_identity(node.name)):
            if path.exists():
                shutil.copyfile(path, copied.node(node.name) / path.name)
    if layout.database.exists():
        copied.database.parent.mkdir(parents=True)
        copy_database(layout.database, copied.database, layout.database.with_name("backup.part"))
    nodes = tuple(replace(node, process=NOT_STARTED) for node in deployment.nodes)
    saved(replace(deployment, directory=target, superlink=NOT_STARTED, nodes=nodes))
    for path in target.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)


def _copy_ledger(place: Path, backup: Path, number: int) -> KeptLedger:
    source = place / LEDGER_FILE if place.is_dir() else place
    name = f"{LEDGERS}/{number}.sqlite"
    target = backup / name
    target.parent.mkdir(exist_ok=True)
    with Ledger.open(source, writable=False):  # only a ledger that is whole
        pass
    with closing(_opened(source)) as live, closing(sqlite3.connect(target)) as copy:
        live.backup(copy)
        copy.execute("PRAGMA journal_mode=DELETE")
    target.chmod(0o600)
    with Ledger.open(target, writable=False) as ledger:
        return KeptLedger(name, str(source.absolute()), ledger.scope.ledger_id, len(ledger.entries()))


def _opened(path: Path) -> sqlite3.Connection:
    """Open a database to be read. Not read-only: what its last writer left in its log must be taken up."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=BUSY_S)


def _require_known(source: Path, copy: sqlite3.Connection) -> None:
    found = {name for (name,) in copy.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    unknown = found - KEPT - set(CLEARED)
    if unknown or not found.issuperset(CLEARED):
        raise DeploymentRefused(
            f"{source}: of another Flower (tables {', '.join(sorted(unknown)) or 'are missing'}): what nodes "
            "sent cannot be told from the rest, and no backup was made."
        )


def _is_a_run_going(deployment: Deployment) -> str:
    """Return "" or, in words, why a run may be going."""
    if not processes.is_running(deployment.superlink):
        return ""
    try:
        control = open_control(deployment)
        try:
            going = [str(run.run_id) for run in control.runs() if not run.is_over]
        finally:
            control.close()
    except (SuperLinkUnreachable, SuperLinkRefused) as error:
        return f"whether a run is going cannot be asked: {error}"
    return f"run {', '.join(going)} is going" if going else ""


@contextmanager
def _new_directory(target: Path) -> Iterator[Path]:
    """Give a private directory that becomes ``target`` if all goes well, and nothing if it does not."""
    if target.exists():
        raise OutOfRange(f"{target}: exists; a backup is never written over, name a new directory.")
    partial = target.with_name(target.name + ".part")
    before = os.umask(0o077)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        partial.rename(target)
        sync_directory(target.parent)
    finally:
        os.umask(before)
        shutil.rmtree(partial, ignore_errors=True)

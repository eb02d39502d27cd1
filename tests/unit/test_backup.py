"""Backup and restore: complete, private, free of what nodes sent, refused when changed; and ledgers that are older."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from flwr.supercore.state.schema.corestate_models import FlwrBase
from flwr.supercore.state.schema.linkstate_models import LinkStateBase
from flwr.supercore.state.schema.objectstore_models import ObjectStoreBase
from sqlalchemy import create_engine

from fedlearn.errors import (
    ChargeMismatch,
    DeploymentRefused,
    LedgerError,
    LedgerRestored,
    OutOfRange,
    SuperLinkUnreachable,
)
from fedlearn.ledger import LEDGER_FILE, Ledger, Planned, new_scope
from fedlearn.ledger.signing import SigningKey, operator_key
from fedlearn.privacy.events import PoissonGaussian
from fedlearn_server import flower
from fedlearn_server.deployment import Deployment, ProcessRecord, opened, processes
from fedlearn_server.deployment.backup import CLEARED, KEPT, make_backup
from fedlearn_server.deployment.backup_command import backup_command, restore_command
from fedlearn_server.deployment.certificates import check_certificates, ensure_certificates, now_utc
from fedlearn_server.deployment.nodes import with_nodes
from fedlearn_server.deployment.operator import ensure_token
from fedlearn_server.deployment.records import new_deployment, saved
from fedlearn_server.deployment.restore import restore_backup
from fedlearn_server.flower import FlowerRun

CANARY = b"sum-without-noise-7153"
DIGEST = hashlib.sha256(b"x").hexdigest()
AUTHORITY = SigningKey.fresh()
BASES = (FlwrBase, LinkStateBase, ObjectStoreBase)


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLEARN_STATE", str(tmp_path / "state"))


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SuperLink's, with a node, a run and a bundle."""
    path = tmp_path_factory.mktemp("database") / "state.db"
    engine = create_engine(f"sqlite:///{path}")
    for base in BASES:
        base.metadata.create_all(engine)
    engine.dispose()
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE alembic_version (version_num TEXT)")
        database.execute("INSERT INTO node (node_id, name, public_key) VALUES (5, 'node-1', 'pem')")
        database.execute("INSERT INTO run (run_id, primary_task_id) VALUES (9, 1)")
        database.execute("INSERT INTO fab VALUES ('hash', 'bundle', '{}')")
    return path


def send_messages(database: sqlite3.Connection) -> None:
    database.execute("INSERT INTO message_res (message_id, content) VALUES ('m', ?)", (CANARY,))
    database.execute("INSERT INTO message_ins (message_id, content) VALUES ('m', ?)", (CANARY,))
    database.execute("INSERT INTO objects (object_id, content, is_available) VALUES ('o', ?, 1)", (CANARY * 500,))
    database.execute("INSERT INTO objects (object_id, content, is_available) VALUES ('p', ?, 1)", (CANARY,))
    database.execute("INSERT INTO object_children VALUES ('o', 'p')")
    database.execute("INSERT INTO run_objects VALUES (9, 'o')")
    database.execute(
        "INSERT INTO task (task_id, type, run_id, pending_at, details, token) "
        "VALUES (1, 'flwr-serverapp', 9, '2026-01-01', ?, ?)",
        (f"no answer of {CANARY.decode()}", f"token-{CANARY.decode()}"),
    )
    database.execute("INSERT INTO task_logs VALUES (0, 1, ?)", (CANARY.decode(),))
    database.commit()


@pytest.fixture
def deployment(tmp_path: Path, database: Path) -> Deployment:
    """A deployment with two nodes, of which nothing runs."""
    directory = tmp_path / "superlink"
    directory.mkdir(mode=0o700)
    made = with_nodes(replace(new_deployment(directory), address="127.0.0.1:4711"), 2)
    made = saved(replace(made, nodes=tuple(replace(node, node_id=5 + n) for n, node in enumerate(made.nodes))))
    ensure_certificates(made.layout.certificates, now_utc())
    ensure_token(made)
    made.layout.node_identity("node-1").write_text('{"node_id": 5}', encoding="utf-8")
    made.layout.node_log("node-1").write_bytes(CANARY)
    made.layout.database.parent.mkdir()
    shutil.copyfile(database, made.layout.database)
    return made


def rows(path: Path, table: str) -> int:
    with closing(sqlite3.connect(path)) as database:
        return int(database.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def files_in(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_every_table_of_this_flower_is_kept_or_cleared() -> None:
    """A Flower with another table must make somebody decide."""
    tables = {table for base in BASES for table in base.metadata.tables} | {"alembic_version", "sqlite_sequence"}
    assert tables == KEPT | set(CLEARED)
    assert not KEPT & set(CLEARED)


def test_all_that_cannot_be_made_again_and_nothing_that_nodes_sent(deployment: Deployment, tmp_path: Path) -> None:
    out, layout = tmp_path / "out" / "backup", deployment.layout
    with closing(sqlite3.connect(layout.database)) as superlink:  # it runs: the messages are in its log only
        send_messages(superlink)
        assert layout.database.with_name("state.db-wal").stat().st_size > len(CANARY)
        before = sorted(path.name for path in layout.database.parent.iterdir())
        make_backup(deployment.directory, out)
        assert sorted(path.name for path in layout.database.parent.iterdir()) == before
        assert superlink.execute("SELECT count(*) FROM objects").fetchone() == (2,)
    found = files_in(out)
    assert set(found) == {
        "manifest.json",
        "deployment/deployment.json",
        *(f"deployment/certs/{name}" for name in ("ca.crt", "ca.key", "server.crt", "server.key")),
        *(f"deployment/nodes/node-{number}/key.pem" for number in (1, 2)),
        "deployment/nodes/node-1/node.json",
        "deployment/superlink/state.db",
    }
    assert all(CANARY not in content for content in found.values())
    copy = out / "deployment" / "superlink" / "state.db"
    assert {table: rows(copy, table) for table in CLEARED} == dict.fromkeys(CLEARED, 0)
    assert [rows(copy, table) for table in ("node", "run", "fab", "task")] == [1, 1, 1, 1]
    with closing(sqlite3.connect(copy)) as database:
        assert database.execute("SELECT details, token FROM task").fetchall() == [("", None)]
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.rglob("*") if path.is_file()} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in [out, *out.rglob("*")] if path.is_dir()} == {0o700}


def test_there_and_back(deployment: Deployment, tmp_path: Path) -> None:
    make_backup(deployment.directory, tmp_path / "backup")
    there = restore_backup(tmp_path / "backup", tmp_path / "else" / "where").deployment
    assert there == opened(tmp_path / "else" / "where")
    assert there.identity != deployment.identity, "`down` of one must not end processes of the other"
    assert [(node.name, node.node_id, node.key.read_bytes()) for node in there.nodes] == [
        (node.name, node.node_id, node.key.read_bytes()) for node in deployment.nodes
    ]
    check_certificates(there.layout.certificates, now_utc())
    assert rows(there.layout.database, "node") == 1
    assert stat.S_IMODE(there.directory.stat().st_mode) == 0o700


def test_keys_are_closed_again_where_a_backup_lost_its_modes(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after `cp -r`, an archive or an object store; and at no moment in between are they open."""
    make_backup(deployment.directory, tmp_path / "backup")
    for path in (tmp_path / "backup", *(tmp_path / "backup").rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    open_while_copied: list[Path] = []
    copied = shutil.copyfile

    def watched(source: Path, target: Path, **options: bool) -> Path:
        made = Path(copied(source, target, **options))
        open_while_copied.extend([made] if made.stat().st_mode & 0o077 else [])
        return made

    monkeypatch.setattr(shutil, "copyfile", watched)
    there = restore_backup(tmp_path / "backup", tmp_path / "new").deployment.directory
    assert {stat.S_IMODE(path.stat().st_mode) for path in there.rglob("*") if path.is_file()} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (there, *there.rglob("*")) if path.is_dir()} == {0o700}
    assert not open_while_copied


def test_a_deployment_that_never_ran(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    saved(new_deployment(tmp_path / "d"))
    ensure_certificates(tmp_path / "d" / "certs", now_utc())
    make_backup(tmp_path / "d", tmp_path / "backup")
    assert restore_backup(tmp_path / "backup", tmp_path / "e").deployment.nodes == ()


def change(backup: Path) -> None:
    path = backup / "deployment" / "nodes" / "node-2" / "key.pem"
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(data)


def remove(backup: Path) -> None:
    (backup / "deployment" / "certs" / "ca.key").unlink()


def add(backup: Path) -> None:
    (backup / "deployment" / "nodes" / "key.pem").write_bytes(b"")


def link(backup: Path) -> None:
    path = backup / "deployment" / "superlink" / "state.db"
    path.rename(backup.parent / "db")
    path.symlink_to(backup.parent / "db")


def edit(**fields: object) -> Callable[[Path], None]:
    def work(backup: Path) -> None:
        path = backup / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | fields), encoding="utf-8")

    return work


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (change, "node-2/key.pem was changed"),
        (remove, "certs/ca.key is missing"),
        (add, "nodes/key.pem is not of this backup"),
        (link, "neither a file nor a directory"),
        (edit(files={"../../evil": DIGEST}), "not a backup's manifest"),
        (edit(version=2), "version 2"),
        (edit(format="tar"), "'tar'"),
        (edit(flwr="1.42.0"), "is of flwr 1.42.0"),
        (edit(flwr="2"), "is of flwr 2"),
        (edit(flwr="next"), "which is no version"),
        (lambda backup: (backup / "manifest.json").unlink(), "not a backup's manifest"),
        (lambda backup: (backup / "manifest.json").write_bytes(b"\xff[]"), "not a backup's manifest"),
    ],
    ids=[
        "changed",
        "missing",
        "added",
        "link",
        "outside",
        "version",
        "format",
        "flwr",
        "flwr2",
        "words",
        "none",
        "bytes",
    ],
)
def test_a_backup_that_was_changed(
    deployment: Deployment, tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    make_backup(deployment.directory, tmp_path / "backup")
    damage(tmp_path / "backup")
    with pytest.raises(DeploymentRefused, match=words):
        restore_backup(tmp_path / "backup", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_nothing_is_written_over(deployment: Deployment, tmp_path: Path) -> None:
    make_backup(deployment.directory, tmp_path / "backup")
    with pytest.raises(OutOfRange, match="never written over"):
        make_backup(deployment.directory, tmp_path / "backup")
    with pytest.raises(DeploymentRefused, match="--force"):
        restore_backup(tmp_path / "backup", deployment.directory)
    deployment.layout.node_key("node-1").write_bytes(b"newer")
    found = restore_backup(tmp_path / "backup", deployment.directory, force=True)
    assert found.aside is not None
    assert (found.aside / "nodes" / "node-1" / "key.pem").read_bytes() == b"newer"
    assert deployment.layout.node_key("node-1").read_bytes().startswith(b"-----BEGIN OPENSSH PRIVATE")


def test_a_damaged_record_can_be_replaced(deployment: Deployment, tmp_path: Path) -> None:
    make_backup(deployment.directory, tmp_path / "backup")
    deployment.layout.record.write_bytes(b"{")
    restore_backup(tmp_path / "backup", deployment.directory, force=True)
    assert len(opened(deployment.directory).nodes) == 2


def test_tables_that_are_not_known(deployment: Deployment, tmp_path: Path) -> None:
    with closing(sqlite3.connect(deployment.layout.database)) as database, database:
        database.execute("CREATE TABLE updates (content BLOB)")
    with pytest.raises(DeploymentRefused, match="tables updates"):
        make_backup(deployment.directory, tmp_path / "backup")
    assert not list(tmp_path.glob("backup*"))
    assert not list(deployment.layout.database.parent.glob("backup*"))


def test_a_damaged_database(deployment: Deployment, tmp_path: Path) -> None:
    deployment.layout.database.write_bytes(b"no database" * 1000)
    with pytest.raises(DeploymentRefused, match=r"state\.db: cannot be copied"):
        make_backup(deployment.directory, tmp_path / "backup")
    assert not list(tmp_path.glob("backup*"))


# while it runs


@dataclass
class Control:
    """Stands for ControlLink."""

    found: list[FlowerRun] = field(default_factory=list)
    answers: bool = True

    def runs(self) -> tuple[FlowerRun, ...]:
        if not self.answers:
            raise SuperLinkUnreachable("it does not answer.")
        return tuple(self.found)

    def close(self) -> None:
        pass


@pytest.fixture
def control(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> Iterator[Control]:
    """A SuperLink that runs: this process stands for it."""
    found = Control()
    saved(replace(deployment, superlink=ProcessRecord(os.getpid(), psutil.Process().create_time())))
    monkeypatch.setattr(flower, "ControlLink", lambda *_: found)
    return found


def test_while_a_run_is_going(deployment: Deployment, control: Control, tmp_path: Path) -> None:
    control.found = [FlowerRun(7, "finished", "completed", "")]
    assert not make_backup(deployment.directory, tmp_path / "a").while_running
    control.found.append(FlowerRun(8, "running", "", ""))
    with pytest.raises(DeploymentRefused, match=r"run 8 is going; .*--while-running"):
        make_backup(deployment.directory, tmp_path / "b")
    assert make_backup(deployment.directory, tmp_path / "b", while_running=True).while_running
    restored = restore_backup(tmp_path / "b", tmp_path / "new").deployment
    assert not processes.is_running(restored.superlink)


def test_while_nobody_can_say(deployment: Deployment, control: Control, tmp_path: Path) -> None:
    control.answers = False
    with pytest.raises(DeploymentRefused, match="cannot be asked"):
        make_backup(deployment.directory, tmp_path / "b")
    assert make_backup(deployment.directory, tmp_path / "b", while_running=True).while_running


def test_what_runs_is_not_replaced(deployment: Deployment, control: Control, tmp_path: Path) -> None:
    make_backup(deployment.directory, tmp_path / "b")
    with pytest.raises(DeploymentRefused, match=r"is running; `fedlearn down` first"):
        restore_backup(tmp_path / "b", deployment.directory, force=True)


# ledgers


def spend(ledger: Ledger, step: int) -> None:
    account = ledger.run("run")
    account.commit(account.charge(account.reserve(step, account.next_attempt(step)), DIGEST, DIGEST), DIGEST)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory whose ledger, which has an authority, has one charge."""
    path = tmp_path / "runs" / "first"
    scope = new_scope("phones", 2.0, 1e-6, operator_key().public, authority_key=AUTHORITY.public)
    with Ledger.create(path / LEDGER_FILE, scope) as ledger:
        ledger.grant("ranking", "2026", 2.0, AUTHORITY)
        ledger.open_run("run", "ranking", "2026", (Planned(PoissonGaussian(2.0, 0.01), 50),), DIGEST)
        spend(ledger, 0)
    return path


def lose(run: Path) -> None:
    for path in run.iterdir():
        path.unlink()


def test_the_newest_copy_of_a_ledger_goes_on(deployment: Deployment, run: Path, tmp_path: Path) -> None:
    with Ledger.open(run / LEDGER_FILE) as ledger:  # a run is going on with it
        spend(ledger, 1)
        manifest = make_backup(deployment.directory, tmp_path / "b", ledgers=[run])
        length = len(ledger.entries())
    assert [(kept.place, kept.length) for kept in manifest.ledgers] == [(str(run / LEDGER_FILE), length)]
    lose(run)
    assert restore_backup(tmp_path / "b", tmp_path / "new", ledgers=[run]).refused == ()
    with Ledger.open(run / LEDGER_FILE) as ledger:
        spend(ledger, 2)


def test_an_older_copy_of_a_ledger_is_refused(
    deployment: Deployment, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was charged since would be free: the anchor, which is in no backup, knows better."""
    make_backup(deployment.directory, tmp_path / "b", ledgers=[run / LEDGER_FILE])
    with Ledger.open(run / LEDGER_FILE) as ledger:
        spend(ledger, 1)
    lose(run)
    assert restore_command([str(tmp_path / "b"), "--dir", str(tmp_path / "new"), "--ledger", str(run)]) == 3
    assert "(FL603)" in capsys.readouterr().out
    with Ledger.open(run / LEDGER_FILE) as ledger:
        with pytest.raises(LedgerRestored, match="older copy"):
            spend(ledger, 1)
        with pytest.raises(LedgerRestored, match="older copy"):
            ledger.open_run("other", "ranking", "2026", (Planned(PoissonGaussian(2.0, 0.01), 1),), DIGEST)
        ledger.recover(AUTHORITY, "disk lost")  # as docs/operations.md says: all that was planned is spent
        with pytest.raises(ChargeMismatch):
            spend(ledger, 1)
        ledger.open_run("other", "ranking", "2026", (Planned(PoissonGaussian(2.0, 0.01), 1),), DIGEST)


def test_a_ledger_that_is_there_is_never_written_over(deployment: Deployment, run: Path, tmp_path: Path) -> None:
    make_backup(deployment.directory, tmp_path / "b", ledgers=[run])
    before = (run / LEDGER_FILE).read_bytes()
    with pytest.raises(DeploymentRefused, match="a ledger is there"):
        restore_backup(tmp_path / "b", tmp_path / "new", force=True, ledgers=[run / LEDGER_FILE])
    assert not (tmp_path / "new").exists()
    assert (run / LEDGER_FILE).read_bytes() == before
    restore_backup(tmp_path / "b", tmp_path / "new")
    assert (run / LEDGER_FILE).read_bytes() == before


def forge(backup: Path, content: bytes | None = None, **fields: object) -> None:
    """Change a backup's only ledger, and its manifest so that it fits."""
    path = backup / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    kept = manifest["ledgers"][0]
    if content is not None:
        (backup / kept["file"]).write_bytes(content)
        manifest["files"][kept["file"]] = hashlib.sha256(content).hexdigest()
    kept.update(fields)
    path.write_text(json.dumps(manifest), encoding="utf-8")


def test_a_manifest_cannot_say_where_a_file_goes(deployment: Deployment, run: Path, tmp_path: Path) -> None:
    """Whoever can write to a backup can write its manifest too."""
    make_backup(deployment.directory, tmp_path / "b", ledgers=[run])
    target = tmp_path / "home" / "autostart"
    forge(tmp_path / "b", place=str(target))
    lose(run)
    with pytest.raises(DeploymentRefused, match=rf"no ledger from there\. Those it has: {target}\."):
        restore_backup(tmp_path / "b", tmp_path / "new", ledgers=[run])
    assert not (tmp_path / "new").exists()
    restore_backup(tmp_path / "b", tmp_path / "new")
    assert not target.exists()


@pytest.mark.parametrize(
    ("forged", "error"),
    [({"content": b"#!/bin/sh\n"}, LedgerError), ({"ledger_id": "another"}, DeploymentRefused)],
    ids=["no ledger", "another"],
)
def test_what_is_not_the_ledger_is_never_written(
    deployment: Deployment, run: Path, tmp_path: Path, forged: dict[str, Any], error: type[Exception]
) -> None:
    make_backup(deployment.directory, tmp_path / "b", ledgers=[run])
    forge(tmp_path / "b", **forged)
    lose(run)
    with pytest.raises(error):
        restore_backup(tmp_path / "b", tmp_path / "new", ledgers=[run])
    assert not list(run.iterdir())
    assert not (tmp_path / "new").exists()


def test_no_secret_state_of_a_ledger_travels(deployment: Deployment, run: Path, tmp_path: Path) -> None:
    """An anchor that is set back together with its ledger notices nothing."""
    make_backup(deployment.directory, tmp_path / "b", ledgers=[run])
    state = files_in(tmp_path / "state")
    assert any(name.startswith("anchors/") for name in state)
    assert not set(state.values()) & set(files_in(tmp_path / "b").values())


# commands


def test_the_commands(deployment: Deployment, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = ("--dir", str(deployment.directory))
    assert backup_command([str(tmp_path / "b"), *at]) == 0
    assert "holds private keys" in capsys.readouterr().out
    assert backup_command([str(tmp_path / "c"), *at, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["files"]) == 9
    assert restore_command([str(tmp_path / "b"), *at, "--force"]) == 0
    assert "replaced-" in capsys.readouterr().out
    assert restore_command([str(tmp_path / "c"), "--dir", str(tmp_path / "n"), "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["nodes"] == ["node-1", "node-2"]
    assert plain["aside"] is None
    with pytest.raises(DeploymentRefused, match="no deployment here"):
        backup_command([str(tmp_path / "d"), "--dir", str(tmp_path / "none")])


def test_a_backup_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DeploymentRefused, match=r"none: no such directory; name the directory of a backup\.$"):
        restore_backup(tmp_path / "none", tmp_path / "new")
    assert not (tmp_path / "new").exists()

"""What docs/operations.md promises of certificates, backups and a lost database, done to a real deployment."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedlearn_server.deployment import down, opened, processes, status, up
from fedlearn_server.deployment.backup import make_backup
from fedlearn_server.deployment.restore import restore_backup
from fedlearn_server.deployment.rotation import add_node, renew_certificates, revoke_node

pytestmark = pytest.mark.long


@pytest.fixture
def directories(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Of a deployment and of its restored copy; whatever of them runs ends with the test."""
    made = (tmp_path / "deployment", tmp_path / "restored")
    yield made
    for directory in made:
        if (directory / "deployment.json").exists():
            processes.stop(processes.marked(opened(directory).identity), 0.0)


def test_what_is_killed_comes_back_without_a_memory(directories: tuple[Path, Path]) -> None:
    """SuperLink, one of two nodes, and the database: the node that lived on is registered anew, as the other is."""
    first = up(directories[0], 2)
    for record in (first.superlink, first.nodes[0].process):
        os.kill(record.pid, signal.SIGKILL)
        assert processes.wait_gone([record], 10.0) == ()
    first.layout.database.unlink()
    second = up(first.directory)
    assert second.nodes[1].process == first.nodes[1].process
    assert second.nodes[0].process != first.nodes[0].process
    assert status(second).is_well


@pytest.mark.parametrize("new_ca", [False, True])
def test_nodes_come_back_under_new_certificates(directories: tuple[Path, Path], new_ca: bool) -> None:
    first = up(directories[0], 1)
    before = (first.layout.certificates / "server.crt").read_bytes(), first.ca.read_bytes()
    renew_certificates(first.directory, new_ca=new_ca)
    second = up(first.directory)
    assert second.superlink != first.superlink
    assert (second.nodes[0].process != first.nodes[0].process) == new_ca
    after = (first.layout.certificates / "server.crt").read_bytes(), first.ca.read_bytes()
    assert [old != new for old, new in zip(before, after, strict=True)] == [True, new_ca]
    assert status(second).is_well


def test_a_backup_of_what_runs_comes_back_elsewhere(directories: tuple[Path, Path], tmp_path: Path) -> None:
    first = add_node(up(directories[0], 1).directory, "gate-1")
    make_backup(first.directory, tmp_path / "backup")
    revoke_node(first.directory, "gate-1")
    down(opened(first.directory))
    restored = restore_backup(tmp_path / "backup", directories[1]).deployment
    assert [node.node_id for node in restored.nodes] == [node.node_id for node in first.nodes]
    back = up(restored.directory)
    assert [node.node_id for node in back.nodes] == [node.node_id for node in first.nodes]
    assert status(back).is_well, "gate-1, which was revoked after the backup, is a node again, as the page says"

"""What is recorded of a deployment comes back; what is not ours, damaged or not writable is refused with words."""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from fedlearn import files
from fedlearn.errors import DeploymentRefused, OutOfRange
from fedlearn_server.deployment import records
from fedlearn_server.deployment.layout import Layout, claim, locked
from fedlearn_server.deployment.nodes import read_report, with_nodes
from fedlearn_server.deployment.records import Deployment, ProcessRecord, new_deployment, opened, saved
from fedlearn_server.deployment.up import in_words, up

BIG = 2**64 - 1
"""Flower's ids have 64 bits; a float has 53."""


def example(directory: Path) -> Deployment:
    deployment = with_nodes(new_deployment(claim(directory).directory), 2)
    first = replace(deployment.nodes[0], node_id=BIG, process=ProcessRecord(12, 1795412345.67))
    return replace(deployment.with_node(first), address="127.0.0.1:1234", superlink=ProcessRecord(11, 1795412340.01))


def test_comes_back(tmp_path: Path) -> None:
    deployment = saved(example(tmp_path / "d"))
    assert opened(tmp_path / "d") == deployment
    assert [node.name for node in deployment.nodes] == ["node-1", "node-2"]
    assert deployment.nodes[0].key == tmp_path / "d" / "nodes" / "node-1" / "key.pem"
    assert deployment.port == 1234
    assert opened(tmp_path / "d").ca == tmp_path / "d" / "certs" / "ca.crt"


def test_nobody_else_can_read(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        saved(example(tmp_path / "d"))
    finally:
        os.umask(before)
    for path in [tmp_path / "d", *(tmp_path / "d").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_directory_that_was_open_is_closed(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir(mode=0o755)
    claim(tmp_path / "d")
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o700


def test_moved_directory(tmp_path: Path) -> None:
    saved(example(tmp_path / "d"))
    (tmp_path / "d").rename(tmp_path / "e")
    assert opened(tmp_path / "e").nodes[0].key.exists()


def test_none_there(tmp_path: Path) -> None:
    with pytest.raises(DeploymentRefused, match="no deployment here; `fedlearn up` makes one"):
        opened(tmp_path)


def test_files_of_somebody(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(DeploymentRefused, match="holds files, but no deployment"):
        up(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_where_the_directory_should_be(tmp_path: Path) -> None:
    (tmp_path / "d").write_text("")
    with pytest.raises(DeploymentRefused, match="not a directory"):
        up(tmp_path / "d")


@pytest.mark.parametrize("nodes", [-1, 513])
def test_number_of_nodes(tmp_path: Path, nodes: int) -> None:
    with pytest.raises(OutOfRange, match=rf"--nodes {nodes}: must be in 0\.\.512"):
        up(tmp_path / "d", nodes)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda plain: {**plain, "format": 2},
        lambda plain: {**plain, "address": "127.0.0.1"},
        lambda plain: {**plain, "address": "127.0.0.1:99999"},
        lambda plain: {**plain, "identity": ""},
        lambda plain: {**plain, "identity": 7},
        lambda plain: {name: value for name, value in plain.items() if name != "superlink"},
        lambda plain: {**plain, "superlink": {"pid": None, "created": 1.0}},
        lambda plain: {**plain, "nodes": [{**plain["nodes"][0], "name": "../../home"}]},
        lambda plain: {**plain, "nodes": 3},
        lambda plain: [],
        lambda plain: "{",
        lambda plain: "",
        lambda plain: "\x00" * 300,
    ],
    ids=lambda damage: None,
)
def test_damaged(tmp_path: Path, damage: object) -> None:
    deployment = saved(example(tmp_path / "d"))
    plain = damage(json.loads(deployment.layout.record.read_text()))
    deployment.layout.record.write_text(plain if isinstance(plain, str) else json.dumps(plain))
    before = deployment.layout.record.read_bytes()
    for act in (opened, up):
        with pytest.raises(DeploymentRefused, match=r"deployment\.json: cannot be read .* backup"):
            act(tmp_path / "d")
    assert deployment.layout.record.read_bytes() == before, "what is damaged is not written over"


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr("fedlearn_server.deployment.layout.write_durably", full)
    with pytest.raises(DeploymentRefused, match=r"deployment\.json: No space left.*make room"):
        up(tmp_path / "d")
    monkeypatch.setattr("fedlearn_server.deployment.layout.write_durably", files.write_durably)
    assert not Layout(tmp_path / "d").record.exists()
    claim(tmp_path / "d")  # and once there is room, it is as if nothing had been tried


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeploymentRefused, match="is it a directory that you may write"), in_words(tmp_path):
        claim(tmp_path / "file" / "d")


def test_one_at_a_time(tmp_path: Path) -> None:
    layout = claim(tmp_path / "d")
    with (
        locked(layout),
        pytest.raises(DeploymentRefused, match="another `fedlearn up` or `fedlearn down` works on it"),
        locked(layout, wait_s=0.0),
    ):
        pass
    with locked(layout, wait_s=0.0):
        pass


def test_the_second_waits(tmp_path: Path) -> None:
    layout = claim(tmp_path / "d")
    order = []

    def second() -> None:
        with locked(layout):
            order.append("second")

    with locked(layout):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_names_of_nodes_fill_gaps_and_keys_are_kept(tmp_path: Path) -> None:
    deployment = with_nodes(new_deployment(claim(tmp_path / "d").directory), 3).without_node("node-2")
    keys = {node.name: node.key.read_bytes() for node in deployment.nodes}
    more = with_nodes(deployment, 4)
    assert [node.name for node in more.nodes] == ["node-1", "node-3", "node-2", "node-4"]
    assert {name: more.layout.node_key(name).read_bytes() for name in keys} == keys
    assert with_nodes(more, 1) == more


def test_a_key_that_was_lost_is_not_made_anew(tmp_path: Path) -> None:
    """SuperLink knows the old one under this id: the operator must say what is to become of it."""
    deployment = example(tmp_path / "d")
    deployment.nodes[0].key.unlink()
    with_nodes(deployment, 2)
    assert not deployment.nodes[0].key.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 12}', '{"pid": "x"}'])
def test_status_of_a_node_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    node = example(tmp_path / "d").nodes[0]
    (node.state / "status.json").write_text(text)
    assert read_report(node).state == ""


def test_status_of_an_earlier_process_does_not_count(tmp_path: Path) -> None:
    node = example(tmp_path / "d").nodes[0]
    said = {"pid": 12, "state": "online", "reason": "", "since": "", "answered": 3, "metrics_port": 9, "node_id": BIG}
    (node.state / "status.json").write_text(json.dumps(said))
    assert read_report(node).state == "online"
    assert read_report(replace(node, process=ProcessRecord(13, 1.0))).state == ""


def test_versions_are_those_installed() -> None:
    assert records.installed_versions()[1].startswith("1.41.")

"""Node keys and certificates change step by step, and an accident between two steps is mended by the next call.

``tests/e2e/test_up_down.py`` does it with a real SuperLink.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedlearn.errors import DeploymentRefused, OutOfRange, SuperLinkRefused, SuperLinkUnreachable
from fedlearn_server import flower
from fedlearn_server.deployment import Deployment, ProcessRecord, opened, processes, renewal, rotation
from fedlearn_server.deployment.certificates import (
    check_certificates,
    ensure_certificates,
    issue_server,
    make_authority,
    now_utc,
)
from fedlearn_server.deployment.keys import public_pem
from fedlearn_server.deployment.keys_command import main
from fedlearn_server.deployment.nodes import with_nodes
from fedlearn_server.deployment.operator import ensure_token
from fedlearn_server.deployment.records import NOT_STARTED, new_deployment, saved
from fedlearn_server.deployment.rotation import (
    add_node,
    add_remote,
    read_public_key,
    renew_certificates,
    revoke_node,
    rotate_node,
)
from fedlearn_server.flower import FlowerNode, FlowerRun

SLEEPER = (sys.executable, "-ISc", "import time; time.sleep(60)")


@dataclass
class World:
    """Stands for ControlLink and what SuperLink knows."""

    nodes_: dict[bytes, FlowerNode] = field(default_factory=dict)
    revoked: set[bytes] = field(default_factory=set)
    found: list[FlowerRun] = field(default_factory=list)
    refuses: Exception | None = None
    fails_at: str = ""

    def nodes(self) -> tuple[FlowerNode, ...]:
        return tuple(self.nodes_.values())

    def register_node(self, pem: bytes, name: str) -> int:
        if pem in self.revoked:
            raise SuperLinkRefused("Public key already in use.")
        self.nodes_[pem] = FlowerNode(100 + len(self.nodes_) + len(self.revoked), name, "registered", 0.0, pem)
        self._fail("register")
        return self.nodes_[pem].node_id

    def unregister_node(self, node_id: int) -> None:
        pem = next(pem for pem, node in self.nodes_.items() if node.node_id == node_id)
        del self.nodes_[pem]
        self.revoked.add(pem)
        self._fail("unregister")

    def runs(self) -> tuple[FlowerRun, ...]:
        if self.refuses is not None:
            raise self.refuses
        return tuple(self.found)

    def close(self) -> None:
        pass

    def _fail(self, step: str) -> None:
        if self.fails_at == step:
            self.fails_at = ""
            raise KeyboardInterrupt


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """`up` starts nothing here."""
    made = World()
    monkeypatch.setattr(flower, "ControlLink", lambda *_: made)
    monkeypatch.setattr(rotation, "up", lambda directory, say: opened(directory))
    monkeypatch.setattr(renewal, "stop_superlink", lambda superlink: None)
    return made


@pytest.fixture
def deployment(tmp_path: Path, world: World) -> Iterator[Deployment]:
    """One node, which runs, at a SuperLink for which this process stands."""
    directory = tmp_path / "superlink"
    directory.mkdir()
    made = with_nodes(new_deployment(directory), 1)
    ensure_certificates(made.layout.certificates, now_utc(), ["fed.example.org"])
    ensure_token(made)
    node_id = world.register_node(public_pem(made.nodes[0].key), "node-1")
    process = processes.start(SLEEPER, os.environ, directory, made.layout.node_log("node-1"))
    yield saved(
        replace(
            made,
            superlink=ProcessRecord(os.getpid(), psutil.Process().create_time()),
            nodes=(replace(made.nodes[0], node_id=node_id, process=process),),
        )
    )
    processes.stop([process], 0.0)


@pytest.fixture
def far(tmp_path: Path) -> Path:
    """The public key of a node elsewhere."""
    assert main(["keygen", str(tmp_path / "far.pem")]) == 0
    return tmp_path / "far.pem.pub"


def test_a_node_is_added_with_a_key_of_its_own(deployment: Deployment, world: World) -> None:
    added = add_node(deployment.directory, "gate_2").nodes[1]
    assert world.nodes_[public_pem(added.key)].node_id == added.node_id
    assert added.key.stat().st_mode & 0o777 == 0o600
    assert added.state.stat().st_mode & 0o777 == 0o700


def test_an_addition_that_was_cut_short_goes_on(deployment: Deployment, world: World) -> None:
    """Registered at SuperLink, not yet written down here."""
    world.fails_at = "register"
    with pytest.raises(KeyboardInterrupt):
        add_node(deployment.directory, "gate-2")
    assert len(opened(deployment.directory).nodes) == 1
    added = add_node(deployment.directory, "gate-2").nodes[1]
    assert [node.node_id for node in world.nodes() if node.name == "gate-2"] == [added.node_id]


@pytest.mark.parametrize("name", ["", "a b", "../up", "node.1", "7", "n" * 65, "ä", "node-1", "far"])
def test_names_that_are_not_usable_or_taken(deployment: Deployment, far: Path, name: str) -> None:
    add_remote(deployment.directory, "far", far)
    with pytest.raises(DeploymentRefused, match=r"a node's name|there is a node of this name"):
        add_node(deployment.directory, name)
    assert opened(deployment.directory) == deployment
    assert [path.name for path in (deployment.directory / "nodes").iterdir()] == ["node-1"]


def test_a_key_is_one_nodes(deployment: Deployment, far: Path) -> None:
    node_id = add_remote(deployment.directory, "far", far)
    with pytest.raises(DeploymentRefused, match="is the one of far"):
        add_remote(deployment.directory, "other", far)
    assert revoke_node(deployment.directory, "far") == (node_id,)
    with pytest.raises(DeploymentRefused, match=r"revoked stays so.*`fedlearn nodes keygen FILE`"):
        add_remote(deployment.directory, "far", far)


def test_files_that_are_no_public_key(deployment: Deployment, tmp_path: Path, far: Path) -> None:
    other = Ed25519PrivateKey.generate().public_key()
    (tmp_path / "ed").write_bytes(other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    (tmp_path / "text").write_bytes(b"hello")
    for path, words in (
        (tmp_path / "far.pem", r"a private key, which stays"),
        (tmp_path / "ed", "not an elliptic-curve key"),
        (tmp_path / "text", "not a public key"),
        (tmp_path / "none", "not a public key"),
    ):
        with pytest.raises(DeploymentRefused, match=words):
            add_remote(deployment.directory, "far", path)
    assert read_public_key(far) == public_pem(tmp_path / "far.pem")


def test_a_revoked_node_is_stopped_and_its_key_is_gone(deployment: Deployment, world: World) -> None:
    node = deployment.nodes[0]
    assert revoke_node(deployment.directory, "node-1") == (node.node_id,)
    assert world.nodes() == ()
    assert not processes.is_running(node.process)
    assert not node.state.exists()
    assert opened(deployment.directory).nodes == ()
    with pytest.raises(DeploymentRefused, match="no node of this name or id"):
        revoke_node(deployment.directory, "node-1")


def test_one_registration_is_revoked_by_its_id(deployment: Deployment, world: World, far: Path, tmp_path: Path) -> None:
    old = add_remote(deployment.directory, "far", far)
    main(["keygen", str(tmp_path / "next.pem")])
    new = add_remote(deployment.directory, "far", tmp_path / "next.pem.pub", beside=True)
    assert revoke_node(deployment.directory, str(old)) == (old,)
    assert [node.node_id for node in world.nodes() if node.name == "far"] == [new]


def test_only_a_remote_nodes_second_key_is_given(deployment: Deployment, far: Path) -> None:
    with pytest.raises(DeploymentRefused, match="runs on this machine"):
        add_remote(deployment.directory, "node-1", far, beside=True)
    with pytest.raises(DeploymentRefused, match="no node of this name"):
        add_remote(deployment.directory, "far", far, beside=True)
    with pytest.raises(DeploymentRefused, match=r"^far: no node of this name or id"):
        rotate_node(deployment.directory, "far")
    add_remote(deployment.directory, "far", far)
    with pytest.raises(DeploymentRefused, match="not a node of this machine"):
        rotate_node(deployment.directory, "far")


@pytest.mark.parametrize("accident", ["", "register", "unregister"])
def test_another_key(deployment: Deployment, world: World, accident: str) -> None:
    """After an accident at any step the next call ends with one key, one registration and the old key refused."""
    old, old_pem = deployment.nodes[0], public_pem(deployment.nodes[0].key)
    (old.state / "node.json").write_text('{"node_id": 1}', encoding="utf-8")
    world.fails_at = accident
    if accident:
        with pytest.raises(KeyboardInterrupt):
            rotate_node(deployment.directory, "node-1")
    new = rotate_node(deployment.directory, "node-1").nodes[0]
    assert new.process == NOT_STARTED
    assert not processes.is_running(old.process)
    assert [(node.name, node.node_id) for node in world.nodes()] == [("node-1", new.node_id)]
    assert world.revoked == {old_pem}
    assert list(world.nodes_) == [public_pem(new.key)] != [old_pem]
    assert sorted(path.name for path in new.state.iterdir()) == ["key.pem", "node.log"]


def test_nothing_without_a_superlink(deployment: Deployment, far: Path) -> None:
    directory = deployment.directory
    saved(replace(deployment, superlink=NOT_STARTED))
    for work in (
        lambda: add_node(directory, "x"),
        lambda: add_remote(directory, "x", far),
        lambda: revoke_node(directory, "node-1"),
        lambda: rotate_node(directory, "node-1"),
    ):
        with pytest.raises(SuperLinkUnreachable, match="`fedlearn up` starts it"):
            work()
    assert processes.is_running(deployment.nodes[0].process)


# certificates


def read(deployment: Deployment) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in deployment.layout.certificates.iterdir()}


def test_a_new_certificate_of_the_same_authority(deployment: Deployment) -> None:
    before = read(deployment)
    assert renew_certificates(deployment.directory).superlink == NOT_STARTED
    after = read(deployment)
    assert {name for name in after if after[name] != before.get(name)} == {"server.crt", "server.key"}
    found = check_certificates(deployment.layout.certificates, now_utc())
    assert found.names == ("localhost", "127.0.0.1", "fed.example.org")
    assert processes.is_running(deployment.nodes[0].process), "it comes back by itself"


def test_a_new_authority(deployment: Deployment) -> None:
    issue_server(deployment.layout.certificates, now_utc(), ["proxy.example.org"], "proxy")
    before, said = read(deployment), []
    found = renew_certificates(deployment.directory, new_ca=True, say=said.append)
    assert all(content != before[name] for name, content in read(deployment).items())
    check_certificates(deployment.layout.certificates, now_utc())
    assert renewal.names_in(deployment.layout.certificates / "proxy.crt")[2:] == ("proxy.example.org",)
    assert found.nodes[0].process == NOT_STARTED
    assert not processes.is_running(deployment.nodes[0].process), "it trusts the old one until it starts anew"
    assert len(said) == 2


def test_an_expired_certificate_is_renewed_though_nobody_can_ask_superlink(
    deployment: Deployment, world: World
) -> None:
    make_authority(deployment.layout.certificates, now_utc() - timedelta(days=400))
    issue_server(deployment.layout.certificates, now_utc() - timedelta(days=400), [])
    with pytest.raises(DeploymentRefused, match="expired"):
        check_certificates(deployment.layout.certificates, now_utc())
    world.refuses = SuperLinkRefused("the certificate is not accepted")
    renew_certificates(deployment.directory)
    check_certificates(deployment.layout.certificates, now_utc())


def test_not_under_a_run(deployment: Deployment, world: World) -> None:
    before = read(deployment)
    world.found = [FlowerRun(7, "finished", "failed", ""), FlowerRun(8, "pending", "", "")]
    with pytest.raises(DeploymentRefused, match=r"run 8 is going .*--stop-runs"):
        renew_certificates(deployment.directory)
    assert read(deployment) == before


def test_without_the_authoritys_key_nothing_is_stopped(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    (deployment.layout.certificates / "ca.key").unlink()
    monkeypatch.setattr(renewal, "stop_superlink", lambda superlink: pytest.fail("stopped"))
    with pytest.raises(DeploymentRefused, match=r"ca\.key: missing"):
        renew_certificates(deployment.directory)
    assert opened(deployment.directory) == deployment


# the command


def test_the_command(deployment: Deployment, far: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = ("--dir", str(deployment.directory))
    node_id = str(deployment.nodes[0].node_id)
    assert main(["add", "far", "--key", str(far), *at]) == 0
    assert main(["list", *at]) == 0
    shown = capsys.readouterr().out
    assert "far is node" in shown
    assert node_id in shown
    assert main(["rotate", "node-1", *at]) == 0
    assert "node-1 has a new key" in capsys.readouterr().out
    assert main(["revoke", "far", *at, "--json"]) == 0
    assert '"revoked"' in capsys.readouterr().out
    with pytest.raises(OutOfRange, match="never overwritten"):
        main(["keygen", str(tmp_path / "far.pem")])

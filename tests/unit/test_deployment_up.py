"""Up, status and down with a SuperLink and nodes that are small scripts; ``tests/e2e`` does it with the real ones."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from fedlearn.errors import DeploymentRefused, SuperLinkRefused, SuperLinkUnreachable
from fedlearn_server import flower
from fedlearn_server.deployment import Deployment, down, opened, processes, status, up
from fedlearn_server.deployment.certificates import issue_server, make_authority, now_utc, read_certificates
from fedlearn_server.deployment.nodes import wait_until_online
from fedlearn_server.deployment.operator import ensure_token
from fedlearn_server.deployment.records import NOT_STARTED, ProcessRecord, new_deployment, saved
from fedlearn_server.deployment.superlink import choose_port, wait_until_it_answers
from fedlearn_server.flower import FlowerNode, FlowerRun

PYTHON = (sys.executable, "-ISc")
"""Starts in a tenth of the time."""
SUPERLINK = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-ISc", "import time; time.sleep(60)", "flwr-serverapp"], start_new_session=True)
time.sleep(60)
"""
NODE = """
import json, os, pathlib, sys, time
state = pathlib.Path(sys.argv[sys.argv.index("--state") + 1])
said = {"pid": os.getpid(), "state": "online", "reason": "", "since": "2026-01-02T03:04:05+00:00", "answered": 5}
(state / "status.part").write_text(json.dumps({**said, "metrics_port": 1234, "node_id": None}))
(state / "status.part").rename(state / "status.json")
time.sleep(60)
"""
STUBBORN = f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n{NODE}"
TWO_PORTS = """
import json, pathlib, socket, time
known = json.loads(pathlib.Path("deployment.json").read_text())["address"].split(":")
listening = [socket.create_server(at) for at in ((known[0], int(known[1])), ("127.0.0.1", 0))]
time.sleep(60)
"""
DYING = "import sys; print('FL999 no shard here', file=sys.stderr); sys.exit(2)"


@dataclass
class World:
    """What a SuperLink knows, and how it answers; ``deaf``: calls until it hears of nodes."""

    answers: bool = True
    guarded: bool = True
    nodes: dict[bytes, FlowerNode] = field(default_factory=dict)
    revoked: set[bytes] = field(default_factory=set)
    runs: list[FlowerRun] = field(default_factory=list)
    stops: bool = True
    heard: float = 0.0
    deaf: int = 0
    last_id: int = 2**63

    def forget_all(self) -> None:
        """The database was lost."""
        self.nodes.clear()


class Control:
    """Stands for ControlLink."""

    def __init__(self, world: World, token: str | None = None) -> None:
        self.world = world
        self.token = token

    def nodes(self) -> tuple[FlowerNode, ...]:
        self.answer()
        if self.token is None and self.world.guarded:
            raise SuperLinkRefused("refuses (403): This needs the token.")
        self.world.deaf -= 1
        self.world.heard += self.world.deaf < 0
        return tuple(replace(node, online_until=self.world.heard) for node in self.world.nodes.values())

    def register_node(self, pem: bytes, name: str) -> int:
        self.answer()
        if pem in self.world.nodes or pem in self.world.revoked:
            raise SuperLinkRefused("refuses (412): Public key already in use.")
        self.world.last_id += 1
        self.world.nodes[pem] = FlowerNode(self.world.last_id, name, "online", 0.0, pem)
        return self.world.last_id

    def unregister_node(self, node_id: int) -> None:
        pem = next(pem for pem, node in self.world.nodes.items() if node.node_id == node_id)
        del self.world.nodes[pem]
        self.world.revoked.add(pem)

    def runs(self, limit: int = 100) -> tuple[FlowerRun, ...]:
        self.answer()
        return tuple(self.world.runs[:limit])

    def stop_run(self, run_id: int) -> bool:
        if self.world.stops:
            self.world.runs = [replace(run, status="finished", sub_status="stopped") for run in self.world.runs]
        return True

    def answer(self) -> None:
        if not self.world.answers:
            raise SuperLinkUnreachable("it does not answer.")

    def close(self) -> None:
        pass


class Fixture:
    """A directory for a deployment of scripts."""

    def __init__(self, directory: Path, world: World) -> None:
        self.directory = directory
        self.world = world
        self.said: list[str] = []

    def up(self, nodes: int | None = None, script: str = NODE, **options: object) -> Deployment:
        command = [*PYTHON, script]
        return up(self.directory, nodes, say=self.said.append, node_command=command, **options)

    def down(self, **options: bool) -> Deployment:
        return down(opened(self.directory), say=self.said.append, **options)

    def running(self) -> set[int]:
        return {found.pid for found in processes.marked(opened(self.directory).identity)}


@pytest.fixture
def town(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fixture]:
    world = World()
    monkeypatch.setattr(flower, "ControlLink", lambda address, ca, token=None: Control(world, token))
    start_as(monkeypatch, SUPERLINK)
    yield Fixture(tmp_path / "d", world)
    if (tmp_path / "d" / "deployment.json").exists():
        processes.stop(processes.marked(opened(tmp_path / "d").identity), 0.0)


def start_as(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let SuperLink be a script."""

    def start(deployment: Deployment) -> ProcessRecord:
        layout = deployment.layout
        ensure_token(deployment)
        layout.database.parent.mkdir(exist_ok=True)
        environ = {**os.environ, processes.IDENTITY: deployment.identity}
        record = processes.start([*PYTHON, script], environ, layout.directory, layout.superlink_log)
        while script is SUPERLINK and len(processes.family(record)) < 2:
            time.sleep(0.01)
        return record

    monkeypatch.setattr(sys.modules[up.__module__], "start_superlink", start)


def kill(record: ProcessRecord) -> None:
    os.kill(record.pid, signal.SIGKILL)
    assert processes.wait_gone([record], 10.0) == ()


def test_starts_all_and_then_nothing_more(town: Fixture) -> None:
    first = town.up(2)
    assert len(town.running()) == 4  # SuperLink, a ServerApp, two nodes
    assert [node.node_id for node in first.nodes] == [2**63 + 1, 2**63 + 2]
    assert any(line.startswith("waiting for SuperLink") for line in town.said)
    town.said.clear()
    assert town.up() == first == opened(town.directory)
    assert not any("SuperLink" in line for line in town.said), "it runs: nobody waits for it"
    assert len(town.running()) == 4


def test_three_nodes_unless_told_otherwise(town: Fixture) -> None:
    assert len(town.up().nodes) == 3


def test_none(town: Fixture) -> None:
    assert town.up(0).nodes == ()


def test_only_what_was_killed_is_started(town: Fixture) -> None:
    first = town.up(2)
    kill(first.nodes[1].process)
    second = town.up()
    assert second.nodes[1].process != first.nodes[1].process
    assert replace(second, nodes=()) == replace(first, nodes=())
    assert second.nodes[0] == first.nodes[0]
    kill(second.superlink)
    third = town.up()
    assert (third.address, third.nodes) == (second.address, second.nodes)
    assert third.superlink != second.superlink
    assert len(town.running()) == 4, "the ServerApp of the SuperLink that was killed is gone"


def test_what_an_interrupted_up_started_is_stopped(town: Fixture) -> None:
    first = town.up(2)
    saved(replace(first, nodes=(first.nodes[0], replace(first.nodes[1], process=NOT_STARTED))))
    second = town.up()
    assert not processes.is_running(first.nodes[1].process), "two processes must not run one node"
    assert processes.is_running(second.nodes[1].process)
    assert second.nodes[0] == first.nodes[0]


def test_more_nodes(town: Fixture) -> None:
    first = town.up(1)
    second = town.up(3)
    assert second.nodes[0] == first.nodes[0]
    assert [node.name for node in second.nodes] == ["node-1", "node-2", "node-3"]


def test_fewer_nodes(town: Fixture) -> None:
    first = town.up(3)
    with pytest.raises(DeploymentRefused, match=r"--nodes 1: 3 nodes .* node-2, node-3 .*`fedlearn down`, then"):
        town.up(1)
    assert opened(town.directory) == first
    town.down()
    second = town.up(1)
    assert [node.node_id for node in second.nodes] == [first.nodes[0].node_id]
    assert len(town.world.revoked) == 2
    assert not first.nodes[2].state.exists()
    third = town.up(2)
    assert third.nodes[1].node_id not in {node.node_id for node in first.nodes}, "with a key of its own"


def test_a_database_that_was_lost(town: Fixture) -> None:
    first = town.up(2)
    identity = first.layout.node_identity("node-1")
    identity.write_text(json.dumps({"node_id": first.nodes[0].node_id}))
    town.world.forget_all()
    second = town.up()
    assert {node.node_id for node in second.nodes}.isdisjoint({node.node_id for node in first.nodes})
    assert json.loads(identity.read_text()) == {"node_id": second.nodes[0].node_id}


def test_a_database_that_knows_the_keys_already(town: Fixture) -> None:
    """An `up` that was killed after it registered a node and before it wrote that down."""
    first = town.up(1)
    saved(replace(first, nodes=(replace(first.nodes[0], node_id=None),)))
    assert town.up() == first


def test_a_revoked_key(town: Fixture) -> None:
    first = town.up(1)
    Control(town.world).unregister_node(first.nodes[0].node_id or 0)
    with pytest.raises(DeploymentRefused, match=r"node-1: SuperLink does not take its key .*revoked"):
        town.up()


def test_superlink_ends_at_once(town: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    town.world.answers = False
    start_as(monkeypatch, "import sys; print('first'); sys.exit('database is malformed')")
    with pytest.raises(DeploymentRefused, match=r"SuperLink ended at its start(?s:.*)database is malformed"):
        town.up(2)
    assert town.running() == set(), "nodes without a SuperLink are not left behind"


def test_superlink_never_answers(town: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    town.world.answers = False
    monkeypatch.setattr(
        sys.modules[up.__module__], "wait_until_it_answers", partial(wait_until_it_answers, seconds=0.0)
    )
    with pytest.raises(DeploymentRefused, match="SuperLink runs but does not answer: it does not answer"):
        town.up(1)


def test_a_node_ends_at_once(town: Fixture) -> None:
    with pytest.raises(DeploymentRefused, match=r"node-1: ended: FL999 no shard here \(log: .*node\.log\)\nnode-2: "):
        town.up(2, DYING)


def test_a_node_that_only_believes_it_is_online(town: Fixture) -> None:
    """It outlived its SuperLink and has not noticed; the new one has not heard of it."""
    deployment = town.up(1)
    control = Control(town.world, "token")
    for node in control.nodes():
        town.world.nodes[node.public_key] = replace(node, status="offline")
    with pytest.raises(DeploymentRefused, match="node-1: online after"):
        wait_until_online(control, deployment.nodes, control.nodes(), town.said.append, 0.2)
    wait_until_online(control, deployment.nodes, None, town.said.append, 0.2)


def test_up_waits_until_superlink_hears_of_nodes_that_outlived_it(town: Fixture) -> None:
    first = town.up(1)
    kill(first.superlink)
    town.world.deaf = 6
    town.up()
    assert town.world.deaf < 0
    town.world.deaf = 6
    town.up()
    assert town.world.deaf > 0, "which is not needed where SuperLink was there before"


def test_a_superlink_that_obeys_anybody_is_stopped(town: Fixture) -> None:
    town.world.guarded = False
    with pytest.raises(DeploymentRefused, match="obeys whoever reaches its port"):
        town.up(1)
    assert not processes.is_running(opened(town.directory).superlink)


def test_a_superlink_with_a_second_port_is_stopped(town: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token is asked for at the port that is known; whoever finds the other one may start code."""
    start_as(monkeypatch, TWO_PORTS)
    monkeypatch.setattr(sys.modules[up.__module__], "wait_until_it_answers", waiting_for_its_ports)
    with pytest.raises(DeploymentRefused, match=r"SuperLink listens at 127\.0\.0\.1:\d+ too"):
        town.up(1)
    assert town.running() == set()


def waiting_for_its_ports(deployment: Deployment) -> flower.ControlLink:
    while len(processes.listens_at(deployment.superlink)) < 2:
        assert processes.is_running(deployment.superlink), deployment.layout.superlink_log.read_text()
        time.sleep(0.01)
    return wait_until_it_answers(deployment)


def test_the_token_stays_and_is_closed_to_others(town: Fixture) -> None:
    path = town.up(1).layout.operator_token
    token = path.read_text()
    assert (len(token.strip()), path.stat().st_mode & 0o077) == (64, 0)
    kill(opened(town.directory).superlink)
    town.up()
    assert path.read_text() == token


def test_another_version(town: Fixture) -> None:
    first = town.up(1)
    saved(replace(first, versions=("0.0.1", "1.40.0")))
    with pytest.raises(DeploymentRefused, match=r"runs fedlearn 0\.0\.1 with flwr 1\.40\.0, this is .*down` first"):
        town.up()
    town.down()
    assert town.up().versions == first.versions


def test_another_port(town: Fixture) -> None:
    first = town.up(1)
    assert town.up(port=first.port) == first
    with pytest.raises(DeploymentRefused, match=f"--port 7: SuperLink runs on port {first.port}"):
        town.up(port=7)
    kill(first.superlink)
    other = choose_port(new_deployment(town.directory), None)
    second = town.up(port=other)
    assert second.address == f"127.0.0.1:{other}"
    assert second.nodes[0].process != first.nodes[0].process, "nodes look for it where it is now"


def test_a_name_for_others(town: Fixture) -> None:
    first = town.up(0)
    with pytest.raises(DeploymentRefused, match=r"--host fleet\.example\.org: the certificate is for localhost, 127"):
        town.up(host="fleet.example.org")
    assert town.up(host="localhost") == first
    town.down()
    town.up(host="fleet.example.org")
    assert read_certificates(first.layout.certificates).names == ("localhost", "127.0.0.1", "fleet.example.org")


def test_an_expired_certificate(town: Fixture) -> None:
    certificates = town.up(0).layout.certificates
    issue_long_ago(certificates, 366)
    with pytest.raises(DeploymentRefused, match=r"server\.crt: expired on .*--renew-certificates"):
        town.up()


def test_down_leaves_nothing(town: Fixture) -> None:
    first = town.up(2)
    assert len(town.running()) == 4
    town.said.clear()
    stopped = town.down()
    assert town.said == ["stopping 2 nodes", "stopping SuperLink"]
    assert town.running() == set()
    assert (stopped.superlink, {node.process for node in stopped.nodes}) == (NOT_STARTED, {NOT_STARTED})
    town.said.clear()
    assert town.down() == stopped, "twice is once"
    assert town.said == []
    assert town.up().nodes[0].node_id == first.nodes[0].node_id


def test_down_after_everything_was_killed(town: Fixture) -> None:
    first = town.up(1)
    for record in (first.superlink, first.nodes[0].process):
        kill(record)
    assert len(town.running()) == 1, "the ServerApp is left"
    town.down()
    assert town.running() == set()


def test_a_node_that_does_not_drain(town: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[down.__module__], "DRAIN_S", 0.3)
    town.up(1, STUBBORN)
    town.down()
    assert town.running() == set()
    assert any("node-1 did not drain" in line for line in town.said)


GOING = [FlowerRun(2**63 + 9, "running", "", ""), FlowerRun(4, "pending", "", "")]


def test_down_while_a_run_is_going(town: Fixture) -> None:
    town.up(1)
    before = town.running()
    town.world.runs = [*GOING, FlowerRun(5, "finished", "completed", "")]
    words = rf"2 runs are going: {2**63 + 9} \(running\), 4 \(pending\);.*--stop-runs"
    with pytest.raises(DeploymentRefused, match=words):
        town.down()
    assert town.running() == before
    town.down(stop_runs=True)
    assert town.running() == set()
    assert all(run.is_over for run in town.world.runs)


def test_a_run_that_does_not_stop(town: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[down.__module__], "RUN_STOP_S", 0.0)
    town.up(0)
    town.world.runs, town.world.stops = GOING, False
    town.down(stop_runs=True)
    assert town.running() == set()
    assert any("stopped with SuperLink" in line for line in town.said)


def test_down_while_superlink_does_not_answer(town: Fixture) -> None:
    town.up(1)
    before = town.running()
    town.world.answers = False
    with pytest.raises(DeploymentRefused, match=r"whether a run is going cannot be asked.*--stop-runs"):
        town.down()
    assert town.running() == before
    town.down(stop_runs=True)
    assert town.running() == set()


def test_status_when_all_is_well(town: Fixture) -> None:
    deployment = town.up(2)
    town.world.runs = GOING
    found = status(deployment)
    assert (found.is_well, found.problems) == (True, ())
    assert (found.superlink.state, found.superlink.pid) == ("online", deployment.superlink.pid)
    assert found.superlink.address == deployment.address
    node = found.nodes[1]
    assert (node.name, node.node_id, node.state, node.answered, node.metrics_port) == (
        "node-2",
        2**63 + 2,
        "online",
        5,
        1234,
    )
    assert node.since == "2026-01-02T03:04:05+00:00"
    assert found.runs == tuple(GOING)
    assert found.certificate_days == 364


def test_status_of_nodes_elsewhere(town: Fixture) -> None:
    town.up(0)
    control = Control(town.world, "token")
    (problem,) = status(opened(town.directory)).problems
    assert problem == "no node is online, a training would wait; `fedlearn up --nodes 3` starts some here."
    for name in ("west", "east"):
        control.register_node(name.encode(), name)
    found = status(opened(town.directory))
    assert [(node.name, node.node_id, node.state) for node in found.elsewhere] == [
        ("east", 2**63 + 2, "online"),
        ("west", 2**63 + 1, "online"),
    ]
    assert found.is_well
    town.world.nodes = {pem: replace(node, status="offline") for pem, node in town.world.nodes.items()}
    assert status(opened(town.directory)).problems == (problem,)


def problem_after(town: Fixture, harm: Callable[[Deployment], object]) -> Sequence[str]:
    deployment = town.up(1)
    harm(deployment)
    found = status(deployment)
    assert not found.is_well
    return found.problems


def test_status_of_what_died(town: Fixture) -> None:
    died, alone = problem_after(town, lambda deployment: kill(deployment.nodes[0].process))
    assert died.startswith("node-1 died; `fedlearn up` starts it.")
    assert alone == "no node is online, a training would wait; `fedlearn up` starts some here."


def test_status_of_a_superlink_that_died(town: Fixture) -> None:
    assert "SuperLink died; `fedlearn up` starts it." in problem_after(town, lambda found: kill(found.superlink))


def test_status_of_a_superlink_that_does_not_answer(town: Fixture) -> None:
    problems = problem_after(town, lambda _: setattr(town.world, "answers", False))
    assert problems[0].startswith("it does not answer. Its log: ")
    assert status(opened(town.directory)).superlink.state == "starting"


def test_status_of_a_node_that_is_not_online(town: Fixture) -> None:
    def harm(deployment: Deployment) -> None:
        path = deployment.layout.node_status("node-1")
        path.write_text(json.dumps({**json.loads(path.read_text()), "state": "connecting", "reason": "FL706 revoked"}))

    assert problem_after(town, harm)[0] == "node-1 is connecting: FL706 revoked"


def test_status_after_down(town: Fixture) -> None:
    town.up(1)
    found = status(town.down())
    assert found.problems == ("nothing runs here; `fedlearn up` starts it.",)
    assert {found.superlink.state, found.nodes[0].state} == {"stopped"}


def issue_long_ago(certificates: Path, days: float) -> None:
    make_authority(certificates, now_utc() - timedelta(400))
    issue_server(certificates, now_utc() - timedelta(days))


def test_status_of_certificates(town: Fixture) -> None:
    directory = town.up(1).layout.certificates
    issue_long_ago(directory, 340)
    assert status(opened(town.directory)).problems == (
        "the certificate expires in 24 days; `fedlearn up --renew-certificates`.",
    )
    issue_long_ago(directory, 370)
    found = status(opened(town.directory))
    assert found.certificate_days is None
    assert "expired on" in found.problems[0]
    (problem,) = status(town.down()).problems
    assert "expired on" in problem, "`fedlearn up` would not start it"


def test_status_of_a_disk_that_is_nearly_full(town: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[status.__module__], "LEAST_FREE_BYTES", 1 << 60)
    (problem,) = problem_after(town, lambda deployment: None)
    assert "MiB free where the database lies" in problem

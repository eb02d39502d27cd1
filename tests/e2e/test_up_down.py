"""The life of a deployment with a real SuperLink and real nodes: what docs/operations.md promises of it, under a run.

``tests/unit`` has the cases with scripts for SuperLink and nodes; ``tests/long/test_operations_long.py`` renews
certificates, brings a deployment back from a backup, and kills more of it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import ModuleType

import pytest

from fedlearn.errors import SuperLinkRefused
from fedlearn_server.deployment import Deployment, opened, processes
from fedlearn_server.deployment.operator import open_control
from fedlearn_server.deployment.rotation import add_node, add_remote, revoke_node, rotate_node
from fedlearn_server.flower import ControlLink, FleetLink, build_bundle, load_node_key

Cli = Callable[[Sequence[str]], tuple[int, str]]
FEW = 5
"""Lines about calls that were refused when the run was stopped; the calls of its rounds are hundreds."""


def load(name: str) -> ModuleType:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


worlds = load("superlink_world")


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Of a deployment; whatever of it runs ends with the test."""
    made = tmp_path / "deployment"
    yield made
    if (made / "deployment.json").exists():
        processes.stop(processes.marked(opened(made).identity), 0.0)


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern")  # Flower's, when it builds a bundle
def test_a_deployment_from_up_to_down(cli: Cli, directory: Path, tmp_path: Path) -> None:
    """One test: each start of a SuperLink or a node is seconds."""
    first = check_up(cli, directory)
    check_guard(first)
    check_superlink_killed(cli, first)
    with closing(open_control(first)) as control:
        asked = ask_for_long(control, tmp_path / "asked.jsonl")
        check_keys_and_nodes(first, asked, tmp_path)
        check_status(cli, opened(directory))
        assert control.run(asked.run_id).status == "running"
    check_far(cli, opened(directory), tmp_path)
    check_down(cli, opened(directory), asked.run_id)


def check_up(cli: Cli, directory: Path) -> Deployment:
    """Twice is once."""
    at = ("--dir", str(directory))
    code, said = cli(["up", "--nodes", "1", *at])
    assert code == 0, said
    made = opened(directory)
    assert known_nodes(made) == {made.nodes[0].node_id: "online"}
    running = {record.pid for record in processes.marked(made.identity)}
    assert running == {made.superlink.pid, made.nodes[0].process.pid}
    assert cli(["up", *at])[0] == 0
    assert opened(directory) == made
    assert {record.pid for record in processes.marked(made.identity)} == running, "nothing new"
    return made


def check_guard(deployment: Deployment) -> None:
    """It knows its operator, and says of which version it is."""
    stranger = ControlLink(deployment.address, deployment.ca)
    with closing(stranger), pytest.raises(SuperLinkRefused, match="403"):
        stranger.nodes()
    key = load_node_key(deployment.nodes[0].key)
    with closing(FleetLink(deployment.address, deployment.ca, key)) as link:
        worlds.be_of_version(link, "1.30.0")
        for call in (lambda: link.activate(None), link.pull):
            with pytest.raises(SuperLinkRefused, match=r"another version.*1\.30\.0"):
                call()


def check_superlink_killed(cli: Cli, deployment: Deployment) -> None:
    """It comes back on its database, and its node finds it again."""
    at = ("--dir", str(deployment.directory))
    os.kill(deployment.superlink.pid, signal.SIGKILL)
    assert processes.wait_gone([deployment.superlink], 10.0) == ()
    code, said = cli(["status", *at])
    assert code == 1, said
    assert "SuperLink died; `fedlearn up` starts it." in said
    code, said = cli(["up", *at])
    assert code == 0, said
    again = opened(deployment.directory)
    assert (again.address, again.nodes) == (deployment.address, deployment.nodes)
    assert known_nodes(again) == {again.nodes[0].node_id: "online"}


def ask_for_long(control: ControlLink, out: Path) -> object:
    """Start a run that asks two parts small questions, more than it will get to ask."""
    order = {
        "tasks": [b"small".hex()] * 5000,
        "parts": 2,
        "cohort": "{}",
        "deadline_s": 60.0,
        "resend_s": 2.0,
        "pause_s": 0.3,
        "out": str(out),
    }
    bundle = build_bundle({"pyproject.toml": worlds.ASKER_PROJECT, "asker.py": worlds.ASKER.encode()})
    return worlds.Asked(control.start_run(bundle, {"fedlearn": json.dumps(order)}), out)


def check_keys_and_nodes(deployment: Deployment, asked: object, tmp_path: Path) -> None:
    """A run goes on while they change."""
    directory, old = deployment.directory, deployment.nodes[0].node_id
    (tmp_path / "old.pem").write_bytes(deployment.nodes[0].key.read_bytes())
    (tmp_path / "old.pem").chmod(0o600)

    def last_nodes() -> set[int]:
        return {answer["node"] for answer in asked.answers()[-4:]}

    worlds.wait_until(lambda: last_nodes() == {old}, "the node to answer")
    new = rotate_node(directory, "node-1").nodes[0].node_id
    assert new != old
    worlds.wait_until(lambda: last_nodes() == {new}, "its new key to answer")
    added = add_node(directory, "gate-1").nodes[1].node_id
    worlds.wait_until(lambda: last_nodes() == {new, added}, "the new node to answer too")
    revoke_node(directory, "gate-1")
    worlds.wait_until(lambda: last_nodes() == {new}, "the rest to go on")
    link = FleetLink(deployment.address, deployment.ca, load_node_key(tmp_path / "old.pem"))
    with closing(link), pytest.raises(SuperLinkRefused):
        link.activate(old)


def check_status(cli: Cli, deployment: Deployment) -> None:
    code, said = cli(["status", "--json", "--dir", str(deployment.directory)])
    assert code == 0, said
    plain = json.loads(said)
    assert plain["well"]
    assert plain["superlink"]["pid"] == deployment.superlink.pid
    assert [(node["node_id"], node["state"]) for node in plain["nodes"]] == [
        (str(deployment.nodes[0].node_id), "online")
    ]


def check_far(cli: Cli, deployment: Deployment, tmp_path: Path) -> None:
    """A node on another machine keeps its key to itself."""
    assert cli(["nodes", "keygen", str(tmp_path / "far.pem")])[0] == 0
    far = add_remote(deployment.directory, "far", tmp_path / "far.pem.pub")
    with closing(FleetLink(deployment.address, deployment.ca, load_node_key(tmp_path / "far.pem"))) as link:
        assert link.activate(None) == far
    code, said = cli(["nodes", "list", "--dir", str(deployment.directory), "--json"])
    assert code == 0, said
    listed = {row["name"]: (row["node_id"], row["key"]) for row in json.loads(said)}
    near = (str(deployment.nodes[0].node_id), "on this machine")
    assert listed == {"far": (str(far), "elsewhere"), "node-1": near}


def check_down(cli: Cli, deployment: Deployment, run_id: int) -> None:
    """A run is going: it is in the way until it is told to stop."""
    at = ("--dir", str(deployment.directory))
    code, said = cli(["down", *at])
    assert code == 1
    assert str(run_id) in said
    assert "--stop-runs" in said
    assert processes.is_running(deployment.superlink)
    code, said = cli(["down", "--stop-runs", *at])
    assert code == 0, said
    assert processes.marked(deployment.identity) == ()
    assert cli(["down", *at])[0] == 0
    check_files(deployment)


def check_files(deployment: Deployment) -> None:
    """Nobody else can read any of it, and the log has no line for each poll."""
    for path in [deployment.directory, *deployment.directory.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    log = deployment.layout.superlink_log.read_text()
    for name in ("pull-messages", "send-node-heartbeat", "list-nodes"):
        assert log.count(name) < FEW, name


def known_nodes(deployment: Deployment) -> dict[int, str]:
    with closing(open_control(deployment)) as control:
        return {node.node_id: node.status for node in control.nodes()}

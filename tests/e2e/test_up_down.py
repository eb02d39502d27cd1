"""`fedlearn up`, `status` and `down` with a real SuperLink and real nodes: what is killed comes back, down ends all."""

from __future__ import annotations

import json
import os
import signal
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from fedlearn_server.deployment import Deployment, ProcessRecord, opened, processes
from fedlearn_server.deployment.operator import open_control
from fedlearn_server.flower import build_bundle

Cli = Callable[[Sequence[str]], tuple[int, str]]


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Of a deployment; whatever of it runs ends with the test."""
    made = tmp_path / "deployment"
    yield made
    if (made / "deployment.json").exists():
        processes.stop(processes.marked(opened(made).identity), 0.0)


def kill(*records: ProcessRecord) -> None:
    for record in records:
        os.kill(record.pid, signal.SIGKILL)
    assert processes.wait_gone(records, 10.0) == ()


def known_nodes(deployment: Deployment) -> dict[int, str]:
    control = open_control(deployment)
    try:
        return {node.node_id: node.status for node in control.nodes()}
    finally:
        control.close()


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern")  # Flower's, when it builds a bundle
def test_what_is_killed_comes_back_and_down_ends_all(cli: Cli, directory: Path) -> None:
    at = ("--dir", str(directory))
    code, said = cli(["up", "--nodes", "2", *at])
    assert code == 0, said
    first = opened(directory)
    assert known_nodes(first) == {node.node_id: "online" for node in first.nodes}
    running = {record.pid for record in processes.marked(first.identity)}
    assert len(running) == 3  # SuperLink, two nodes

    assert cli(["up", *at])[0] == 0
    assert opened(directory) == first
    assert {record.pid for record in processes.marked(first.identity)} == running, "nothing new"

    kill(first.superlink)
    code, said = cli(["status", *at])
    assert code == 1, said
    assert "SuperLink died; `fedlearn up` starts it." in said
    code, said = cli(["up", *at])
    assert code == 0, said
    second = opened(directory)
    assert (second.address, second.nodes) == (first.address, first.nodes), "its nodes found it again"
    assert known_nodes(second) == {node.node_id: "online" for node in first.nodes}

    kill(second.nodes[0].process)
    second.layout.database.unlink()  # not even this matters: SuperLink that is killed now comes back without a memory
    kill(second.superlink)
    code, said = cli(["up", *at])
    assert code == 0, said
    third = opened(directory)
    assert third.nodes[1].process == second.nodes[1].process
    assert third.nodes[0].process != second.nodes[0].process
    assert known_nodes(third) == {node.node_id: "online" for node in third.nodes}
    check_status(cli, third)
    check_down(cli, third)


def check_status(cli: Cli, deployment: Deployment) -> None:
    code, said = cli(["status", "--json", "--dir", str(deployment.directory)])
    assert code == 0, said
    plain = json.loads(said)
    assert plain["well"]
    assert plain["superlink"]["pid"] == deployment.superlink.pid
    assert [node["node_id"] for node in plain["nodes"]] == [str(node.node_id) for node in deployment.nodes]
    assert {node["state"] for node in plain["nodes"]} == {"online"}


def check_down(cli: Cli, deployment: Deployment) -> None:
    """A run is going: it is in the way until it is told to stop."""
    at = ("--dir", str(deployment.directory))
    control = open_control(deployment)
    run_id = control.start_run(build_bundle(bundle_that_waits()), {})
    control.close()
    code, said = cli(["down", *at])
    assert code == 1
    assert str(run_id) in said
    assert "--stop-runs" in said
    assert processes.is_running(deployment.superlink)
    code, said = cli(["status", *at])
    assert str(run_id) in said

    code, said = cli(["down", "--stop-runs", *at])
    assert code == 0, said
    assert processes.marked(deployment.identity) == ()
    assert cli(["down", *at])[0] == 0
    check_files(deployment)


def bundle_that_waits() -> dict[str, bytes]:
    project = """\
[project]
name = "waits"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "fedlearn"
[tool.flwr.app.components]
serverapp = "waits.app:app"
clientapp = "waits.app:app"
"""
    code = (
        "import time\nfrom flwr.serverapp import ServerApp\napp = ServerApp()\n@app.main()\ndef main(grid, context):\n"
    )
    return {"pyproject.toml": project.encode(), "waits/app.py": f"{code}    time.sleep(60)\n".encode()}


def check_files(deployment: Deployment) -> None:
    """Nobody else can read any of it, and the log has no line for each poll."""
    for path in [deployment.directory, *deployment.directory.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    log = deployment.layout.superlink_log.read_text()
    assert "pull-messages" not in log
    assert "send-node-heartbeat" not in log
    assert "list-nodes" not in log

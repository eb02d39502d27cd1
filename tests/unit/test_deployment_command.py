"""What the commands take and show."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedlearn.cli import main
from fedlearn_server.deployment import Deployment, DeploymentStatus, rotation
from fedlearn_server.deployment import command as commands
from fedlearn_server.deployment.records import new_deployment, new_node, saved
from fedlearn_server.deployment.status import NodeElsewhere, NodeStatus, SuperLinkStatus
from fedlearn_server.flower import FlowerRun

BIG = 2**64 - 1
WELL = DeploymentStatus(
    directory="/d",
    superlink=SuperLinkStatus("online", 17, "127.0.0.1:9092", "2026-01-02T03:04:05+00:00", "0.1.0", "1.41.0"),
    nodes=(
        NodeStatus("node-1", BIG, "online", "", "2026-01-02T03:04:06+00:00", 7, 4321, 18),
        NodeStatus("node-2", None, "stopped", "", "", 0, 0, 0),
    ),
    runs=(FlowerRun(BIG - 1, "finished", "failed", "[red]no[/] shard", "2025-11-12T13:14:15+00:00"),),
    certificate_days=12,
    disk_free_bytes=3 << 30,
    problems=(),
    elsewhere=(NodeElsewhere("far", BIG - 2, "offline"),),
)


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Return the exit status and the words of `fedlearn status` for a status."""
    (tmp_path / "d").mkdir()
    saved(new_deployment(tmp_path / "d"))

    def show(found: DeploymentStatus, *options: str) -> tuple[int, str]:
        monkeypatch.setattr(commands, "status", lambda deployment: found)
        return main(["status", "--dir", str(tmp_path / "d"), *options]), capsys.readouterr().out

    return show


def test_status(shown: Callable[..., tuple[int, str]]) -> None:
    code, said = shown(WELL)
    assert code == 0
    for words in (
        "pid 17",
        "127.0.0.1:9092",
        str(BIG),
        "metrics port 4321",
        str(BIG - 1),
        "finished failed",
        "12 days",
    ):
        assert words in said
    assert re.search(rf"{BIG - 1} .*finished failed .* 2025-11-1[123] \d\d:\d\d", said), "since when, in local time"
    assert re.search(rf"far .*{BIG - 2} .*offline .* elsewhere", said)
    assert "[red]no[/] shard" in said, "what others wrote is shown as it is"


def test_status_with_problems(shown: Callable[..., tuple[int, str]]) -> None:
    code, said = shown(replace(WELL, problems=("node-2 died; [b]`fedlearn up`[/b] starts it.",), certificate_days=None))
    assert code == 1
    assert "! node-2 died; [b]`fedlearn up`[/b] starts it." in said
    assert "certificate: not usable" in said


def test_status_for_machines(shown: Callable[..., tuple[int, str]]) -> None:
    code, said = shown(WELL, "--json")
    plain = json.loads(said)
    assert (code, plain["well"]) == (0, True)
    assert [node["node_id"] for node in plain["nodes"]] == [str(BIG), None]
    assert plain["runs"][0] == {
        "run_id": str(BIG - 1),
        "status": "finished",
        "sub_status": "failed",
        "details": "[red]no[/] shard",
        "submitted": "2025-11-12T13:14:15+00:00",
    }
    assert plain["elsewhere"] == [{"name": "far", "node_id": str(BIG - 2), "state": "offline"}]
    assert plain["superlink"]["pid"] == 17


@pytest.mark.parametrize("command", ["status", "down"])
def test_no_deployment(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert main([command, "--dir", str(tmp_path)]) == 1
    assert "error FL708" in (said := capsys.readouterr().err)
    assert "no deployment here; `fedlearn up` makes one" in said


@pytest.mark.parametrize(
    "options",
    [["--port", "0"], ["--port", "65536"], ["--port", "x"], ["--host", "a b"], ["--host", "https://a"], ["--host", ""]],
    ids=" ".join,
)
def test_bad_options(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["up", *options])
    assert ended.value.code == 2
    assert f"argument {options[0]}: must be a" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["fleet.example.org", "10.0.0.1", "fe80::1"])
def test_options_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    given: list[Any] = []

    def up(directory: Path, nodes: int | None, **options: Any) -> Deployment:
        del options["say"]
        given.append((directory, nodes, options))
        return new_deployment(directory)

    monkeypatch.setattr(commands, "up", up)
    assert main(["up", "--dir", str(tmp_path), "--nodes", "4", "--port", "9092", "--host", host]) == 0
    assert given == [(tmp_path, 4, {"port": 9092, "host": host, "gateways": None})]


@pytest.mark.parametrize("count", ["-1", "513"])
def test_nodes_out_of_range_are_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str], count: str) -> None:
    assert main(["up", "--dir", str(tmp_path / "d"), f"--nodes={count}"]) == 2
    assert f"error FL102: --nodes {count}: must be in 0..512." in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


def test_ctrl_c_says_what_keeps_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def up(*_: Any, **__: Any) -> Deployment:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "up", up)
    assert main(["up", "--dir", str(tmp_path)]) == 130
    assert capsys.readouterr().err == (
        "interrupted; what was started keeps running: `fedlearn up` goes on, `fedlearn down` stops it\n"
    )


@pytest.mark.parametrize(
    ("count", "words"), [(0, "next: fedlearn up --nodes 3"), (1, "next: fedlearn train runtime=superlink;")]
)
def test_a_training_is_next_only_with_a_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], count: int, words: str
) -> None:
    found = new_deployment(tmp_path)
    nodes = tuple(new_node(found, f"node-{number}") for number in range(count))
    monkeypatch.setattr(commands, "up", lambda *_, **__: replace(found, nodes=nodes))
    assert main(["up", "--dir", str(tmp_path), "--nodes", str(count)]) == 0
    said = capsys.readouterr().out
    assert words in said
    assert ("fedlearn train" in said) is (count > 0)


def test_certificates_are_renewed_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(rotation, "renew_certificates", lambda directory, **_: order.append(f"renew {directory.name}"))
    monkeypatch.setattr(commands, "up", lambda directory, *_, **__: order.append("up") or new_deployment(directory))
    assert main(["up", "--dir", str(tmp_path), "--renew-certificates"]) == 0
    assert order == [f"renew {tmp_path.name}", "up"]


def test_the_default_directory_is_the_users_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLEARN_STATE", str(tmp_path))
    given: list[Path] = []
    monkeypatch.setattr(
        commands, "up", lambda directory, *_, **__: given.append(directory) or new_deployment(directory)
    )
    assert main(["up"]) == 0
    assert given == [tmp_path / "superlink"]


def test_flower_is_not_imported_for_help() -> None:
    """Each import of Flower is seconds."""
    script = "import sys; import fedlearn_server.deployment.command; print('flwr' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

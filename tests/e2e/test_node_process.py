"""`fedlearn node` as a process against a real SuperLink: without its data, and told to stop."""

from __future__ import annotations

import importlib.util
import json
import signal
import sys
import urllib.request
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest

from fedlearn.lab import compose
from fedlearn.lab.shards import Roll, describe
from fedlearn.task import RoundTask
from fedlearn.terms import TrainingTerms
from fedlearn.wire import encode_task

if TYPE_CHECKING:
    from superlink_world import Member, SuperLinkWorld

COMMAND = "import sys; from fedlearn.cli import main; sys.exit(main())"
DRAINED_S = 30.0


def load(name: str) -> ModuleType:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


worlds = load("superlink_world")


def start(world: SuperLinkWorld, member: Member, *more: str) -> psutil.Popen:
    """Start the node of a member; its log is NAME.log."""
    given = {"superlink": world.address, "ca": world.ca, "key": member.key_file, "state": world.directory / member.name}
    options = [f"--{name}={value}" for name, value in given.items()]
    return world.spawn([sys.executable, "-c", COMMAND, "node", *options, *more], f"{member.name}.log")


def wait_online(world: SuperLinkWorld, member: Member, process: psutil.Popen) -> dict[str, Any]:
    """Wait for a process to be online; return its status."""
    path = world.directory / member.name / "status.json"

    def online() -> dict[str, Any] | None:
        assert process.poll() is None, (world.directory / f"{member.name}.log").read_text()
        said = json.loads(path.read_text()) if path.exists() else {}
        return said if (said.get("pid"), said.get("state")) == (process.pid, "online") else None

    found: dict[str, Any] = worlds.wait_until(online, "the node to be online")
    return found


def ready(status: dict[str, Any]) -> int:
    """Ask /readyz."""
    with urllib.request.urlopen(f"http://127.0.0.1:{status['metrics_port']}/readyz") as answer:
        return int(answer.status)


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern")  # Flower's, when it builds a bundle
def test_a_node_lives_through_it(superlink: SuperLinkWorld, tmp_path: Path) -> None:
    member = superlink.register()
    (tmp_path / "empty").mkdir()
    node = start(superlink, member, f"--data-root={tmp_path / 'empty'}")
    status = wait_online(superlink, member, node)
    assert status["node_id"] == member.node_id
    assert ready(status) == 200

    config = compose(["experiment=crosswoz_restaurants", "data.root=/where/the/submitter/has/it"])
    run = superlink.ask([task(0), task(1)], parts=1, cohort=describe(config, 0, Roll("0" * 64, 1, "0" * 64)))
    assert superlink.wait_for_run(run.run_id) == "completed"
    assert [said["failure"] for said in run.answers()] == ["DataMissing FL201"] * 2
    assert node.poll() is None

    node.send_signal(signal.SIGTERM)
    assert node.wait(DRAINED_S) == 0
    said = json.loads((superlink.directory / member.name / "status.json").read_text())
    assert (said["state"], said["answered"]) == ("stopped", 2)
    assert superlink.status_of(member) == "offline", "it said good-bye"
    check_log(superlink.directory / f"{member.name}.log", str(tmp_path))


def task(step: int) -> bytes:
    """A task of a model with one weight."""
    terms = TrainingTerms(epochs=1, batch_size=1, learning_rate=0.1, shuffle=False, candidates=2)
    return encode_task(
        RoundTask(
            run_id="run",
            step=step,
            attempt=0,
            seed=0,
            parameters={"w": np.zeros(1, np.float32)},
            training=terms,
            l2_clip_norm=1.0,
            grid_step=None,
            sampling_probability=1.0,
            round_key=bytes(32),
        )
    )


def check_log(path: Path, secret: str) -> None:
    """Each line is JSON; kinds of failures are in it, their words are not."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    messages = [line["message"] for line in lines]
    assert messages.count("a question ended in a failure: DataMissing FL201") == 2
    assert "stopped" in messages
    assert secret not in path.read_text(encoding="utf-8")

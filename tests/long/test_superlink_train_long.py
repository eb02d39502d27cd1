"""`fedlearn train runtime=superlink` goes on whatever of it is killed or stopped, to the same model."""

from __future__ import annotations

import importlib.util
import json
import signal
import sys
from pathlib import Path
from types import ModuleType

import pytest

from fedlearn.lab.superlink import marks
from fedlearn_server.deployment import Deployment
from fedlearn_server.deployment.operator import open_control


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "e2e" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


_runs = _load("superlink_runs")
ROUNDS = 24
PLAIN = ("privacy=none", f"cohort.rounds={ROUNDS}", "evaluation.every=1000")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_run_survives_its_serverapp_and_its_submitter(tmp_path: Path) -> None:
    small_city = _load("small_city").SmallCity()
    with _runs.deployed(tmp_path / "state", 2) as deployment:
        directory = tmp_path / "run"
        process = small_city.start(directory, *PLAIN, "runtime=superlink", "runtime.shards=3")
        _runs.wait_for_steps(small_city, directory, 2, process)

        first = _runs.kill_serverapp(directory)
        _runs.wait_for_steps(small_city, directory, 1, process)
        second = marks.read_at_work(directory)
        assert second is not None
        assert second.flower_run != first

        process.kill()
        process.communicate()
        process = small_city.command("resume", str(directory))
        _runs.wait_until_followed(small_city, directory, process)
        assert marks.read_at_work(directory) == second, "taken up where it was, not submitted again"

        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=_runs.PATIENCE_S)
        assert process.returncode == 130, output
        assert f"fedlearn resume {directory}" in " ".join(output.split())
        assert not marks.is_held(directory), "what is stopped is stopped when the command ends"
        check_over(deployment, 2)

        said = _runs.finished(small_city.command("resume", str(directory)))
        assert "Report:" in said
        check_over(deployment, 3)
    steps = small_city.steps(directory)
    assert steps == list(range(ROUNDS))
    small_city.train(tmp_path / "here", *PLAIN)
    _runs.assert_same_model(directory, tmp_path / "here")
    summary = small_city.summary(directory)
    assert any("SuperLink" in word for word in summary["privacy"]["assurances"]["word"])
    assert "SuperLink" in (directory / "report.html").read_text(encoding="utf-8")
    check_log(directory)


def check_over(deployment: Deployment, runs: int) -> None:
    control = open_control(deployment)
    try:
        assert [run.is_over for run in control.runs()] == [True] * runs
    finally:
        control.close()


def check_log(directory: Path) -> None:
    """The log says which rounds there were, and nothing of what the phones did in them."""
    lines = [json.loads(line) for line in (directory / "serverapp.log").read_text(encoding="utf-8").splitlines()]
    assert {line["step"] for line in lines if line["message"] == "round"} == set(range(ROUNDS))
    allowed = {"time", "level", "component", "logger", "message", "error", "step", "attempt", "run_id", "part"}
    assert set().union(*lines) <= allowed

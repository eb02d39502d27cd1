"""A ServerApp does what was ordered, as the submitter's own process would; or it says why not, and touches nothing."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fedlearn.errors import CodeMismatch, MalformedMessage, ResumeRefused, RoundFailed, RunDirectoryInUse
from fedlearn.lab import compose, rundir
from fedlearn.lab.run import train
from fedlearn.lab.shards import open_simulated
from fedlearn.lab.study import prepare_study
from fedlearn.lab.superlink import marks, serverapp
from fedlearn.lab.superlink.order import Order, make_order
from fedlearn_server import training as server_training
from fedlearn_server.app import make_client_app
from fedlearn_server.checkpoint import MODEL_FILE, load_model
from fedlearn_server.grids.in_process import InProcessGrid

SMALL = (
    "experiment=city_quick",
    "privacy=none",
    "data.devices=40",
    "data.restaurants=500",
    "cohort.rounds=3",
    "evaluation.controls=false",
    "evaluation.bootstrap=100",
)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ServerApp takes over its process's logging, which is the test's here; and no test waits for a lock."""
    monkeypatch.setattr(serverapp, "log_json", lambda component, stream: stream.close())
    monkeypatch.setattr(serverapp, "LOCK_WAIT_S", 0.0)


@pytest.fixture
def order(tmp_path: Path) -> Order:
    """An order whose run directory is there, submitted."""
    directory = tmp_path / "run"
    config = compose([*SMALL, "runtime=superlink", f"run.dir={directory}"])
    study = prepare_study(config, directory, "")
    with rundir.locked(directory):
        identity = rundir.claim(directory, config, study.prepared.dataset.digest, "command")
    study = replace(study, run_id=identity.run_id)
    arm, training = next(study.trainings())
    made = replace(make_order(study, arm, training), submission="mine")
    submit(made)
    return made


def submit(order: Order, submission: str = "mine") -> None:
    marks.write_submission(order.training_directory, marks.Submission(submission, order.digest, "here:1", 1))


def serve(order: Order) -> None:
    serverapp.serve(InProcessGrid(make_client_app(lambda: open_simulated), 3), order.to_json())


def left(order: Order) -> list[str]:
    return sorted(path.name for path in order.training_directory.iterdir())


def test_the_same_model_and_records_as_in_process(order: Order, tmp_path: Path) -> None:
    serve(order)
    other = tmp_path / "other"
    train(compose([*SMALL, f"run.dir={other}"]), console=Console(quiet=True))
    mine, theirs = load_model(order.directory), load_model(other)
    for name, array in theirs.items():
        np.testing.assert_allclose(mine[name], array, rtol=1e-6, atol=1e-6)
    records = [
        [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        for directory in (order.directory, other)
    ]
    assert [record["step"] for record in records[0]] == [0, 1, 2]
    assert [record["cohort"] for record in records[0]] == [record["cohort"] for record in records[1]]
    who = marks.read_at_work(order.directory)
    assert who is not None
    assert (who.submission, who.flower_run) == ("mine", 1)
    assert who.metrics_port
    assert not marks.is_held(order.directory)


@pytest.mark.parametrize("current", [None, "another"])
def test_one_that_was_given_up_on_does_nothing(order: Order, current: str | None) -> None:
    marks.forget_submission(order.training_directory)
    if current is not None:
        submit(order, current)
    marks.write_failure(order.directory, marks.Failure("another", "FL703", "RoundFailed", "of another"))
    serve(order)
    assert not (order.directory / MODEL_FILE).exists()
    assert not (order.directory / "metrics.jsonl").exists()
    assert marks.read_failure(order.directory) is not None


def test_a_training_that_is_done_is_left_alone(order: Order) -> None:
    (order.directory / MODEL_FILE).write_bytes(b"model")
    serve(order)
    assert (order.directory / MODEL_FILE).read_bytes() == b"model"


def test_another_serverapp_is_at_work(order: Order) -> None:
    with marks.held(order.directory, 0.0), pytest.raises(RunDirectoryInUse, match="another ServerApp"):
        serve(order)
    assert marks.read_failure(order.directory) is None, "the one at work says what happens, nobody else"


@pytest.mark.parametrize(
    ("problem", "code", "kind"),
    [
        (RoundFailed("nobody answered"), "FL703", "RoundFailed"),
        (OSError(errno.ENOSPC, "No space left on device"), "", "OSError"),
    ],
    ids=["ours", "a full disk"],
)
def test_why_it_ended_is_kept_for_the_submitter(
    order: Order, monkeypatch: pytest.MonkeyPatch, problem: Exception, code: str, kind: str
) -> None:
    monkeypatch.setattr(server_training, "run_training", raising(problem))
    with pytest.raises(type(problem)):
        serve(order)
    failure = marks.read_failure(order.directory)
    assert failure is not None
    assert (failure.submission, failure.code, failure.kind) == ("mine", code, kind)
    monkeypatch.undo()
    monkeypatch.setattr(serverapp, "log_json", lambda component, stream: stream.close())
    serve(order)
    assert marks.read_failure(order.directory) is None, "what was wrong is wrong no longer"
    assert (order.directory / MODEL_FILE).exists()


def test_a_lost_superlink_is_no_failure_of_the_run(order: Order, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = pytest.importorskip("httpx").ConnectError("refused")
    monkeypatch.setattr(server_training, "run_training", raising(problem))
    with pytest.raises(type(problem)):
        serve(order)
    failure = marks.read_failure(order.directory)
    assert failure is not None
    assert failure.is_transient


def test_where_nothing_can_be_written_flower_keeps_the_reason(order: Order, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(server_training, "run_training", raising(problem))
    monkeypatch.setattr(marks, "write_failure", raising(problem))
    with pytest.raises(OSError, match="No space left"):
        serve(order)


def raising(problem: Exception) -> Callable[..., Any]:
    def raise_it(*arguments: Any, **named: Any) -> Any:
        raise problem

    return raise_it


def test_a_run_directory_that_is_not_seen_here(order: Order, tmp_path: Path) -> None:
    with pytest.raises(ResumeRefused, match=r"does not see this run directory: set run\.dir"):
        serve(replace(order, directory=tmp_path / "elsewhere"))
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("key", ["run_id", "config_digest"])
def test_a_run_directory_of_another_run(order: Order, key: str) -> None:
    path = order.directory / "run.json"
    identity = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**identity, key: "0" * 64}), encoding="utf-8")
    before = left(order)
    with pytest.raises(ResumeRefused, match="as ordered"):
        serve(order)
    assert left(order) == before


def test_other_data_on_this_machine(order: Order) -> None:
    path = order.directory / "run.json"
    identity = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**identity, "data_digest": "0" * 64}), encoding="utf-8")
    with pytest.raises(ResumeRefused, match="not the run's"):
        serve(order)
    failure = marks.read_failure(order.directory)
    assert failure is not None
    assert failure.code == "FL702"


def test_a_training_that_the_config_does_not_have(order: Order) -> None:
    with pytest.raises(MalformedMessage, match="names a training that its config does not have"):
        serve(replace(order, seed=17))


def test_other_code(order: Order) -> None:
    before = left(order)
    with pytest.raises(CodeMismatch):
        serve(replace(order, code="0" * 64))
    assert left(order) == before

"""A run that was stopped goes on as if it had not been; a run that was changed does not."""

from __future__ import annotations

import fcntl
import functools
import json
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fedlearn.errors import (
    FedlearnError,
    LedgerDamaged,
    LedgerLocked,
    ResumeRefused,
    RunDirectoryInUse,
    RunInterrupted,
)
from fedlearn.ledger import LEDGER_FILE, Charged, Committed, Ledger, store
from fedlearn_server import round as server_round
from fedlearn_server.checkpoint import CHECKPOINT_FILE, MODEL_FILE

if TYPE_CHECKING:
    from small_city import SmallCity

ROUNDS = 6
PLAIN = ("privacy=none", f"cohort.rounds={ROUNDS}", "evaluation.every=2")
PRIVATE = (f"cohort.rounds={ROUNDS}", "evaluation.every=2")
Cli = Callable[[list[str]], tuple[int, str]]


def stop_in_round(monkeypatch: pytest.MonkeyPatch, round_number: int, where: str = "advance") -> None:
    """Press Ctrl-C in that round of the next run."""
    real, calls = getattr(server_round, where), []

    def pressed(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == round_number + 1:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(server_round, where, pressed)


@pytest.fixture(scope="module")
def undisturbed(small_city: SmallCity, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run without privacy."""
    directory = tmp_path_factory.mktemp("plain") / "run"
    small_city.train(directory, *PLAIN)
    return directory


@pytest.fixture(scope="module")
def stopped_template(small_city: SmallCity, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private run that was stopped in its fourth round, before the charge; its secret state lies beside it."""
    directory = tmp_path_factory.mktemp("private") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDLEARN_STATE", str(directory.parent / "state"))
        stop_in_round(patch, 3, "gather")
        with pytest.raises(RunInterrupted):
            small_city.train(directory, *PRIVATE)
    return directory


@pytest.fixture
def stopped(stopped_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, to be spoilt."""
    monkeypatch.setenv("FEDLEARN_STATE", str(tmp_path / "state"))
    shutil.copytree(stopped_template.parent / "state", tmp_path / "state")
    return Path(shutil.copytree(stopped_template, tmp_path / "run"))


@pytest.mark.parametrize(
    ("where", "rounds"), [(w, r) for w in ("gather", "advance") for r in [(0,), (3,), (5,), (1, 1, 2)]]
)
def test_without_privacy_the_model_is_the_same_to_the_bit(  # noqa: PLR0917 - fixtures
    small_city: SmallCity,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    rounds: tuple[int, ...],
) -> None:
    directory = tmp_path / "run"
    for number, stop in enumerate(rounds):
        with monkeypatch.context() as patch:
            stop_in_round(patch, stop, where)
            # train goes on with a run of the same config, as resume does
            run = functools.partial(small_city.train, directory, *PLAIN)
            if number:
                run = functools.partial(small_city.resume, directory)
            with pytest.raises(RunInterrupted, match=f"fedlearn resume {directory}") as stopped:
                run()
            assert stopped.value.code == "FL704"
        assert small_city.steps(directory) == list(range(sum(rounds[: number + 1])))
    small_city.resume(directory)
    assert weights(directory) == weights(undisturbed)
    assert small_city.steps(directory) == list(range(ROUNDS))
    assert rounds_of(directory) == rounds_of(undisturbed)


def weights(directory: Path) -> bytes:
    """Return the tensors of the model file; its header names the run."""
    content = (directory / MODEL_FILE).read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def rounds_of(directory: Path) -> list[dict[str, Any]]:
    """Return the records of all rounds, without their wall time."""
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def test_a_private_run_goes_on_with_what_is_left(small_city: SmallCity, stopped: Path) -> None:
    assert small_city.steps(stopped) == [0, 1, 2]
    run = small_city.resume(stopped)
    assert small_city.steps(stopped) == list(range(ROUNDS))
    assert run.summary.privacy is not None
    charges = small_city.summary(stopped)["privacy"]["charges"]
    assert charges == {"total": ROUNDS, "committed": ROUNDS, "wasted": 0}
    epsilons = [record["epsilon"] for record in rounds_of(stopped)]
    assert epsilons == sorted(set(epsilons))
    assert epsilons[-1] <= 3.0


def test_a_charge_that_paid_for_nothing_is_counted(
    small_city: SmallCity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_in_round(patch, 2, "advance")  # after the noise was drawn
        with pytest.raises(RunInterrupted):
            small_city.train(directory, *PRIVATE)
    small_city.resume(directory)
    summary = small_city.summary(directory)["privacy"]
    assert summary["charges"] == {"total": ROUNDS, "committed": ROUNDS - 1, "wasted": 1}
    assert summary["epsilon"] <= 3.0
    assert small_city.steps(directory) == list(range(ROUNDS - 1))
    epsilons = [record["epsilon"] for record in rounds_of(directory)]
    assert epsilons[-1] == pytest.approx(summary["epsilon"], rel=1e-12)
    entries = Ledger.read(directory / LEDGER_FILE)
    assert sum(isinstance(entry, Charged) for entry in entries) == ROUNDS
    assert sum(isinstance(entry, Committed) for entry in entries) == ROUNDS - 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_leave_a_run_that_can_be_resumed(
    small_city: SmallCity, tmp_path: Path, number: signal.Signals, cli: Cli
) -> None:
    directory = tmp_path / "run"
    # enough rounds that the run cannot end by itself before the signal
    process = small_city.start(directory, "cohort.rounds=5000", "privacy=none")
    deadline = time.monotonic() + 60
    while len(small_city.steps(directory)) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "error FL704" in output
    assert f"fedlearn resume {directory}" in " ".join(output.split())
    assert "Traceback" not in output
    steps = small_city.steps(directory)
    assert steps == list(range(len(steps)))
    with pytest.MonkeyPatch.context() as patch:
        stop_in_round(patch, 2)
        status, output = cli(["resume", str(directory)])
    assert status == 130, output
    assert len(small_city.steps(directory)) >= len(steps) + 1


def refused(small_city: SmallCity, directory: Path, error: type[FedlearnError], code: str, words: str) -> None:
    before = {path.name: path.read_bytes() for path in directory.iterdir() if path.name in KEPT}
    with pytest.raises(error, match=words) as found:
        small_city.resume(directory)
    assert found.value.code == code
    assert {path.name: path.read_bytes() for path in directory.iterdir() if path.name in KEPT} == before


KEPT = {"config.yaml", "run.json", "metrics.jsonl", CHECKPOINT_FILE}


def test_a_changed_config(small_city: SmallCity, stopped: Path) -> None:
    path = stopped / "config.yaml"
    text = path.read_text(encoding="utf-8")
    assert "rounds: 6" in text
    path.write_text(text.replace("rounds: 6", "rounds: 7"), encoding="utf-8")
    refused(small_city, stopped, ResumeRefused, "FL702", r"config.yaml was changed")


@pytest.mark.parametrize(("key", "words"), [("data_digest", "data changed"), ("code_digest", "code changed")])
def test_changed_data_or_code(small_city: SmallCity, stopped: Path, key: str, words: str) -> None:
    path = stopped / "run.json"
    identity = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**identity, key: "0" * 64}), encoding="utf-8")
    refused(small_city, stopped, ResumeRefused, "FL702", words)


@pytest.mark.parametrize("content", ["", "{}", "[1]", "{", '{"run_id": 1}'])
def test_a_damaged_identity(small_city: SmallCity, stopped: Path, content: str) -> None:
    (stopped / "run.json").write_text(content, encoding="utf-8")
    refused(small_city, stopped, ResumeRefused, "FL702", "damaged")


def test_a_damaged_checkpoint(small_city: SmallCity, stopped: Path) -> None:
    path = stopped / CHECKPOINT_FILE
    path.write_bytes(path.read_bytes()[:-1])
    refused(small_city, stopped, ResumeRefused, "FL702", "not a checkpoint")


def test_no_run_there(small_city: SmallCity, tmp_path: Path, cli: Cli) -> None:
    refused(small_city, tmp_path, ResumeRefused, "FL702", "no run here")
    status, output = cli(["resume", str(tmp_path / "nowhere")])
    assert status == 2
    assert "error FL702" in output
    assert not (tmp_path / "nowhere").exists()


def test_overrides(stopped: Path, cli: Cli) -> None:
    status, output = cli(["resume", str(stopped), "cohort.rounds=9"])
    assert status == 2
    assert "error FL702: cohort.rounds=9" in output


def test_training_into_a_run_of_another_config(small_city: SmallCity, stopped: Path) -> None:
    with pytest.raises(RunDirectoryInUse, match="another config") as found:
        small_city.train(stopped, *PRIVATE, "cohort.fraction=0.25")
    assert found.value.code == "FL701"
    foreign = stopped.parent / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(RunDirectoryInUse, match="not a run"):
        small_city.train(foreign, *PRIVATE)


def test_training_into_the_same_config_goes_on(small_city: SmallCity, stopped: Path) -> None:
    small_city.train(stopped, *PRIVATE)
    assert small_city.steps(stopped) == list(range(ROUNDS))


def test_a_finished_run_is_shown_as_it_is(undisturbed: Path, cli: Cli) -> None:
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in undisturbed.rglob("*") if path.is_file()}
    status, output = cli(["resume", str(undisturbed)])
    assert status == 0
    assert "finished; shown as it is" in " ".join(output.split())
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in undisturbed.rglob("*") if path.is_file()}
    lock = undisturbed / ".lock"
    assert {**after, lock: None} == {**before, lock: None}


def test_another_process_runs_it(small_city: SmallCity, stopped: Path) -> None:
    with (stopped / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused(small_city, stopped, RunDirectoryInUse, "FL701", "another process")
    small_city.resume(stopped)


def test_a_locked_ledger(small_city: SmallCity, stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BUSY_SECONDS", 0.05)
    other = sqlite3.connect(stopped / LEDGER_FILE, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        refused(small_city, stopped, LedgerLocked, "FL601", "another process is writing")
    finally:
        other.close()
    small_city.resume(stopped)


def test_a_damaged_ledger(small_city: SmallCity, stopped: Path) -> None:
    path = stopped / LEDGER_FILE
    content = path.read_bytes()
    at = content.index(b'"sum_digest":"') + 20
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    refused(small_city, stopped, LedgerDamaged, "FL602", "entry")
    path.write_bytes(content[: len(content) // 2])
    refused(small_city, stopped, LedgerDamaged, "FL602", "ledger")
    path.write_bytes(b"")
    refused(small_city, stopped, LedgerDamaged, "FL602", "empty")
    path.write_bytes(content)
    small_city.resume(stopped)


def test_a_ledger_whose_last_charge_was_cut_off(small_city: SmallCity, stopped: Path) -> None:
    """The chain is whole, but a charge that was made is no longer there."""
    path = stopped / LEDGER_FILE
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TRIGGER no_delete")
        last = connection.execute("SELECT max(sequence) FROM entries WHERE kind = 'charged'").fetchone()[0]
        connection.execute("DELETE FROM entries WHERE sequence >= ?", (last,))
    connection.close()
    refused(small_city, stopped, ResumeRefused, "FL702", "older copy")

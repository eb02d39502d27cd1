"""From an empty folder outside the repository: train, own configs, sweep, and what a run leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedlearn.cli import main

SMALL = [
    "experiment=city_quick",
    "data.devices=40",
    "data.restaurants=500",
    "cohort.rounds=2",
    "evaluation.controls=false",
]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def settings(run: Path) -> dict[str, str]:
    summary = json.loads((run / "summary.json").read_text())
    return {row["key"]: row["value"] for row in summary["settings"]}


def test_the_command_runs_from_an_empty_folder(elsewhere: Path) -> None:
    """A process of its own, as a user starts it; the run goes below the folder it was started in."""
    command = Path(sys.executable).with_name("fedlearn")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(command), "train", *SMALL], env=environment, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    (run,) = (elsewhere / "runs").iterdir()
    expected = {"config.yaml", "metrics.jsonl", "model.safetensors", "ledger.sqlite", "summary.json", "report.html"}
    assert expected <= {path.name for path in run.iterdir()}
    assert "Epsilon 3.00 at delta 1e-4" in " ".join(done.stdout.split())
    assert "Simulation, not a deployment." in done.stdout
    assert {path.name for path in elsewhere.iterdir()} == {"runs"}, "nothing else is left behind"


def test_a_second_command_shows_the_finished_run(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *SMALL, "run.dir=mine"]) == 0
    model = (elsewhere / "mine" / "model.safetensors").read_bytes()
    capsys.readouterr()
    assert main(["train", *SMALL, "run.dir=mine"]) == 0
    assert "finished; shown as it is" in " ".join(capsys.readouterr().out.split())
    assert (elsewhere / "mine" / "model.safetensors").read_bytes() == model
    assert main(["train", *SMALL, "run.dir=mine", "cohort.rounds=3"]) == 2
    assert "error FL701: run.dir=mine" in capsys.readouterr().err


def test_an_edited_copy_wins(elsewhere: Path) -> None:
    assert main(["init", "configs"]) == 0
    city = elsewhere / "configs" / "data" / "city.yaml"
    city.write_text(city.read_text().replace("rho: 0.6", "rho: 0.25"))
    preset = elsewhere / "configs" / "experiment" / "mine.yaml"
    preset.write_text(
        "# fedlearn train --config-dir configs experiment=mine\n"
        "defaults:\n  - override /privacy: none\n\ncohort:\n  rounds: 3\nrun:\n  dir: from-preset\n"
    )
    assert main(["train", "--config-dir", "configs", *SMALL[1:3], "evaluation.controls=false", "experiment=mine"]) == 0
    found = settings(elsewhere / "from-preset")
    assert found["data.rho"] == "0.25"
    assert found["cohort.rounds"] == "3"
    assert found["privacy.mode"] == '"none"'
    text = (elsewhere / "from-preset" / "report.html").read_text().lower()
    assert "no privacy" in text


def test_a_sweep_runs_every_point(elsewhere: Path) -> None:
    arguments = ["-m", *SMALL, "privacy=none", "client.learning_rate=0.1,0.5", "hydra.launcher.n_jobs=1"]
    assert main(["train", *arguments]) == 0
    runs = list((elsewhere / "runs").iterdir())
    assert {settings(run)["client.learning_rate"] for run in runs} == {"0.1", "0.5"}
    assert not (elsewhere / "multirun").exists()


@pytest.mark.filterwarnings("ignore")  # theirs, about each other
@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_tracker_receives_the_rounds(name: str, elsewhere: Path) -> None:
    pytest.importorskip("tensorboard" if name == "tensorboard" else "mlflow")
    place = elsewhere / ("events" if name == "tensorboard" else "tracked.db")
    uri = str(place) if name == "tensorboard" else f"sqlite:///{place}"
    assert main(["train", *SMALL, "privacy=none", f"tracking={name}", f"tracking.uri={uri}", "run.dir=mine"]) == 0
    assert place.exists()
    assert (elsewhere / "mine" / "summary.json").is_file()

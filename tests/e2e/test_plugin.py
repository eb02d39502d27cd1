"""A package that was installed separately brings a data set, a model and a metric; they train and are listed."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedlearn.cli import main
from fedlearn.engine.conformance import ModelConformance
from fedlearn.lab.config import ModelConfig, PluginData
from fedlearn.lab.conformance import DatasetConformance, MetricConformance
from fedlearn.lab.dataset import SessionDataset
from fedlearn.lab.evaluation import Metric
from fedlearn.lab.registry import build_dataset, build_metric, build_model
from fedlearn.models import ClientExamples, Model

SOURCE = Path(__file__).parents[1] / "example_plugin"
TRAIN = [
    "data=plugin",
    "data.name=toyshop",
    "model.name=damped",
    "+model.options.l2=0.02",
    "evaluation.metrics=[HR@3,NearMiss]",
    "evaluation.controls=false",
    "cohort.rounds=4",
    "client.candidates=8",
]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the built and installed example; nothing of it is found unless the folder is on the path."""
    base = tmp_path_factory.mktemp("plugin")
    source, target = base / "source", base / "site"
    shutil.copytree(SOURCE, source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True, capture_output=True, timeout=120)
    return target


@pytest.fixture
def found(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(installed))
    importlib.invalidate_caches()
    return installed


def test_it_is_short() -> None:
    code = (SOURCE / "toyshop.py").read_text(encoding="utf-8").splitlines()
    assert len(code) <= 70


@pytest.mark.usefixtures("found")
def test_it_is_listed_with_the_package_it_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["data"]["toyshop"] == listed["models"]["damped"] == listed["metrics"]["NearMiss"] == "toyshop"


def test_it_trains_from_the_command(installed: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("fedlearn")), "train", *TRAIN, "run.dir=toys"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "toys" / "summary.json").read_text())
    assert summary["data"] == "toyshop"
    headline = next(row for row in summary["models"] if row["name"] == summary["headline"])
    assert [metric["name"] for metric in headline["metrics"]] == ["HR@3", "NearMiss"]
    assert (tmp_path / "toys" / "report.html").is_file()


@pytest.mark.usefixtures("found")
def test_without_privacy_it_learns_the_toy_task(tmp_path: Path) -> None:
    """Kind and colour are both said: the item is determined, so a model that trains at all finds it."""
    run = tmp_path / "run"
    assert main(["train", *TRAIN, "privacy=none", "cohort=everyone", f"run.dir={run}"]) == 0
    summary = json.loads((run / "summary.json").read_text())
    headline = next(row for row in summary["models"] if row["name"] == summary["headline"])
    assert headline["metrics"][0]["mean"] > 0.95


def test_without_the_package_its_name_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *TRAIN]) == 2
    assert "FL101" in capsys.readouterr().err


@pytest.mark.usefixtures("found")
class TestToyShop(DatasetConformance):
    def dataset(self) -> SessionDataset:
        return build_dataset(PluginData("toyshop", {"devices": 12}, 1, "last_session"))


@pytest.mark.usefixtures("found")
class TestNearMiss(MetricConformance):
    def metric(self) -> Metric:
        return build_metric("NearMiss")


@pytest.mark.usefixtures("found")
class TestDamped(ModelConformance):
    def model(self) -> Model:
        return build_model(ModelConfig("damped", {"l2": 0.02}), 3)

    def examples(self, rng: np.random.Generator) -> ClientExamples:
        return ClientExamples(
            {
                "features": rng.standard_normal((6, 5, 3)).astype(np.float32),
                "label": rng.integers(0, 5, 6),
                "logq": np.zeros((6, 5), np.float32),
            }
        )

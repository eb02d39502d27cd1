"""One whole study on a small city, from config to report, read back as a user would."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.numpy import load_file

from fedlearn.features import FEATURES
from fedlearn.lab import compose, train
from fedlearn.lab.run import TrainedRun
from fedlearn.ledger import LEDGER_FILE, Charged, Committed, Ledger, RunOpened
from fedlearn.privacy.accountants import epsilon
from fedlearn.report.rounds import read_rounds
from fedlearn.report.summary import ModelKind, Summary

SMALL = [
    "experiment=city_quick",
    "data.devices=250",
    "data.restaurants=500",
    "cohort.rounds=12",
    "evaluation.every=6",
    "evaluation.bootstrap=200",
    "privacy.delta=1e-3",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, own_directories: Path) -> TrainedRun:
    directory = tmp_path_factory.mktemp("study") / "run"
    return train(compose([*SMALL, f"run.dir={directory}"]), console=Console(quiet=True))


def score(summary: Summary, name: str) -> float:
    row = summary.model(name)
    assert row is not None, f"no row {name!r} among {[m.name for m in summary.models]}"
    return row.metrics[0].mean


def test_the_table_holds_every_control_in_a_sensible_order(run: TrainedRun) -> None:
    names = [model.name for model in run.summary.models]
    assert names[:3] == ["popularity", "BM25, last message", "local-only"]
    assert score(run.summary, "popularity") < score(run.summary, "BM25, last message")
    assert score(run.summary, "federated, no privacy") > score(run.summary, "BM25, last message") + 0.1
    assert score(run.summary, "oracle") >= score(run.summary, "federated, no privacy")
    assert score(run.summary, "truth oracle") >= score(run.summary, "oracle")
    assert score(run.summary, "central, shuffled chat") < score(run.summary, "central, same features") - 0.2


def test_a_small_city_already_closes_most_of_the_gap(run: TrainedRun) -> None:
    gaps = {gap.model: gap.value for gap in run.summary.gaps}
    assert gaps["federated, no privacy"] > 0.7


def test_the_placebo_lifts_nothing_and_other_apps_do(run: TrainedRun) -> None:
    lifts = {lift.name: lift for lift in run.summary.lifts}
    assert lifts["placebo source (another user's choices)"].ok
    assert lifts["own chat over shuffled chat"].ok
    assert lifts["other apps' signals"].lift > 0.0


def test_epsilon_is_what_the_ledger_recomputes(run: TrainedRun) -> None:
    entries = Ledger.read(run.directory / LEDGER_FILE)
    (opened,) = (entry for entry in entries if isinstance(entry, RunOpened))
    (planned,) = opened.plan
    charged = [entry for entry in entries if isinstance(entry, Charged)]
    assert len(charged) == 12 == sum(isinstance(entry, Committed) for entry in entries)
    recomputed = epsilon([(planned.event, 1) for _ in charged], 1e-3)
    assert run.summary.privacy.epsilon == pytest.approx(recomputed, abs=1e-9)
    assert recomputed <= 3.0
    assert run.summary.privacy.caveat is not None
    assert run.summary.privacy.stamp == "simulation, not a deployment"


def test_the_private_row_alone_is_protected(run: TrainedRun) -> None:
    protected = [model.name for model in run.summary.models if model.protected]
    assert protected == ["federated, epsilon 3"]
    assert [model.name for model in run.summary.models if model.epsilon is not None] == protected


def test_every_metric_in_the_file_says_that_it_is_not_protected(run: TrainedRun) -> None:
    plain = json.loads((run.directory / "summary.json").read_text(encoding="utf-8"))
    for model in plain["models"]:
        assert all(metric["protected"] is False for metric in model["metrics"])
    assert all(gap["protected"] is False for gap in plain["gaps"])
    for line in (run.directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        assert json.loads(line)["protected"]["loss"] is False


def test_the_run_directory_is_complete(run: TrainedRun) -> None:
    expected = {"config.yaml", "metrics.jsonl", "model.safetensors", "ledger.sqlite", "summary.json", "report.html"}
    assert expected <= {path.name for path in run.directory.iterdir()}
    assert load_file(run.directory / "model.safetensors")["weights"].shape == (len(FEATURES),)
    rounds = read_rounds(run.directory / "metrics.jsonl")
    assert [record.step for record in rounds] == list(range(12))
    assert rounds[-1].epsilon == pytest.approx(run.summary.privacy.epsilon, abs=1e-3)
    assert {metric.name for metric in rounds[5].evaluation} == {"HR@10", "NDCG@10", "MRR"}


def test_results_carry_what_made_them(run: TrainedRun) -> None:
    summary = run.summary
    assert len(summary.digests.config) == len(summary.digests.data) == len(summary.digests.code) == 64
    assert summary.code_version.startswith("0.1.0+")
    assert summary.protocol.ties == "ties count against the positive"
    assert ("data.rho", "0.6") in {(setting.key, setting.value) for setting in summary.settings}


def test_privacy_none_is_loud_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [*SMALL[:-1], "privacy=none", "cohort.rounds=2", "evaluation.controls=false", "data.devices=30"]
    done = train(compose([*overrides, f"run.dir={tmp_path / 'run'}"]))
    assert "NO PRIVACY GUARANTEE" in capsys.readouterr().out
    assert "NO PRIVACY GUARANTEE" in done.report.read_text(encoding="utf-8")
    assert "NO PRIVACY GUARANTEE" in done.summary.privacy.guarantee
    assert done.summary.models[0].kind is ModelKind.FEDERATED
    assert not done.summary.models[0].protected
    assert not (done.directory / LEDGER_FILE).exists()


def test_seeds_and_folds_report_the_spend_of_all_models(tmp_path: Path) -> None:
    overrides = [*SMALL, "seeds=[0,1]", "cohort.rounds=2", "evaluation.controls=false", "data.devices=30"]
    done = train(compose([*overrides, f"run.dir={tmp_path / 'run'}"]), console=Console(quiet=True))
    together = done.summary.privacy.if_all_published
    assert together is not None
    assert together.models == 2
    assert done.summary.privacy.epsilon is not None
    assert together.epsilon is not None
    assert together.epsilon > done.summary.privacy.epsilon
    assert {(value.seed, value.fold) for value in done.summary.models[0].metrics[0].values} == {(0, 0), (1, 0)}
    assert len(read_rounds(done.directory / "metrics.jsonl")) == 4

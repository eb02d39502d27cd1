"""The figures the project promises, at full size."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from rich.console import Console

from fedlearn.lab import compose, train
from fedlearn.report.summary import Summary

ROOT = Path(os.environ.get("FEDLEARN_DATA_ROOT", Path(__file__).parents[2] / ".." / "shared" / "data")).resolve()

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]


def figures(summary: Summary) -> dict[str, dict[str, float]]:
    found = {model.name: {metric.name: metric.mean for metric in model.metrics} for model in summary.models}
    for name, row in found.items():
        print(name, {metric: round(value, 4) for metric, value in row.items()})
    return found


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_city_closes_the_gap(tmp_path: Path, seed: int) -> None:
    overrides = ["experiment=city_quick", f"data.seed={seed}", f"run.dir={tmp_path / 'run'}"]
    summary = train(compose(overrides), console=Console(quiet=True)).summary
    found = figures(summary)
    gaps = {gap.model: gap.value for gap in summary.gaps}
    print("gap closed", gaps)
    assert found["popularity"]["HR@10"] <= 0.20
    assert found["BM25, last message"]["HR@10"] <= 0.45
    assert 0.60 <= found["oracle"]["HR@10"] <= 0.85
    assert gaps["federated, no privacy"] >= 0.85
    assert summary.privacy.epsilon is not None
    assert summary.privacy.epsilon <= 3.0


@pytest.mark.data
@pytest.mark.skipif(not (ROOT / "crosswoz" / "val.json.zip").exists(), reason="set FEDLEARN_DATA_ROOT")
def test_crosswoz_restaurants(tmp_path: Path) -> None:
    overrides = ["experiment=crosswoz_restaurants", f"data.root={ROOT}", f"run.dir={tmp_path / 'run'}"]
    summary = train(compose(overrides), console=Console(quiet=True)).summary
    found = figures(summary)
    private, central = found["federated, epsilon 3"], found["central, same features"]
    popular = found["central, with popularity"]
    assert popular["HR@10"] >= 0.69
    assert popular["NDCG@10"] >= 0.49
    assert private["HR@10"] >= 0.58
    assert private["NDCG@10"] >= 0.42
    assert private["HR@10"] >= 0.95 * central["HR@10"]
    assert private["NDCG@10"] >= 0.95 * central["NDCG@10"]
    lifts = {lift.name: lift for lift in summary.lifts}
    print({name: (lift.lift, lift.lo, lift.hi) for name, lift in lifts.items()})
    assert lifts["placebo source (another user's choices)"].ok
    assert lifts["other apps' signals"].ok
    assert len(summary.model("federated, epsilon 3").metrics[0].values) == 25  # type: ignore[union-attr]

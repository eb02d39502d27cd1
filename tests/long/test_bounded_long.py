"""Correlated noise beside independent noise and beside Poisson sampling, at the same epsilon and delta."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from rich.console import Console

from fedlearn.lab import compose, train
from fedlearn.report.summary import Summary

ROOT = Path(os.environ.get("FEDLEARN_DATA_ROOT", Path(__file__).parents[2] / ".." / "shared" / "data")).resolve()

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]


def trained(tmp_path: Path, privacy: str, *overrides: str) -> Summary:
    """Train without controls and print what came out."""
    config = compose([*overrides, f"privacy={privacy}", "evaluation.controls=false", f"run.dir={tmp_path / privacy}"])
    summary = train(config, console=Console(quiet=True)).summary
    for metric in summary.models[0].metrics:
        print(privacy, metric.name, round(metric.mean, 4), [round(value.value, 4) for value in metric.values])
    print(privacy, summary.privacy.guarantee)
    return summary


def hits(summary: Summary) -> list[float]:
    return [value.value for value in summary.models[0].metrics[0].values]


def test_city(tmp_path: Path) -> None:
    """Ten thousand phones, b = 20, k = 3. At epsilon 3 noise hardly matters here, so the comparison is at 0.03."""
    overrides = (
        "experiment=city_bounded",
        "privacy.epsilon=0.03",
        "privacy.delta=1e-5",
        "seeds=[0,1,2]",
        "evaluation.every=1000",
        "evaluation.users=2000",
    )
    blt, independent, poisson = (trained(tmp_path, name, *overrides) for name in ("blt", "independent", "gaussian"))
    for summary, relation in ((blt, "zero-out"), (independent, "zero-out"), (poisson, "add-or-remove")):
        assert summary.privacy.neighboring_relation == relation
        assert relation in summary.privacy.guarantee
        assert summary.privacy.epsilon is not None
        assert summary.privacy.epsilon <= 0.03
    assert [summary.privacy.participation.max_participations for summary in (blt, independent)] == [3, 3]
    assert sum(hits(blt)) > sum(hits(independent))


@pytest.mark.data
@pytest.mark.skipif(not (ROOT / "crosswoz" / "val.json.zip").exists(), reason="set FEDLEARN_DATA_ROOT")
def test_crosswoz(tmp_path: Path) -> None:
    """Sixty writers, b = 5, k = 12: everybody once in five rounds."""
    overrides = (
        "experiment=crosswoz_restaurants",
        f"data.root={ROOT}",
        "cohort.fraction=0.2",
        "seeds=[0]",
        "privacy.delta=1e-3",
    )
    bounded = ("privacy.min_separation=5",)
    blt, independent = (trained(tmp_path, name, *overrides, *bounded) for name in ("blt", "independent"))
    poisson = trained(tmp_path, "gaussian", *overrides)
    for summary in (blt, independent, poisson):
        assert summary.privacy.epsilon is not None
        assert summary.privacy.epsilon <= 3.0
        assert sum(hits(summary)) / len(hits(summary)) >= 0.58

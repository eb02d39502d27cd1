"""The model does not depend on where the phones live: shards, engine, or runtime."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from fedlearn.lab import compose
from fedlearn.lab.prepare import prepare, splits
from fedlearn.lab.training import Training, run_training
from fedlearn.privacy.sampling import SamplingKey
from fedlearn.types import BoundedSum, Charge
from fedlearn_server.checkpoint import load_model
from fedlearn_server.spend import LedgerSpend

if TYPE_CHECKING:
    from small_city import SmallCity

ROUNDS = 5
POPULATION = ("data.devices=120", "data.restaurants=500", f"cohort.rounds={ROUNDS}")
TOLERANCE = 1e-6
"""Absolute and relative: what single precision leaves when batches are padded differently."""


@dataclass(frozen=True)
class Trained:
    weights: np.ndarray
    cohorts: tuple[int, ...]
    first_sum: bytes
    """The clean sum of the first round; empty without privacy."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Trained]:
    """Train once per layout and remember it."""

    @cache
    def make(*overrides: str) -> Trained:
        config = compose([*POPULATION, *overrides])
        prepared = prepare(config.data)
        (split,) = splits(prepared, config.data)
        directory = tmp_path_factory.mktemp("layout")
        width = prepared.table(config.features.sources).width
        cohorts: list[int] = []
        sums = [b""]
        charge = LedgerSpend.charge

        def charged(spend: LedgerSpend, bounded: BoundedSum, task: bytes) -> Charge:
            sums.append(bounded.values.tobytes())
            return charge(spend, bounded, task)

        training = Training(config, split, 3, directory.name, directory, width)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LedgerSpend, "charge", charged)
            model = run_training(training, lambda outcome: cohorts.append(outcome.unprotected.cohort))
        weights = np.concatenate([model[name].ravel() for name in sorted(model)])
        return Trained(weights, tuple(cohorts), sums[:2][-1])

    return make


def assert_same_model(left: Trained, right: Trained) -> None:
    assert left.cohorts == right.cohorts
    assert np.abs(left.weights).max() > 0.01, "nothing was learnt, so nothing was compared"
    absolute = np.abs(left.weights - right.weights).max()
    relative = np.linalg.norm(left.weights - right.weights) / np.linalg.norm(left.weights)
    logging.info("largest difference %.1e, relative L2 %.1e", absolute, relative)
    assert absolute <= TOLERANCE
    assert relative <= TOLERANCE


@pytest.mark.parametrize("engine", ["vmap", "loop"])
@pytest.mark.parametrize("fraction", ["0.5", "1.0"])
def test_one_and_seven_shards(trained: Callable[..., Trained], engine: str, fraction: str) -> None:
    common = ("privacy=none", f"cohort.fraction={fraction}", f"runtime.engine={engine}")
    assert_same_model(trained(*common, "runtime.shards=1"), trained(*common, "runtime.shards=7"))


def test_both_engines(trained: Callable[..., Trained]) -> None:
    common = ("privacy=none", "cohort.fraction=0.5", "runtime.shards=1")
    assert_same_model(trained(*common, "runtime.engine=vmap"), trained(*common, "runtime.engine=loop"))


def test_another_seed_is_another_model(trained: Callable[..., Trained], tmp_path: Path) -> None:
    """The negative control: the tolerance is far below what a change of the training does."""
    common = ("privacy=none", "cohort.fraction=0.5", "runtime.shards=1")
    one, two = trained(*common, "runtime.engine=vmap"), trained(*common, "runtime.engine=vmap", "client.candidates=63")
    assert np.abs(one.weights - two.weights).max() > 100 * TOLERANCE


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="runtime=ray needs pip install 'fedlearn[ray]'")
@pytest.mark.parametrize("nodes", [pytest.param(2, marks=pytest.mark.long), 7])
def test_ray(trained: Callable[..., Trained], small_city: SmallCity, tmp_path: Path, nodes: int) -> None:
    """In a process of its own: Ray leaves files and threads behind."""
    common = ("privacy=none", "cohort.fraction=0.5", "runtime.engine=vmap")
    process = small_city.start(
        tmp_path / "run", *POPULATION, *common, "seeds=[3]", "runtime=ray", f"runtime.shards={nodes}"
    )
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["rejected"] for record in records] == [{}] * ROUNDS
    weights = np.concatenate([array.ravel() for array in load_model(tmp_path / "run").values()])
    ray = Trained(weights, tuple(record["cohort"] for record in records), b"")
    assert_same_model(trained(*common, "runtime.shards=1"), ray)


def test_with_privacy_the_same_phones(trained: Callable[..., Trained], monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise differs between any two runs; who takes part must not, given the run's secret key."""
    monkeypatch.setattr(SamplingKey, "fresh", classmethod(lambda cls: cls(bytes(range(32)))))
    common = ("privacy=gaussian", "cohort.fraction=0.5", "runtime.engine=loop")
    one, seven = (trained(*common, f"runtime.shards={shards}", "seeds=[3]") for shards in (1, 7))
    assert one.cohorts == seven.cohorts
    assert len(set(one.cohorts)) > 1
    # both trainings begin at the same weights, so their first sums are the same integers
    assert one.first_sum == seven.first_sum != b""
    assert not np.array_equal(one.weights, seven.weights)


def test_with_privacy_another_run_draws_other_phones(trained: Callable[..., Trained]) -> None:
    common = ("privacy=gaussian", "cohort.fraction=0.5", "runtime.engine=loop", "runtime.shards=1")
    one, two = trained(*common, "seeds=[4]"), trained(*common, "seeds=[5]")
    assert one.first_sum != two.first_sum

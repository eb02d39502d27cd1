"""One model: the same config and seed, wherever its nodes live, and though the ServerApp is killed on the way.

``tests/long`` does it with privacy, at full size and over stock SuperNodes, and kills each kind of process.
"""

from __future__ import annotations

import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fedlearn.lab.superlink import marks

_spec = importlib.util.spec_from_file_location("superlink_runs", Path(__file__).with_name("superlink_runs.py"))
_runs = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = _runs
_spec.loader.exec_module(_runs)

if TYPE_CHECKING:
    from small_city import SmallCity

ROUNDS = 5
PLAIN = ("privacy=none", f"cohort.rounds={ROUNDS}", "evaluation.every=1000")
SUPERLINK = ("runtime=superlink", "runtime.shards=3")


def test_superlink_and_in_process(small_city: SmallCity, tmp_path: Path) -> None:
    directory = tmp_path / "there"

    def kill() -> int:
        _runs.wait_until(lambda: small_city.steps(directory), "the first round")
        killed: int = _runs.kill_serverapp(directory)
        return killed

    with _runs.deployed(tmp_path / "state", 1), ThreadPoolExecutor(1) as other:
        killed = other.submit(kill)
        there = small_city.train(directory, *PLAIN, *SUPERLINK)
        assert killed.result() != marks.read_at_work(directory).flower_run, "another one went on"
    assert small_city.steps(directory) == list(range(ROUNDS))
    here = small_city.train(tmp_path / "here", *PLAIN)
    _runs.assert_same_model(directory, here.directory)
    assert [[metric.mean for metric in row.metrics] for row in there.summary.models] == [
        [metric.mean for metric in row.metrics] for row in here.summary.models
    ]
    small_city.train(tmp_path / "other", *PLAIN, "client.candidates=63")
    with pytest.raises(AssertionError):  # the tolerance is far below what a change of the training does
        _runs.assert_same_model(directory, tmp_path / "other")

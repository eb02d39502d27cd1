"""One model: the same config and seed, wherever its nodes live; and with privacy on a ledger that anyone can check."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fedlearn_server.deployment import Deployment

_spec = importlib.util.spec_from_file_location("superlink_runs", Path(__file__).with_name("superlink_runs.py"))
_runs = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = _runs
_spec.loader.exec_module(_runs)

if TYPE_CHECKING:
    from small_city import SmallCity

Cli = Callable[[Sequence[str]], tuple[int, str]]
SMALL = ("cohort.rounds=2", "evaluation.every=2")
SUPERLINK = ("runtime=superlink", "runtime.shards=3")


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Two resident nodes, for the tests of this module."""
    with _runs.deployed(tmp_path_factory.mktemp("user"), 2) as made:
        yield made


def test_superlink_and_in_process(small_city: SmallCity, deployment: Deployment, tmp_path: Path) -> None:
    del deployment
    there = small_city.train(tmp_path / "there", "privacy=none", *SMALL, *SUPERLINK)
    here = small_city.train(tmp_path / "here", "privacy=none", *SMALL)
    _runs.assert_same_model(there.directory, here.directory)
    assert [[metric.mean for metric in row.metrics] for row in there.summary.models] == [
        [metric.mean for metric in row.metrics] for row in here.summary.models
    ]
    small_city.train(tmp_path / "other", "privacy=none", *SMALL, "client.candidates=63")
    with pytest.raises(AssertionError):  # the tolerance is far below what a change of the training does
        _runs.assert_same_model(there.directory, tmp_path / "other")


def test_a_private_run_by_address_whose_serverapp_is_killed(
    small_city: SmallCity, deployment: Deployment, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The submitter need not have the deployment: an address, its authority and the operator's token are enough."""
    monkeypatch.setenv("FEDLEARN_STATE", str(tmp_path / "elsewhere"))
    token = deployment.layout.operator_token
    at = (f"runtime.address='{deployment.address}'", f"runtime.ca={deployment.ca}", f"runtime.token={token}")
    directory = tmp_path / "run"
    process = small_city.start(directory, *SUPERLINK, *at, "cohort.rounds=5", "evaluation.every=1000")
    _runs.wait_for_steps(small_city, directory, 1, process)
    _runs.kill_serverapp(directory)
    said = _runs.finished(process)
    assert "the ServerApp was killed; submitted again." in said
    privacy = small_city.summary(directory)["privacy"]
    assert privacy["charges"]["total"] == 5
    assert privacy["charges"]["committed"] == len(small_city.steps(directory)) >= 4
    assert any("database" in line for line in privacy["trusted"])
    status, output = cli(["ledger", "verify", str(directory)])
    assert status == 0, output
    _runs.verify(directory)

"""One model at full size over resident nodes; and over stock SuperNodes, which start a process for each message."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from rich.console import Console

from fedlearn.cli import main
from fedlearn.lab import compose
from fedlearn.lab.run import TrainedRun, train
from fedlearn_server.deployment import Deployment, processes
from fedlearn_server.deployment.layout import write_private
from fedlearn_server.deployment.operator import open_control
from fedlearn_server.deployment.superlink import environment, program


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "e2e" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


_runs = _load("superlink_runs")

pytestmark = pytest.mark.long
FULL = ("experiment=city_quick", "privacy=none", "cohort.rounds=20", "evaluation.controls=false")


def trained(directory: Path, *overrides: str) -> TrainedRun:
    return train(compose([*FULL, f"run.dir={directory}", *overrides]), console=Console(quiet=True))


@pytest.mark.timeout(900)
def test_a_thousand_phones_over_resident_nodes(tmp_path: Path) -> None:
    here = trained(tmp_path / "here")
    with _runs.deployed(tmp_path / "state", 3):
        there = trained(tmp_path / "there", "runtime=superlink")
    _runs.assert_same_model(there.directory, here.directory)
    logging.info("seconds: %s", {part.part: round(part.seconds, 1) for part in there.summary.wall})


@pytest.mark.timeout(900)
def test_a_private_run_by_address_whose_serverapp_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The submitter need not have the deployment: an address, its authority and the operator's token are enough."""
    small_city = _load("small_city").SmallCity()
    directory = tmp_path / "run"
    with _runs.deployed(tmp_path / "state", 2) as deployment:
        monkeypatch.setenv("FEDLEARN_STATE", str(tmp_path / "elsewhere"))
        token = deployment.layout.operator_token
        at = (f"runtime.address='{deployment.address}'", f"runtime.ca={deployment.ca}", f"runtime.token={token}")
        asked = ("runtime=superlink", "runtime.shards=3", *at, "cohort.rounds=5", "evaluation.every=1000")
        process = small_city.start(directory, *asked)
        _runs.wait_for_steps(small_city, directory, 1, process)
        _runs.kill_serverapp(directory)
        said = _runs.finished(process)
        monkeypatch.undo()
    assert "the ServerApp was killed; submitted again." in said
    privacy = small_city.summary(directory)["privacy"]
    assert privacy["charges"]["total"] == 5
    assert privacy["charges"]["committed"] == len(small_city.steps(directory)) >= 4
    assert any("database" in line for line in privacy["trusted"])
    assert main(["ledger", "verify", str(directory)]) == 0
    _runs.verify(directory)


@pytest.mark.timeout(1200)
def test_stock_supernodes(tmp_path: Path) -> None:
    small = ("data.devices=60", "data.restaurants=500", "cohort.rounds=2", "evaluation.bootstrap=100")
    here = trained(tmp_path / "here", *small)
    slow = ("runtime.shards=2", "runtime.deadline_s=400", "runtime.resend_s=null")
    with _runs.deployed(tmp_path / "state", 0) as deployment, stock_nodes(deployment, tmp_path, 2):
        there = trained(tmp_path / "there", *small, "runtime=superlink", *slow)
    _runs.assert_same_model(there.directory, here.directory)


@contextmanager
def stock_nodes(deployment: Deployment, directory: Path, count: int) -> Iterator[None]:
    """Run Flower's own SuperNodes; they carry the deployment's mark, and end with it at the latest."""
    control = open_control(deployment)
    started = []
    try:
        for number in range(count):
            key = ec.generate_private_key(ec.SECP384R1())
            path = directory / f"stock{number}.key"
            write_private(path, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
            public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            control.register_node(public, f"stock{number}")
            command = [
                program("flower-supernode"),
                *("--superlink", deployment.address, "--root-certificates", str(deployment.ca)),
                *("--auth-supernode-private-key", str(path), "--port", str(_runs.free_port())),
            ]
            started.append(processes.start(command, environment(deployment), directory, directory / "stock.log"))
        _runs.wait_until(
            lambda: sum(node.status == "online" for node in control.nodes()) == count, f"{count} stock nodes"
        )
        yield
    finally:
        control.close()
        processes.stop([member for record in started for member in processes.family(record)], 5.0)

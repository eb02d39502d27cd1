"""Every kind of bad contribution over Ray and over a real SuperLink, with and without privacy."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedlearn_server.grids.ray import run_ray

E2E = Path(__file__).parents[1] / "e2e"
RAY_NODES = 2
DEADLINE_S = 30.0
"""Each silent node costs a step this long; answers take seconds on a loaded machine."""


def _load(name: str) -> ModuleType:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, E2E / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


nodes = _load("bad_nodes")
bad = nodes.bad


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLEARN_STATE", str(tmp_path / "state"))


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", ["none", "private"])
def test_over_ray(tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(nodes.UNIT))  # Ray's processes import the nodes by name
    names = bad.names_in(mode, "ray")
    assert len(names) >= 25
    records: list[dict[str, Any]] = []
    server_app, client_app = ServerApp(), ClientApp()
    client_app.train()(bad.BadApp(names))

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        records.extend(bad.run_all(bad.UnrulyGrid(grid, names), tmp_path, mode, names, DEADLINE_S))

    run_ray(server_app, client_app, RAY_NODES)
    found = bad.problems(records, names)
    assert not found, "\n".join(found)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore:GitWildMatchPattern")  # Flower's, when it builds a bundle
@pytest.mark.parametrize("mode", ["none", "private"])
def test_over_superlink(tmp_path: Path, mode: str) -> None:
    world = _load("superlink_world").SuperLinkWorld(tmp_path)
    names = bad.names_in(mode, "superlink")
    try:
        world.start()
        with nodes.online(world) as links:
            records = nodes.train(world, links, tmp_path / "run", mode=mode, names=names, deadline_s=DEADLINE_S)
    finally:
        world.close()
    found = bad.problems(records, names, nodes.UNSEEN)
    assert not found, "\n".join(found)
    print(f"{mode}: {len(names)} kinds over a SuperLink, {len(nodes.UNSEEN)} of them stopped by SuperLink itself")

"""kill -9 of SuperLink in a private run with drop-outs; ``tests/long`` kills each kind of process, fifty times."""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest


def _load(name: str) -> ModuleType:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


killer = _load("superlink_killer")
ROUNDS = 4


@pytest.fixture
def place(tmp_path: Path) -> Iterator[object]:
    made = killer.Place(tmp_path, nodes=2)
    yield made
    made.close()


def test_killed_and_gone_on(place, tmp_path: Path) -> None:
    """With a SuperLink its ServerApp ends too; ``test_one_model`` kills that alone."""
    place.up()
    run = killer.KilledRun(place, tmp_path / "run", ROUNDS, (), random.Random(3))
    run.start()
    run.kill("superlink")
    summary = run.finish()
    assert summary["privacy"]["charges"]["committed"] == len(run.steps())
    assert "submitted again" in place.said()

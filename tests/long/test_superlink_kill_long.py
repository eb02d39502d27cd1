"""kill -9 of ServerApp, SuperLink, nodes and CLI at fifty random moments of runs with drop-outs, over real processes.

Five parts of ten kills, each with a deployment of its own: ``-k part3`` does one of them again.
"""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from rich.console import Console

from fedlearn.lab import compose
from fedlearn.lab import training as lab_training
from fedlearn.lab.run import train
from fedlearn.models.base import Parameters
from fedlearn_server.checkpoint import load_model

E2E = Path(__file__).parents[1] / "e2e"
KILLS, PARTS = 50, 5
ROUNDS = 40
LIMIT_S = 60.0
"""The figure that is printed is the point; this only says that nothing hung, on a machine that does other things."""


def _load(name: str) -> ModuleType:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, E2E / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


killer = _load("superlink_killer")


def undisturbed(directory: Path, overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> Parameters:
    """Train in this process, with the same drop-outs, and return the model."""
    drop_outs: dict[str, Callable] = {}
    exec(killer.DROP_OUTS, drop_outs)
    monkeypatch.setattr(lab_training, "open_simulated", drop_outs["open_with_drop_outs"])
    chosen = (f"run.dir={directory}", f"cohort.rounds={ROUNDS}", *killer.SUPERLINK, *overrides)
    config = compose([*killer.SMALL, "runtime=in_process", *chosen])
    train(config, console=Console(quiet=True))
    failed = (directory / "metrics.jsonl").read_text(encoding="utf-8").count('"failed"')
    assert failed > 0, "nobody dropped out"
    return load_model(directory)


@pytest.mark.long
@pytest.mark.timeout(3500)
@pytest.mark.parametrize("part", range(PARTS), ids=[f"part{part}" for part in range(PARTS)])
def test_killed_again_and_again(tmp_path: Path, part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ("privacy=none",) if part % 2 else ()
    left = killer.deck(KILLS, seed=5)[part::PARTS]
    chance = random.Random(100 + part)
    model = undisturbed(tmp_path / "undisturbed", overrides, monkeypatch) if overrides else None
    place = killer.Place(tmp_path)
    kills, runs = [], 0
    try:
        place.up()
        while left:
            runs += 1
            run = killer.KilledRun(place, tmp_path / f"run{runs}", ROUNDS, overrides, chance)
            run.start()
            while left and run.left() > 3:
                print(f"part {part}: {run.kill(left.pop())}")
            run.finish()
            kills += run.kills
            if model is not None:
                compare(load_model(run.directory), model)
        place.done("down")
    finally:
        place.close()
    print(f"part {part}, {'privacy off' if overrides else 'private'}, {runs} runs:\n{killer.told(kills)}")
    assert max(kill.resumed_s for kill in kills) < LIMIT_S


def compare(found: Parameters, expected: Parameters) -> None:
    """The same model, but for the order in which floats were added."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-6)

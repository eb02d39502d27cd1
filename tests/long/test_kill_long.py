"""kill -9 at twenty random moments of private trainings of twenty rounds."""

from __future__ import annotations

import importlib.util
import logging
import random
import sys
from pathlib import Path

import pytest

_E2E = Path(__file__).parents[1] / "e2e"


def _load(name: str):
    spec = importlib.util.spec_from_file_location(name, _E2E / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


KILLS = 20


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [1])
def test_killed_twenty_times(tmp_path: Path, seed: int) -> None:
    kill_run = _load("kill_run")
    city = _load("small_city").SmallCity()
    chance = random.Random(seed)
    kills, number, wasted = 0, 0, 0
    while kills < KILLS:
        # a run that reached its end before the twentieth kill is followed by another
        number += 1
        run = kill_run.KilledRun(city, tmp_path / f"run-{number}", chance)
        while kills < KILLS and run.kill(typical_s=4.0):
            kills += 1
        summary = run.finish()
        kill_run.check_summary(run, summary)
        wasted += summary["privacy"]["charges"]["wasted"]
        logging.info("run %d: %s", number, run.log)
        logging.info("run %d: %s, epsilon %s", number, summary["privacy"]["charges"], summary["privacy"]["epsilon"])
    assert kills == KILLS
    assert wasted > 0, "no kill fell between a charge and its release: the test has lost its teeth"

"""kill -9 at fifty random moments of private trainings of twenty rounds; the verifier looks after each."""

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


KILLS = 25


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "overrides",
    [(), ("privacy=blt", "cohort=bounded", "privacy.min_separation=5", "cohort.fraction=0.2", "privacy.delta=1e-3")],
    ids=["gaussian", "blt"],
)
def test_killed_again_and_again(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    kill_run = _load("kill_run")
    city = _load("small_city").SmallCity()
    chance = random.Random(1)
    kills, number, wasted = 0, 0, 0
    while kills < KILLS:
        # a run that reached its end before the last kill is followed by another
        number += 1
        run = kill_run.KilledRun(city, tmp_path / f"run-{number}", chance, overrides)
        while kills < KILLS and run.kill(typical_s=4.0):
            kills += 1
        summary = run.finish()
        kill_run.check_summary(run, summary)
        wasted += summary["privacy"]["charges"]["wasted"]
        logging.info("run %d: %s", number, run.log)
        logging.info("run %d: %s, epsilon %s", number, summary["privacy"]["charges"], summary["privacy"]["epsilon"])
    assert kills == KILLS
    assert wasted > 0, "no kill fell between a charge and its release: the test has lost its teeth"

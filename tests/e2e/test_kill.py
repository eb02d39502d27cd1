"""kill -9 in the middle of a private training of twenty rounds; ``tests/long`` does it fifty times."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from small_city import SmallCity

_spec = importlib.util.spec_from_file_location("kill_run", Path(__file__).with_name("kill_run.py"))
kill_run = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = kill_run
_spec.loader.exec_module(kill_run)

KILLS = 2
BLT = ("privacy=blt", "cohort=bounded", "privacy.min_separation=5", "cohort.fraction=0.2", "privacy.delta=1e-3")


@pytest.mark.parametrize("overrides", [(), BLT], ids=["gaussian", "blt"])
def test_killed_twice(small_city: SmallCity, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    run = kill_run.KilledRun(small_city, tmp_path / "run", random.Random(7), overrides)
    killed = sum(run.kill(typical_s=4.0) for _ in range(KILLS))
    assert killed == KILLS, run.log
    kill_run.check_summary(run, run.finish())

"""kill -9 at fifty moments of ingest and at fifty of withdrawal: nothing acknowledged is lost, nothing comes back."""

from __future__ import annotations

import importlib.util
import logging
import random
import sys
from pathlib import Path

import pytest

_UNIT = Path(__file__).parents[1] / "unit"
_spec = importlib.util.spec_from_file_location("store_killer", _UNIT / "store_killer.py")
store_killer = importlib.util.module_from_spec(_spec)
sys.modules["store_killer"] = store_killer
_spec.loader.exec_module(store_killer)

KILLS = 50


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("pushes", [400, 3], ids=["ingest", "withdrawal"])
def test_killed_fifty_times(tmp_path: Path, pushes: int) -> None:
    killed = store_killer.Killed(tmp_path, random.Random(pushes), pushes)
    for _ in range(KILLS):
        killed.kill()
    for line in killed.log:
        logging.info("%s", line)
    if pushes == 3:
        assert any("begun 1" in line for line in killed.log), (
            "no kill fell into a withdrawal: the test has lost its teeth"
        )
        assert any("begun 0" in line for line in killed.log)

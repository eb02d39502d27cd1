"""kill -9 while signals are kept and taken back; ``tests/long`` does it fifty times each."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location("store_killer", Path(__file__).with_name("store_killer.py"))
store_killer = importlib.util.module_from_spec(_spec)
sys.modules["store_killer"] = store_killer
_spec.loader.exec_module(store_killer)

KILLS = 5


def test_killed_while_signals_are_kept(tmp_path: Path) -> None:
    killed = store_killer.Killed(tmp_path, random.Random(3), pushes=400)
    for _ in range(KILLS):
        killed.kill()


def test_killed_while_they_are_taken_back(tmp_path: Path) -> None:
    killed = store_killer.Killed(tmp_path, random.Random(4), pushes=3)
    for _ in range(KILLS):
        killed.kill()

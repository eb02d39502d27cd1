"""Every moment of a round, reads of the store included, at which phone, store, KeyStore or transport can break."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

_path = Path(__file__).parents[1] / "unit" / "uplink_faults.py"
_spec = importlib.util.spec_from_file_location("uplink_faults", _path)
assert _spec is not None
assert _spec.loader is not None
faults: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(faults)

pytestmark = pytest.mark.long


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "failed"])
def test_finished_or_nothing_happened(tmp_path: Path, kill: bool) -> None:
    for at in range(faults.moments(tmp_path / "count", kill=kill, reads=True)):
        faults.go_on_after_fault(tmp_path / str(at), faults.Points(at, kill=kill, reads=True))


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "failed"])
def test_nothing_leaves_after_a_withdrawal(tmp_path: Path, kill: bool) -> None:
    for at in range(faults.moments(tmp_path / "count", kill=kill, reads=True)):
        faults.withdraw_after_fault(tmp_path / str(at), faults.Points(at, kill=kill, reads=True))

"""The phone dies, or store, KeyStore or transport fail, at every moment of a round."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

_spec = importlib.util.spec_from_file_location("uplink_faults", Path(__file__).with_name("uplink_faults.py"))
assert _spec is not None
assert _spec.loader is not None
faults: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(faults)


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "failed"])
def test_whenever_it_breaks_it_is_finished_or_nothing_left(tmp_path: Path, kill: bool) -> None:
    count = faults.moments(tmp_path / "count", kill=kill)
    assert count > 20
    charged = 0
    for at in range(count):
        charged += faults.go_on_after_fault(tmp_path / str(at), faults.Points(at, kill=kill))
    assert 0 < charged < count


def test_nothing_leaves_after_a_withdrawal_whenever_it_broke(tmp_path: Path) -> None:
    count = faults.moments(tmp_path / "count", kill=True)
    for at in range(count % 3, count, 3):  # the long test has all of them
        faults.withdraw_after_fault(tmp_path / str(at), faults.Points(at))


def test_a_negative_control_that_sends_first_is_found(tmp_path: Path) -> None:
    """The checks see an upload that was never charged."""
    points = faults.Points()
    phone = faults.faulty_phone(tmp_path, points)
    with pytest.raises(AssertionError, match="the log does not have"):
        phone.gateway.call(faults.Method.UPLOAD, b"")

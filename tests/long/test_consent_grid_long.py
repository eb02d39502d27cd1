"""All 2^9 sets of grants of three sources and three uses."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location(
    "test_consent_grid", Path(__file__).parents[1] / "property" / "test_consent_grid.py"
)
grid = importlib.util.module_from_spec(_spec)
sys.modules["test_consent_grid"] = grid
_spec.loader.exec_module(grid)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_every_set_of_grants(tmp_path: Path) -> None:
    phone = grid.world.open_phone(tmp_path)
    for app, _ in grid.SOURCES:
        phone.stream(app)
    for mask in range(2 ** len(grid.EVERY)):
        on = [use for bit, use in enumerate(grid.EVERY) if mask >> bit & 1]
        grid._empty(phone)
        for use in on:
            phone.grant(*use)
        rows = grid._rows([(number % 3, 5 * number + 1) for number in range(24)])
        rows = grid.world.push_rows(phone, rows)
        grid._check(phone, rows, on)
    phone.close()

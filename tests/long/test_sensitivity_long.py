"""The sensitivity of every mechanism against brute force, in full number; tests/unit runs the same at a few percent."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

_path = Path(__file__).parents[1] / "unit" / "sensitivity_oracle.py"
_spec = importlib.util.spec_from_file_location("sensitivity_oracle", _path)
assert _spec is not None
assert _spec.loader is not None
oracle = importlib.util.module_from_spec(_spec)
sys.modules["sensitivity_oracle"] = oracle
_spec.loader.exec_module(oracle)

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("kind", ["toeplitz", "banded", "blt", "tree"])
def test_equals_brute_force(kind: str) -> None:
    fractional = oracle.check(kind, cases=5000, longest=24, seed=4)
    assert (fractional > 2500) == (kind != "tree")


@pytest.mark.parametrize("kind", ["toeplitz", "tree"])
def test_equals_brute_force_where_participations_are_few(kind: str) -> None:
    oracle.check(kind, cases=150, longest=140, seed=5, draw_bounds=oracle.sparse_bounds)

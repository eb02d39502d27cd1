"""The exported step at full size: plain and private steps of every shipped model."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

_path = Path(__file__).parents[1] / "unit" / "test_export_step.py"
_spec = importlib.util.spec_from_file_location("export_step_cases", _path)
assert _spec is not None
assert _spec.loader is not None
cases: Any = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = cases
_spec.loader.exec_module(cases)

pytestmark = pytest.mark.long


@pytest.mark.parametrize("private", [False, True], ids=["plain", "private"])
@pytest.mark.parametrize("name", cases.CASES)
def test_every_model_equals_torch_after_a_hundred_steps(name: str, private: bool) -> None:
    delta, apart = cases.run_both(name, private)
    assert max(float(abs(value).max()) for value in delta.values()) > 0.01
    assert apart <= cases.TOLERANCE
    assert len(cases.graph(name, private)) <= cases.CASES[name].most_bytes

"""A thousand mutations of each signed document."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

_path = Path(__file__).parents[1] / "property" / "test_policy_tamper.py"
_spec = importlib.util.spec_from_file_location("test_policy_tamper", _path)
assert _spec is not None
assert _spec.loader is not None
tamper: Any = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = tamper
_spec.loader.exec_module(tamper)


@pytest.mark.long
@pytest.mark.parametrize(("made", "accept"), tamper.PAPERS, ids=["policy", "roster", "status"])
def test_a_thousand_mutations_are_refused(made: Any, accept: Any) -> None:
    tamper.run(made, accept, 1000, 2)

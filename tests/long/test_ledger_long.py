"""Ten thousand random histories of a ledger."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from fedlearn.ledger.scope import GateKind

_spec = importlib.util.spec_from_file_location(
    "ledger_world", Path(__file__).parents[1] / "property" / "ledger_world.py"
)
world = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = world
_spec.loader.exec_module(world)

SEQUENCES = {GateKind.ZCDP: 5000, GateKind.RDP: 4000, GateKind.PLAN: 1500}


@pytest.mark.long
@pytest.mark.timeout(3500)
@pytest.mark.parametrize("gate", list(GateKind))
def test_ten_thousand_sequences(gate: GateKind) -> None:
    run_state_machine_as_test(
        world.machine(gate),
        settings=settings(
            derandomize=True,
            deadline=None,
            max_examples=SEQUENCES[gate],
            stateful_step_count=40,
            suppress_health_check=list(HealthCheck),
        ),
    )

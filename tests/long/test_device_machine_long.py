"""Long lives of a phone under wipes, restored copies, crashes, moved clocks and a lying server, in full number."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from fedlearn_client import anchor

_path = Path(__file__).parents[1] / "property" / "device_machine.py"
_spec = importlib.util.spec_from_file_location("device_machine", _path)
assert _spec is not None
assert _spec.loader is not None
machine = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = machine
_spec.loader.exec_module(machine)

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("most_runs", [anchor.MOST_RUNS, 2, 1])
def test_long_lives(most_runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anchor, "MOST_RUNS", most_runs)
    machine.PhoneMachine.events.clear()
    for seed in range(1000, 1100):
        machine.wander(seed, 300)
    events = machine.PhoneMachine.events
    print(f"anchor of {most_runs} runs, 30,000 steps: {dict(events)}")
    assert events["uploads"] > 2000


@pytest.mark.parametrize("most_runs", [anchor.MOST_RUNS, 1])
def test_any_sequence(most_runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anchor, "MOST_RUNS", most_runs)
    chosen = settings(
        derandomize=True,
        deadline=None,
        max_examples=1500,
        stateful_step_count=60,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    run_state_machine_as_test(machine.PhoneMachine, settings=chosen)

"""Random calls, crashes and restored copies: never less spent than released, never more released than allowed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from fedlearn.ledger.entries import Row
from fedlearn.ledger.scope import GateKind

_spec = importlib.util.spec_from_file_location("ledger_world", Path(__file__).with_name("ledger_world.py"))
world = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = world
_spec.loader.exec_module(world)

SETTINGS = settings(
    derandomize=True,
    deadline=None,
    max_examples=80,
    stateful_step_count=40,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)


@pytest.mark.parametrize("gate", list(GateKind))
def test_any_sequence(gate: GateKind) -> None:
    run_state_machine_as_test(world.machine(gate), settings=SETTINGS)


def forgets_the_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the anchor an older copy is taken for the ledger."""
    monkeypatch.setattr(world.DiskAnchor, "mark", lambda self: None)
    monkeypatch.setattr(world.DiskAnchor, "raise_to", lambda self, mark, contains: None)


def forgets_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recovery then charges only the runs that the older copy knows."""
    monkeypatch.setattr(world.DiskAnchor, "runs", lambda self: ())


def charges_after_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """A charge that is not durable when it returns: the power fails with the noise drawn."""

    def append(self: world.DiskStore, row: Row) -> None:
        self.disk.rows.append(row)
        if row.kind == "charged" and self.disk.crash_in is not None:
            self.disk.crash_in, self.disk.torn = None, True

    def rows(self: world.DiskStore, start: int = 0) -> list[Row]:
        if getattr(self.disk, "torn", False) and start == 0:  # the next process
            self.disk.torn = False
            del self.disk.rows[[row.kind for row in self.disk.rows].index("charged") :]
            self.disk.mark = None
        return self.disk.rows[start:]

    monkeypatch.setattr(world.DiskStore, "append", append)
    monkeypatch.setattr(world.DiskStore, "rows", rows)


@pytest.mark.parametrize("fault", [forgets_the_mark, forgets_the_runs, charges_after_the_noise])
def test_a_fault_is_found(fault, monkeypatch: pytest.MonkeyPatch) -> None:
    fault(monkeypatch)
    with pytest.raises((AssertionError, KeyError)):
        run_state_machine_as_test(world.machine(GateKind.ZCDP), settings=settings(SETTINGS, max_examples=1500))

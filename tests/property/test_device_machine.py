"""Wipes, restored copies, crashes, moved clocks, a server that lies: b, k and the cap hold, and faults are found."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from fedlearn_client import anchor, participation, participation_rows, participation_rules
from fedlearn_client.participation_rows import Figures

_spec = importlib.util.spec_from_file_location("device_machine", Path(__file__).with_name("device_machine.py"))
machine = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = machine
_spec.loader.exec_module(machine)

SETTINGS = settings(
    derandomize=True,
    deadline=None,
    max_examples=100,
    stateful_step_count=40,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)


@pytest.mark.parametrize("most_runs", [anchor.MOST_RUNS, 1])
def test_any_sequence(most_runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with an anchor that can name one run only."""
    monkeypatch.setattr(anchor, "MOST_RUNS", most_runs)
    run_state_machine_as_test(machine.PhoneMachine, settings=SETTINGS)


@pytest.mark.parametrize("most_runs", [anchor.MOST_RUNS, 1])
def test_long_lives(most_runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anchor, "MOST_RUNS", most_runs)
    machine.PhoneMachine.events.clear()
    for seed in range(20):
        machine.wander(seed, 100)
    events = machine.PhoneMachine.events
    # a phone that refuses everything would pass: this one does not, and meets what it should
    assert events["uploads"] > 200, events
    met = {"too_soon", "history_lost", "device_budget", "participations_used_up", "clock_moved", "lost", "seal failed"}
    assert met <= set(events), events
    assert ("not_the_approved_plan" in events) is machine.forgets_none(), events


def believes_any_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the anchor's row an older copy is taken for the store."""
    monkeypatch.setattr(participation, "contains", lambda rows, anchor: True)


def seals_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The anchor stays what it was at the first start."""
    write = machine.world.FaultyKeyStore.write_anchor

    def first_only(self: object, data: bytes) -> None:
        if self.read_anchor() in {None, b"damaged"}:
            write(self, data)

    monkeypatch.setattr(machine.world.FaultyKeyStore, "write_anchor", first_only)


def assumes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is met for the first time is taken for one that just began."""
    real = participation_rules.first_sight

    def unassuming(history: object, task: object) -> Figures | None:
        sight = real(history, task)
        return None if sight is None else replace(sight, step=-1, count=0, rho=0.0)

    monkeypatch.setattr(participation, "first_sight", unassuming)


def leaves_the_present_step_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """ceil(s / b) participations before step s, where there may be one in step s as well."""
    real = participation_rules.first_sight

    def before_only(history: object, task: object) -> Figures | None:
        sight = real(history, task)
        fewer = -(-task.step // task.mechanism.min_separation)
        return sight if sight is None else replace(sight, count=min(sight.count, fewer))

    monkeypatch.setattr(participation, "first_sight", before_only)


def trusts_what_an_older_copy_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that the anchor does not name is taken to have stopped where the copy was made."""
    real = participation.merged

    def sure(one: anchor.History | None, other: anchor.History) -> anchor.History:
        found = real(one, other)
        return replace(found, runs={key: replace(run, sure=True) for key, run in found.runs.items()})

    monkeypatch.setattr(participation, "merged", sure)


def forgets_the_other_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cap is compared with one run's cost."""
    monkeypatch.setattr(participation, "next_cost", _of_one_run(participation_rules.next_cost))


def _of_one_run(real: object) -> object:
    def alone(history: object, task: object) -> participation_rules.Cost:
        cost = real(history, task)
        return replace(cost, rho_total=cost.rho_run)

    return alone


def forgets_the_sum_of_old_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The anchor names the newest run and drops the cost of the others."""
    real = anchor.to_anchor
    monkeypatch.setattr(
        participation, "to_anchor", lambda history: real(replace(history, runs=dict(list(history.runs.items())[-1:])))
    )


def keeps_prepared_uploads(monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload that was never sealed leaves when its copy of the store comes back."""
    monkeypatch.setattr(participation, "_DESTROY_PREPARED", "SELECT 1")


def draws_no_nonce(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store and its older copy go on with the same row, for two contributions."""
    monkeypatch.setattr(participation_rows, "NONCE_BYTES", 0)


def does_not_wait_for_the_seal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads though the anchor could not be written."""

    def seal(self: participation.Participations) -> None:
        try:
            self._catch_up()
        except machine.StoreFailed:
            self._sealed = True

    monkeypatch.setattr(participation.Participations, "seal", seal)


def forgets_separation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits one step less than b."""
    real = participation_rules.next_cost

    def sooner(history: object, task: object) -> participation_rules.Cost:
        return real(history, replace(task, step=task.step + 1))

    monkeypatch.setattr(participation, "next_cost", sooner)


FAULTS = [
    (believes_any_store, 100),
    (seals_nothing, 100),
    (assumes_nothing, 100),
    (leaves_the_present_step_out, 100),
    (trusts_what_an_older_copy_says, 1),
    (forgets_the_other_runs, 100),
    (forgets_the_sum_of_old_runs, 100),
    (keeps_prepared_uploads, 100),
    (draws_no_nonce, 100),
    (does_not_wait_for_the_seal, 100),
    (forgets_separation, 100),
]


@pytest.mark.parametrize(("fault", "most_runs"), FAULTS)
def test_a_fault_is_found(fault: object, most_runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anchor, "MOST_RUNS", most_runs)
    if fault is not forgets_the_other_runs:
        monkeypatch.setattr(machine.PhoneMachine, "kinds", machine.SHORT)  # limits are soon met
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        _wander_far()


def _wander_far() -> None:
    for seed in range(300):
        machine.wander(seed, 100)

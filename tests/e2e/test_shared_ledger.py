"""Several trainings, one budget: each reserves its whole plan, and the one that does not fit does not begin."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from fedlearn.errors import BudgetExceeded, LedgerError, OutOfRange
from fedlearn.lab import compose, train
from fedlearn.ledger import GateKind, Ledger, new_scope
from fedlearn.ledger.signing import operator_key
from fedlearn.privacy.events import NeighboringRelation

SMALL = (
    "data.devices=120",
    "cohort=bounded",
    "cohort.rounds=4",
    "cohort.fraction=0.5",
    "privacy.min_separation=2",
    "privacy.epsilon=1",
    "privacy.delta=1e-3",
    "evaluation.controls=false",
    "evaluation.bootstrap=100",
    "evaluation.every=100",
)


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLEARN_STATE", str(tmp_path / "state"))


def run(directory: Path, ledger: Path, *overrides: str) -> float:
    config = compose(["privacy=blt", *SMALL, f"ledger.where={ledger}", f"run.dir={directory}", *overrides])
    epsilon = train(config, console=Console(quiet=True)).summary.privacy.epsilon
    assert epsilon is not None
    return epsilon


def shared(path: Path, epsilon: float, relation: NeighboringRelation = NeighboringRelation.ZERO_OUT) -> Path:
    gate = GateKind.ZCDP if relation is NeighboringRelation.ZERO_OUT else GateKind.RDP
    scope = new_scope("120 devices", epsilon, 1e-3, operator_key().public, neighboring_relation=relation, gate=gate)
    Ledger.create(path, scope).close()
    return path


def test_two_fit_and_the_third_does_not_begin(tmp_path: Path) -> None:
    ledger = shared(tmp_path / "shared.sqlite", 1.8)
    assert run(tmp_path / "one", ledger) <= 1.0
    assert run(tmp_path / "two", ledger) <= 1.0
    with pytest.raises(BudgetExceeded):
        run(tmp_path / "three", ledger)
    assert not (tmp_path / "three" / "checkpoint.safetensors").exists()
    assert not (tmp_path / "one" / "ledger.sqlite").exists()
    with Ledger.open(ledger) as opened:
        assert len(opened.book.runs) == 2


def test_a_lost_shared_ledger_is_not_begun_anew(tmp_path: Path) -> None:
    ledger = shared(tmp_path / "shared.sqlite", 1.8)
    run(tmp_path / "one", ledger)
    for left in ("summary.json", "model.safetensors"):
        (tmp_path / "one" / left).unlink()
    ledger.unlink()
    shared(ledger, 1.8)
    with pytest.raises(LedgerError, match="which has spent"):
        run(tmp_path / "one", ledger)


def test_another_adjacency_is_refused(tmp_path: Path) -> None:
    ledger = shared(tmp_path / "shared.sqlite", 3.0, NeighboringRelation.ADD_OR_REMOVE)
    with pytest.raises(LedgerError, match="adjacency is add_or_remove"):
        run(tmp_path / "one", ledger)


def test_a_password_is_never_written_down() -> None:
    with pytest.raises(OutOfRange, match="password"):
        compose(["ledger.where=postgresql://user:secret@host/database"])
    with pytest.raises(OutOfRange, match="spends nothing"):
        compose(["privacy=none", "ledger.where=ledger.sqlite"])

"""The verifier on ledgers that fedlearn wrote: it accepts each, reads the same figures, and sees what was cut off."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from fedlearn.errors import BudgetExceeded
from fedlearn.ledger import GateKind, Ledger, Planned, RunAccount, Scope, new_scope
from fedlearn.ledger.export import export_lines
from fedlearn.ledger.signing import SigningKey, operator_key
from fedlearn.privacy.events import (
    Event,
    FixedSizeGaussian,
    MatrixGaussian,
    MetricRelease,
    NeighboringRelation,
    PoissonGaussian,
    RepeatAndSelect,
    TruncatedPoissonGaussian,
)
from fedlearn.privacy.factorization import Blt, Toeplitz, Tree

_spec = importlib.util.spec_from_file_location(
    "verifier_on_ledgers", Path(__file__).parents[2] / "fedlearn" / "ledger" / "verifier.py"
)
assert _spec is not None
assert _spec.loader is not None
verifier = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = verifier
_spec.loader.exec_module(verifier)

DIGEST = hashlib.sha256(b"x").hexdigest()
AUTHORITY = SigningKey.fresh()
BLT = MatrixGaussian(Blt((0.9, 0.4), (0.3, 0.4)), 12, 4, 3, 20.0)
ADD, ZERO, REPLACE = NeighboringRelation.ADD_OR_REMOVE, NeighboringRelation.ZERO_OUT, NeighboringRelation.REPLACE_ONE


def scope(relation: NeighboringRelation, gate: GateKind | None = None, **options: Any) -> Scope:
    return new_scope(
        "test",
        options.pop("epsilon", 4.0),
        1e-6,
        operator_key().public,
        neighboring_relation=relation,
        gate=gate,
        **options,
    )


def released(account: RunAccount, steps: Sequence[int], part: int = 0) -> None:
    for step in steps:
        held = account.reserve(step, account.next_attempt(step, part), part)
        account.commit(account.charge(held, DIGEST, DIGEST), DIGEST)


def exported(ledger: Ledger, folder: Path) -> Path:
    path = folder / "export.jsonl"
    path.write_text("".join(f"{line}\n" for line in export_lines(ledger.rows())), encoding="ascii")
    return path


@pytest.mark.parametrize(
    ("relation", "gate", "event", "count"),
    [
        (ADD, GateKind.PLAN, PoissonGaussian(2.0, 0.01), 3),
        (ADD, GateKind.PLAN, TruncatedPoissonGaussian(2.0, 0.01, 1000, 20), 3),
        (ADD, GateKind.RDP, PoissonGaussian(2.0, 0.01), 3),
        (ADD, GateKind.RDP, RepeatAndSelect(PoissonGaussian(3.0, 0.01), 5, 2.5, 0.5), 1),
        (ADD, GateKind.ZCDP, TruncatedPoissonGaussian(20.0, 0.01, 1000, 20), 3),
        (REPLACE, GateKind.RDP, FixedSizeGaussian(2.0, 1000, 10), 3),
        (ZERO, GateKind.ZCDP, BLT, 1),
        (ZERO, GateKind.ZCDP, MatrixGaussian(Tree(), 12, 4, 3, 20.0), 1),
        (ZERO, GateKind.RDP, MatrixGaussian(Toeplitz((1.0, 0.5)), 12, 4, 3, 20.0), 1),
        (ZERO, GateKind.PLAN, MetricRelease(8.0), 3),
    ],
)
def test_each_gate_and_event(
    tmp_path: Path, relation: NeighboringRelation, gate: GateKind, event: Event, count: int
) -> None:
    with Ledger.create(tmp_path / "ledger.sqlite", scope(relation, gate)) as ledger:
        account = ledger.open_run("run", "p", "e", [Planned(event, count)], DIGEST)
        released(account, range(12 if isinstance(event, MatrixGaussian) else count))
        account.close("completed", "all done")  # type: ignore[arg-type]
        pins = verifier.Pins(operator=operator_key().public)
        (facts,) = verifier.verify(exported(ledger, tmp_path), pins=pins)["records"]
        assert facts["runs"][0]["spent"] == pytest.approx(account.spent(), rel=1e-6)
        assert facts["entries"] == len(ledger.rows())


def filled(
    gate: GateKind, relation: NeighboringRelation, event: Event, count: Callable[[int], int], path: Path
) -> Ledger:
    """Open runs until fedlearn refuses one: what it admitted is as full as it gets."""
    ledger = Ledger.create(path, scope(relation, gate))
    for number in range(40):
        try:
            ledger.open_run(f"run {number}", "p", "e", [Planned(event, count(number))], DIGEST)
        except BudgetExceeded as refusal:
            most = int(str(refusal).split("at most ")[1].split(" ")[0])
            if most == 0:
                return ledger
            ledger.open_run("last", "p", "e", [Planned(event, most)], DIGEST)
            return ledger
    raise AssertionError("the budget never ended")


@pytest.mark.parametrize(
    ("gate", "relation", "event"),
    [
        (GateKind.ZCDP, ZERO, MetricRelease(15.0)),
        (GateKind.RDP, ADD, PoissonGaussian(1.0, 0.01)),
        (GateKind.RDP, REPLACE, FixedSizeGaussian(1.5, 1000, 10)),
    ],
)
def test_a_budget_filled_to_the_last_release_is_accepted(
    tmp_path: Path, gate: GateKind, relation: NeighboringRelation, event: Event
) -> None:
    with filled(gate, relation, event, lambda n: 8**n, tmp_path / "ledger.sqlite") as ledger:
        (facts,) = verifier.verify(exported(ledger, tmp_path))["records"]
    assert 3.9 < facts["scope"]["adaptive_reserved"] <= 4.0 * (1 + 1e-9)
    assert facts["scope"]["cost_reserved"] <= facts["scope"]["capacity"] * (1 + 1e-9)


def test_a_plan_calibrated_to_its_cap_is_accepted(tmp_path: Path) -> None:
    from fedlearn.privacy import accountants

    event = PoissonGaussian(1.0, 0.02)
    cap = accountants.epsilon([(event, 40)], 1e-6)
    with Ledger.create(tmp_path / "ledger.sqlite", scope(ADD, GateKind.PLAN, epsilon=cap)) as ledger:
        ledger.open_run("run", "p", "e", [Planned(event, 40)], DIGEST)
        assert verifier.verify(exported(ledger, tmp_path))["verified"]


def test_a_life_with_grants_and_losses(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger.create(path, scope(ZERO, authority_key=AUTHORITY.public, epsilon=8.0)) as ledger:
        ledger.grant("ranking", "2026", 2.0, AUTHORITY)
        account = ledger.open_run("a", "ranking", "2026", [Planned(BLT, 1), Planned(MetricRelease(30.0), 2)], DIGEST)
        released(account, range(3))
        lost = account.reserve(3, 0)
        account.charge(lost, DIGEST, DIGEST)
        released(account, [3])
        account.void(account.reserve(4, 0), "nobody answered")
        released(account, [0], part=1)
        account.close("data_independent", "time was up")  # type: ignore[arg-type]
        ledger.grant("ranking", "2026", 3.0, AUTHORITY)
        open_run = ledger.open_run("b", "ranking", "2026", [Planned(BLT, 1)], DIGEST)
        released(open_run, [0])
        checkpoint = tmp_path / "checkpoint.json"
        checkpoint.write_text(ledger.checkpoint().to_json(), encoding="ascii")
        export = exported(ledger, tmp_path)
        pins = verifier.Pins(operator_key().public, AUTHORITY.public)
        (facts,) = verifier.verify(export, checkpoint, pins)["records"]
        (live,) = verifier.verify(path, checkpoint, pins)["records"]  # the file itself, open beside us
        assert live["last_hash"] == facts["last_hash"]
        assert facts["anchor"].startswith("checkpoint satisfied")
        first, second = facts["runs"]
        assert first["spent"] == pytest.approx(account.spent(), rel=1e-9)
        assert second["state"] == "open"
        assert 0 < second["spent"] < second["reserved"] == second["planned"]
        short = tmp_path / "short.jsonl"
        short.write_bytes(b"".join(line + b"\n" for line in export.read_bytes().splitlines()[:-1]))
        with pytest.raises(verifier.Rejected, match="truncated or rolled back"):
            verifier.verify(short, checkpoint, pins)


def test_the_command_hands_on_what_the_verifier_says(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from fedlearn.ledger.command import main

    path = tmp_path / "ledger.sqlite"
    with Ledger.create(path, scope(ZERO)) as ledger:
        released(ledger.open_run("run", "p", "e", [Planned(BLT, 1)], DIGEST), [0])
    assert main(["verify", str(path), "--json"]) == 0
    facts = json.loads(capfd.readouterr().out)
    assert facts["records"][0]["anchor"] == verifier.NOT_ANCHORED

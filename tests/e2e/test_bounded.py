"""Correlated noise end to end: a lost step is charged again, spent once, and costs the run no step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fedlearn.ledger import LEDGER_FILE, verifier
from fedlearn_server import round as server_round

if TYPE_CHECKING:
    from small_city import SmallCity

ROUNDS = 5
BOUNDED = (
    f"cohort.rounds={ROUNDS}",
    "cohort=bounded",
    "cohort.fraction=0.5",
    "privacy.min_separation=2",
    "privacy.delta=1e-3",
    "evaluation.every=1000",
)


class Lost(Exception):
    """Stands for a process that ended."""


@pytest.mark.parametrize("privacy", ["blt", "banded", "tree", "independent"])
def test_lost_steps_cost_nothing(
    small_city: SmallCity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, privacy: str
) -> None:
    monkeypatch.setenv("FEDLEARN_STATE", str(tmp_path / "state"))
    directory, real, lost = tmp_path / "run", server_round.publish, []

    def publish(*arguments: object, **named: object) -> str:
        if len(lost) < 3:
            lost.append(True)
            raise Lost
        return real(*arguments, **named)

    monkeypatch.setattr(server_round, "publish", publish)
    with pytest.raises(Lost):
        small_city.train(directory, *BOUNDED, f"privacy={privacy}")
    for _ in range(2):
        with pytest.raises(Lost):
            small_city.resume(directory)
    summary = small_city.resume(directory).summary
    assert summary.privacy.charges is not None
    assert (summary.privacy.charges.committed, summary.privacy.charges.wasted) == (ROUNDS, 3)
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(ROUNDS))
    assert records[-1]["epsilon"] == summary.privacy.epsilon
    assert summary.privacy.epsilon <= 3.0
    assert "zero-out" in summary.privacy.guarantee
    verifier.check_record_at(directory / LEDGER_FILE, verifier.Pins())
    verifier.verify(None, directories=[directory])
    left = {path.parent.name for path in (tmp_path / "state").rglob("*") if path.is_file()}
    assert left == {"anchors", "keys", "sampling"}, "noise state, staged model and pending record are gone"

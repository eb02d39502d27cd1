"""No byte of a record can be changed: the verifier refuses it, at the entry that was hit or at its successor."""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


verifier = load("verifier_under_tampering", ROOT / "fedlearn" / "ledger" / "verifier.py")
r = load("ledger_record", ROOT / "tests" / "unit" / "ledger_record.py")
RECORD = r.population()
EXPORT = RECORD.export()


def verify(content: bytes) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "export.jsonl"
        path.write_bytes(content)
        return dict(verifier.verify(path))


def test_the_record_itself_holds() -> None:
    assert verify(EXPORT)["verified"]


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.integers(0, len(EXPORT) - 1), st.integers(1, 255))
def test_any_byte_of_an_export(position: int, flip: int) -> None:
    damaged = bytearray(EXPORT)
    damaged[position] ^= flip
    line = EXPORT.count(b"\n", 0, position)
    with pytest.raises(verifier.Rejected) as caught:
        verify(bytes(damaged))
    assert caught.value.entry in ((None,) if line == 0 else (line - 1, line)), caught.value.reason


@settings(max_examples=250, deadline=None, derandomize=True)
@given(st.data())
def test_any_byte_of_any_column(data: st.DataObject) -> None:
    """As text in a row, so that the line's own form never is what gives it away."""
    rows = [dict(row) for row in RECORD.rows]
    row = data.draw(st.sampled_from(rows))
    column = data.draw(st.sampled_from(["kind", "body", "hash", "signature"]))
    position = data.draw(st.integers(0, len(row[column]) - 1))
    character = data.draw(st.characters(codec="ascii").filter(lambda c: c != row[column][position]))
    row[column] = row[column][:position] + character + row[column][position + 1 :]
    damaged = r.Draft(RECORD.scope)
    damaged.rows = rows
    with pytest.raises(verifier.Rejected) as caught:
        verify(damaged.export())
    assert caught.value.entry == row["sequence"]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, len(RECORD.rows) - 1), min_size=1, max_size=3, unique=True), st.randoms())
def test_any_rows_dropped_or_moved(hit: list[int], random: Any) -> None:
    dropped, moved = r.Draft(RECORD.scope), r.Draft(RECORD.scope)
    dropped.rows = [row for number, row in enumerate(RECORD.rows) if number not in hit]
    moved.rows = list(dropped.rows)
    for number in hit:
        moved.rows.insert(random.randrange(len(moved.rows) + 1), RECORD.rows[number])
    for draft in (dropped, moved):
        survives = draft.rows == RECORD.rows[: len(draft.rows)]  # the end cut off: only a checkpoint tells
        if survives and draft.rows:
            assert verify(draft.export())["records"][0]["anchor"] == verifier.NOT_ANCHORED
            continue
        with pytest.raises(verifier.Rejected):
            verify(draft.export())


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.data())
def test_any_reference_changed_by_the_operator(data: st.DataObject) -> None:
    """Chained and signed anew with the operator's own key: only the rules are left to refuse it."""
    number = data.draw(st.sampled_from([n for n, row in enumerate(RECORD.rows) if row["kind"] in REFERENCES]))
    kind = RECORD.rows[number]["kind"]
    name = data.draw(st.sampled_from(REFERENCES[kind]))
    body = json.loads(RECORD.rows[number]["body"])
    value = data.draw(st.integers(-2, len(RECORD.rows) + 2).filter(lambda v: v != body[name]))
    assume((name, value) != ("charge", LOST))  # of two charges of a step either may be the one that was published
    changed = r.Draft(RECORD.scope)
    changed.rows = [dict(row) for row in RECORD.rows]
    changed.change(number, **{name: value})
    with pytest.raises(verifier.Rejected):
        verify(changed.export())


LOST = next(
    number
    for number, row in enumerate(RECORD.rows)
    if row["kind"] == "charged" and not any(f'"charge":{number},' in other["body"] for other in RECORD.rows)
)
REFERENCES = {
    "reserved": ["part", "attempt", "sequence"],
    "charged": ["reservation", "part", "step", "sequence"],
    "voided": ["reservation", "sequence"],
    "committed": ["charge", "sequence"],
    "granted": ["epsilon", "sequence"],
}

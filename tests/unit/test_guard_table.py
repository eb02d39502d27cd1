"""The guard's verdict table: every reason is met, every case gives what the file says, and the file is up to date."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from fedlearn.errors import Refusal
from fedlearn_client import guard

_spec = importlib.util.spec_from_file_location("guard_cases", Path(__file__).with_name("guard_cases.py"))
table = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = table
_spec.loader.exec_module(table)

SHIPPED = json.loads(table.FILE.read_bytes())


def test_the_shipped_file_is_what_the_cases_give() -> None:
    """`python tests/unit/guard_cases.py` writes it anew."""
    assert table.content() == table.FILE.read_bytes()


@pytest.mark.parametrize("case", SHIPPED["cases"], ids=lambda case: case["name"])
def test_a_case(case) -> None:
    expected = case["expected"]
    found = table.Judge(case).verdict()
    assert found["verdict"] == expected["verdict"]
    for name in expected.keys() - {"verdict"}:
        assert found[name] == pytest.approx(expected[name], rel=1e-9)


def test_every_reason_of_the_guard_has_a_case() -> None:
    verdicts = Counter(case["expected"]["verdict"] for case in SHIPPED["cases"])
    # not check_task's
    elsewhere = {Refusal.SIGNATURE, Refusal.WEIGHTS, Refusal.CONSENT, Refusal.CONDITIONS, Refusal.LEDGER}
    assert set(verdicts) == {table.ADMITTED, *(reason.value for reason in Refusal if reason not in elsewhere)}
    assert verdicts[table.ADMITTED] >= 15
    names = [case["name"] for case in SHIPPED["cases"]]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("skipped", ["_require_plan", "_require_valid_now", "breaches", "require_live"])
def test_a_check_that_is_left_out_is_found(skipped, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, skipped, lambda *_args, **_named: ())
    wrong = [case["name"] for case in SHIPPED["cases"] if not _as_expected(case)]
    assert len(wrong) >= 3


def _as_expected(case) -> bool:
    try:
        return table.Judge(case).verdict()["verdict"] == case["expected"]["verdict"]
    except AssertionError:  # admitted at figures that are below the library's
        return False

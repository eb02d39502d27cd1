"""``guard.json`` as the kit asks it: each case spelled out, so that a port merges nothing. ::

    {"asked": [question, {"event": "store_wiped"}, question, ..., question]}

    question = {"now", "policy", "plan", "bundle", "status" (or null), "task"}

A fresh phone is offered the tasks in turn. It takes part wherever it admits one, but for the last, whose verdict is
the answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedlearn.device.plan_codec import plan_digest, plan_from_json

FILE: Final = Path(__file__).with_name("guard.json")
SCHEMA: Final = "fedlearn.guard/1"
ADMITTED: Final = "admitted"


@dataclass(frozen=True, slots=True)
class Situation:
    """One case of the guard.

    Args:
        id: from its name.
        sentence: its name.
        body: what is asked.
        verdict: "admitted", or a ``Refusal``.
        rho: zCDP after it, over all runs.
        least: an implementation whose figure for the tree is exact may be as low.
    """

    id: str
    sentence: str
    body: Mapping[str, Any]
    verdict: str
    rho: float
    least: float


def situations() -> tuple[Situation, ...]:
    """Return every case of ``guard.json``."""
    table = json.loads(FILE.read_bytes())
    return tuple(_situation(table, case) for case in table["cases"])


def _situation(table: Mapping[str, Any], case: Mapping[str, Any]) -> Situation:
    expected = case["expected"]
    rho = float(expected["rho_total"] if expected["verdict"] == ADMITTED else expected["rho_after"])
    slack = expected.get("rho_run", 0.0) - expected.get("rho_run_at_least", 0.0)
    asked = [_past(table, case, event, number) for number, event in enumerate(case.get("history", ()))]
    asked.append(_question(table, case, case.get("mechanism", table["base"]["mechanism"]), case.get("task", {})))
    name = re.sub(r"[^a-z0-9]+", "_", case["name"].lower()).strip("_")
    return Situation(name, f"Guard: {case['name']}.", {"asked": asked}, expected["verdict"], rho, rho - slack)


def _past(table: Mapping[str, Any], case: Mapping[str, Any], event: Mapping[str, Any], number: int) -> dict[str, Any]:
    """What was asked before is under the base's rules; each task has a token of its own."""
    if "event" in event:
        return dict(event)
    changes = {"token": f"{number + 1:032x}", **event}
    mechanism = changes.pop("mechanism", case.get("mechanism", table["base"]["mechanism"]))
    return _question(table, {}, mechanism, changes)


def _question(
    table: Mapping[str, Any], case: Mapping[str, Any], mechanism: str, changes: Mapping[str, Any]
) -> dict[str, Any]:
    base, terms = table["base"], table["mechanisms"][mechanism]
    plan = {**table["plan"], "mechanism": terms}
    digest = plan_digest(plan_from_json(plan))
    task = {**base["task"], "plan_digest": digest, **changes, "mechanism": {**terms, **case.get("task_mechanism", {})}}
    policy = dict(table["policy"])
    for name, change in case.get("policy", {}).items():
        policy[name] = {**policy[name], **change} if isinstance(change, dict) else change
    no_status = "status" in case and case["status"] is None
    return {
        "now": case.get("now", base["now"]),
        "policy": policy,
        "plan": plan,
        "bundle": {**base["bundle"], **case.get("bundle", {})},
        "status": None if no_status else {**base["status"], **case.get("status", {})},
        "task": task,
    }

"""Cases of the guard: what a phone was asked, after which history, and its verdict. Writes ``conformance/guard.json``.

``python tests/unit/guard_cases.py`` writes the file anew; ``test_guard_table`` compares it and runs every case.
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fedlearn.device.bundle import Bundle
from fedlearn.device.mechanism import MechanismTerms
from fedlearn.device.mechanism_codec import mechanism_from_json, mechanism_to_json
from fedlearn.device.plan_codec import plan_digest, plan_to_json
from fedlearn.device.task import DeviceTask
from fedlearn.errors import Refusal, TaskRefused
from fedlearn.policy.load import policy_to_json
from fedlearn.policy.status import Status
from fedlearn.policy.times import format_time
from fedlearn.policy.verify import VerifiedPolicy
from fedlearn.privacy.factorization import Blt, Toeplitz, Tree
from fedlearn.privacy.gaussian import zcdp_epsilon
from fedlearn.privacy.sensitivity import squared_sensitivity
from fedlearn_client.guard import Guard


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


town, world = _load("device_town"), _load("phone_history")
FILE = Path(__file__).parents[2] / "clients" / "fedlearn_client" / "conformance" / "guard.json"
NOW = town.NOW
DAY = 86_400.0
ADMITTED = "admitted"
OLD_STATUS = {"issued": format_time(NOW - DAY - 1)}

MECHANISMS = {
    "independent": town.mechanism(),
    "blt": town.mechanism(
        kind="blt", factorization=Blt((0.98, 0.6), (0.24, 0.27)), steps=500, min_separation=20, max_participations=20
    ),
    "banded": town.mechanism(kind="banded", factorization=Toeplitz((1.0, 0.5, 0.375, 0.3125)), max_participations=10),
    "tree": town.mechanism(kind="tree", factorization=Tree(), noise_multiplier=4.0, steps=256, max_participations=8),
}


def policy() -> Any:
    """The town's policy with a key that is the same in each process: no signature is part of a case."""
    made = town.city_policy()
    keyed = tuple(replace(entry, task_key="7e" * 32) if entry.task_key else entry for entry in made.recipients)
    return replace(made, recipients=keyed, device=replace(made.device, max_rounds_per_day=6))


def base() -> dict[str, Any]:
    """What every case begins with."""
    plan = town.small_plan()
    return {
        "now": NOW,
        "mechanism": "independent",
        "bundle": {"contents": "c0" * 32, "digest": "d0" * 32, "policy_digest": "e0" * 32, "expires": NOW + 30 * DAY},
        "status": {"version": 1, "issued": format_time(NOW - 60), "stopped": [], "revoked": []},
        "task": {
            "run_id": "town-run.1",
            "population": plan.population,
            "purpose": plan.purpose,
            "recipient": plan.recipient,
            "step": 0,
            "attempt": 0,
            "plan_digest": "",  # that of the plan with the case's mechanism
            "weights_digest": "f0" * 32,
            "token": "00" * 16,
            "issued": NOW - 60.0,
            "expires": NOW + 3600.0,
            "round_size": 100,
            "shuffle_seed": 7,
        },
        "policy": {},
        "history": [],
    }


def took(*steps: int, **more: Any) -> list[dict[str, Any]]:
    """The phone was asked in these steps, and took part wherever it was admitted."""
    return [{"step": step, **more} for step in steps]


def met(runs: int) -> list[dict[str, Any]]:
    """The phone met so many other runs late, and took part in none."""
    return [event for number in range(runs) for event in took(3, run_id=f"met-run.{number}")]


def cases() -> list[dict[str, Any]]:
    """Return name -> what differs from the base; later keys are those of the base."""
    second = {"run_id": "town-run.2"}
    named: dict[str, dict[str, Any]] = {
        "a run met in step 0": {},
        "b steps later": {"history": took(0), "task": {"step": 10}},
        "one step too soon": {"history": took(0), "task": {"step": 9}},
        "the same step again": {"history": took(0), "task": {"attempt": 1}},
        "a step before": {"history": took(0, 10), "task": {"step": 5}},
        "the last of k": {"history": took(0, 10, 20, 30), "task": {"step": 40}},
        "one more than k": {"history": took(0, 10, 20, 30, 40), "task": {"step": 50}, "now": NOW},
        "a run met late": {"task": {"step": 3}},
        "met late, one step too soon": {"history": took(3), "task": {"step": 12}},
        "met late, b steps later": {"history": took(3), "task": {"step": 13}},
        "met in step b: step b itself may be one": {"history": took(10), "task": {"step": 20}},
        "met so late that k may be used up": {"task": {"step": 77}},
        "another run": {"history": took(0), "task": second},
        "runs that were only met leave the cap alone": {
            "policy": {"device": {"epsilon": 2.6}},
            "history": [*took(33, **second), *took(33, run_id="town-run.3")],
        },
        "the last run that may be met in a day": {"history": met(5)},
        "one more run than may be met in a day": {"history": met(6)},
        "a run that was met goes on, however many were met": {
            "history": [*took(0, run_id="town-run.1"), *met(5)],
            "task": {"step": 10},
        },
        "after a wiped store": {"history": [*took(0), {"event": "store_wiped"}], "task": {"step": 10}},
        "b steps after a wiped store": {
            "history": [*took(0), {"event": "store_wiped"}, *took(10)],
            "task": {"step": 20},
        },
        "step 0 after a wiped store": {"history": [*took(0), {"event": "store_wiped"}], "task": second},
        "the clock went back": {"history": took(0), "now": NOW - 700, "task": {"step": 10, "issued": NOW - 800}},
        "the clock went back a little": {"history": took(0), "now": NOW - 300, "task": {"step": 10}},
        "other terms for a known run": {
            "history": took(0, mechanism="independent"),
            "mechanism": "blt",
            "task": {"step": 20},
        },
        "the operator's name on another's plan": {"task": {"recipient": "other-lab"}},
        "another population": {"task": {"population": "village"}},
        "another purpose": {"task": {"purpose": town.RECOMMEND}},
        "another plan": {"task": {"plan_digest": "ab" * 32}},
        "less noise than the plan": {"task_mechanism": {"noise_multiplier": 1.0}},
        "more participations than the plan": {"task_mechanism": {"max_participations": 6}},
        "a wider clip than the plan": {"task_mechanism": {"l2_clip_norm": 1.5}},
        "more noise than the plan": {"task_mechanism": {"noise_multiplier": 3.0}},
        "past the last step": {"task": {"step": 100}},
        "no run id": {"task": {"run_id": ""}},
        "too few phones in a sum": {"task": {"round_size": 1}},
        "noise under the floor": {"policy": {"mechanism": {"min_noise_multiplier": 2.5}}},
        "a clip over the floor": {"policy": {"mechanism": {"max_l2_clip_norm": 0.5}}},
        "a kind that is not allowed": {"policy": {"mechanism": {"kinds": ["blt"]}}},
        "too little separation": {"policy": {"mechanism": {"min_separation": 11}}},
        "too many participations": {"policy": {"mechanism": {"max_participations": 4}}},
        "too many steps": {"policy": {"mechanism": {"max_steps": 99}}},
        "expired": {"task": {"issued": NOW - 7200.0, "expires": NOW}},
        "not yet": {"task": {"issued": NOW + 301.0}},
        "valid for more than 7 days": {"task": {"issued": NOW - DAY, "expires": NOW + 6 * DAY + 1}},
        "valid for 7 days": {"task": {"issued": NOW - DAY, "expires": NOW + 6 * DAY}},
        "no status": {"status": None},
        "a stale status": {"status": OLD_STATUS},
        "everything stopped": {"status": {"stopped": ["*"]}},
        "the bundle stopped": {"status": {"stopped": ["d0" * 32]}},
        "its contents revoked": {"status": {"revoked": ["c0" * 32]}},
        "the policy revoked": {"status": {"revoked": ["e0" * 32]}},
        "an expired bundle": {"bundle": {"expires": NOW}},
        "an expired policy": {"policy": {"expires": format_time(NOW)}},
        "a used token": {"history": took(0, token="11" * 16), "task": {"step": 10, "token": "11" * 16}},
        "the last round of the day": {"history": took(0, 10, 20, 30, 40), "task": second},
        "one round too many a day": {
            "history": [*took(0, 10, 20, 30, 40), *took(0, **second)],
            "task": {"run_id": "town-run.3"},
        },
        "the cap": {"policy": {"device": {"epsilon": 2.4}}},
        "the cap over two runs": {"policy": {"device": {"epsilon": 3.4}}, "history": took(0), "task": second},
        "within the cap over two runs": {"policy": {"device": {"epsilon": 3.6}}, "history": took(0), "task": second},
        "blt, first": {"mechanism": "blt"},
        "blt, fourth": {"mechanism": "blt", "history": took(0, 20, 45), "task": {"step": 77}},
        "blt, met late": {"mechanism": "blt", "history": took(77), "task": {"step": 97}},
        "banded, third": {"mechanism": "banded", "history": took(0, 10), "task": {"step": 20}},
        "tree, second": {"mechanism": "tree", "history": took(0), "task": {"step": 64}},
        "tree, fifth": {"mechanism": "tree", "history": took(0, 10, 20, 30), "task": {"step": 40}},
        "two mechanisms": {"mechanism": "blt", "history": took(0, mechanism="tree", **second), "task": {"step": 0}},
    }
    return [{"name": name, **case} for name, case in named.items()]


class Judge:
    """A phone that is put through one case."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.case = case
        self.phone = world.Phone()
        self.base = base()

    def verdict(self) -> dict[str, Any]:
        """Return the verdict, and of an admission its figures."""
        for number, event in enumerate(self.case.get("history", ())):
            self._past(event, number)
        mechanism = self.case.get("mechanism", "independent")
        changes = self.case.get("task", {})
        try:
            found = self._guard().check_task(*self._asked(mechanism, changes, self.case), self._now(self.case))
        except TaskRefused as refused:
            return {"verdict": refused.reason.value, "rho_after": self.phone.ledger.spent().rho}
        return {"verdict": ADMITTED, **asdict(found), **self._least(found)}

    def _past(self, event: dict[str, Any], number: int) -> None:
        if event.get("event") == "store_wiped":
            self.phone.start(world.EMPTY)
            return
        changes = {"token": f"{number + 1:032x}", **event}
        mechanism = changes.pop("mechanism", self.case.get("mechanism", "independent"))
        task, bundle, status = self._asked(mechanism, changes, {})
        try:
            admission = self._guard().check_task(task, bundle, status, NOW)
        except TaskRefused as refused:
            if refused.reason is not Refusal.HISTORY:
                raise
            return
        with self.phone.store.transaction() as connection:
            self.phone.ledger.record(admission, task, connection)
            connection.execute("INSERT INTO tokens VALUES (?, ?)", (task.token, task.expires))
        self.phone.ledger.seal()

    def _guard(self) -> Guard:
        return Guard(self.phone.ledger, self.phone.store, self.phone.clock)

    def _now(self, case: dict[str, Any]) -> float:
        return float(case.get("now", NOW))

    def _asked(
        self, mechanism: str, changes: dict[str, Any], case: dict[str, Any]
    ) -> tuple[DeviceTask, Bundle, Status | None]:
        terms = MECHANISMS[mechanism]
        plan = town.small_plan(mechanism=terms)
        fields = {**self.base["task"], "plan_digest": plan_digest(plan), **changes}
        fields["token"] = bytes.fromhex(fields["token"])
        asked: MechanismTerms = mechanism_from_json(
            {**mechanism_to_json(terms), **case.get("task_mechanism", {})}, "task.mechanism"
        )
        task = DeviceTask(**fields, mechanism=asked, digest=bytes(32))
        rules = policy()
        for name, change in case.get("policy", {}).items():
            nested = isinstance(change, dict)
            value = replace(getattr(rules, name), **_tuples(change)) if nested else change
            rules = replace(rules, **{name: value})
        about = {**self.base["bundle"], **case.get("bundle", {})}
        verified = VerifiedPolicy(rules, about.pop("policy_digest"), town.roster())
        bundle = Bundle(plan=plan, plan_digest=plan_digest(plan), verified=verified, files={}, **about)
        if "status" in case and case["status"] is None:
            return task, bundle, None
        return task, bundle, Status(**_tuples({**self.base["status"], **case.get("status", {})}))

    def _least(self, found: Any) -> dict[str, float]:
        """The library's figures: what another implementation must not be below."""
        terms = MECHANISMS[self.case.get("mechanism", "independent")]
        rho = squared_sensitivity(terms.factorization, terms.steps, terms.min_separation, found.count)
        rho /= 2 * terms.noise_multiplier**2
        assert rho <= found.rho_run
        policy_delta = policy().device.delta
        assert zcdp_epsilon(found.rho_total, policy_delta) <= found.epsilon
        return {"rho_run_at_least": rho}


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def table() -> dict[str, Any]:
    """Return the whole table as JSON."""
    rounded = []
    for case in cases():
        found = {key: _short(value) for key, value in Judge(case).verdict().items()}
        rounded.append({**case, "expected": found})
    return {
        "schema": "fedlearn.guard/1",
        "about": "docs/device-budget.md explains how to run these cases",
        "policy": policy_to_json(policy()),
        "plan": plan_to_json(town.small_plan()),
        "mechanisms": {name: mechanism_to_json(terms) for name, terms in MECHANISMS.items()},
        "base": {key: value for key, value in base().items() if key not in {"policy", "history"}},
        "cases": rounded,
    }


def _short(value: Any) -> Any:
    """Ten digits: another platform's last ones may differ."""
    return float(f"{value:.10g}") if isinstance(value, float) and math.isfinite(value) else value


def content() -> bytes:
    """Return the file's bytes."""
    return (json.dumps(table(), indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


if __name__ == "__main__":
    FILE.write_bytes(content())

"""The verifier on records made by the contract alone: what it accepts, and every way in which a record can be wrong."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "fedlearn" / "ledger" / "verifier.py"


def load(name: str, path: Path) -> ModuleType:
    """Load a file by its path: the verifier is one, and needs no package around it."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


verifier = load("verifier_under_test", SCRIPT)
r = load("ledger_record", Path(__file__).with_name("ledger_record.py"))
Draft = Any


def verify(draft: Draft, folder: Path, **options: Any) -> dict[str, Any]:
    return dict(verifier.verify(draft.write(folder / "export.jsonl"), **options))


def refused(draft: Draft, folder: Path, **options: Any) -> tuple[int | None, str]:
    with pytest.raises(verifier.Rejected) as caught:
        verify(draft, folder, **options)
    return caught.value.entry, caught.value.reason


# What holds


def test_a_training(tmp_path: Path) -> None:
    found = verify(r.training(3), tmp_path)
    (facts,) = found["records"]
    assert found["verified"] is True
    assert (facts["entries"], facts["kinds"]["charged"], facts["anchor"]) == (12, 3, verifier.NOT_ANCHORED)
    (run,) = facts["runs"]
    assert (run["state"], run["charges"], run["committed"], run["lost"]) == ("completed", 3, 3, 0)
    assert run["spent"] == run["reserved"] == run["planned"] == facts["scope"]["spent"] > 0


def test_a_population(tmp_path: Path) -> None:
    (facts,) = verify(r.population(), tmp_path)["records"]
    first, second = facts["runs"]
    assert (first["state"], first["charges"], first["lost"], second["state"]) == ("data_independent", 7, 1, "open")
    assert first["spent"] == first["reserved"] < first["planned"]
    assert second["spent"] < second["reserved"] == second["planned"]
    assert facts["quotas"][0]["granted"] == 5.0
    scope = facts["scope"]
    assert 0 < scope["spent"] < scope["adaptive_spent"] < scope["adaptive_reserved"] < 8.0
    assert scope["cost_reserved"] < scope["capacity"]


def test_a_stop_by_judgement_keeps_the_whole_plan_spent(tmp_path: Path) -> None:
    spent = {}
    for rule in ("completed", "data_independent", "judgement"):
        draft = r.Draft(r.scope())
        draft.open_run((r.poisson(), 50))
        draft.release(0)
        draft.close(rule)
        (run,) = verify(draft, tmp_path)["records"][0]["runs"]
        spent[rule] = (run["spent"], run["reserved"])
        assert run["planned"] > 3 * spent["completed"][0]
    assert spent["completed"] == spent["data_independent"]
    assert spent["judgement"] == (run["planned"], run["planned"])


def test_a_recovery_spends_every_open_plan(tmp_path: Path) -> None:
    draft = r.population()
    draft.reserve(1, run="b")  # open: ends with its run
    draft.recover()
    (facts,) = verify(draft, tmp_path)["records"]
    assert facts["runs"][1]["state"] == "recovered"
    assert facts["runs"][1]["spent"] == facts["runs"][1]["planned"]
    assert facts["recoveries"] == [len(draft.rows) - 1]


def test_a_matrix_mechanism_costs_what_its_first_steps_cost(tmp_path: Path) -> None:
    def spent(steps: list[int]) -> float:
        draft = r.Draft(r.scope(neighboring_relation="zero_out"))
        draft.open_run((r.matrix(), 1))
        for step in steps:
            draft.release(step)
        return float(verify(draft, tmp_path)["records"][0]["runs"][0]["spent"])

    assert spent([]) == 0
    assert 0 < spent([0]) < spent([0, 1]) < spent([5]) == spent([0, 1, 2, 3, 4, 5]) < spent([19])


def test_each_kind_of_event_is_accounted_for(tmp_path: Path) -> None:
    for relation, event in (
        ("add_or_remove", r.poisson()),
        ("add_or_remove", r.truncated()),
        ("add_or_remove", r.metric()),
        ("add_or_remove", r.repeated(r.poisson())),
        ("add_or_remove", r.repeated(r.poisson(), shape="inf")),
        ("replace_one", r.fixed_size()),
        ("zero_out", r.metric()),
        ("zero_out", r.matrix(r.TREE)),
        ("zero_out", r.matrix(r.toeplitz(1.0, 0.5, 0.25))),
        ("zero_out", r.repeated(r.matrix(), count=1)),
    ):
        draft = r.Draft(r.scope(neighboring_relation=relation))
        draft.open_run((event, 1))
        draft.release()
        (run,) = verify(draft, tmp_path)["records"][0]["runs"]
        assert 0 < run["spent"] <= run["planned"] < 3, event


# What bytes may be


def changed(old: str, new: str) -> Draft:
    draft = r.training(1)
    assert old in draft.rows[1]["body"] + draft.rows[0]["body"]
    for number in (0, 1):
        draft.rows[number]["body"] = draft.rows[number]["body"].replace(old, new)
    draft.seal()
    return draft


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"noise_multiplier":2.0', '"noise_multiplier":2', "not > 0"),  # an integer: not the canonical float
        ('"noise_multiplier":2.0', '"noise_multiplier":NaN', "NaN is no JSON number"),
        ('"noise_multiplier":2.0', '"noise_multiplier":1e999', "not JSON compliant|is not"),
        ('"noise_multiplier":2.0', '"noise_multiplier":-2.0', "not > 0"),
        ('"noise_multiplier":2.0', '"noise_multiplier":"2.0"', "not > 0"),
        ('"noise_multiplier":2.0', '"noise_multiplier":2.00', "not canonical"),
        ('"noise_multiplier":2.0', '"noise_multiplier":2.0,"noise_multiplier":2.0', "twice"),
        ('"noise_multiplier":2.0', '"noise_multiplier":2.0,"note":"x"', r"surplus fields \['note'\]"),
        (',"sampling_probability":0.01', "", r"missing fields \['sampling_probability'\]"),
        ('"sampling_probability":0.01', '"sampling_probability":1.5', r"not in \(0, 1\]"),
        ('"kind":"poisson_gaussian"', '"kind":"laplace"', "event kind 'laplace' is unknown"),
        ('"count":1', '"count":true', "not an integer"),
        ('"count":1', '"count":0', "not an integer >= 1"),
        ('"purpose":"p"', '"purpose":7', "not text"),
        ('"purpose":"p"', '"purpose":"\\u0070"', "not canonical"),
        ('"run":"run"', '"run": "run"', "not canonical"),
        ('"delta":1e-05', '"delta":1.0', r"not in \(0, 1\)"),
        ('"gate":"plan"', '"gate":"none"', "not one of plan"),
        ('"gate":"plan"', '"gate":"rdp"', "an rdp gate has an order"),
        ('"order":null', '"order":2.0', "an rdp gate has an order"),
        ('"kind":"simulated"', '"kind":"real"', "not one of simulated"),
        (',"unit":"device"', "", "missing fields"),
        ('"time":1001.0', '"time":1001', "not a finite"),
    ],
)
def test_a_body_is_read_strictly(tmp_path: Path, old: str, new: str, reason: str) -> None:
    entry, found = refused(changed(old, new), tmp_path)
    assert re.search(reason, found), found
    assert entry in (0, 1)


@pytest.mark.parametrize(
    ("factorization", "reason"),
    [
        (r.toeplitz(1.0, 1.5), "increase"),
        (r.toeplitz(1.0, -0.5), "negative"),
        (r.toeplitz(0.5), "begin with 1"),
        (r.toeplitz(*[1.0] * 21), "21 coefficients for 20 steps"),
        (r.toeplitz(), "not a list of numbers"),
        (r.blt([0.5], [1.5]), "sum <= 1"),
        (r.blt([0.5, 0.5], [0.1, 0.1]), "distinct"),
        (r.blt([1.0], [0.5]), "in \\(0, 1\\)"),
        ({"kind": "dense"}, "unknown"),
        ({"kind": "tree", "restart": 1}, "surplus"),
    ],
)
def test_a_strategy_matrix_is_one_the_bounds_hold_for(
    tmp_path: Path, factorization: dict[str, Any], reason: str
) -> None:
    draft = r.Draft(r.scope(neighboring_relation="zero_out"))
    draft.open_run((r.matrix(factorization), 1))
    entry, found = refused(draft, tmp_path)
    assert entry == 1
    assert re.search(reason, found), found


def test_events_belong_to_the_scopes_relation(tmp_path: Path) -> None:
    for relation, event in (
        ("zero_out", r.poisson()),
        ("replace_one", r.metric()),
        ("add_or_remove", r.matrix()),
        ("add_or_remove", r.repeated(r.matrix())),
        ("add_or_remove", r.fixed_size()),
    ):
        draft = r.Draft(r.scope(neighboring_relation=relation))
        draft.open_run((event, 1))
        assert refused(draft, tmp_path) == (1, f"a planned event has no meaning under {relation}")


def test_an_unknown_kind_of_entry(tmp_path: Path) -> None:
    draft = r.training(1)
    draft.add("refunded", charge=3)
    assert refused(draft, tmp_path) == (6, "kind 'refunded' is unknown")


@pytest.mark.parametrize(
    ("damage", "entry"),
    [
        (lambda data: data[:-1], 5),
        (lambda data: data[: data.rindex(b"{")] + b"x\n", 5),
        (lambda data: data.replace(b"\n", b"\r\n"), None),
        (lambda data: b"\xef\xbb\xbf" + data, None),
        (lambda data: data.replace(b'"version":2', b'"version":1'), None),
        (lambda data: data.replace(b'"version":2', b'"version":2.0'), None),
        (lambda data: b"", None),
        (lambda data: data.split(b"\n", 1)[1], None),
        (lambda data: data.split(b"\n", 1)[0] + b"\n", None),
        (lambda data: data + b"\n", 6),
        (lambda data: data.replace(b'"sequence":2', b'"sequence":true', 1), 2),
        (lambda data: data.replace(b'"sequence":2', b'"sequence":2,"sequence":2', 1), 2),
        (lambda data: data.replace(b'"sequence":2', b'"note":1,"sequence":2', 1), 2),
        (lambda data: data + b"[" * 100_000 + b"\n", 6),
    ],
)
def test_an_export_is_read_strictly(tmp_path: Path, damage: Callable[[bytes], bytes], entry: int | None) -> None:
    path = tmp_path / "export.jsonl"
    path.write_bytes(damage(r.training(1).export()))
    with pytest.raises(verifier.Rejected) as caught:
        verifier.verify(path)
    assert caught.value.entry == entry, caught.value.reason


# Chain and signatures


def test_dropped_swapped_and_rewritten_entries(tmp_path: Path) -> None:
    dropped = r.training(2)
    del dropped.rows[4]
    assert refused(dropped, tmp_path) == (4, "its hash does not follow from the entry before it")
    swapped = r.training(2)
    swapped.rows[3], swapped.rows[4] = swapped.rows[4], swapped.rows[3]
    assert refused(swapped, tmp_path)[0] == 3
    rewritten = r.training(2)
    rewritten.rows[1]["body"] = rewritten.rows[1]["body"].replace('"count":2', '"count":9')
    assert refused(rewritten, tmp_path) == (1, "its hash does not follow from the entry before it")


def test_an_entry_sealed_anew_needs_the_operators_key(tmp_path: Path) -> None:
    forged = r.training(2)
    forged.operator = r.STRANGER
    forged.change(1, run="run")  # chained and signed anew, by another key
    assert refused(forged, tmp_path) == (1, "the operator's signature is not valid")


def test_a_record_by_another_key_passes_only_unpinned(tmp_path: Path) -> None:
    forged = r.Draft(r.scope(operator_key=r.public(r.STRANGER)), operator=r.STRANGER)
    assert verify(forged, tmp_path)["records"][0]["operator_key_pinned"] is False
    entry, reason = refused(forged, tmp_path, pins=verifier.Pins(operator=r.public(r.OPERATOR)))
    assert entry == 0
    assert "another operator key" in reason
    entry, reason = refused(r.population(), tmp_path, pins=verifier.Pins(authority=r.public(r.STRANGER)))
    assert entry == 0
    assert "another authority key" in reason


def test_grants_and_recoveries_need_the_authority(tmp_path: Path) -> None:
    for act in (lambda draft: draft.grant(2.0), lambda draft: draft.recover()):
        draft = r.Draft(r.scope(authority=True), authority=r.STRANGER)
        act(draft)
        assert refused(draft, tmp_path) == (1, "the authority's signature is not valid")
        alone = r.Draft(r.scope())
        act(alone)
        assert refused(alone, tmp_path) == (1, "the scope has no authority that could sign this")


def test_a_grants_signature_is_for_one_place_in_one_ledger(tmp_path: Path) -> None:
    draft = r.Draft(r.scope(authority=True))
    draft.grant(1.0)
    old = json.loads(draft.rows[1]["body"])
    draft.add("granted", **{key: old[key] for key in ("purpose", "epoch", "epsilon", "authority_signature")})
    assert refused(draft, tmp_path) == (2, "the authority's signature is not valid")  # replayed
    draft = r.Draft(r.scope(authority=True))
    draft.grant(1.0)
    draft.change(1, epsilon=2.0)  # the operator alone
    assert refused(draft, tmp_path) == (1, "the authority's signature is not valid")


# The rules: each of these records is chained and signed correctly


def two_commits(draft: Draft) -> None:
    charge = draft.charge()
    draft.commit(charge)
    draft.commit(charge)


def lost_then_committed_twice(draft: Draft) -> None:
    lost = draft.charge()
    draft.commit(draft.charge(attempt=1))
    draft.commit(lost)


def charged_after_void(draft: Draft) -> None:
    held = draft.reserve()
    draft.add("voided", reservation=held, reason="x")
    draft.pay(held)


def charged_twice(draft: Draft) -> None:
    held = draft.reserve()
    draft.pay(held)
    draft.pay(held)


def charged_for_another_step(draft: Draft) -> None:
    draft.pay(draft.reserve(0), 1)


def beyond_the_plan(draft: Draft) -> None:
    for step in range(3):
        draft.release(step)
    draft.charge(3)


def beyond_by_lost_charges(draft: Draft) -> None:
    for attempt in range(4):
        draft.charge(0, attempt=attempt)


def after_close(draft: Draft) -> None:
    draft.close()
    draft.reserve()


def committed_after_close(draft: Draft) -> None:
    charge = draft.charge()
    draft.close()
    draft.commit(charge)


def closed_while_reserved(draft: Draft) -> None:
    draft.reserve()
    draft.close()


def reserved_after_commit(draft: Draft) -> None:
    draft.release(0)
    draft.reserve(0, attempt=1)


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (two_commits, "a second commit of charge 3"),
        (lost_then_committed_twice, "step 0 of part 0 was committed under another charge"),
        (lambda draft: draft.commit(2), "a commit of 2, which is no charge"),
        (lambda draft: draft.commit(draft.reserve()), "a commit of 2, which is no charge"),
        (lambda draft: draft.pay(2), "reservation 2 is charged, but it is not open"),
        (lambda draft: draft.add("voided", reservation=0, reason="x"), "reservation 0 is voided, but it is not open"),
        (charged_after_void, "reservation 2 is charged, but it is not open"),
        (charged_twice, "reservation 2 is charged, but it is not open"),
        (charged_for_another_step, "a charge of 'run', part 0, step 1 on a reservation for another"),
        (beyond_the_plan, "charge number 4 of part 0, for which 3 were planned"),
        (beyond_by_lost_charges, "charge number 4 of part 0, for which 3 were planned"),
        (after_close, "run 'run' was closed (completed)"),
        (committed_after_close, "run 'run' was closed (completed)"),
        (closed_while_reserved, "run 'run' is closed with its reservation 2 open"),
        (reserved_after_commit, "step 0 of part 0 was committed before; a step is released once"),
        (lambda draft: (draft.reserve(0), draft.reserve(1)), "reservation 2 of run 'run' is still open"),
        (lambda draft: draft.reserve(0, attempt=1), "attempt 1 of step 0, where 0 charges were made"),
        (lambda draft: draft.reserve(0, part=1), "part 1: the plan of run 'run' has 1"),
        (lambda draft: draft.reserve(0, run="other"), "run 'other' was never opened"),
        (lambda draft: draft.reserve(-1), "step=-1 is not an integer >= 0"),
        (lambda draft: draft.open_run((r.poisson(), 1)), "run 'run' was opened before"),
        (lambda draft: draft.open_run((r.poisson(), 1), run="b"), "a second run under a gate for one plan"),
        (lambda draft: draft.add("opened", scope=draft.scope), "a ledger begins with its scope and has one"),
        (lambda draft: draft.close("tired"), "rule='tired' is not one of completed, data_independent, judgement"),
    ],
)
def test_a_rule_that_was_broken_by_the_operator(tmp_path: Path, act: Callable[[Draft], object], reason: str) -> None:
    draft = r.Draft(r.scope())
    draft.open_run((r.poisson(), 3))
    verify(draft, tmp_path)
    act(draft)
    assert refused(draft, tmp_path) == (len(draft.rows) - 1, reason)


def test_no_step_past_the_analysed_length(tmp_path: Path) -> None:
    draft = r.Draft(r.scope(neighboring_relation="zero_out"))
    draft.open_run((r.matrix(steps=20), 1))
    for attempt in range(30):  # lost charges of one step cost nothing more and are not limited
        draft.charge(19, attempt=attempt)
    verify(draft, tmp_path)
    draft.reserve(20)
    assert refused(draft, tmp_path)[1] == "step 20 lies beyond the 20 steps that were analysed"


def test_a_matrix_mechanism_is_planned_once(tmp_path: Path) -> None:
    draft = r.Draft(r.scope(neighboring_relation="zero_out"))
    draft.open_run((r.matrix(), 2))
    assert "one event is the whole mechanism" in refused(draft, tmp_path)[1]


def test_nothing_is_spent_after_a_recovery(tmp_path: Path) -> None:
    draft = r.population()
    held = draft.reserve(1, run="b")
    draft.recover()
    draft.pay(held, 1, run="b")
    assert refused(draft, tmp_path)[0] == len(draft.rows) - 1


def test_a_run_needs_a_grant_where_there_is_an_authority(tmp_path: Path) -> None:
    draft = r.Draft(r.scope(authority=True))
    draft.grant(3.0, purpose="other")
    draft.open_run((r.poisson(), 1))
    assert refused(draft, tmp_path) == (2, "no grant for purpose 'p', epoch 'e'")


# Budgets


@pytest.mark.parametrize(
    ("relation", "gate", "order", "event"),
    [
        ("zero_out", "zcdp", None, r.metric(10.0)),
        ("replace_one", "rdp", 8.0, r.fixed_size(2.0)),
        ("add_or_remove", "rdp", 8.0, r.poisson(2.0, 0.02)),
        ("add_or_remove", "zcdp", None, r.poisson(10.0, 0.02)),
    ],
)
def test_a_gate_is_overspent_by_one_run_too_many(
    tmp_path: Path, relation: str, gate: str, order: float | None, event: dict[str, Any]
) -> None:
    """Runs are opened until the verifier refuses one; what was admitted stays within the cap, one more does not."""
    draft = r.Draft(r.scope(gate=gate, order=order, neighboring_relation=relation, epsilon=2.0))
    admitted: list[dict[str, Any]] = []
    reason = None
    for doubling in range(20):
        draft.open_run((event, 2**doubling), run=f"run {doubling}")
        try:
            admitted += verify(draft, tmp_path)["records"]
        except verifier.Rejected as rejected:
            reason = (rejected.entry, rejected.reason)
            break
    assert reason is not None
    assert reason[0] == len(draft.rows) - 1
    assert f"{gate} cost" in reason[1]
    assert "more than the cap allows" in reason[1]
    assert len(admitted) >= 2
    held = admitted[-1]["scope"]
    assert 0 < held["reserved"] < held["adaptive_reserved"] <= 2.0
    assert held["adaptive_reserved"] > 0.5


def test_what_a_closed_run_returns_admits_another(tmp_path: Path) -> None:
    def record(rule: str) -> Draft:
        draft = r.Draft(r.scope(gate="zcdp", neighboring_relation="zero_out", epsilon=2.0))
        draft.open_run((r.metric(10.0), 15), run="a")
        draft.release(0, run="a")
        draft.close(rule, run="a")
        draft.open_run((r.metric(10.0), 15), run="b")
        return draft

    verify(record("data_independent"), tmp_path)
    assert "more than the cap allows" in refused(record("judgement"), tmp_path)[1]


def test_a_plan_over_the_cap_of_its_gate(tmp_path: Path) -> None:
    draft = r.Draft(r.scope(epsilon=0.2))
    draft.open_run((r.poisson(1.0, 0.1), 10))
    entry, reason = refused(draft, tmp_path)
    assert entry == 1
    assert reason.endswith("is planned, more than the cap: 0.2")


def test_quotas(tmp_path: Path) -> None:
    draft = r.Draft(r.scope(gate="zcdp", neighboring_relation="zero_out", epsilon=8.0, authority=True))
    draft.grant(0.5)
    draft.open_run((r.metric(10.0), 1), run="a")
    draft.grant(0.5, epoch="next")
    draft.open_run((r.metric(10.0), 1), run="b", epoch="next")
    verify(draft, tmp_path)
    over = r.Draft(r.scope(gate="zcdp", neighboring_relation="zero_out", epsilon=8.0, authority=True))
    over.grant(0.5)
    over.open_run((r.metric(10.0), 1), run="a")
    over.open_run((r.metric(10.0), 1), run="b")
    assert "the quota of (p, e)" in refused(over, tmp_path)[1]
    lowered = r.Draft(r.scope(gate="zcdp", neighboring_relation="zero_out", epsilon=8.0, authority=True))
    lowered.grant(0.5)
    lowered.open_run((r.metric(10.0), 1), run="a")
    lowered.grant(0.1)
    assert "the quota of (p, e) granted here" in refused(lowered, tmp_path)[1]
    beyond = r.Draft(r.scope(gate="zcdp", neighboring_relation="zero_out", epsilon=8.0, authority=True))
    beyond.grant(9.0)
    assert refused(beyond, tmp_path) == (1, "a quota of 9 under a cap of 8")


def test_less_noise_than_was_planned_shows_in_epsilon_or_breaks_the_gate(tmp_path: Path) -> None:
    honest = r.training(3, epsilon=0.3)
    before = verify(honest, tmp_path)["records"][0]["scope"]["spent"]
    honest.change(1, plan=[{"event": r.poisson(1.0, 0.01), "count": 3}])
    after = verify(honest, tmp_path)["records"][0]["scope"]["spent"]
    assert after > 2 * before
    honest.change(1, plan=[{"event": r.poisson(0.5, 0.01), "count": 3}])
    assert "more than the cap" in refused(honest, tmp_path)[1]


def test_zcdp_refuses_what_it_cannot_bound(tmp_path: Path) -> None:
    draft = r.Draft(r.scope(gate="zcdp"))
    draft.open_run((r.repeated(r.poisson()), 1))
    assert refused(draft, tmp_path) == (1, "repeat_and_select cannot be bounded by zCDP")


@pytest.mark.parametrize("z", [1e-300, 1e-160, 5e-324])
def test_a_noise_so_small_that_arithmetic_fails_is_refused(tmp_path: Path, z: float) -> None:
    draft = r.Draft(r.scope(neighboring_relation="zero_out"))
    draft.open_run((r.metric(z), 1))
    assert refused(draft, tmp_path)[0] == 1


def test_a_divergence_that_is_no_number_does_not_pass_for_zero(tmp_path: Path) -> None:
    fixed = {"kind": "fixed_size_gaussian", "noise_multiplier": 1e-160, "population": 1000, "cohort": 999}
    for relation, event in (("replace_one", fixed), ("add_or_remove", r.repeated(r.poisson(1e-160, 0.5)))):
        draft = r.Draft(r.scope(neighboring_relation=relation))
        draft.open_run((event, 1))
        assert "no number" in refused(draft, tmp_path)[1]


def test_a_sampling_probability_so_small_that_rounding_takes_over_is_no_credit(tmp_path: Path) -> None:
    """dp-accounting's divergence of this event is below zero; times the count it would pay for other runs."""
    event = verifier.Poisson(37632.91507463682, 1.095555543918816e-06)
    assert verifier.Gate(5.0, 1e-6).cost(((event, 1),)) > 0
    draft = r.Draft(r.scope(gate="rdp", order=5.0))
    draft.open_run((r.poisson(event.z, event.q), 10**30))
    assert "more than the cap" in refused(draft, tmp_path)[1]


def test_what_is_too_long_to_recompute_is_refused(tmp_path: Path) -> None:
    for event in (r.matrix(steps=10**9, b=10**8), r.matrix(r.TREE, steps=10**6, b=10**5)):
        draft = r.Draft(r.scope(neighboring_relation="zero_out"))
        draft.open_run((event, 1))
        assert "recomputed" in refused(draft, tmp_path)[1]


# Checkpoints


def anchored(draft: Draft, folder: Path, checkpoint: dict[str, Any]) -> str:
    path = folder / "checkpoint.json"
    path.write_text(json.dumps(checkpoint), encoding="utf-8")
    return str(verify(draft, folder, checkpoint=path)["records"][0]["anchor"])


def test_a_checkpoint_is_satisfied_by_the_record_and_what_grew_from_it(tmp_path: Path) -> None:
    draft = r.training(3)
    for length in (1, 5, 12):
        assert anchored(draft, tmp_path, draft.checkpoint(length)).startswith("checkpoint satisfied")


def test_rollback_and_fork_are_told_apart(tmp_path: Path) -> None:
    draft = r.training(3)
    kept = draft.checkpoint()
    del draft.rows[9:]
    with pytest.raises(verifier.Rejected, match="truncated or rolled back: 9 entries, the checkpoint saw 12"):
        anchored(draft, tmp_path, kept)
    fork = r.training(3)
    fork.change(2, time=7.0)
    with pytest.raises(verifier.Rejected, match="forked"):
        anchored(fork, tmp_path, kept)


def test_a_checkpoint_is_the_operators_and_of_this_ledger(tmp_path: Path) -> None:
    draft = r.training(1)
    for checkpoint, reason in (
        (draft.checkpoint(key=r.STRANGER), "not signed by the record's operator key"),
        ({**draft.checkpoint(), "length": 1}, "not signed by"),
        ({**draft.checkpoint(), "ledger_id": "f" * 32}, "of another ledger"),
        ({**draft.checkpoint(), "note": 1}, "surplus"),
        ({**draft.checkpoint(), "version": 2}, "version 1"),
        ({**draft.checkpoint(), "length": True}, "not an integer"),
    ):
        with pytest.raises(verifier.Rejected, match=reason):
            anchored(draft, tmp_path, checkpoint)


# Run directories


def run_directory(folder: Path, draft: Draft | None = None, name: str = "run") -> tuple[Path, Draft]:
    """A finished run: its ledger, the model state that its last commit names, and a summary."""
    directory = folder / name
    directory.mkdir(parents=True)
    state = f"model of {name}".encode()
    (directory / "checkpoint.safetensors").write_bytes(state)
    digest = hashlib.sha256(state).hexdigest()
    if draft is None:
        draft = r.Draft(r.scope(ledger_id=hashlib.md5(name.encode()).hexdigest()))
        draft.open_run((r.poisson(), 2))
        draft.release(0)
        draft.release(1, published=digest)
    database = sqlite3.connect(directory / "ledger.sqlite")
    database.execute("CREATE TABLE entries (sequence INTEGER PRIMARY KEY, kind, body, hash, signature)")
    database.executemany("INSERT INTO entries VALUES (:sequence, :kind, :body, :hash, :signature)", draft.rows)
    database.commit()
    database.close()
    return directory, draft


def summarise(
    directory: Path, epsilon: float | None, together: float | None = None, row: float | None = None, **changes: Any
) -> None:
    """A summary of two releases of ``r.poisson()``, with ``changes`` to its privacy record."""
    privacy = {
        "epsilon": epsilon,
        "delta": 1e-5,
        "neighboring_relation": "add-or-remove",
        "charges": {"total": 2, "committed": 2, "wasted": 0},
        "if_all_published": None if together is None else {"models": 2, "epsilon": together},
        "spend": [{"event": r.canonical(r.poisson()), "count": 2}],
        **changes,
    }
    models = [
        {"name": "popularity", "protected": False, "epsilon": None},
        {"name": "ours", "protected": True, "epsilon": epsilon if row is None else row},
    ]
    text = json.dumps({"models": models, "privacy": privacy})
    (directory / "summary.json").write_text(text, encoding="utf-8")


def test_a_run_directory_by_itself_and_beside_its_export(tmp_path: Path) -> None:
    directory, draft = run_directory(tmp_path)
    alone = verifier.verify(None, directories=[directory])
    spent = alone["records"][0]["runs"][0]["spent"]
    summarise(directory, spent)
    found = verify(draft, tmp_path, directories=[directory])
    assert found["directories"][0]["models"] == [{"file": str(directory / "checkpoint.safetensors"), "run": "run"}]
    assert found["directories"][0]["summary"].startswith("summary.json claims no less")
    assert len(found["records"]) == 1, "the same record is shown once"


def test_a_model_that_was_not_committed(tmp_path: Path) -> None:
    directory, _ = run_directory(tmp_path)
    (directory / "checkpoint.safetensors").write_bytes(b"another model")
    with pytest.raises(verifier.Rejected, match="is not what the last commit of any run"):
        verifier.verify(None, directories=[directory])
    (directory / "checkpoint.safetensors").unlink()
    with pytest.raises(verifier.Rejected, match="but there is no"):
        verifier.verify(None, directories=[directory])


def test_a_summary_that_claims_less(tmp_path: Path) -> None:
    directory, _ = run_directory(tmp_path)
    spent = verifier.verify(None, directories=[directory])["records"][0]["runs"][0]["spent"]
    claims: list[dict[str, Any]] = [
        {"epsilon": spent * 0.999},
        {"row": spent * 0.999},
        {"delta": 1e-6},
        {"delta": 5.0},
        {"neighboring_relation": "zero-out"},
        {"charges": {"total": 1, "committed": 1, "wasted": 0}},
        {"charges": {"total": 2, "committed": 1, "wasted": 1}},
        {"spend": [{"event": r.canonical(r.poisson()), "count": 1}]},
        {"spend": [{"event": r.canonical(r.poisson(3.0)), "count": 2}]},
        {"epsilon": float("nan")},
        {"charges": "none"},
    ]
    for claim in claims:
        summarise(directory, **{"epsilon": spent, **claim})
        with pytest.raises(verifier.Rejected, match="summary"):
            verifier.verify(None, directories=[directory])
    for more in (spent, spent * 1.01):
        summarise(directory, more)
        verifier.verify(None, directories=[directory])
    summarise(directory, None)
    assert "no epsilon" in verifier.verify(None, directories=[directory])["directories"][0]["summary"]


def test_a_study_of_two_trainings(tmp_path: Path) -> None:
    run_directory(tmp_path / "study" / "trainings", name="fold0")
    run_directory(tmp_path / "study" / "trainings", name="fold1")
    (tmp_path / "study" / "controls" / "none").mkdir(parents=True)
    (tmp_path / "study" / "controls" / "none" / "checkpoint.safetensors").write_bytes(b"no privacy")
    study = tmp_path / "study"
    found = verifier.verify(None, directories=[study])
    spent = found["records"][0]["scope"]["spent"]
    both = verifier.epsilon_of([(verifier.Poisson(2.0, 0.01), 4)], 1e-5, "add_or_remove")
    four = {"charges": {"total": 4, "committed": 4, "wasted": 0}, "spend": []}
    summarise(study, spent, together=both, **four)
    assert len(verifier.verify(None, directories=[study])["directories"][0]["models"]) == 2
    summarise(study, spent, together=spent, **four)
    with pytest.raises(verifier.Rejected, match="if all are published"):
        verifier.verify(None, directories=[study])
    shutil.rmtree(study / "trainings" / "fold1")
    summarise(study, spent, together=both)
    with pytest.raises(verifier.Rejected, match="speaks of 2 models, but 1 are here"):
        verifier.verify(None, directories=[study])
    summarise(study, spent)
    verifier.verify(None, directories=[study])
    shutil.rmtree(study / "trainings" / "fold0")
    with pytest.raises(verifier.Rejected, match="no model here has a ledger"):
        verifier.verify(None, directories=[study])


def test_a_model_whose_ledger_lies_elsewhere(tmp_path: Path) -> None:
    directory, draft = run_directory(tmp_path)
    (directory / "ledger.sqlite").unlink()
    assert verify(draft, tmp_path, directories=[directory])["directories"][0]["models"]
    with pytest.raises(verifier.Rejected, match="no ledger lies beside it"):
        verifier.verify(None, directories=[directory])
    other = r.training(2)
    with pytest.raises(verifier.Rejected, match="not what the last commit"):
        verify(other, tmp_path, directories=[directory])


def test_an_export_and_a_ledger_with_two_histories(tmp_path: Path) -> None:
    directory, draft = run_directory(tmp_path)
    shorter = r.Draft(draft.scope)
    shorter.rows = draft.rows[:4]
    verify(shorter, tmp_path, directories=[directory])
    shorter.change(1, epoch="another")
    with pytest.raises(verifier.Rejected, match="forked"):
        verify(shorter, tmp_path, directories=[directory])


def test_a_ledger_file_is_read_as_strictly(tmp_path: Path) -> None:
    directory, _ = run_directory(tmp_path)
    path = directory / "ledger.sqlite"
    assert verifier.verify(path)["verified"]
    assert sorted(file.name for file in directory.iterdir()) == ["checkpoint.safetensors", "ledger.sqlite"]
    database = sqlite3.connect(path)
    database.execute("UPDATE entries SET body = CAST(body AS BLOB) WHERE sequence = 2")
    database.commit()
    database.close()
    with pytest.raises(verifier.Rejected, match="body is not text"):
        verifier.verify(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(verifier.Rejected):
        verifier.verify(path)


# The command


def command(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a copy of the one file, alone in a folder, in Python's isolated mode."""
    shutil.copy(SCRIPT, folder / "copied.py")
    return subprocess.run(
        [sys.executable, "-I", "copied.py", *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_by_itself(tmp_path: Path) -> None:
    r.training(1).write(tmp_path / "good.jsonl")
    good = command("good.jsonl", "--operator-key", r.public(r.OPERATOR), folder=tmp_path)
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout.endswith("VERIFIED\n")
    assert "\nnot anchored: later entries may be missing\n" in good.stdout
    assert "\noperator key: pinned\n" in good.stdout
    for title in ("PROVEN from the record", "ENFORCED by rules checked here", "THE OPERATOR'S WORD"):
        assert f"\n{title}\n" in good.stdout
    bad = r.training(1)
    bad.rows[3]["signature"] = "00" * 64
    bad.write(tmp_path / "bad.jsonl")
    answer = command("bad.jsonl", "--json", folder=tmp_path)
    assert answer.returncode == 1
    assert json.loads(answer.stdout) == {
        "verified": False,
        "entry": 3,
        "reason": "the operator's signature is not valid",
    }


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("absent.jsonl",),
        ("here.jsonl", "--operator-key", "abc"),
        ("--run", "absent"),
        ("here.jsonl", "--checkpoint", "absent"),
    ],
)
def test_usage_and_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]) -> None:
    r.training(1).write(tmp_path / "here.jsonl")
    monkeypatch.chdir(tmp_path)
    assert verifier.main(arguments) == 2


def test_what_an_unpinned_report_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verifier.main([str(r.training(1).write(tmp_path / "export.jsonl"))]) == 0
    assert verifier.NOT_PINNED in capsys.readouterr().out.splitlines()


def test_a_record_cannot_write_into_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draft = r.Draft(r.scope(population="x\nVERIFIED\n\x1b[2J\u202e"))
    draft.write(tmp_path / "export.jsonl")
    assert verifier.main([str(tmp_path / "export.jsonl")]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert text.splitlines().count("VERIFIED") == 1


def test_the_file_imports_nothing_of_fedlearn() -> None:
    names: set[str] = set()
    for node in ast.walk(ast.parse(SCRIPT.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add(str(node.module).split(".")[0])
    assert names - set(sys.stdlib_module_names) == {"cryptography", "dp_accounting", "numpy", "scipy"}

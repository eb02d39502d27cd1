"""Phones, a gateway, SuperLink, ServerApp and ledger: one training from enrolment to the verified record."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from fedlearn.lab.commands.train import main as train
from fedlearn.lab.fleet_demo.paper import FleetSizes, make_papers
from fedlearn.lab.fleet_demo.world import running_fleet, running_swarm
from fedlearn_server.checkpoint import load_model
from fedlearn_server.deployment.processes import stop
from fedlearn_server.gateway.state import GatewayState

Cli = Callable[[Sequence[str]], tuple[int, str]]
SIZES = FleetSizes(devices=24, daemons=0, gateways=1, steps=2, cohort=12, round_size=4, attempt_s=20.0, epsilon=1.0)
HABITS = ["--drop-out", "0.1", "--twice", "0.2", "--liar", "0.2", "--longest-wait", "1"]


def test_a_training_over_phones(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLEARN_STATE", str(tmp_path / "state"))
    papers, run, said = make_papers(tmp_path / "fleet", SIZES), tmp_path / "run", []
    with running_fleet(papers, SIZES, said.append) as world, running_swarm(world, SIZES, HABITS) as (swarm, log):
        assert train(world.train_overrides(SIZES, run)) == 0
        stop([swarm], 30.0)
    did = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])

    before, after = papers.opened.files["weights.bin"], load_model(run)
    assert np.concatenate([after[name].ravel() for name in sorted(after)]).astype("<f4").tobytes() != before
    _only_sums_are_shown(run)
    status, output = cli(["ledger", "verify", str(run)])
    assert (status, "VERIFIED" in output) == (0, True), output

    outcomes = did["outcomes"]
    assert outcomes["honest: accepted"] > 0
    assert not [kind for kind in outcomes if kind.startswith("liar: accepted")]
    assert not [kind for kind in outcomes if kind.startswith(("honest: rejected", "twice: rejected"))]
    _at_most_as_often_as_approved(papers.directory / "gateways.db", did["accepted"])


def _only_sums_are_shown(run: Path) -> None:
    """Figures of phones that noise does not cover are in no file of the run."""
    rounds = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [one["step"] for one in rounds] == [0, 1]
    for one in rounds:
        assert (one["cohort"], one["loss"], one["clipped_fraction"], one["rejected"]) == (None, None, None, {})
    privacy = json.loads((run / "summary.json").read_text(encoding="utf-8"))["privacy"]
    assert privacy["charges"]["committed"] == 2
    assert any("single clipped updates" in line for line in privacy["trusted"])
    assert any("Check-in metadata" in line for line in privacy["unprotected"])


def _at_most_as_often_as_approved(store: Path, accepted: dict[str, list[int]]) -> None:
    """b = 2: nobody is in both steps; and the state counted what phones were told."""
    steps = {step: set(who) for step, who in accepted.items()}
    (first, second) = (set().union(*(who for step, who in steps.items() if step[0] == n)) for n in "01")
    assert not first & second
    state = GatewayState.open(store)
    try:
        state.tidy(time.time())
        assert len(state.devices()) == SIZES.devices
    finally:
        state.disconnect()

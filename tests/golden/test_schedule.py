"""Frozen schedules and candidates: another language, or a later numpy, must reproduce them bit for bit.

The arrays were made by this code once (they have no outside source); the rules they freeze are in the docstrings of
``fedlearn.engine.schedule`` and ``fedlearn.engine.negatives``. ``uniforms`` holds the first draws of each generator, so
that a port can check its generator apart from its rule.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlearn.engine import LocalTraining, sample_candidates, schedule
from fedlearn.rng import simulation_rng

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "schedule.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["schedules"], ids=lambda case: str(case["phone"]))
def test_schedule_is_frozen(case: dict[str, Any]) -> None:
    training = LocalTraining(case["epochs"], case["batch_size"], 0.1, case["shuffle"])
    key = (case["seed"], case["round"], case["phone"], "shuffle")
    assert schedule(case["examples"], training, simulation_rng(*key)).tolist() == case["order"]
    assert simulation_rng(*key).random(3).tolist() == case["uniforms"]


@pytest.mark.parametrize("case", GOLDEN["candidates"], ids=lambda case: str(case["phone"]))
def test_candidates_are_frozen(case: dict[str, Any]) -> None:
    key = (case["seed"], case["round"], case["phone"], "negatives")
    positive = np.array(case["positive"], np.int64)
    drawn = sample_candidates(positive, case["catalogue_size"], case["k"], simulation_rng(*key))
    assert drawn.items.tolist() == case["items"]
    assert simulation_rng(*key).random(3).tolist() == case["uniforms"]


def test_the_rules_by_hand() -> None:
    """The two rules written out slowly, in plain Python, from the frozen uniforms' generator."""
    rng = simulation_rng(7, 3, "hand", "shuffle")
    keys = simulation_rng(7, 3, "hand", "shuffle").random(9).tolist()
    order = schedule(9, LocalTraining(1, 4, 0.1), rng)
    assert order[order >= 0].tolist() == sorted(range(9), key=lambda index: keys[index])
    uniforms = simulation_rng(7, 3, "hand", "negatives").random((2, 4)).tolist()
    drawn = sample_candidates(np.array([5, 0]), 8, 5, simulation_rng(7, 3, "hand", "negatives"))
    for row, positive in enumerate((5, 0)):
        taken: list[int] = []
        for j, u in enumerate(uniforms[row]):
            top = 8 - 5 + j
            t = int(u * (top + 1))
            taken.append(top if t in taken else t)
        assert drawn.items[row].tolist() == [positive] + [t + (t >= positive) for t in taken]

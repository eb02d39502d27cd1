"""The progress bar says how far a training is and how long it will take, however narrow the terminal is."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from fedlearn.lab.progress import figures, progress_bars
from fedlearn.report.rounds import RoundRecord


def record(step: int, epsilon: float | None = 1.234) -> RoundRecord:
    return RoundRecord("m", 0, 0, step, step, 0.693, 100, 0.5, None, 1.0, 0.1, epsilon, {}, (), 0.1)


def shown(width: int, trainings: int = 1) -> list[str]:
    """Return what a terminal showed of a training of 200 rounds that is at its 12th, frame after frame."""
    console = Console(file=io.StringIO(), record=True, width=width, force_terminal=True, color_system=None)
    training: Any = SimpleNamespace(
        config=SimpleNamespace(cohort=SimpleNamespace(rounds=200)), split=SimpleNamespace(fold=0), seed=0
    )
    arm: Any = SimpleNamespace(name="federated, private, adaptive clip")
    with progress_bars(console, trainings) as observer_of:
        observe = observer_of(arm, training)
        for step in range(12):
            observe(record(step))
    text = "".join(console.export_text().splitlines())
    return [text[at : at + width] for at in range(0, len(text), width)]


@pytest.mark.parametrize("width", [80, 100, 120])
def test_round_count_bar_and_time_are_there(width: int) -> None:
    line = shown(width)[-1]
    assert "12/200" in line, "lines are as wide as the terminal, no wider"
    assert line.startswith("federated")
    assert re.search("[━╸]", line)
    assert ":" in line.partition("12/200")[2].split()[0], "the time that is left, or a mark of the same form"
    assert "epsilon 1.234" in line, "the budget is not what a narrow terminal cuts off"


def test_a_training_without_privacy_says_so_first() -> None:
    assert figures(record(0, None)).startswith("NO PRIVACY")
    assert figures(record(0)).startswith("epsilon 1.234")

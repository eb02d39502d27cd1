"""Thousands of sessions through both implementations of the features."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

_path = Path(__file__).parents[1] / "conformance" / "tiny_pair.py"
_spec = importlib.util.spec_from_file_location("tiny_pair", _path)
assert _spec is not None
assert _spec.loader is not None
pairs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pairs)

pytestmark = pytest.mark.long


def test_five_thousand_sessions_of_another_city() -> None:
    town = pairs.city(seed=11)
    pair = pairs.Pair(town.catalogue)
    for number, session in enumerate(pairs.sentences(town, 5000)):
        assert pair.same_query(session), session.group
        if number % 5 == 0:
            assert pair.farthest(session) <= 1, session.group


def test_the_kit_finds_every_small_mistake() -> None:
    mutants = pairs.load("tiny_mutants")
    unseen = [pair for pair in mutants.MUTANTS if mutants.first_failure(mutants.mutant(*pair)) is None]
    assert unseen == []
    assert len(mutants.MUTANTS) > 130


@pytest.mark.parametrize("seed", [2, 3])
def test_ten_thousand_sessions_that_nobody_would_write(seed: int) -> None:
    town = pairs.city(seed=7)
    pair = pairs.Pair(town.catalogue)
    for number, session in enumerate(pairs.hostile(pair, town, 10_000, seed)):
        assert pair.same_query(session), [(m.text, m.foreign_spans) for m in session.messages]
        if number % 20 == 0:
            assert pair.farthest(session) <= 1

"""kill -9 at ten random moments of a phone's life: nothing acknowledged is lost, nothing is sent twice or unlogged."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import device_killer as killers
import device_world as worlds


@pytest.fixture(scope="module", autouse=True)
def _prepared() -> Iterator[None]:
    yield
    worlds.forget_prepared()


def test_killed_ten_times() -> None:
    killer = killers.kill_often(10, seed=4)
    sys.stdout.write(f"{dict(sorted(killer.seen.items()))}\n")
    assert killer.seen["uploads caught"] >= 1


@pytest.mark.parametrize(
    ("sabotage", "kinds", "found"),
    [
        ("answers_before_it_is_durable", ("in_ingest",), "an acknowledged signal is lost"),
        ("sends_what_was_not_logged", ("in_upload",), "Upload: left without an entry"),
    ],
)
def test_a_broken_promise_is_found(sabotage: str, kinds: tuple[str, ...], found: str) -> None:
    with pytest.raises(AssertionError, match=found):
        killers.kill_often(5, 5, kinds, sabotage)

"""kill -9 at fifty random moments of ingest, training, upload and withdrawal of the whole daemon."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
import device_killer as killers
import device_world as worlds

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module", autouse=True)
def _prepared() -> Iterator[None]:
    yield
    worlds.forget_prepared()


@pytest.mark.parametrize("kind", killers.KINDS)
def test_killed_fifty_times(kind: str) -> None:
    killer = killers.kill_often(50, 50, (kind,))
    sys.stdout.write(f"\n{kind}: {dict(sorted(killer.seen.items()))}\n")
    teeth = {
        "in_ingest": "pushes lost unheard",
        "in_training": "in_training",
        "in_upload": "uploads sent again",
        "in_withdrawal": "withdrawals half done",
    }
    assert killer.seen[teeth[kind]] >= 3, "too few kills fell into what was to be killed"


def test_killed_fifty_times_in_turn() -> None:
    killer = killers.kill_often(50, 51)
    sys.stdout.write(f"\nall in turn: {dict(sorted(killer.seen.items()))}\n")


@pytest.mark.parametrize(
    ("sabotage", "kind", "found"),
    [
        ("answers_before_it_is_durable", "in_ingest", "an acknowledged signal is lost"),
        ("sends_what_was_not_logged", "in_upload", "Upload: left without an entry"),
        ("sends_what_was_not_charged", "in_upload", "an upload that was not charged"),
        ("keeps_what_was_taken_back", "in_withdrawal", "resurrected|more is there"),
    ],
)
def test_a_broken_promise_is_found(sabotage: str, kind: str, found: str) -> None:
    with pytest.raises(AssertionError, match=found):
        killers.kill_often(20, 52, (kind,), sabotage)

"""Twenty owners with words of their own: every fault, every file, every byte that leaves. Prints figures."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
import device_canary as canary
import device_search as search
import device_world as worlds
import test_device_canary as short

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]
SEEDS = range(100, 120)


@pytest.fixture(scope="module", autouse=True)
def _prepared() -> Iterator[None]:
    yield
    worlds.forget_prepared()


def test_no_word_is_found_anywhere() -> None:
    searched = needles = killed = 0
    for seed in SEEDS:
        with canary.evening(seed, inside=False) as one:
            one.agree()
            one.talk()
            one.blunder()
            killed += one.kill_readers(3)
            one.kill_trainer()
            one.fill_disk()
            one.picture("after the faults")
            one.phone.stop()
            one.phone.start()
            one.stream = one.words.note(one.words.ascii())
            one.live(pictures=True)
            one.phone.kill()
            assert one.found() == {}, seed
            assert one.phone.stderr() == ""
            searched += sum(map(len, one.everything().values()))
            needles += search.Needles(one.words.texts).count
    sys.stdout.write(
        f"\n{len(SEEDS)} evenings: {searched / 1e6:.0f} MB searched for {needles} needles, 0 hits; "
        f"{killed} workers killed\n"
    )


def test_what_leaves_is_the_same_for_all() -> None:
    usual = short.usual()
    for seed in SEEDS:
        assert short.requests_of(seed, worker=short.KNOWN_NONCE) == usual
        assert short.without_nonce(short.requests_of(seed, hooks={})) == short.without_nonce(usual)
    sys.stdout.write(f"\n{len(usual)} requests, bit-equal for {len(SEEDS) + 1} owners\n")


@pytest.mark.parametrize("mode", ["nonce", "values"])
def test_eight_bytes_of_any_message_are_found(mode: str) -> None:
    for seed in list(SEEDS)[:6]:
        text = short.first_text(seed).encode()
        at = seed % (len(text) - 8)
        with canary.evening(seed, worker=short.worker(mode, text[at : at + 8])) as one:
            one.live()
            assert {place.split()[2] for place in one.found()} == {"Upload:"}, seed

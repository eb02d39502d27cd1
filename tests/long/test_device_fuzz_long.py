"""10,000 frames a method through relay and gRPC into a daemon of its own, and 1,000 mutated bundles. Prints figures."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
import device_fuzz as fuzz
import device_world as worlds

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]
FRAMES = 10_000


@pytest.fixture(scope="module", autouse=True)
def _prepared() -> Iterator[None]:
    yield
    worlds.forget_prepared()


def resident(pid: int) -> int:
    """KiB of a process now."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0])


def test_frames_at_every_method() -> None:
    with worlds.world(inside=False) as phone:
        fuzzer = fuzz.Fuzzer(phone, random.Random(7))
        for method in fuzz.CALLERS:  # what is made once is made
            fuzzer.send(method, 200, fuzzer.through_the_channel)
        time.sleep(7.0)
        before = resident(phone.pid)
        for method in fuzz.CALLERS:
            began = time.monotonic()
            codes = fuzzer.send(method, FRAMES, fuzzer.through_the_channel)
            took = time.monotonic() - began
            sys.stdout.write(f"{method}: {dict(codes)} in {took:.0f} s, {resident(phone.pid)} KiB\n")
            sys.stdout.flush()
        time.sleep(7.0)
        grown = resident(phone.pid) - before
        sys.stdout.write(f"{before} KiB before, grown by {grown} KiB\n")
        assert phone.status().version
        assert phone.stderr() == ""
    assert grown < 20 * 1024


def test_mutated_bundles() -> None:
    count = fuzz.refuse_bundles(each=24)
    sys.stdout.write(f"{count} mutated bundles refused\n")
    assert count >= 1000

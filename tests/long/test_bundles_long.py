"""1,000 mutated bundles and 20,000 mangled tasks: none accepted, none crashes, no memory kept."""

from __future__ import annotations

import importlib.util
import random
from collections import Counter
from pathlib import Path

import pytest

from fedlearn.device.bundle import open_bundle
from fedlearn.device.catalogue_bundle import open_catalogue_bundle, spec_of
from fedlearn.device.task_codec import open_task
from fedlearn.errors import TaskRefused, TrustError

_path = Path(__file__).parents[1] / "unit" / "device_mutations.py"
_spec = importlib.util.spec_from_file_location("device_mutations", _path)
mutations = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(mutations)
town = mutations.town

pytestmark = pytest.mark.long

BUNDLES = 1000
WARM = 200
TASKS = 20_000
MOST_GROWTH_MIB = 20.0


def resident_mib() -> float:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


def test_mutated_bundles() -> None:
    names = sorted(mutations.MUTATIONS)
    rng, refused, start = random.Random(41), Counter[str](), 0.0
    for number in range(WARM + BUNDLES):
        if number == WARM:
            start = resident_mib()
            refused.clear()
        name = names[number % len(names)]
        attempt = mutations.MUTATIONS[name](random.Random(rng.random()))
        assert not attempt.accepted(), f"{name}, number {number}"
        refused[name] += 1
    growth = resident_mib() - start
    assert sum(refused.values()) == BUNDLES
    assert len(refused) == len(names)
    assert growth < MOST_GROWTH_MIB, f"grew by {growth:.1f} MiB"
    assert mutations.Attempt(mutations.good()).accepted()
    print(f"{BUNDLES} bundles of {len(names)} kinds refused, grown by {growth:.1f} MiB")


def test_large_nonsense_is_refused_without_being_kept() -> None:
    """Bundles at the cap, damaged at their end: what a reader would copy before it looks is copied here."""
    start, rng = resident_mib(), random.Random(5)
    body = rng.randbytes(2**20)
    for number in range(40):
        data = (mutations.good() + body * 15)[: 2**24 - number]
        for accept in (
            lambda data: open_bundle(data, root_keys=[town.root_key().public], now=town.NOW, runtime="9"),
            lambda data: open_catalogue_bundle(
                data, roster=town.roster(), spec=spec_of(town.catalogue(), 2**24), now=town.NOW
            ),
        ):
            with pytest.raises(TrustError):
                accept(data)
        del data
    assert resident_mib() - start < MOST_GROWTH_MIB + 16


def test_mangled_tasks() -> None:
    rng, good, key = random.Random(9), town.signed_task(step=5), town.operator_key().public
    start = resident_mib()
    for _ in range(TASKS):
        data = bytearray(good)
        for _ in range(rng.randrange(1, 8)):
            begin = rng.randrange(len(data) + 1)
            data[begin : begin + rng.choice((0, 1, 1, 2, 50))] = rng.randbytes(rng.choice((0, 1, 1, 4, 60)))
        if bytes(data) != good:
            with pytest.raises(TaskRefused):
                open_task(bytes(data), key)
    assert resident_mib() - start < MOST_GROWTH_MIB


def test_mangled_catalogues() -> None:
    rng, good, spec = random.Random(10), town.signed_catalogue(), spec_of(town.catalogue())
    start = resident_mib()
    for _ in range(2000):
        files = mutations.files_of(good)
        name = rng.choice(sorted(files))
        content = bytearray(files[name])
        begin = rng.randrange(len(content))
        content[begin : begin + rng.choice((0, 1, 5))] = rng.randbytes(rng.randrange(4))
        if bytes(content) == files[name]:
            continue
        data = mutations.write_archive({**files, name: bytes(content)})
        with pytest.raises(TrustError):
            open_catalogue_bundle(data, roster=town.roster(), spec=spec, now=town.NOW)
    assert resident_mib() - start < MOST_GROWTH_MIB

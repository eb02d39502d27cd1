"""The device benchmark measures every quantity that has a limit, and says how; its figures are not tested."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import distribution
from pathlib import Path

import pytest

from fedlearn.errors import OutOfRange
from fedlearn.lab.bench.device import DeviceBench, DeviceSizes, bench_device
from fedlearn.lab.bench.device_figures import closure, figure, figures_table
from fedlearn.lab.bench.device_phone import FORBIDDEN, forbidden, status_mebibytes
from fedlearn.lab.bench.device_world import APP, LARGE, World, bench_policy
from fedlearn.models.base import parameter_count
from fedlearn.policy.document import DataType

SMALL = DeviceSizes(
    restaurants=500, phones=120, messages=2000, rankings=4, steps=20, difference_steps=20, repeats=1, patient=False
)
LIMITS = {
    "daemon: start to serving": 1.5,
    "daemon: idle memory after start": 60.0,
    "daemon: idle memory after use": 60.0,
    "daemon: forbidden modules": 0.0,
    "push, consent on, 100 at a time": 2000.0,
    "push, consent on, 500 at a time": 2000.0,
    "push, consent off, 100 at a time": 2000.0,
    "push, consent off, 500 at a time": 2000.0,
    "recommend, p95": 10.0,
    "trainer: peak memory": 90.0,
    "trainer: peak memory, match": 90.0,
    "trainer: 20 steps": 450.0,
    "local round, match, 200 examples": 1.5,
    "local round, two_tower, 20 steps": 1.5,
    "bundle match: plan + step": 200_000.0,
    "bundle two_tower: plan + step": 200_000.0,
    "difference, match": 1e-5,
    "difference, match, private steps": 1e-5,
    "difference, two_tower": 1e-5,
    "difference, two_tower, private steps": 1e-5,
    "client: packages": 16.0,
}


@lru_cache
def small() -> DeviceBench:
    return bench_device(SMALL)


def test_every_limit_is_measured() -> None:
    found = {one.name: one.limit for one in small().figures if one.limit is not None}
    assert found == LIMITS
    assert all(one.median > 0 or one.limit in {0, 1e-5} for one in small().figures)
    assert all(one.repeats >= 1 and one.least <= one.median <= one.most for one in small().figures)


def test_what_does_not_depend_on_the_machine_keeps_its_limit() -> None:
    certain = ("daemon: forbidden", "bundle", "difference", "client")
    assert {one.name: one.is_met for one in small().figures if one.name.startswith(certain)}.values() <= {True, None}


def test_a_result_says_how_it_was_measured_and_names_no_machine() -> None:
    result = small()
    text = json.dumps(asdict(result))
    assert result.sizes == SMALL
    assert result.machine.versions["onnxruntime"] == distribution("onnxruntime").version
    assert all(one.protocol for one in result.figures)
    for private in (str(Path.cwd()), str(Path.home()), "/tmp", Path("/proc/sys/kernel/hostname").read_text().strip()):
        assert f'"{private}' not in text
        assert f"{private}/" not in text


def test_a_limit_is_a_ceiling_or_a_floor() -> None:
    assert figure("a", "s", [1.0, 3.0, 2.0], "", limit=2.0).is_met
    assert not figure("a", "s", [1.0, 3.0, 2.5], "", limit=2.0).is_met
    assert figure("a", "1/s", [1.0, 3.0, 2.0], "", limit=2.0, at_least=True).is_met
    assert not figure("a", "1/s", [1.0, 3.0, 1.5], "", limit=2.0, at_least=True).is_met
    assert figure("a", "s", [1.0], "").is_met is None
    with pytest.raises(OutOfRange, match="not measured once"):
        figure("a", "s", [], "")


def test_the_table_marks_what_misses_its_limit() -> None:
    table = figures_table([figure("slow", "s", [3.0], "", limit=2.0), figure("quick", "s", [1.0], "", limit=2.0)])
    assert [*table.columns[4].cells] == ["NO", "yes"]


def test_closure_follows_what_is_needed() -> None:
    names = closure("fedlearn-client")
    assert {"fedlearn-client", "fedlearn", "numpy", "onnxruntime", "sqlcipher3", "protobuf"} <= names
    assert "torch" not in names


def test_forbidden_modules_are_found_by_whole_names() -> None:
    assert forbidden(frozenset({"numpy.linalg", "torch", "torchlight", "fedlearn.label", "fedlearn.lab.city"})) == [
        "fedlearn.lab.city", "numpy.linalg", "torch",
    ]  # fmt: skip
    assert "fedlearn.lab" in FORBIDDEN


def test_memory_of_a_process_that_is_gone_is_nothing() -> None:
    assert status_mebibytes(2**22 + 1, "VmRSS") == 0.0


def test_the_world_is_what_the_limits_speak_of(tmp_path: Path) -> None:
    policy = bench_policy()
    assert {one.data_type for one in policy.sources if one.app == APP} == set(DataType)
    assert parameter_count(LARGE.initial(0)) > 150_000
    world = World(tmp_path / "keys", policy, 500, 3, 1_800_000_000.0)
    assert len(world.catalogue.items) == 500
    with pytest.raises(OutOfRange, match="raise phones"):
        world.occasions(1000)
    assert all(occasion.chosen and occasion.earlier for occasion in world.occasions(5))


@pytest.mark.parametrize("changes", [{"messages": 1500}, {"messages": 0}, {"repeats": 0}, {"rankings": 0}])
def test_sizes_that_measure_nothing_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(OutOfRange, match="bench"):
        DeviceSizes(**changes)  # type: ignore[arg-type]

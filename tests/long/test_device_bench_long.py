"""The device benchmark at full size: every limit is measured; what no machine changes is held. Prints the figures."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import distribution
from pathlib import Path

import pytest
from rich.console import Console

from fedlearn.lab.bench.device import DeviceBench, DeviceSizes, bench_device
from fedlearn.lab.bench.device_figures import figures_table

SIZES = DeviceSizes()
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
    "trainer: 600 steps": 450.0,
    "local round, match, 200 examples": 1.5,
    "local round, two_tower, 600 steps": 1.5,
    "bundle match: plan + step": 200_000.0,
    "bundle two_tower: plan + step": 200_000.0,
    "difference, match": 1e-5,
    "difference, match, private steps": 1e-5,
    "difference, two_tower": 1e-5,
    "difference, two_tower, private steps": 1e-5,
    "client: packages": 16.0,
}


@lru_cache
def whole() -> DeviceBench:
    result = bench_device(SIZES)
    Console(width=140).print(figures_table(result.figures))
    return result


@pytest.mark.long
def test_every_limit_is_measured() -> None:
    found = {one.name: one.limit for one in whole().figures if one.limit is not None}
    assert found == LIMITS
    assert all(one.median > 0 or one.limit in {0, 1e-5} for one in whole().figures)
    assert all(one.repeats >= 1 and one.least <= one.median <= one.most for one in whole().figures)


@pytest.mark.long
def test_what_does_not_depend_on_the_machine_keeps_its_limit() -> None:
    certain = ("daemon: forbidden", "bundle", "difference", "client")
    assert [one.name for one in whole().figures if one.name.startswith(certain) and one.is_met is False] == []


@pytest.mark.long
def test_a_result_says_how_it_was_measured_and_names_no_machine() -> None:
    result = whole()
    text = json.dumps(asdict(result))
    assert result.sizes == SIZES
    assert result.machine.versions["onnxruntime"] == distribution("onnxruntime").version
    assert all(one.protocol for one in result.figures)
    for private in (str(Path.cwd()), str(Path.home()), "/tmp", Path("/proc/sys/kernel/hostname").read_text().strip()):
        assert f'"{private}' not in text
        assert f"{private}/" not in text

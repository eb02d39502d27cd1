"""Rounds over SuperLink at the sizes that the project names: figures are printed, what no machine changes is held."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from fedlearn.lab.bench.scale import ScaleBench, ScaleRow, ScaleSizes, bench_scale
from fedlearn.lab.bench.scale_table import show_scale

SIZES = ScaleSizes(nodes=(3, 64), model_bytes=(1_000, 100_000, 1_000_000), rounds=3, stock=3)


@lru_cache
def whole() -> ScaleBench:
    result = bench_scale(SIZES, Console(stderr=True))
    show_scale(Console(width=160), result)
    return result


def resident() -> list[ScaleRow]:
    return [row for row in whole().rows if row.path == "resident"]


@pytest.mark.long
def test_every_size_is_measured() -> None:
    found = {(row.path, row.nodes, row.model_bytes) for row in whole().rows}
    assert found == {("stock", 3, 1_000), *(("resident", n, b) for n in SIZES.nodes for b in SIZES.model_bytes)}
    assert all(row.bottleneck and row.rounds == SIZES.rounds for row in whole().rows)
    assert [idle.nodes for idle in whole().idle] == [0, 3, 64]


@pytest.mark.long
def test_a_task_reaches_a_node_once_and_an_answer_leaves_it_once() -> None:
    """Bytes a node-round: the weights as f32 there, as f64 back, and a few kB of Flower's own."""
    for row in resident():
        assert row.traffic is not None
        assert row.model_bytes <= row.traffic.received < row.model_bytes + 8_000
        assert 2 * row.model_bytes <= row.traffic.sent < 2 * row.model_bytes + 8_000


@pytest.mark.long
def test_requests_a_node_round_do_not_grow_with_nodes() -> None:
    assert all(row.traffic is not None and row.traffic.requests < 12 for row in resident())


@pytest.mark.long
def test_resident_nodes_are_quicker_than_stock_ones() -> None:
    """The stock path starts a Python process a message: the ratio is above 3 on any machine."""
    ratio = whole().stock_ratio
    assert ratio is not None
    assert ratio > 3.0


@pytest.mark.long
def test_a_result_says_how_it_was_measured_and_names_no_machine() -> None:
    result = whole()
    text = json.dumps(asdict(result))
    assert result.sizes == SIZES
    assert result.code
    assert result.machine.versions["flwr"]
    for private in (str(Path.cwd()), str(Path.home()), "/tmp", Path("/proc/sys/kernel/hostname").read_text().strip()):
        assert f'"{private}' not in text
        assert f"{private}/" not in text


@pytest.mark.long
def test_a_tiny_run() -> None:
    """A SuperLink with TLS, two nodes; afterwards nothing runs and every column is there."""
    children = set(psutil.Process().children(recursive=True))
    said = io.StringIO()
    sizes = ScaleSizes(nodes=(2,), model_bytes=(4_000,), rounds=1, stock=0, seed=7, idle_s=0.2)
    bench = bench_scale(sizes, Console(file=said))
    assert not set(psutil.Process().children(recursive=True)) - children
    (row,) = bench.rows
    assert (row.path, row.nodes, row.model_bytes, row.rounds) == ("resident", 2, 4_000, 1)
    assert row.traffic is not None
    # an answer is the weights as f64; the task, which all parts of a round share, reaches a node once
    assert 8_000 < row.traffic.sent < 13_000
    assert 4_000 < row.traffic.received < 8_000
    assert min(row.superlink.cpu_s, row.serverapp.cpu_s, row.hosts.cpu_s) > 0
    assert [idle.nodes for idle in bench.idle] == [0, 2]
    assert bench.stock_ratio is None
    plain = json.loads(json.dumps(asdict(bench)))
    assert plain["sizes"]["seed"] == 7
    assert plain["code"]
    assert plain["machine"]["versions"]["flwr"]
    shown = io.StringIO()
    show_scale(Console(file=shown, width=200), bench)
    assert "4,000" in shown.getvalue()
    assert row.bottleneck in shown.getvalue()
    assert f"load {bench.machine.load[0]:g} before" in shown.getvalue()

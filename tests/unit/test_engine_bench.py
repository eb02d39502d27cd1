"""The bench runs and compares the right things; its figures are not tested."""

from __future__ import annotations

import pytest
import torch

from fedlearn.errors import OutOfRange
from fedlearn.lab.bench.engine import bench_engine


def test_bench_runs_and_both_engines_agree() -> None:
    threads = torch.get_num_threads()
    result = bench_engine(clients=3, repeats=1)
    assert result.clients == 3
    assert 0.0 < result.relative_l2 <= 2e-6
    assert torch.get_num_threads() == threads


def test_bench_refuses_nothing_to_do() -> None:
    with pytest.raises(OutOfRange, match=r"bench\.repeats=0"):
        bench_engine(repeats=0)

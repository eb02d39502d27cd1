"""``fedlearn bench NAME``: measurements as ratios inside one run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict

import torch
from rich.console import Console

from fedlearn.lab.bench.engine import bench_engine


def main(arguments: Sequence[str]) -> int:
    """Run one benchmark and print its figures."""
    parser = argparse.ArgumentParser(prog="fedlearn bench", description="Measurements as ratios inside one run.")
    parser.add_argument("name", choices=["engine"], help="engine: vmap against the one-by-one loop, two-tower model")
    parser.add_argument("--clients", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="for a machine to read")
    parsed = parser.parse_args(arguments)
    torch.set_num_threads(1)
    result = bench_engine(clients=parsed.clients, repeats=parsed.repeats)
    console = Console()
    if parsed.json:
        console.print_json(json.dumps(asdict(result)))
    else:
        console.print(result)
    return 0

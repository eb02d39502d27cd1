"""``fedlearn bench NAME``: measurements as ratios inside one run, and published privacy figures beside ours."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict

import torch
from rich.console import Console

from fedlearn.lab.bench.accounting import reproduced, run_bench, show_accounting
from fedlearn.lab.bench.engine import EngineBench, bench_engine
from fedlearn.lab.bench.ledger import LedgerBench, bench_ledger


def main(arguments: Sequence[str]) -> int:
    """Run one benchmark and print its figures. Exit code 1: a figure that should be reproduced is not."""
    parser = argparse.ArgumentParser(prog="fedlearn bench", description="Measurements and published figures.")
    parser.add_argument(
        "name",
        choices=["engine", "accounting", "ledger"],
        help="engine: vmap against the one-by-one loop, two-tower model; "
        "accounting: published privacy figures, ours under the same conversion, and today's; "
        "ledger: signed appends against the raw syncs of the disk that holds the working directory",
    )
    parser.add_argument("--clients", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="for a machine to read")
    parsed = parser.parse_args(arguments)
    if parsed.name == "accounting":
        return _accounting(as_json=parsed.json)
    torch.set_num_threads(1)
    result: EngineBench | LedgerBench
    if parsed.name == "ledger":
        result = bench_ledger(repeats=parsed.repeats)
    else:
        result = bench_engine(clients=parsed.clients, repeats=parsed.repeats)
    console = Console()
    if parsed.json:
        console.print_json(json.dumps(asdict(result)))
    else:
        console.print(result)
    return 0


def _accounting(*, as_json: bool) -> int:
    rows = run_bench(Console(stderr=True))
    if as_json:
        Console().print_json(json.dumps([asdict(row) for row in rows]))
    else:
        show_accounting(Console(), rows)
    return 0 if reproduced(rows) else 1

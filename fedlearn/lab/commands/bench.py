"""``fedlearn bench NAME``: measurements as ratios inside one run, and published privacy figures beside ours."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace

import torch
from rich.console import Console

from fedlearn.lab.bench.accounting import reproduced, run_bench, show_accounting
from fedlearn.lab.bench.engine import EngineBench, bench_engine
from fedlearn.lab.bench.ledger import LedgerBench, bench_ledger


def main(arguments: Sequence[str]) -> int:
    """Run one benchmark and print its figures.

    Exit code 1: a published figure is not reproduced, or a limit of the device is not kept.
    """
    parser = argparse.ArgumentParser(prog="fedlearn bench", description="Measurements and published figures.")
    parser.add_argument(
        "name",
        choices=["engine", "accounting", "ledger", "device", "scale"],
        help="engine: vmap against the one-by-one loop, two-tower model; "
        "accounting: published privacy figures, ours under the same conversion, and today's; "
        "ledger: signed appends against the raw syncs of the disk that holds the working directory; "
        "device: what the runtime on a phone costs, beside its limits (some minutes); "
        "scale: a round over SuperLink against nodes and model size, stock SuperNodes beside ours (some minutes)",
    )
    parser.add_argument("--clients", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="for a machine to read")
    scale = parser.add_argument_group("scale")
    scale.add_argument("--nodes", type=_integers, metavar="N,...", help="resident nodes (default: 1,4,16,64)")
    scale.add_argument("--bytes", type=_integers, metavar="B,...", help="of the model (default: 1 kB to 10 MB)")
    scale.add_argument("--rounds", type=int, metavar="N", help="timed rounds each (default: 5)")
    scale.add_argument("--stock", type=int, metavar="N", help="stock SuperNodes beside them (default: 3; 0: none)")
    scale.add_argument("--seed", type=int, default=0, metavar="N", help="of the model (default: 0)")
    scale.add_argument("--quick", action="store_true", help="small sizes and no stock path: under a minute")
    parsed = parser.parse_args(arguments)
    if parsed.name == "accounting":
        return _accounting(as_json=parsed.json)
    if parsed.name == "device":
        return _device(repeats=parsed.repeats, as_json=parsed.json)
    if parsed.name == "scale":
        return _scale(parsed)
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


def _device(*, repeats: int, as_json: bool) -> int:
    # late: it needs the phone side's packages, which the other benchmarks do not
    from fedlearn.lab.bench.device import DeviceSizes, bench_device  # noqa: PLC0415
    from fedlearn.lab.bench.device_figures import figures_table  # noqa: PLC0415

    result, console = bench_device(DeviceSizes(repeats=repeats)), Console()
    if as_json:
        console.print_json(json.dumps(asdict(result)))
    else:
        console.print(figures_table(result.figures))
        console.print(f"{result.seconds:.0f} s on {result.machine}, {result.sizes}", highlight=False)
    return 0 if result.is_met else 1


def _scale(parsed: argparse.Namespace) -> int:
    # late: it needs the server's packages
    from fedlearn.lab.bench.scale import QUICK, ScaleSizes, bench_scale  # noqa: PLC0415
    from fedlearn.lab.bench.scale_table import show_scale  # noqa: PLC0415

    start = QUICK if parsed.quick else ScaleSizes()
    given = {
        "nodes": parsed.nodes,
        "model_bytes": parsed.bytes,
        "rounds": parsed.rounds,
        "stock": parsed.stock,
        "seed": parsed.seed,
    }
    sizes = replace(start, **{name: value for name, value in given.items() if value is not None})
    result = bench_scale(sizes, Console(stderr=True))
    if parsed.json:
        Console().print_json(json.dumps(asdict(result)))
    else:
        console = Console()
        # a file or a pipe has no width to fit into
        show_scale(console if console.is_terminal else Console(width=160), result)
    return 0


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _accounting(*, as_json: bool) -> int:
    rows = run_bench(Console(stderr=True))
    if as_json:
        Console().print_json(json.dumps([asdict(row) for row in rows]))
    else:
        show_accounting(Console(), rows)
    return 0 if reproduced(rows) else 1

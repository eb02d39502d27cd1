"""``fedlearn swarm``: many phones in one process, against real gateways."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fedlearn.errors import OutOfRange
from fedlearn.lab import compose
from fedlearn.lab.config import FleetConfig
from fedlearn.lab.fleet import fleet_bundle
from fedlearn.lab.swarm.drive import Pace
from fedlearn.lab.swarm.habits import Habits
from fedlearn.lab.swarm.start import (
    SwarmResult,
    SwarmSettings,
    learned_updates,
    read_credentials,
    run_swarm,
    spread,
    task_key_of,
)
from fedlearn.lab.swarm.updates import Canaries, Updates


def main(arguments: Sequence[str]) -> int:
    """Run a swarm and print what it did."""
    parsed, overrides = _parser().parse_known_args(arguments)
    unknown = [one for one in overrides if one.startswith("-")]
    if unknown:
        raise OutOfRange(f"{unknown[0]}: no option of `fedlearn swarm`; --help lists them.")
    bundle = fleet_bundle(FleetConfig(parsed.bundle, parsed.root_key, parsed.devices, 1, 1.0, 1.0, 1.0))
    settings = SwarmSettings(
        gateways=parsed.gateway,
        ca=_read(parsed.ca, "--ca"),
        bundle=bundle,
        task_key=task_key_of(bundle),
        credentials=read_credentials(Path(parsed.credentials), parsed.devices),
        habits=Habits(parsed.drop_out, parsed.straggler, parsed.twice, parsed.liar, parsed.seed),
        pace=Pace(parsed.longest_wait, parsed.rate),
        seconds=parsed.seconds,
    )
    updates: Updates
    if parsed.canaries:
        updates = Canaries(sum(_size(spec.shape) for spec in bundle.plan.shared))
    else:
        updates = learned_updates(compose(overrides), bundle, parsed.devices)
    result = run_swarm(settings, updates)
    if parsed.json:
        sys.stdout.write(json.dumps(_plain(result), sort_keys=True) + "\n")
    else:
        _show(result, Console())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedlearn swarm",
        description="Drives the protocol side of many phones from one process, with real keys, until it is ended.",
        epilog="Config overrides at the end say which data the phones hold: experiment=city_bounded data.devices=1000",
    )
    parser.add_argument("--devices", type=int, required=True, metavar="N", help="phones")
    parser.add_argument("--gateway", action="append", required=True, metavar="HOST:PORT", help="repeat for several")
    parser.add_argument(
        "--ca", required=True, metavar="FILE", help="PEM of the authority of the gateways' certificates"
    )
    parser.add_argument("--bundle", required=True, metavar="FILE", help="the signed task bundle")
    parser.add_argument("--root-key", required=True, metavar="FILE", help="public key that its roster is signed by")
    parser.add_argument("--credentials", required=True, metavar="DIR", help="of `fedlearn credentials issue`")
    for name, words in (
        ("drop-out", "takes a task and is not heard of again"),
        ("straggler", "sends when its task has expired"),
        ("twice", "sends the same bytes twice"),
        ("liar", "sends something that must be refused"),
    ):
        parser.add_argument(f"--{name}", type=float, default=0.0, metavar="SHARE", help=words)
    parser.add_argument("--seed", type=int, default=0, help="of who does what (default: 0)")
    parser.add_argument("--seconds", type=float, metavar="S", help="how long (default: until it is ended)")
    parser.add_argument("--rate", type=float, metavar="R", help="check-ins a second of all phones, at most")
    parser.add_argument("--longest-wait", type=float, default=2.0, metavar="S", help="without a task (default: 2)")
    parser.add_argument("--canaries", action="store_true", help="send one-hot vectors instead of training")
    parser.add_argument("--json", action="store_true", help="for a machine to read")
    return parser


def _read(path: str, option: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise OutOfRange(f"{option} {path}: cannot be read ({error.strerror}).") from error


def _size(shape: Sequence[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _plain(result: SwarmResult) -> dict[str, Any]:
    figures = result.figures
    return {
        "seconds": result.seconds,
        "habits": dict(figures.habits),
        "outcomes": {f"{habit}: {outcome}": count for (habit, outcome), count in sorted(figures.outcomes.items())},
        "denials": dict(figures.denials),
        "accepted": {f"{step}.{attempt}": sorted(who) for (step, attempt), who in sorted(figures.accepted.items())},
        "calls": {
            method: {"count": len(times), "p50_p99_most_s": spread(times)}
            for method, times in result.calls.seconds.items()
        },
        "failed": {f"{method}: {status}": count for (method, status), count in sorted(result.calls.failed.items())},
    }


def _show(result: SwarmResult, console: Console) -> None:
    calls = Table("call", "answered", "median ms", "p99 ms", "most ms", box=None)
    for method, times in sorted(result.calls.seconds.items()):
        found = spread(times) or (0.0, 0.0, 0.0)
        calls.add_row(method, str(len(times)), *(f"{1000 * value:.0f}" for value in found))
    console.print(calls)
    sent = Table("a phone that is", "tasks", "was answered", box=None)
    for habit, count in sorted(result.figures.habits.items()):
        answers = [f"{said} {n}" for (who, said), n in sorted(result.figures.outcomes.items()) if who == habit]
        sent.add_row(habit, str(count), ", ".join(answers) or "-")
    console.print(sent)
    for title, counts in (("no task", result.figures.denials), ("no answer", result.calls.failed)):
        if counts:
            said = ", ".join(
                f"{' '.join(why) if isinstance(why, tuple) else why} {n}" for why, n in sorted(counts.items())
            )
            console.print(f"{title}: {said}", highlight=False, markup=False)
    console.print(f"{result.seconds:.1f} s", highlight=False)

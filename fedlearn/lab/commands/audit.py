"""``fedlearn audit``: does the private path leak more than is claimed? Canaries and probes, in simulation.

Exit status: 0 neither alarm nor warning, 1 a warning, 3 an alarm; 2 bad input, as everywhere.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fedlearn.errors import OutOfRange
from fedlearn.lab.audit.picture import draw_audit, require_writable
from fedlearn.lab.audit.report import print_audit
from fedlearn.lab.audit.result import AuditResult, Verdict, audit
from fedlearn.lab.audit.simulation import AuditConfig
from fedlearn.privacy.calibrate import calibrate

EXIT_STATUS = {Verdict.FINE: 0, Verdict.WARNING: 1, Verdict.ALARM: 3}
DEFAULT_NOISE_MULTIPLIER = 1.0


def main(arguments: Sequence[str]) -> int:
    """Run one audit and print it."""
    parsed = _parser().parse_args(arguments)
    if parsed.picture is not None:
        require_writable(parsed.picture)
    config = AuditConfig(
        noise_multiplier=_noise_multiplier(parsed),
        delta=parsed.delta,
        canaries=parsed.canaries,
        rounds=parsed.rounds,
        parameters=parsed.parameters,
        seed=parsed.seed,
    )
    result = _audit(config, quiet=parsed.json)
    console = Console()
    if parsed.json:
        console.print_json(json.dumps(result.to_json(), allow_nan=False))
    else:
        print_audit(result, console)
    if parsed.picture is not None:
        draw_audit(result, parsed.picture)
    return EXIT_STATUS[result.verdict]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedlearn audit",
        description="Audit the private path in simulation: does it leak more than is claimed?",
        epilog="Exit status: 0 neither alarm nor warning, 1 a warning, 3 an alarm, 2 bad input.",
    )
    noise = parser.add_mutually_exclusive_group()
    noise.add_argument("--noise-multiplier", type=float, metavar="Z", help="of the audited releases (default 1)")
    noise.add_argument("--epsilon", type=float, metavar="E", help="of one participation; the noise is calibrated to it")
    parser.add_argument("--delta", type=float, default=1e-5, metavar="D", help="default %(default)s")
    parser.add_argument("--canaries", type=int, default=1000, metavar="N", help="half take part (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=50, metavar="N", help="default %(default)s")
    parser.add_argument("--parameters", type=int, default=10_000, metavar="N", help="default %(default)s")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of data and canaries; noise has none")
    parser.add_argument("--json", action="store_true", help="for a machine to read")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="write a picture, .png, .svg or .pdf")
    return parser


def _noise_multiplier(parsed: argparse.Namespace) -> float:
    if parsed.epsilon is not None:
        if not (math.isfinite(parsed.epsilon) and parsed.epsilon > 0):
            raise OutOfRange(f"--epsilon={parsed.epsilon}: must be finite and > 0, e.g. 1.0.")
        if not 0 < parsed.delta < 1:
            raise OutOfRange(f"--delta={parsed.delta}: must be in (0, 1), e.g. 1e-5.")
        return calibrate(parsed.epsilon, parsed.delta, sampling_probability=1.0, steps=1)
    return DEFAULT_NOISE_MULTIPLIER if parsed.noise_multiplier is None else float(parsed.noise_multiplier)


def _audit(config: AuditConfig, *, quiet: bool) -> AuditResult:
    progress = Progress(
        TextColumn("audit"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("rounds"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=quiet,
    )
    with progress:
        task = progress.add_task("rounds", total=config.rounds)
        return audit(config, on_round=lambda done: progress.update(task, completed=done))

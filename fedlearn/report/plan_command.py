"""``fedlearn plan``: what a guarantee costs, before anything is trained. Needs the extra ``review`` only."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fedlearn.errors import OutOfRange
from fedlearn.privacy.plan import PrivacySettings, make_plan
from fedlearn.privacy.settings import require_whole
from fedlearn.privacy.shipped import MECHANISMS
from fedlearn.report.plan_result import plan_result, result_json
from fedlearn.report.plan_tables import print_plan

PARAMETERS = 1_000_000


def main(arguments: Sequence[str]) -> int:
    """Make a plan and print what it costs."""
    parsed = _parser().parse_args(arguments)
    population = parsed.population
    require_whole("population", population)
    checkins = population if parsed.checkins_per_day is None else parsed.checkins_per_day
    if not (math.isfinite(checkins) and checkins > 0):
        raise OutOfRange(f"--checkins-per-day={checkins}: must be finite and > 0, e.g. {population}.")
    require_whole("--parameters", parsed.parameters)
    if parsed.picture is not None:
        from fedlearn.report.plan_picture import check_picture  # noqa: PLC0415 - loads matplotlib

        check_picture(parsed.picture)
    with Console(stderr=True).status("calibrating the noise ...") as status:
        plan = make_plan(_settings(parsed), population=population, rounds=parsed.rounds, cohort=parsed.cohort)
        result = plan_result(
            plan,
            parameters=parsed.parameters,
            checkins_per_day=checkins,
            say=lambda what: status.update(f"computing: {what} ..."),
        )
    console = Console()
    if parsed.json:
        console.print_json(result_json(result))
    else:
        print_plan(result, console)
    if parsed.picture is not None:
        from fedlearn.report.plan_picture import write_picture  # noqa: PLC0415 - loads matplotlib

        write_picture(parsed.picture, result)
        Console(stderr=True).print(f"Picture: {parsed.picture}", markup=False, soft_wrap=True)
    return 0


def _settings(parsed: argparse.Namespace) -> PrivacySettings:
    return PrivacySettings(
        delta=parsed.delta,
        l2_clip_norm=parsed.clip,
        epsilon=parsed.epsilon,
        noise_multiplier=parsed.noise_multiplier,
        mechanism=parsed.mechanism,
        min_separation=parsed.min_separation,
        max_participations=parsed.max_participations,
        participations_enforced=parsed.participations_enforced,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedlearn plan",
        description="What a guarantee costs: noise, epsilon, other choices, days and traffic. Trains nothing.",
        epilog="example: fedlearn plan --population 1000000 --cohort 1000 --rounds 2000 --delta 1e-8 --epsilon 3",
    )
    parser.add_argument("--population", type=_whole, required=True, help="devices, public")
    parser.add_argument("--cohort", type=float, required=True, help="expected devices per round")
    parser.add_argument("--rounds", type=_whole, required=True, help="releases planned")
    parser.add_argument("--delta", type=float, required=True, help="below 1 / population")
    parser.add_argument("--epsilon", type=float, help="target; the noise is calibrated to it")
    parser.add_argument("--noise-multiplier", type=float, help="std of the noise over the clip norm, instead")
    parser.add_argument("--mechanism", default="gaussian", help=f"{', '.join(MECHANISMS)} (default: %(default)s)")
    parser.add_argument("--min-separation", type=_whole, metavar="B", help="steps between participations, y - x")
    parser.add_argument("--max-participations", type=_whole, metavar="K", help="of one device; default: all B allows")
    parser.add_argument(
        "--participations-enforced", action="store_true", help="K is counted per credential, on phone and gateway"
    )
    parser.add_argument("--clip", type=float, default=1.0, help="L2 bound of one update (default: %(default)s)")
    parser.add_argument(
        "--parameters", type=_whole, default=PARAMETERS, help="of the model, for traffic and state (default: 1000000)"
    )
    parser.add_argument("--checkins-per-day", type=float, help="of all devices together (default: one each)")
    parser.add_argument("--json", action="store_true", help="for a machine to read")
    parser.add_argument("--picture", type=Path, help="also draw the curve and the mechanisms: .png, .svg or .pdf")
    return parser


def _whole(text: str) -> int:
    """Read an integer, also one written 1e6."""
    try:
        return int(text)
    except ValueError:
        value = float(text)
    if not value.is_integer():
        raise argparse.ArgumentTypeError(f"{text} is no whole number")
    return int(value)

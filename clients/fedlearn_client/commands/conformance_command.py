"""``fedlearn-device conformance``: does an implementation of the contract behave and compute as it must?"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from fedlearn.clock import system_clock
from fedlearn.errors import ConfigError
from fedlearn_client.conformance.callers import Callers, read_callers
from fedlearn_client.conformance.cases import Outcome, Verdict
from fedlearn_client.conformance.kit import kit
from fedlearn_client.conformance.prepare import prepare


def main(arguments: Sequence[str]) -> int:
    """Run the kit: 0 if something passed and nothing failed, 1 otherwise."""
    given = _parser().parse_args(arguments)
    if given.prepare is not None:
        return _prepare(given.prepare)
    if given.target is None:
        raise ConfigError("--target: name the address of the implementation, or --prepare a directory first.")
    callers = Callers(given.target) if given.callers is None else read_callers(given.callers, given.target)
    outcomes = []
    try:
        for outcome in kit(callers, given.numerics or given.target, system_clock(), given.only):
            outcomes.append(outcome)
            if not given.json:
                _write(_lines(outcome))
    finally:
        callers.close()
    if not outcomes:
        raise ConfigError(f"--only {given.only}: no case begins so; numbers, behaviour, or a part such as consent.")
    counts = Counter(outcome.verdict for outcome in outcomes)
    if given.json:
        _write(iter([json.dumps(_report(outcomes, counts), indent=1, ensure_ascii=False)]))
    else:
        _write(iter(["", ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict)]))
    complete = not (given.complete and counts[Verdict.NOT_SERVED])
    return 0 if counts[Verdict.PASSED] and not counts[Verdict.FAILED] and complete else 1


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="fedlearn-device conformance",
        description="Does an implementation of the device contract behave and compute as it must? Run it against a "
        "target that was never used: it grants, pushes, withdraws and installs.",
    )
    made.add_argument("--target", metavar="ADDRESS", help="gRPC address, e.g. unix:/run/fedlearn/device.sock")
    made.add_argument("--numerics", metavar="ADDRESS", help="of fedlearn.conformance.v1.Numerics (default: the target)")
    made.add_argument("--callers", type=Path, metavar="FILE", help="how to connect as each caller; see --prepare")
    made.add_argument("--only", metavar="PART", help="numbers, behaviour, or the beginning of case ids, e.g. consent")
    made.add_argument("--complete", action="store_true", help="a case that is not served counts as failed")
    made.add_argument("--json", action="store_true", help="for machines")
    made.add_argument("--prepare", type=Path, metavar="DIR", help="write keys, settings and callers for a target")
    return made


def _prepare(directory: Path) -> int:
    papers = prepare(directory, system_clock())
    _write(
        iter(
            [
                f"root key          {papers.root}",
                f"start a target    fedlearn-device serve --settings {directory}/device.toml",
                f"then              fedlearn-device conformance --target unix:{directory.absolute()}/s "
                f"--callers {directory}/callers.toml",
                "The keys prove nothing: never put this root into a phone that somebody uses.",
            ]
        )
    )
    return 0


def _lines(outcome: Outcome) -> Iterator[str]:
    yield f"{outcome.verdict:<11} {outcome.id:<34} {outcome.sentence}"
    if outcome.verdict is Verdict.FAILED:
        yield f"{'':<12}expected: {outcome.expected}"
        yield f"{'':<12}came:     {outcome.came}"
    elif outcome.verdict is Verdict.NOT_SERVED:
        yield f"{'':<12}because {outcome.came}"


def _report(outcomes: Sequence[Outcome], counts: Counter[Verdict]) -> dict[str, object]:
    return {
        "passed": counts[Verdict.PASSED],
        "failed": counts[Verdict.FAILED],
        "not_served": counts[Verdict.NOT_SERVED],
        "cases": [asdict(outcome) for outcome in outcomes],
    }


def _write(lines: Iterator[str]) -> None:
    for line in lines:
        print(line, flush=True)  # noqa: T201 - the command's own output

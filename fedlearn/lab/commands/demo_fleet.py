"""``fedlearn demo-fleet``: a whole fleet on this machine, from enrolment to the verified ledger."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fedlearn.lab.commands.train import main as train
from fedlearn.lab.fleet_demo.daemons import running_daemons
from fedlearn.lab.fleet_demo.paper import FleetSizes, make_papers
from fedlearn.lab.fleet_demo.world import running_fleet, running_swarm
from fedlearn.ledger.command import main as ledger


def main(arguments: Sequence[str]) -> int:
    """Train one model over phones, gateways and SuperLink; 0 if the ledger is verified."""
    parser = argparse.ArgumentParser(prog="fedlearn demo-fleet", description=main.__doc__)
    default = Path("runs") / time.strftime("demo-fleet-%Y%m%d-%H%M%S")
    parser.add_argument("--dir", type=Path, default=default, help="papers, deployment and run (default: %(default)s)")
    parser.add_argument("--devices", type=int, default=FleetSizes().devices, help="phones (default: %(default)s)")
    parser.add_argument("--daemons", type=int, default=FleetSizes().daemons, help="likewise (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=FleetSizes().steps, help="of the training (default: %(default)s)")
    given = parser.parse_args(arguments)
    sizes = FleetSizes(devices=given.devices, daemons=given.daemons, steps=given.steps)
    console = Console()
    directory = given.dir.absolute()
    console.rule("papers: policy, bundle, keys, credentials")
    papers = make_papers(directory, sizes)

    def say(words: str) -> None:
        console.print(words, markup=False, highlight=False)

    console.rule("SuperLink, gateways, phones")
    run = directory / "run"
    habits = ["--longest-wait", "5", "--drop-out", "0.1", "--straggler", "0.02", "--twice", "0.05", "--liar", "0.05"]
    with (
        running_fleet(papers, sizes, say) as world,
        running_daemons(world, sizes) as daemons,
        running_swarm(world, sizes, habits) as (_, log),
    ):
        console.print(
            f"a swarm of {sizes.devices} phones and {len(daemons)} daemons at {', '.join(world.gateways)}",
            highlight=False,
        )
        train(world.train_overrides(sizes, run))
    console.rule("what the swarm did")
    console.print_json(log.read_text(encoding="utf-8").splitlines()[-1])
    console.rule("what the daemons did, by their own logs")
    for number, daemon in enumerate(daemons, 1):
        said = ", ".join(f"{outcome} {count}" for outcome, count in sorted(daemon.outcomes.items()))
        console.print(f"daemon {number}: {said}", markup=False, highlight=False)
    console.rule("ledger")
    verified = ledger(["verify", str(run)])
    console.print(f"Open {run / 'report.html'}", highlight=False)
    return verified

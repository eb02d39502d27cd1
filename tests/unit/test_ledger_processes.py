"""Two real processes on one ledger: every entry of both is there, in one order, and the cap holds for them together."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

from fedlearn.ledger import LEDGER_FILE, Committed, GateKind, Ledger, Planned, RunOpened, gates, new_scope
from fedlearn.ledger.signing import operator_key
from fedlearn.ledger.where import Where
from fedlearn.privacy.events import MetricRelease, NeighboringRelation

STEPS = 5
DIGEST = hashlib.sha256(b"x").hexdigest()
EVENT = MetricRelease(70.0)

# argv: ledger, name of the run prefix, steps of a run; opens runs until none fits and does all their steps
WORKER = """
import sys
from fedlearn.errors import BudgetExceeded
from fedlearn.ledger import Ledger, Planned
from fedlearn.privacy.events import MetricRelease

digest = "ab" * 32
where, prefix, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
with Ledger.open(where) as ledger:
    print("ready", flush=True)
    sys.stdin.readline()
    number = 0
    while True:
        try:
            account = ledger.open_run(f"{prefix}-{number}", "p", "e", [Planned(MetricRelease(70.0), steps)], digest)
        except BudgetExceeded:
            break
        for step in range(steps):
            account.commit(account.charge(account.reserve(step, 0), digest, digest), digest)
        number += 1
"""


def race(where: Where, processes: int = 2) -> None:
    """Let processes empty a ledger at the same time."""
    root = Path(__file__).resolve().parents[2]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(where), f"worker-{number}", str(STEPS)],
            env=os.environ | {"PYTHONPATH": str(root)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    for worker in workers:
        _, said = worker.communicate(timeout=120)
        assert worker.returncode == 0, said


def emptied(where: Where) -> None:
    """Check a ledger that processes emptied together."""
    with Ledger.open(where) as ledger:
        entries = ledger.entries()
        runs = [entry.run for entry in entries if isinstance(entry, RunOpened)]
        capacity_runs = len(runs)
        assert len(set(runs)) == capacity_runs
        assert sum(isinstance(entry, Committed) for entry in entries) == capacity_runs * STEPS
        assert len(entries) == 1 + capacity_runs * (1 + 3 * STEPS)
        # all that fits was used: one run more would not, whoever asks
        scope = ledger.scope
        held = ledger.book.held_cost()
        assert not gates.fits(scope, scope.epsilon, held, (Planned(EVENT, STEPS),))
        assert gates.fits(scope, scope.epsilon, 0.0, (Planned(EVENT, STEPS * capacity_runs),))
        switches = sum(one != other for one, other in pairwise(owners(entries)))
        assert switches > 2, "the processes did not overlap"


def owners(entries: tuple[object, ...]) -> list[str]:
    """Return the worker of each entry that names a run, in order."""
    return [entry.run.rpartition("-")[0] for entry in entries if hasattr(entry, "run")]


def test_two_processes_empty_one_ledger(tmp_path: Path) -> None:
    path = tmp_path / LEDGER_FILE
    scope = new_scope(
        "phones",
        1.0,
        1e-6,
        operator_key().public,
        neighboring_relation=NeighboringRelation.ZERO_OUT,
        gate=GateKind.ZCDP,
    )
    Ledger.create(path, scope).close()
    race(path)
    emptied(path)

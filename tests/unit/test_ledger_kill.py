"""kill -9 at random moments: the ledger never shows less than was released, and always opens again."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

from fedlearn.ledger import LEDGER_FILE, Budget, Charged, Committed, Ledger
from fedlearn.privacy.accountants import epsilon
from fedlearn.privacy.events import PoissonGaussian

KILLS = 12
EVENT = PoissonGaussian(2.0, 0.1)
BUDGET = Budget("run-1", epsilon([(EVENT, 10_000)], 1e-5), 1e-5, EVENT, 10_000)

# One parent that has paid for the imports forks a worker per kill. The worker logs each release with an fsync, as a
# published model would be; argv: ledger, log, budget's epsilon, kills, seed.
WORKER = """
import hashlib, os, pathlib, random, signal, sys, time
from fedlearn.ledger import Budget, Ledger
from fedlearn.privacy.events import PoissonGaussian

path, log = pathlib.Path(sys.argv[1]), sys.argv[2]
event = PoissonGaussian(2.0, 0.1)
budget = Budget("run-1", float(sys.argv[3]), 1e-5, event, 10_000)

def work(started):
    ledger = Ledger.open(path, budget, must_exist=True)
    out = os.open(log, os.O_WRONLY | os.O_APPEND)
    step = max((ledger.events()[c.charge].step for c in ledger.committed()), default=-1) + 1
    while True:
        reservation = ledger.reserve(step, ledger.next_attempt(step))
        charge = ledger.charge(reservation, event, hashlib.sha256(b"%d" % step).hexdigest())
        os.write(out, b"%d\\n" % charge.id)
        os.fsync(out)
        os.write(started, b"r")
        ledger.commit(charge, hashlib.sha256(b"model").hexdigest())
        step += 1

Ledger.read(path)  # imports what is imported late, so that kills hit the ledger and not an import
chance = random.Random(int(sys.argv[5]))
for kill in range(int(sys.argv[4])):
    heard, started = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work(started)
        finally:
            os._exit(3)
    os.close(started)
    if kill % 4:  # most kills hit a worker that releases, some one that opens the ledger
        os.read(heard, 1)
    time.sleep(chance.uniform(0.0, 0.06))
    os.kill(child, signal.SIGKILL)
    os.close(heard)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        sys.exit("the worker ended by itself")
"""


def test_killed_a_dozen_times(tmp_path: Path) -> None:
    path, log = tmp_path / LEDGER_FILE, tmp_path / "releases"
    log.touch()
    Ledger.open(path, BUDGET).close()
    root = Path(__file__).resolve().parents[2]
    seed = random.Random(0).randrange(1 << 30)
    done = subprocess.run(
        [sys.executable, "-c", WORKER, str(path), str(log), repr(BUDGET.epsilon), str(KILLS), str(seed)],
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    released = [int(line) for line in log.read_text().splitlines()]
    with Ledger.open(path, BUDGET, must_exist=True) as ledger:
        charges = {entry.sequence for entry in ledger.events() if isinstance(entry, Charged)}
        commits = Counter(entry.charge for entry in ledger.events() if isinstance(entry, Committed))
        assert len(released) >= KILLS * 3 // 4
        assert len(released) == len(set(released))
        assert set(released) <= charges
        assert set(commits) <= set(released)
        assert max(commits.values()) == 1
        assert len(released) - len(commits) <= KILLS
        held = ledger.open_reservation()
        step = held.step if held is not None else 10**6
        reservation = ledger.reserve(step, ledger.next_attempt(step))
        ledger.commit(ledger.charge(reservation, EVENT, hashlib.sha256(b"x").hexdigest()), "0" * 64)

"""kill -9 at random moments: the ledger never shows less than was released, and always opens again."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

from fedlearn.ledger import LEDGER_FILE, Charged, Committed, GateKind, Ledger, Planned, new_scope
from fedlearn.ledger.signing import operator_key
from fedlearn.privacy.events import PoissonGaussian

KILLS = 12
EVENT = PoissonGaussian(20.0, 0.01)
PLANNED = 10_000
DIGEST = hashlib.sha256(b"x").hexdigest()

# One parent that has paid for the imports forks a worker per kill. The worker logs each release with an fsync, as a
# published model would be; argv: ledger, log, kills, seed.
WORKER = """
import hashlib, os, pathlib, random, signal, sys, time
from fedlearn.ledger import Ledger

path, log = pathlib.Path(sys.argv[1]), sys.argv[2]
digest = hashlib.sha256(b"x").hexdigest()

def work(started):
    ledger = Ledger.open(path)
    account = ledger.run("run-1")
    out = os.open(log, os.O_WRONLY | os.O_APPEND)
    step = len(account.committed())
    while True:
        reservation = account.reserve(step, account.next_attempt(step))
        charge = account.charge(reservation, digest, digest)
        os.write(out, b"%d\\n" % charge.id)
        os.fsync(out)
        os.write(started, b"r")
        account.commit(charge, digest)
        step += 1

Ledger.read(path)  # imports what is imported late, so that kills hit the ledger and not an import
chance = random.Random(int(sys.argv[4]))
for kill in range(int(sys.argv[3])):
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
    with Ledger.create(path, new_scope("phones", 3.0, 1e-5, operator_key().public, gate=GateKind.PLAN)) as ledger:
        ledger.open_run("run-1", "training", "once", (Planned(EVENT, PLANNED),), DIGEST)
    root = Path(__file__).resolve().parents[2]
    seed = random.Random(0).randrange(1 << 30)
    done = subprocess.run(
        [sys.executable, "-c", WORKER, str(path), str(log), str(KILLS), str(seed)],
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    released = [int(line) for line in log.read_text().splitlines()]
    with Ledger.open(path) as ledger:
        assert not ledger.restored
        charges = {entry.sequence for entry in ledger.entries() if isinstance(entry, Charged)}
        commits = Counter(entry.charge for entry in ledger.entries() if isinstance(entry, Committed))
        assert len(released) >= KILLS * 3 // 4
        assert len(released) == len(set(released))
        assert set(released) <= charges
        assert set(commits) <= set(released)
        assert max(commits.values()) == 1
        assert len(released) - len(commits) <= KILLS
        account = ledger.run("run-1")
        held = account.open_reservation()
        step = held.step if held is not None else 10**6
        reservation = account.reserve(step, account.next_attempt(step))
        account.commit(account.charge(reservation, DIGEST, DIGEST), DIGEST)
    assert [item.name for item in tmp_path.iterdir() if item.name.startswith(LEDGER_FILE)] == [LEDGER_FILE]

"""Releases steps in child processes and kills them at random moments; run by test_privacy_noise_kill.py.

Arguments: state directory, run directory, factorization, steps, dimension, kills, seed. Prints the number of kills.

A child publishes as a run does: first the mean, then the checkpoint that makes it public by naming the next step.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import noise_town as town

from fedlearn.files import write_durably

CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class Run:
    """A run that goes on where its checkpoint says."""

    state: Path
    directory: Path
    name: str
    steps: int
    dimension: int

    @property
    def published(self) -> int:
        """The next step, by the checkpoint."""
        path = self.directory / CHECKPOINT
        return int(path.read_bytes()) if path.exists() else 0

    def work(self, started: int) -> None:
        """Release from the published step to the last."""
        first = self.published
        spent = town.event(town.EVERY[self.name], self.steps)
        mechanism = town.opened(spent, self.state, next_step=first, dimension=self.dimension)
        for step in range(first, self.steps):
            os.write(started, b"r")
            values = town.released(mechanism, self.dimension)
            write_durably(self.directory / f"mean-{step}", values.astype("<f8").tobytes())
            write_durably(self.directory / CHECKPOINT, str(step + 1).encode())


def kill(run: Run, kills: int, seed: int) -> int:
    """Kill children until ``kills`` have died or the run has ended, then let the last one end it."""
    chance, killed = random.Random(seed), 0
    while run.published < run.steps:
        heard, started = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                run.work(started)
                status = 0
            finally:
                if status:
                    traceback.print_exc()
                os._exit(status)
        os.close(started)
        if killed < kills:
            if killed % 4:  # most kills hit a child that releases, some one that opens the state
                os.read(heard, 1)
            time.sleep(chance.uniform(0.0, 0.02))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(heard)
        killed += os.WIFSIGNALED(status)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status):
            raise SystemExit(1)
    return killed


if __name__ == "__main__":
    chosen = Run(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    sys.stdout.write(str(kill(chosen, int(sys.argv[6]), int(sys.argv[7]))))

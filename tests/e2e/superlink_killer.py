"""Kills a part of a running deployment, starts it again as an operator would, and looks at what a run became of it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import psutil

from fedlearn.ledger import LEDGER_FILE, verifier
from fedlearn_server.deployment import Deployment, opened, processes

COMMAND = "import sys; from fedlearn.cli import main; sys.exit(main())"
SMALL = (
    "experiment=city_quick",
    "data.devices=60",
    "data.restaurants=500",
    "evaluation.controls=false",
    "evaluation.bootstrap=100",
    "evaluation.every=1000",
)
SHARDS = 6
SUPERLINK = (f"runtime.shards={SHARDS}", "runtime.minimum=0.1")
PATIENCE_S = 180.0
KINDS = ("serverapp", "superlink", "node", "cli")
DROP_OUT = 0.15

DROP_OUTS = f'''\
"""A simulated population of which a part fails now and then, always in the same steps."""

import random

from fedlearn.errors import DataError
from fedlearn.lab.shards import open_simulated


def open_with_drop_outs(description, partition, partitions):
    cohort = open_simulated(description, partition, partitions)

    def node(task):
        if random.Random(f"{{task.seed}} {{task.step}} {{partition}}").random() < {DROP_OUT}:
            raise DataError("this part drops out of this step")
        return cohort(task)

    return node
'''


def install_drop_outs(folder: Path) -> None:
    """Make a folder that, ahead on PYTHONPATH, puts the host with drop-outs in place of the simulated one."""
    found = distribution("fedlearn")
    shadow = folder / f"fedlearn-{found.version}.dist-info"
    shadow.mkdir(parents=True)
    (folder / "drop_outs.py").write_text(DROP_OUTS, encoding="utf-8")
    (shadow / "METADATA").write_text(found.read_text("METADATA") or "", encoding="utf-8")
    points = found.read_text("entry_points.txt") or ""
    changed = points.replace("fedlearn.lab.shards:open_simulated", "drop_outs:open_with_drop_outs")
    assert changed != points
    (shadow / "entry_points.txt").write_text(changed, encoding="utf-8")


@dataclass
class Place:
    """A machine of its own, as far as a deployment can tell: state, drop-outs, and the commands that were started."""

    directory: Path
    nodes: int = 3
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        install_drop_outs(self.directory / "drop_outs")
        path = os.pathsep.join(filter(None, (str(self.directory / "drop_outs"), os.environ.get("PYTHONPATH"))))
        self.environment = {
            **os.environ,
            "PYTHONPATH": path,
            "FEDLEARN_STATE": str(self.directory / "state"),
            "COLUMNS": "100",
        }

    @property
    def deployment(self) -> Deployment:
        """What `fedlearn up` started."""
        return opened(self.directory / "state" / "superlink")

    def command(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start ``fedlearn``; what it says goes to ``commands.log``."""
        with (self.directory / "commands.log").open("ab") as log:
            log.write(f"$ fedlearn {' '.join(arguments)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                [sys.executable, "-c", COMMAND, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                cwd=self.directory,
            )
        self.started.append(process)
        return process

    def done(self, *arguments: str) -> None:
        """Run ``fedlearn`` to its end, which must be a good one."""
        assert self.command(*arguments).wait(PATIENCE_S) == 0, self.said()

    def up(self) -> None:
        """Start whatever is not running."""
        self.done("up", "--nodes", str(self.nodes))

    def said(self) -> str:
        """The end of what commands said."""
        return (self.directory / "commands.log").read_text(encoding="utf-8", errors="replace")[-6000:]

    def close(self) -> None:
        """End everything that was started here; only what carries this deployment's mark."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.wait()
        if (self.directory / "state" / "superlink" / "deployment.json").exists():
            processes.stop(processes.marked(self.deployment.identity), 0.0)


@dataclass(frozen=True)
class Killed:
    """One kill.

    Args:
        what: the kind of process.
        when: in words.
        restart_s: how long the restart command took; 0 where there is none, or where it lives as long as the run.
        resumed_s: from the end of the restart (from the kill of a ServerApp, the start of a `resume`) to the next step.
    """

    what: str
    when: str
    restart_s: float
    resumed_s: float


@dataclass
class KilledRun:
    """One run, killed again and again."""

    place: Place
    directory: Path
    rounds: int
    overrides: tuple[str, ...]
    chance: random.Random
    kills: list[Killed] = field(default_factory=list)
    _cli: subprocess.Popen[bytes] | None = None

    @property
    def private(self) -> bool:
        """Whether it has a ledger."""
        return "privacy=none" not in self.overrides

    def start(self) -> None:
        """Start ``fedlearn train``."""
        self._cli = self.place.command(
            *("train", *SMALL, "runtime=superlink", *SUPERLINK, f"run.dir={self.directory}"),
            *(f"cohort.rounds={self.rounds}", *self.overrides),
        )

    def steps(self) -> list[int]:
        """Return the recorded steps; a line that is being written does not count."""
        path = self.directory / "metrics.jsonl"
        if not path.exists():
            return []
        return [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").split("\n")[:-1]]

    def left(self) -> int:
        """How many steps are not recorded."""
        return self.rounds - len(self.steps())

    def kill(self, what: str) -> Killed:
        """Kill a process of that kind at a random moment, start it again, and wait for the next step."""
        when = self._wait_for_the_moment()
        self._end(what)
        before, killed = len(self.steps()), time.monotonic()
        self.check()
        if what in {"superlink", "node"}:
            self.place.up()
            self._resume_if_refused()
        elif what == "cli":
            self._resume()
        restarted = time.monotonic()
        if what in {"serverapp", "cli"}:
            restarted = killed
        else:
            before = len(self.steps())
        self._wait(lambda: len(self.steps()) > before or not self.left() or self._is_over(), f"a step after {what}")
        found = Killed(what, when, restarted - killed, time.monotonic() - restarted)
        self.check()
        self.kills.append(found)
        return found

    def finish(self) -> dict[str, Any]:
        """Wait for the end of the run and return its summary."""
        assert self._cli is not None
        assert self._cli.wait(PATIENCE_S + 10.0 * self.left()) == 0, self.place.said()
        self.check()
        summary: dict[str, Any] = json.loads((self.directory / "summary.json").read_text(encoding="utf-8"))
        if self.private:
            self.place.done("ledger", "verify", str(self.directory))
            assert summary["privacy"]["epsilon"] <= 3.0
            assert len(self.steps()) == summary["privacy"]["charges"]["committed"]
        else:
            assert not self.left()
        return summary

    def check(self) -> None:
        """Look from outside: no step is recorded twice or left out, and the ledger verifies."""
        steps = self.steps()
        assert steps == list(range(len(steps))), steps
        path = self.directory / LEDGER_FILE
        if self.private and path.exists():
            self._wait(lambda: _verifies(path), "a ledger that nobody is writing")

    def _wait_for_the_moment(self) -> str:
        if self.chance.random() < 0.25:
            moment = self.chance.uniform(0.0, 6.0)
            time.sleep(moment)
            self._wait(lambda: self._serverapp() is not None or self._is_over(), "a ServerApp")
            return f"{moment:.1f} s after the last"
        goal = min(self.rounds - 1, len(self.steps()) + 1 + self.chance.randrange(2))
        self._wait(lambda: len(self.steps()) >= goal or self._is_over(), f"step {goal}")
        moment = self.chance.uniform(0.0, 1.5)
        time.sleep(moment)
        self._wait(lambda: self._serverapp() is not None or self._is_over(), "a ServerApp")
        return f"{moment:.2f} s after step {goal}"

    def _end(self, what: str) -> None:
        """Send SIGKILL and wait until the process is gone."""
        if what == "cli":
            assert self._cli is not None
            self._cli.kill()
            self._cli.wait()
            return
        if what == "serverapp":
            found = self._serverapp()
            assert found is not None, "the run was over too early"
        elif what == "superlink":
            found = psutil.Process(self.place.deployment.superlink.pid)
        else:
            found = psutil.Process(self.chance.choice(self.place.deployment.nodes).process.pid)
        with suppress(psutil.NoSuchProcess):
            found.send_signal(signal.SIGKILL)
        self._wait(lambda: not found.is_running() or found.status() == psutil.STATUS_ZOMBIE, f"the end of {what}")

    def _serverapp(self) -> psutil.Process | None:
        """The ServerApp at work: who wrote his pid into the lock and still lives."""
        try:
            pid = int(json.loads((self.directory / ".serverapp").read_text(encoding="utf-8"))["pid"])
            found = psutil.Process(pid)
            ours = found.environ().get(processes.IDENTITY) == self.place.deployment.identity
            return found if ours and found.status() != psutil.STATUS_ZOMBIE else None
        except (OSError, ValueError, KeyError, psutil.Error):
            return None

    def _resume(self) -> None:
        if not (self.directory / "run.json").exists():  # killed before the run was claimed
            shutil.rmtree(self.directory, ignore_errors=True)
            self.start()
        else:
            self._cli = self.place.command("resume", str(self.directory))

    def _resume_if_refused(self) -> None:
        """Resume again where a `resume` had just begun when SuperLink was killed: it is refused before any work."""
        assert self._cli is not None
        if self._cli.poll() not in {None, 0} and "error FL705" in self.place.said()[-2000:]:
            self._resume()

    def _is_over(self) -> bool:
        """Whether the command ended; it may only end well."""
        if self._cli is None or self._cli.poll() is None:
            return False
        assert self._cli.returncode == 0, self.place.said()
        return True

    def _wait(self, holds: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < end, f"waited {PATIENCE_S:g} s for {what}:\n{self.place.said()}"
            time.sleep(0.02)


def _verifies(ledger: Path) -> bool:
    """Verify what a ledger holds; False if it was written to meanwhile."""
    size = ledger.stat().st_size
    try:
        verifier.check_record_at(ledger, verifier.Pins())
    except Exception:
        if ledger.stat().st_size != size:
            return False
        raise
    return True


def deck(count: int, seed: int) -> list[str]:
    """Return ``count`` kinds in random order, as many of each as possible."""
    made = [KINDS[number % len(KINDS)] for number in range(count)]
    random.Random(seed).shuffle(made)
    return made


def told(kills: Sequence[Killed]) -> str:
    """Return a table in words: worst and median seconds to the next step, by kind."""
    lines = []
    for what in KINDS:
        seconds = sorted(kill.resumed_s for kill in kills if kill.what == what)
        if seconds:
            lines.append(
                f"{what:10} {len(seconds):3} kills, next step after {seconds[len(seconds) // 2]:.1f} s in the median, "
                f"{seconds[-1]:.1f} s at worst"
            )
    return "\n".join(lines)

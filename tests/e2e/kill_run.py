"""Kill a training again and again, and look at what it left from outside."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fedlearn.ledger import LEDGER_FILE, Charged, Committed, Ledger, verifier
from fedlearn_server.checkpoint import CHECKPOINT_FILE, load_checkpoint, published_digest

ROUNDS = 20


class City(Protocol):
    """The part of ``SmallCity`` that is used here."""

    def start(self, directory: Path, *overrides: str) -> Any:
        """Start ``fedlearn train``."""

    def command(self, *arguments: str) -> Any:
        """Start ``fedlearn``."""

    def steps(self, directory: Path) -> list[int]:
        """Return the recorded steps."""

    def summary(self, directory: Path) -> dict[str, Any]:
        """Return ``summary.json``."""


@dataclass
class KilledRun:
    """One run of twenty rounds and everything it was ever seen to publish."""

    city: City
    directory: Path
    chance: random.Random
    overrides: tuple[str, ...] = ()
    seen: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Digest of a checkpoint that was on disk after a kill -> (step, charge id)."""
    log: list[str] = field(default_factory=list)

    @property
    def bounded(self) -> bool:
        """Whether its noise is a matrix mechanism's."""
        return any(override.startswith("privacy=") for override in self.overrides)

    def start(self) -> Any:
        """Start or resume, as an engineer would."""
        if (self.directory / "run.json").exists():
            return self.city.command("resume", str(self.directory))
        # killed before the run was claimed: nothing can have been spent
        if self.directory.exists():
            assert not (self.directory / LEDGER_FILE).exists()
            shutil.rmtree(self.directory)
        return self.city.start(self.directory, *self.overrides, f"cohort.rounds={ROUNDS}", "evaluation.every=1000")

    def kill(self, typical_s: float) -> bool:
        """Run a process and kill it: at any moment of its life, or some milliseconds after it did a round.

        Args:
            typical_s: how long a process takes to its first round.

        Returns:
            whether it was killed; False if it ended before.
        """
        process = self.start()
        if self.chance.random() < 0.25:
            moment = self.chance.uniform(0.0, 1.2 * typical_s)
            time.sleep(moment)
            where = f"{moment:.2f} s after its start"
        else:
            goal = len(self.city.steps(self.directory)) + self.chance.randrange(3)
            while process.poll() is None and len(self.city.steps(self.directory)) <= goal:
                time.sleep(0.001)
            moment = self.chance.uniform(0.0, 0.06)
            time.sleep(moment)
            where = f"{1000 * moment:.0f} ms after round {goal}"
        process.kill()
        output, _ = process.communicate(timeout=60)
        killed = process.returncode == -signal.SIGKILL
        assert killed or process.returncode == 0, output
        found = self.check()
        self.log.append(f"{'killed' if killed else 'ended'} {where}: {found}")
        return killed

    def finish(self) -> dict[str, Any]:
        """Resume to the end and return the summary."""
        process = self.start()
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        self.log.append(f"finished: {self.check()}")
        return self.city.summary(self.directory)

    def check(self) -> str:
        """Look from outside: at least as many charges as releases, and one charge for each."""
        path = self.directory / LEDGER_FILE
        if not path.exists():
            assert not (self.directory / CHECKPOINT_FILE).exists()
            return "no ledger, nothing published"
        entries = Ledger.read(path)
        charges = {entry.sequence: entry for entry in entries if isinstance(entry, Charged)}
        commits = [entry for entry in entries if isinstance(entry, Committed)]
        checkpoint = load_checkpoint(self.directory)
        if checkpoint is not None:
            digest = published_digest(self.directory)
            assert checkpoint.charge_id is not None
            self.seen.setdefault(digest, (checkpoint.step, checkpoint.charge_id))
            assert self.seen[digest] == (checkpoint.step, checkpoint.charge_id)
        published = 0 if checkpoint is None else checkpoint.step
        # a commit names what was published: together with what was seen on disk, all that is known of releases
        released = {digest: charge for digest, (_, charge) in self.seen.items()}
        for commit in commits:
            assert released.setdefault(commit.published_digest, commit.charge) == commit.charge
        assert len(set(released.values())) == len(released), "two releases under one charge"
        assert set(released.values()) <= set(charges), "a release without its charge"
        assert max(Counter(commit.charge for commit in commits).values(), default=0) <= 1
        assert len({charges[commit.charge].step for commit in commits}) == len(commits), "a step was released twice"
        for step, charge in self.seen.values():
            assert charges[charge].step == step - 1
        assert len(commits) in {published - 1, published}, "every published step is committed, but perhaps the last"
        assert len(released) == published
        # a correlated mechanism draws a lost step again from the state before it: charged twice, spent once
        assert published <= len(charges)
        assert len({charge.step for charge in charges.values()}) <= ROUNDS
        if not self.bounded:
            assert len(charges) <= ROUNDS
        verify(path)
        steps = self.city.steps(self.directory)
        # the record of the last published step may still wait beside the secrets; a resumed run brings it
        assert steps == list(range(len(steps))), "a record of a step that was not published, or out of order"
        assert len(steps) in {published - 1, published}
        return f"{len(charges)} charges, {published} published, {len(commits)} committed"


def verify(ledger: Path) -> None:
    """Run the verifier that shares no code with the ledger; it raises what it rejects."""
    verifier.check_record_at(ledger, verifier.Pins())


def check_summary(run: KilledRun, summary: dict[str, Any]) -> None:
    """Compare the finished run's summary with its ledger."""
    entries = Ledger.read(run.directory / LEDGER_FILE)
    charges = sum(isinstance(entry, Charged) for entry in entries)
    commits = sum(isinstance(entry, Committed) for entry in entries)
    found = summary["privacy"]["charges"]
    assert found == {"total": charges, "committed": commits, "wasted": charges - commits}
    assert run.bounded or charges <= ROUNDS
    assert not run.bounded or commits == ROUNDS, "a lost charge costs a matrix mechanism no step"
    verifier.verify(None, directories=[run.directory])
    assert summary["privacy"]["epsilon"] <= 3.0
    assert run.city.steps(run.directory) == list(range(commits))
    checkpoint = load_checkpoint(run.directory)
    assert checkpoint is not None
    assert checkpoint.step == commits
    records = (run.directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(records[-1])["epsilon"] <= summary["privacy"]["epsilon"]

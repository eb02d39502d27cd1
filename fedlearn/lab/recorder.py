"""Turns what a round did into a line of ``metrics.jsonl``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fedlearn.files import state_directory
from fedlearn.lab.evaluation import Metric
from fedlearn.lab.training import Training
from fedlearn.models.base import Parameters
from fedlearn.privacy.curve import spend_curve
from fedlearn.privacy.secret_files import destroy_private, make_private_directory, replace_private
from fedlearn.privacy.secrets import require_run_id
from fedlearn.report.rounds import Evaluation, RoundRecord, read_rounds, round_line, write_rounds
from fedlearn.report.summary import ROUNDS_FILE
from fedlearn.types import I64
from fedlearn_server.checkpoint import load_checkpoint
from fedlearn_server.round import RoundOutcome


@dataclass
class RoundRecorder:
    """Observes the rounds of one training.

    A record is on disk before its model is published, so that there is exactly one a published step. With privacy on,
    it lies beside the secret state until then and is shown to nobody: a step whose publication a crash prevented is
    drawn again, and correlated noise pays for one release of a step. A resumed run drops what was not published.

    Args:
        model: name of the model's row.
        training: the training.
        metrics: name -> metric, evaluated every ``evaluation.every`` rounds and after the last.
        rank: model -> ranks of the test rows.
        observe: called with each record.
    """

    model: str
    training: Training
    metrics: Mapping[str, Metric]
    rank: Callable[[Parameters], I64] = field(repr=False)
    observe: Callable[[RoundRecord], None] = field(repr=False)

    def __post_init__(self) -> None:
        path = self.training.directory / ROUNDS_FILE
        checkpoint = load_checkpoint(self.training.directory)
        published = 0 if checkpoint is None else checkpoint.step
        found = read_rounds(path) if path.exists() else ()
        if self._pending is not None and self._pending.exists():
            steps = {record.step for record in found}
            found += tuple(record for record in read_rounds(self._pending) if record.step not in steps)
        kept = [record for record in found if record.step < published]
        write_rounds(path, kept)
        if self._pending is not None:
            make_private_directory(self._pending.parent)
            destroy_private(self._pending)
        for record in kept:
            self.observe(record)

    def __call__(self, outcome: RoundOutcome) -> Callable[[], None] | None:
        """Keep the round's record durably; show it at once without privacy, else by what is returned."""
        # phones behind gateways are not simulated: what they did is shown by no figure without noise
        seen = None if self.training.config.runtime.fleet is not None else outcome.unprotected
        record = RoundRecord(
            model=self.model,
            seed=self.training.seed,
            fold=self.training.split.fold,
            round=outcome.step,
            step=outcome.step,
            loss=None if seen is None else seen.loss,
            cohort=None if seen is None else seen.cohort,
            clipped_fraction=None if seen is None else seen.clipped_fraction,
            signal_to_noise=None if seen is None else seen.signal_to_noise,
            clip=outcome.l2_clip_norm,
            update_norm=outcome.update_norm,
            epsilon=self._epsilon(outcome),
            rejected={} if seen is None else dict(seen.rejected),
            evaluation=self._evaluation(outcome),
            seconds=outcome.seconds,
        )
        if self._pending is None:
            self._show(record)
            return None
        replace_private(self._pending, round_line(record).encode())
        return lambda: self._show(record)

    def _show(self, record: RoundRecord) -> None:
        with (self.training.directory / ROUNDS_FILE).open("a", encoding="utf-8") as file:
            file.write(round_line(record))
            file.flush()
            os.fsync(file.fileno())
        if self._pending is not None:
            self._pending.unlink(missing_ok=True)
        self.observe(record)

    @cached_property
    def _pending(self) -> Path | None:
        """Where the record of a step lies until it is published; None without privacy."""
        if self.training.plan is None:
            return None
        return state_directory() / "records" / require_run_id(self.training.run_id)

    def _evaluation(self, outcome: RoundOutcome) -> tuple[Evaluation, ...]:
        config = self.training.config
        if not outcome.last and (outcome.step + 1) % config.evaluation.every:
            return ()
        ranks = self.rank(outcome.model)
        return tuple(Evaluation(name, float(metric(ranks).mean())) for name, metric in self.metrics.items())

    def _epsilon(self, outcome: RoundOutcome) -> float | None:
        plan = self.training.plan
        if plan is None:
            return None
        # a matrix mechanism spends by the step: a lost one is charged again and spent once
        return self._curve[outcome.step + 1 if plan.participation is not None else outcome.charges]

    @cached_property
    def _curve(self) -> tuple[float, ...]:
        plan = self.training.plan
        return () if plan is None else spend_curve(plan, range(plan.steps + 1))

"""The progress bar: one line a training, one tick a round."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from fedlearn.lab.study import Arm, Observe
from fedlearn.lab.training import Training
from fedlearn.report.rounds import RoundRecord


@contextmanager
def progress_bars(console: Console, trainings: int) -> Iterator[Callable[[Arm, Training], Observe]]:
    """Show the rounds of each training as they end; yields what gives a training its observer."""
    # where a line is too long, figures go first, the label next; how far it is and how long it takes are always there
    progress = Progress(
        TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", min_width=8, ratio=2)),
        BarColumn(bar_width=12),
        MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=5)),
        TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7)),
        TextColumn("{task.fields[figures]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=5)),
        console=console,
        expand=True,
        transient=trainings > 1,
    )
    with progress:
        overall = progress.add_task("trainings", total=trainings, figures="", visible=trainings > 1)

        def observer_of(arm: Arm, training: Training) -> Observe:
            rounds = training.config.cohort.rounds
            label = f"{arm.name}, fold {training.split.fold}, seed {training.seed}"
            task = progress.add_task(label, total=rounds, figures="")

            def observe(record: RoundRecord) -> None:
                progress.update(task, completed=record.round + 1, figures=figures(record))
                if record.round + 1 == rounds:
                    progress.update(task, visible=trainings == 1)
                    progress.advance(overall)

            return observe

        yield observer_of


def figures(record: RoundRecord) -> str:
    """Return the figures of a round as the bar shows them, what must not be cut off first."""
    parts = ["NO PRIVACY" if record.epsilon is None else f"epsilon {record.epsilon:.3f}"]
    if record.cohort is not None:
        parts += [
            f"loss {_number(record.loss)}",
            f"cohort {record.cohort}",
            f"clipped {_percent(record.clipped_fraction)}",
        ]
        if record.epsilon is not None:
            parts.append(f"signal/noise {_number(record.signal_to_noise)}")
    parts += [f"{metric.name} {metric.value:.3f}" for metric in record.evaluation[:2]]
    rejected = sum(record.rejected.values())
    return "  ".join([*parts, f"rejected {rejected}"] if rejected else parts)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"

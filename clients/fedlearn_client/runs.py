"""The phone's own log of local rounds: what was asked of it and what became of that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fedlearn_client.egress import State
from fedlearn_client.hooks import ClockAndRng, Method
from fedlearn_client.participation_rows import Kind

if TYPE_CHECKING:
    from fedlearn.device.task import DeviceTask
    from fedlearn_client.egress import Connection, Entry
    from fedlearn_client.store.database import Database

CHARGED: Final = "charged"
PREPARED: Final = "prepared"
SENT: Final = "sent"
ACKNOWLEDGED: Final = "acknowledged"
LATE: Final = "late"
REJECTED: Final = "rejected"
DESTROYED: Final = "destroyed"
NO_TASK: Final = "no_task"
"""Outcomes of a round, beside ``refused: <reason>`` (nothing was charged) and ``abandoned: <reason>``.

``charged`` stays where the phone died between the charge and the upload: nothing was sent.
"""

_OPEN: Final = (PREPARED, SENT)


@dataclass(frozen=True, slots=True)
class Run:
    """One local round.

    Args:
        time: when it was logged first, seconds since the Unix epoch.
        purpose: of the task.
        recipient: the operator.
        run_id: of the task.
        step: of the task.
        outcome: see above.
        examples: that the trainer was given; 0 where it never began, or failed and zeros were sent.
    """

    time: float
    purpose: str
    recipient: str
    run_id: str
    step: int
    outcome: str
    examples: int


class RunLog:
    """The table ``runs``. A round is logged once it has a task; what led to none is in the egress log alone."""

    def __init__(self, database: Database, clock_rng: ClockAndRng) -> None:
        self._database = database
        self._clock_rng = clock_rng

    def add(self, run: Run, connection: Connection | None = None) -> None:
        """Log a round.

        Raises:
            StoreFailed: it could not be written.
        """
        if connection is None:
            with self._database.transaction() as own:
                self.add(run, own)
            return
        connection.execute(
            "INSERT INTO runs (time, purpose, recipient, run_id, step, outcome, examples) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (run.time, run.purpose, run.recipient, run.run_id, run.step, run.outcome, run.examples),
        )

    def advance(self, task: DeviceTask, outcome: str, examples: int, connection: Connection | None = None) -> None:
        """Write what became of a round that was charged.

        Raises:
            StoreFailed: it could not be written.
        """
        if connection is None:
            with self._database.transaction() as own:
                self.advance(task, outcome, examples, own)
            return
        connection.execute(
            "UPDATE runs SET outcome = ?, examples = ? WHERE recipient = ? AND run_id = ? AND step = ? AND outcome = ?",
            (outcome, examples, task.recipient, task.run_id, task.step, CHARGED),
        )

    def close(self, upload: Entry, outcome: str, connection: Connection) -> None:
        """Write the outcome of the round whose upload was prepared or sent; a step has at most one."""
        connection.execute(
            "UPDATE runs SET outcome = ? WHERE recipient = ? AND run_id = ? AND step = ? AND outcome IN (?, ?)",
            (outcome, upload.recipient, upload.run_id, upload.step, *_OPEN),
        )

    def settle(self) -> None:
        """Bring rounds whose prepared upload was destroyed by a withdrawal up to date."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE runs SET outcome = ? WHERE outcome = ? AND EXISTS (SELECT 1 FROM egress WHERE"
                " egress.recipient = runs.recipient AND"
                " egress.run_id = runs.run_id AND egress.step = runs.step AND egress.method = ? AND egress.state = ?)",
                (DESTROYED, PREPARED, Method.UPLOAD.value, State.DESTROYED.value),
            )

    def newest(self, limit: int) -> list[Run]:
        """Return the newest ``limit`` rounds, newest first."""
        rows = self._database.rows(
            "SELECT time, purpose, recipient, run_id, step, outcome, examples FROM runs ORDER BY id DESC LIMIT ?",
            (limit,),
        )
        return [Run(*row) for row in rows]

    def trained_within(self, seconds: float) -> int:
        """Return how many rounds were charged less than ``seconds`` before or after now (the clock was ahead then).

        A round that was refused does not count. One that was charged and learned nothing does: when the phone asks
        again must not tell of that.
        """
        near = (self._clock_rng.now(), seconds)
        rows = self._database.rows(
            "SELECT max((SELECT count(*) FROM runs WHERE examples > 0 AND abs(time - ?) < ?),"
            " (SELECT count(*) FROM participations WHERE kind = ? AND abs(time - ?) < ?))",
            (*near, Kind.PARTICIPATION.value, *near),
        )
        return int(rows[0][0])

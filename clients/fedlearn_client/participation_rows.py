"""Rows of the table ``participations``, and what they add up to."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields, replace
from enum import StrEnum
from typing import Any, Final, Protocol

from fedlearn.device.mechanism_codec import mechanism_to_json
from fedlearn.device.task import DeviceTask
from fedlearn.errors import StoreFailed
from fedlearn.policy.canonical import canonical_bytes
from fedlearn_client.anchor import DIGEST_BYTES, History, RunHistory, beginning, from_json
from fedlearn_client.hooks import ClockAndRng

_CONTEXT: Final = b"fedlearn.participation.v1\x00"
_NAME_DIGITS: Final = 32
NONCE_BYTES: Final = 16


class Connection(Protocol):
    """What a transaction of the store yields."""

    def execute(self, sql: str, parameters: Any = ..., /) -> Any:
        """Run one statement."""
        ...


class Kind(StrEnum):
    """What a row says."""

    PARTICIPATION = "participation"
    SEEN = "seen"  # a run at first sight, also at first sight since history was lost
    LOST = "lost"  # history was lost; the row has what is known
    CLOCK = "clock"  # the clock went back


@dataclass(frozen=True, slots=True)
class Row:
    """One row, its fields those of the table; ``digest`` is over everything else.

    ``nonce`` is random: were it not, a store and its older copy could go on with the same row, for two contributions.
    """

    id: int
    kind: str
    recipient: str
    run_id: str
    step: int
    attempt: int
    purpose: str
    mechanism: str
    count: int
    rho: float
    time: float
    nonce: bytes
    previous: bytes
    digest: bytes

    def expected_digest(self) -> bytes:
        """Return SHA-256 over the previous digest and the canonical JSON of everything else."""
        body = canonical_bytes(list(astuple(self)[:-3]))
        return hashlib.sha256(_CONTEXT + self.previous + self.nonce + body).digest()


COLUMNS: Final = ", ".join(field.name for field in fields(Row))


@dataclass(frozen=True, slots=True)
class Figures:
    """What a row says in numbers: step or barrier, participations charged for the run, and their zCDP."""

    step: int
    count: int
    rho: float


NO_FIGURES: Final = Figures(0, 0, 0.0)


def next_row(
    history: History,
    kind: Kind,
    task: DeviceTask | None,
    figures: Figures,
    *,
    clock_rng: ClockAndRng,
    known: str = "",
) -> Row:
    """Return the row that follows ``history``; ``known`` is what a row without a task has for a mechanism."""
    row = Row(
        id=history.counter + 1,
        kind=kind.value,
        recipient="" if task is None else task.recipient,
        run_id="" if task is None else task.run_id,
        step=figures.step,
        attempt=0 if task is None else task.attempt,
        purpose="" if task is None else task.purpose,
        mechanism=known if task is None else agreed(task),
        count=figures.count,
        rho=figures.rho,
        time=float(clock_rng.now()),
        nonce=clock_rng.random_bytes(NONCE_BYTES),
        previous=history.head,
        digest=b"",
    )
    return replace(row, digest=row.expected_digest())


def agreed(task: DeviceTask) -> str:
    """Return canonical JSON of what every task of a run must say."""
    body = {
        "population": task.population,
        "purpose": task.purpose,
        "mechanism": mechanism_to_json(task.mechanism),
    }
    return canonical_bytes(body).decode("ascii")


def run_key(recipient: str, run_id: str) -> str:
    """Return a short name of a run: two operators may call theirs the same."""
    return hashlib.sha256(canonical_bytes([recipient, run_id])).hexdigest()[:_NAME_DIGITS]


def terms_digest(mechanism: str) -> str:
    """Return a short name of what was agreed."""
    return hashlib.sha256(mechanism.encode()).hexdigest()[:_NAME_DIGITS]


def extended(history: History, row: Row) -> History:
    """Return the history with the next row.

    Raises:
        StoreFailed: the row does not follow, is not what its digest says, or is of no known kind.
    """
    if row.id != history.counter + 1 or row.previous != history.head or row.digest != row.expected_digest():
        raise StoreFailed(
            "participations: a row does not follow the one before it; stop the runtime and start it again."
        )
    return _applied(history, row)


def added_up(rows: list[Row]) -> tuple[History, bool]:
    """Return what all rows say, and whether they are whole; those before the newest sum of a lost history are not read.

    Of rows that are not whole every figure counts that can be read: too much is charged rather than too little.

    Raises:
        StoreFailed: a newer runtime wrote them.
    """
    sums = [index for index, row in enumerate(rows) if row.kind == Kind.LOST and from_json(row.mechanism) is not None]
    if sums:
        rows = rows[sums[-1] :]
    if not rows:
        return beginning(bytes(DIGEST_BYTES)), True
    whole = bool(sums) or rows[0].id == 1
    history = replace(beginning(rows[0].previous), counter=rows[0].id - 1)
    for row in rows:
        try:
            history = extended(history, row)
        except StoreFailed:
            whole = False
            if row.kind != Kind.LOST:
                history = _applied(history, row)
    return history, whole


def contains(rows: list[Row], anchor: History) -> bool:
    """Return whether the anchor's row is among these, or they begin where it does."""
    if anchor.counter == 0:
        return not rows or rows[0].previous == anchor.head
    return any(row.id == anchor.counter and row.digest == anchor.head for row in rows)


def _applied(history: History, row: Row) -> History:
    history = replace(history, counter=row.id, head=row.digest)
    match row.kind:
        case Kind.LOST:
            found = from_json(row.mechanism)
            if found is None:
                raise StoreFailed("participations: the sum of a lost history is damaged.")
            return replace(found, counter=row.id, head=row.digest)
        case Kind.CLOCK:
            return replace(history, epoch=history.epoch + 1, waiting=True)
        case Kind.SEEN | Kind.PARTICIPATION:
            taking = row.kind == Kind.PARTICIPATION
            key = run_key(row.recipient, row.run_id)
            before = history.runs.get(key)
            run = RunHistory(
                terms=terms_digest(row.mechanism),
                count=row.count,
                taken=(0 if before is None else before.taken) + taking,
                barrier=row.step,
                assumed=not taking,
                rho=row.rho,
                epoch=history.epoch,
                sure=True,
                order=row.id,
            )
            waiting = history.waiting and not taking
            return replace(history, waiting=waiting, runs={**history.runs, key: run})
        case _:
            raise StoreFailed(f"participations: rows of kind {row.kind[:20]!r} are unknown; update the runtime.")


def rows_after(counter: int) -> tuple[str, tuple[int]]:
    """Return the query for the rows after one, in order, and its parameters."""
    return f"SELECT {COLUMNS} FROM participations WHERE id > ? ORDER BY id", (counter,)  # noqa: S608  # own words only


def read_rows(found: Iterable[Any]) -> list[Row]:
    """Return rows of the table.

    Raises:
        StoreFailed: a column holds what it cannot.
    """
    return [_read(values) for values in found]


def _read(values: Any) -> Row:
    try:
        row = Row(*values)
        row = replace(row, rho=float(row.rho), time=float(row.time))
        row = replace(row, nonce=bytes(row.nonce), previous=bytes(row.previous), digest=bytes(row.digest))
    except (TypeError, ValueError) as error:
        raise StoreFailed("participations: a column holds what it cannot; the store is damaged.") from error
    whole = all(type(number) is int for number in (row.id, row.step, row.attempt, row.count))
    texts = all(type(text) is str for text in (row.kind, row.recipient, row.run_id, row.purpose, row.mechanism))
    sizes = (len(row.nonce), len(row.previous), len(row.digest)) == (NONCE_BYTES, DIGEST_BYTES, DIGEST_BYTES)
    if not (whole and texts and sizes and row.count >= 0 and math.isfinite(row.rho) and row.rho >= 0):
        raise StoreFailed("participations: a column holds what it cannot; the store is damaged.")
    return row


def insert(connection: Connection, row: Row) -> None:
    """Write a row in a transaction."""
    values = astuple(row)
    marks = ", ".join("?" * len(values))
    connection.execute(f"INSERT INTO participations ({COLUMNS}) VALUES ({marks})", values)  # noqa: S608

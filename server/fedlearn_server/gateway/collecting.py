"""Collections: the sum that phones form for one part of one attempt at one step.

A collection ends answered, its sum wiped when the answer is durable; or abandoned, its sum wiped unseen.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from sqlalchemy import Connection, Row, and_, delete, insert, select, update

from fedlearn.errors import RoundFailed
from fedlearn.fold import FoldTerms
from fedlearn.types import I64, Level
from fedlearn_server.gateway.tables import Stage, answers, collections, objects, sums
from fedlearn_server.gateway.terms import FleetTerms, read_terms

_SUM: Final = np.dtype("<i8")
COLUMNS: Final = [column for column in collections.c if column.name not in {"stage", "accepted", "terms"}]


@dataclass(frozen=True, slots=True)
class Collection:
    """What is collected, from when to when.

    Args:
        id: in the database.
        terms: of the run.
        step: mechanism step.
        attempt: of the round task.
        part, parts: which part of the population, 0-based, of how many.
        tries: collections of this step and part before it: the attempt that phones are told.
        target: contributions wanted; those after are late.
        minimum: with fewer it is abandoned.
        most: tasks at work or accepted at one time.
        opened, deadline: seconds since the Unix epoch.
        weights_digest: SHA-256 (hex) of the step's weights.
        dimension: length of the sum.
        l2_clip_norm: bound on each contribution.
        grid_step: of the sum.
        shuffle_seed: as tasks say.
        task_digest: of the round task.
        checkpoint: of the ledger, as phones are shown it; may be empty.
    """

    id: int
    terms: FleetTerms
    step: int
    attempt: int
    part: int
    parts: int
    tries: int
    target: int
    minimum: int
    most: int
    opened: float
    deadline: float
    weights_digest: str
    dimension: int
    l2_clip_norm: float
    grid_step: float
    shuffle_seed: int
    task_digest: bytes
    checkpoint: bytes

    def fold_terms(self, device_task: bytes) -> FoldTerms:
        """Return what a phone's contribution must satisfy; its task has a digest of its own."""
        return FoldTerms(device_task, self.dimension, self.l2_clip_norm, self.grid_step, Level.PHONE)


def close_collection(connection: Connection, collection_id: int) -> tuple[int, I64] | None:
    """Take no more contributions; return count and sum, or None: abandoned, or answered already."""
    found = connection.execute(select(collections).where(collections.c.id == collection_id)).one()
    if found.stage == Stage.OPEN:
        enough = found.accepted >= found.minimum
        move_on(connection, collection_id, Stage.CLOSED if enough else Stage.ABANDONED)
        if not enough:
            return None
    elif found.stage != Stage.CLOSED:
        return None
    return found.accepted, read_sum(connection, collection_id)


def keep_answer(connection: Connection, collection_id: int, reply: bytes) -> None:
    """Keep what is answered, once, and wipe the sum."""
    stage = connection.execute(select(collections.c.stage).where(collections.c.id == collection_id)).scalar_one()
    if stage == Stage.ANSWERED:
        return  # by another gateway: its answer stands
    if stage != Stage.CLOSED:
        raise RoundFailed(f"collection {collection_id}: is {stage}, only one that is closed has an answer.")
    connection.execute(insert(answers), {"collection": collection_id, "data": reply})
    move_on(connection, collection_id, Stage.ANSWERED)


def kept_answer(connection: Connection, run_id: str, step: int, attempt: int, part: int) -> bytes | None:
    """Return what was answered for this part and attempt."""
    here = and_(
        collections.c.run_id == run_id,
        collections.c.step == step,
        collections.c.attempt == attempt,
        collections.c.part == part,
    )
    return connection.execute(select(answers.c.data).join(collections).where(here)).scalar_one_or_none()


def put_object(connection: Connection, data: bytes, *, of_step: bool = False) -> bytes:
    """Keep bytes under their SHA-256 and return it."""
    digest: bytes = hashlib.sha256(data).digest()
    if connection.execute(select(objects.c.digest).where(objects.c.digest == digest)).one_or_none() is None:
        connection.execute(insert(objects), {"digest": digest, "data": data, "of_step": of_step})
    elif not of_step:
        connection.execute(update(objects).where(objects.c.digest == digest).values(of_step=False))
    return digest


def read_sum(connection: Connection, collection_id: int) -> I64:
    """Return the sum so far."""
    data = connection.execute(select(sums.c.data).where(sums.c.collection == collection_id)).scalar_one()
    return np.frombuffer(data, dtype=_SUM).astype(np.int64)


def write_sum(connection: Connection, collection_id: int, total: I64, count: int) -> None:
    """Keep the sum and its count."""
    data = total.astype(_SUM).tobytes()
    if connection.execute(update(sums).where(sums.c.collection == collection_id).values(data=data)).rowcount == 0:
        connection.execute(insert(sums), {"collection": collection_id, "data": data})
    connection.execute(update(collections).where(collections.c.id == collection_id).values(accepted=count))


def collection_of(row: Row[Any]) -> Collection:
    """Return a row of ``collections``, or one with its columns, as a collection."""
    values = {column.name: getattr(row, column.name) for column in COLUMNS}
    for name in ("run_id", "population", "purpose"):
        del values[name]  # in the terms
    return Collection(terms=_terms(row.terms), **values)


_terms = lru_cache(maxsize=64)(read_terms)


def move_on(connection: Connection, collection_id: int, stage: Stage) -> None:
    """Move a collection on to a stage; where nobody needs its sum any more, the sum goes, and how many were in it."""
    values: dict[str, Any] = {"stage": stage}
    if stage in {Stage.ANSWERED, Stage.ABANDONED}:
        connection.execute(delete(sums).where(sums.c.collection == collection_id))
        values["accepted"] = 0
    connection.execute(update(collections).where(collections.c.id == collection_id).values(**values))

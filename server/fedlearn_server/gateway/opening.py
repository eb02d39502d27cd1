"""How a collection begins, or goes on: what a node was asked is held against the run, and against what is going on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from sqlalchemy import Connection, and_, delete, func, insert, or_, select, update

from fedlearn.device.weights import ITEM_BYTES
from fedlearn.errors import OutOfRange, RoundFailed
from fedlearn.privacy.grid import check_capacity
from fedlearn.task import RoundTask
from fedlearn.wire import task_digest
from fedlearn_server.gateway.collecting import Collection, collection_of, move_on, put_object, write_sum
from fedlearn_server.gateway.tables import Stage, answers, collections
from fedlearn_server.gateway.terms import FleetTerms


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a node was asked: the sum of one part of one attempt at a step, and the weights that phones train from."""

    terms: FleetTerms
    task: RoundTask
    weights: bytes = field(repr=False)
    part: int
    parts: int


def weights_block(task: RoundTask) -> bytes:
    """Return the step's weights as phones fetch them (``fedlearn.device.weights``)."""
    return b"".join(array.astype("<f4").tobytes() for _, array in sorted(task.parameters.items()))


def open_collection(connection: Connection, wanted: Wanted, now: float) -> Collection:
    """Return the open collection of this part and attempt, or open one; older ones of the run are given up."""
    terms, task, part, parts = wanted.terms, wanted.task, wanted.part, wanted.parts
    digest = task_digest(task)
    _require_fitting(wanted)
    _require_newest(connection, task)
    _give_up_older(connection, task)
    here = (collections.c.run_id == task.run_id, collections.c.step == task.step, collections.c.part == part)
    still = collections.c.stage.in_((Stage.OPEN, Stage.CLOSED))  # closed: a gateway died before it answered
    going = connection.execute(select(collections).where(*here, still)).one_or_none()
    if going is not None:
        collection = collection_of(going)
        if (collection.task_digest, collection.parts, collection.terms) != (digest, parts, terms):
            raise RoundFailed(f"step {task.step}: attempt {task.attempt} is open for another task; make a new attempt.")
        # a phone that met a newer one elsewhere would take the old one for a ledger that was cut off
        shown = task.ledger_checkpoint
        connection.execute(update(collections).where(collections.c.id == collection.id).values(checkpoint=shown))
        return replace(collection, checkpoint=shown)
    # not their number: the oldest may have been tidied away
    last = connection.execute(select(func.max(collections.c.tries)).where(*here)).scalar_one()
    tries = 0 if last is None else last + 1
    row = _new_row(wanted, now) | {
        "tries": tries,
        "weights_digest": put_object(connection, wanted.weights, of_step=True).hex(),
        "task_digest": digest,
    }
    made = connection.execute(insert(collections).returning(collections.c.id), row).scalar_one()
    write_sum(connection, made, np.zeros(task.dimension, np.int64), 0)
    return collection_of(connection.execute(select(collections).where(collections.c.id == made)).one())


def _require_fitting(wanted: Wanted) -> None:
    """Raise RoundFailed where a round task is not one of the run that the terms describe."""
    terms, task, part, parts = wanted.terms, wanted.task, wanted.part, wanted.parts
    mechanism = terms.mechanism
    if (task.run_id, task.l2_clip_norm, task.grid_step, task.count_scale) != (
        terms.run_id,
        mechanism.l2_clip_norm,
        mechanism.grid_step,
        None,
    ):
        raise RoundFailed(
            f"step {task.step}: run, clip, grid or adaptive clipping differ from the approved plan's, which phones "
            "would refuse; submit the run that was approved."
        )
    if not 0 <= task.step < mechanism.steps:
        raise RoundFailed(f"step {task.step}: the mechanism has {mechanism.steps} steps, counted from 0.")
    if not 0 <= part < parts:
        raise RoundFailed(f"part {part} of {parts}: there is no such part.")
    if len(wanted.weights) != ITEM_BYTES * task.dimension:
        raise RoundFailed(f"weights: {len(wanted.weights)} bytes; {task.dimension} have {ITEM_BYTES} bytes each.")
    try:
        check_capacity(terms.share(terms.target, part, parts), mechanism.l2_clip_norm, mechanism.grid_step)
    except OutOfRange as error:
        raise RoundFailed(f"target: {error}") from error


def _new_row(wanted: Wanted, now: float) -> dict[str, Any]:
    terms, task, part, parts = wanted.terms, wanted.task, wanted.part, wanted.parts
    target = terms.share(terms.target, part, parts)
    return {
        "run_id": terms.run_id,
        "step": task.step,
        "attempt": task.attempt,
        "part": part,
        "parts": parts,
        "population": terms.population,
        "purpose": terms.purpose,
        "terms": terms.to_json(),
        "target": target,
        "minimum": terms.share(terms.round_size, part, parts),
        "most": math.ceil(target * terms.over_selection),
        "opened": now,
        "deadline": now + terms.attempt_s,
        "dimension": task.dimension,
        "l2_clip_norm": terms.mechanism.l2_clip_norm,
        "grid_step": terms.mechanism.grid_step,
        "shuffle_seed": task.seed,
        "checkpoint": task.ledger_checkpoint,
        "stage": Stage.OPEN,
        "accepted": 0,
    }


def _require_newest(connection: Connection, task: RoundTask) -> None:
    """A question that was overtaken, on its way or in a queue, must not cost phones a participation."""
    newest = (
        select(collections.c.step, collections.c.attempt)
        .where(collections.c.run_id == task.run_id)
        .order_by(collections.c.step.desc(), collections.c.attempt.desc())
    )
    found = connection.execute(newest.limit(1)).one_or_none()
    if found is not None and (task.step, task.attempt) < (found.step, found.attempt):
        raise RoundFailed(
            f"step {task.step}, attempt {task.attempt}: the run has gone on to step {found.step}, attempt "
            f"{found.attempt}."
        )


def _give_up_older(connection: Connection, task: RoundTask) -> None:
    """The run goes on: what an earlier step or attempt collected is wiped, answered or not."""
    older = and_(
        collections.c.run_id == task.run_id,
        or_(
            collections.c.step < task.step,
            and_(collections.c.step == task.step, collections.c.attempt < task.attempt),
        ),
    )
    left = and_(older, collections.c.stage.in_((Stage.OPEN, Stage.CLOSED)))
    for collection_id in connection.execute(select(collections.c.id).where(left)).scalars().all():
        move_on(connection, collection_id, Stage.ABANDONED)
    connection.execute(delete(answers).where(answers.c.collection.in_(select(collections.c.id).where(older))))

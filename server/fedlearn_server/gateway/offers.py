"""Tasks for phones: who may have one now, and the token that is durable before the task leaves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection, Row, func, insert, select

from fedlearn.device.requests import CLOCK_TOLERANCE_S, Denial
from fedlearn.device.task import TOKEN_BYTES, DeviceTask
from fedlearn.device.task_codec import with_digest
from fedlearn.rng import os_bytes
from fedlearn_server.gateway.collecting import Collection, collection_of
from fedlearn_server.gateway.enrolment import denied
from fedlearn_server.gateway.tables import Stage, Use, collections, nonces, participations, tokens

NONCES_KEPT_S: Final = 4 * CLOCK_TOLERANCE_S
"""A request may be dated so far ahead and is good for as long again; and gateways' clocks may differ by as much."""
LEAST_LIFE: Final = 0.25
"""No task is given with less than this part of its life left: a phone would pay for it and come too late."""

_BY_ACTION: Final = (Denial.BUNDLE, Denial.PARTICIPATIONS, Denial.SEPARATION, Denial.NO_TASK)
"""Where several runs refuse a phone, it hears the first of these: what it can do something about."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A task for one phone, the bytes to send (a ``SignedTask``), and the ledger's checkpoint to show beside it."""

    task: DeviceTask
    signed: bytes = field(repr=False)
    checkpoint: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a phone asks for.

    Args:
        device: its key.
        population, purpose: ids in the policy.
        bundle_digest: SHA-256 of the task bundle it has.
        nonce: of its request, 16 bytes.
    """

    device: bytes = field(repr=False)
    population: str
    purpose: str
    bundle_digest: bytes
    nonce: bytes = field(repr=False)


def reserve(connection: Connection, asked: Asked, now: float, sign: Callable[[DeviceTask], bytes]) -> Offer | Denial:
    """Return a task, whose token and digest are in the transaction, or why there is none."""
    refused = denied(connection, asked.device)
    if refused is not None:
        return refused
    if not _first_time(connection, asked, now):
        return Denial.REPLAYED
    refused = denied(connection, asked.device, asked.population)
    if refused is not None:
        return refused
    denials = set()
    for row in _open_collections(connection, asked, now):
        found = _task_in(connection, asked, row, now)
        if isinstance(found, DeviceTask):
            # the transaction ends after it: a task that cannot be signed is not given
            return Offer(found, sign(found), row.checkpoint)
        denials.add(found)
    return next((denial for denial in _BY_ACTION if denial in denials), Denial.NO_TASK)


def participation_denied(steps: Sequence[int], step: int, separation: int, most: int) -> Denial | None:
    """Return why a device may not take part in ``step`` once more.

    Guarantee: of the steps a device takes part in, any two lie ``separation`` apart and there are at most ``most``.

    Args:
        steps: those it took part in, or has a task for, in any order.
        step: the one in question.
        separation: b, >= 1.
        most: k, >= 1.
    """
    if any(abs(step - other) < separation for other in steps):
        return Denial.SEPARATION
    return Denial.PARTICIPATIONS if len(steps) >= most else None


def steps_of(connection: Connection, device: bytes, run_id: str) -> list[int]:
    """Return the steps of a run that a device took part in."""
    mine = (participations.c.device == device, participations.c.run_id == run_id)
    return list(connection.execute(select(participations.c.step).where(*mine)).scalars())


def _first_time(connection: Connection, asked: Asked, now: float) -> bool:
    """Whether this request was not seen before; from now on it was."""
    same = (nonces.c.device == asked.device, nonces.c.nonce == asked.nonce)
    if connection.execute(select(nonces.c.expires).where(*same)).one_or_none() is not None:
        return False
    row = {"device": asked.device, "nonce": asked.nonce, "expires": now + NONCES_KEPT_S}
    connection.execute(insert(nonces), row)
    return True


def _open_collections(connection: Connection, asked: Asked, now: float) -> Sequence[Row[Any]]:
    """Return the collections a phone could be in, those with the most room first, and how many are at work there."""
    held = (tokens.c.collection == collections.c.id, tokens.c.use == Use.OPEN, tokens.c.expires > now)
    in_hand = select(func.count()).where(*held).correlate(collections).scalar_subquery()
    at_work = (collections.c.accepted + in_hand).label("at_work")
    return connection.execute(
        select(collections, at_work)
        .where(
            collections.c.stage == Stage.OPEN,
            collections.c.population == asked.population,
            collections.c.purpose == asked.purpose,
            collections.c.deadline > now,
        )
        .order_by(at_work - collections.c.most, collections.c.id)
    ).all()


def _task_in(connection: Connection, asked: Asked, row: Row[Any], now: float) -> DeviceTask | Denial:
    collection = collection_of(row)
    terms = collection.terms
    if asked.bundle_digest.hex() != terms.bundle_digest:
        return Denial.BUNDLE
    if row.accepted >= collection.target:
        return Denial.NO_TASK
    held = _tasks_in_hand(connection, asked.device, terms.run_id, now)
    mine = next((task for task in held if task.collection == collection.id), None)
    if mine is not None:  # the reply was lost, or the phone began anew: the same task, not another one
        return _device_task(collection, mine.token, mine.issued, mine.expires)
    steps = {*steps_of(connection, asked.device, terms.run_id), *(task.step for task in held)}
    mechanism = terms.mechanism
    refused = participation_denied(
        sorted(steps), collection.step, mechanism.min_separation, mechanism.max_participations
    )
    if refused is not None:
        return refused
    issued, expires = _whole_ms(now), _whole_ms(min(now + terms.task_s, collection.deadline))
    least = LEAST_LIFE * min(terms.task_s, terms.attempt_s)
    if row.at_work >= collection.most or expires - issued < least:
        return Denial.NO_TASK
    task = _device_task(collection, os_bytes(TOKEN_BYTES), issued, expires)
    given = {
        "token": task.token,
        "device": asked.device,
        "collection": collection.id,
        "task_digest": task.digest,
        "issued": issued,
        "expires": expires,
        "use": Use.OPEN,
    }
    connection.execute(insert(tokens), given)
    return task


def _tasks_in_hand(connection: Connection, device: bytes, run_id: str, now: float) -> Sequence[Any]:
    """Return a device's tasks of a run that could still be accepted."""
    return connection.execute(
        select(tokens.c.token, tokens.c.collection, tokens.c.issued, tokens.c.expires, collections.c.step)
        .join(collections)
        .where(
            tokens.c.device == device,
            tokens.c.use == Use.OPEN,
            tokens.c.expires > now,
            collections.c.run_id == run_id,
            collections.c.stage == Stage.OPEN,
        )
    ).all()


def _device_task(collection: Collection, token: bytes, issued: float, expires: float) -> DeviceTask:
    terms = collection.terms
    return with_digest(
        DeviceTask(
            run_id=terms.run_id,
            population=terms.population,
            purpose=terms.purpose,
            recipient=terms.recipient,
            step=collection.step,
            attempt=collection.tries,
            plan_digest=terms.plan_digest,
            weights_digest=collection.weights_digest,
            token=token,
            issued=issued,
            expires=expires,
            round_size=terms.round_size,
            mechanism=terms.mechanism,
            shuffle_seed=collection.shuffle_seed,
            digest=b"",
        )
    )


def _whole_ms(seconds: float) -> float:
    """A task tells time in milliseconds; rounded down, so that none outlives its collection."""
    return math.floor(seconds * 1000) / 1000

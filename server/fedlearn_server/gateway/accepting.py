"""Contributions of phones: judged one by one, added to their sums in one transaction a batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np
from sqlalchemy import Connection, Row, bindparam, insert, select, update

from fedlearn.device.requests import Denial
from fedlearn.errors import ContributionRejected, Reason
from fedlearn.fold import checked
from fedlearn.proto import gateway_pb2 as pb
from fedlearn.types import I64, Contribution
from fedlearn.wire import decode_contribution
from fedlearn_server.gateway.collecting import COLUMNS, Collection, collection_of, read_sum, write_sum
from fedlearn_server.gateway.offers import participation_denied
from fedlearn_server.gateway.tables import Stage, Use, collections, devices, participations, tokens

UNKNOWN_TOKEN: Final = "unknown_token"  # noqa: S105 - a reason, no secret
TOKEN_USED: Final = "token_used"  # noqa: S105


@dataclass(frozen=True, slots=True)
class Upload:
    """What a phone hands over."""

    token: bytes = field(repr=False)
    contribution: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a phone is told.

    Args:
        outcome: ACCEPTED: it is in the sum, once, and that is durable; LATE: dropped unread; REJECTED.
        reason: empty when accepted; else a ``fedlearn.errors.Reason``, ``unknown_token``, ``token_used``, or a
            ``Denial`` of a device that was revoked or took part too often.
    """

    outcome: pb.UploadReply.Outcome
    reason: str


ACCEPTED: Final = Verdict(pb.UploadReply.OUTCOME_ACCEPTED, "")
LATE: Final = Verdict(pb.UploadReply.OUTCOME_LATE, Reason.LATE.value)
Judged = Contribution | ContributionRejected


def rejected(reason: str) -> Verdict:
    """Return the verdict on a contribution that may not be added."""
    return Verdict(pb.UploadReply.OUTCOME_REJECTED, reason)


def judge(connection: Connection, uploads: Sequence[Upload], now: float) -> dict[int, Judged]:
    """Read and check what may be added as things stand, outside the transaction: that is most of the work.

    Returns:
        place -> the contribution, or why it is none. What is late or not expected is not read.
    """
    found = _tasks(connection, uploads)
    judged: dict[int, Judged] = {}
    for place, upload in enumerate(uploads):
        task = found.get(upload.token)
        if task is None or task.verdict(upload, now) is not None:
            continue
        terms = task.collection.fold_terms(task.digest)
        try:
            judged[place] = checked(partial(decode_contribution, upload.contribution, terms.max_bytes), terms)
        except ContributionRejected as error:
            judged[place] = error
    return judged


def add(connection: Connection, uploads: Sequence[Upload], judged: dict[int, Judged], now: float) -> list[Verdict]:
    """Add what was found good, where it still may be; the transaction makes it durable, or none of it."""
    found = _tasks(connection, uploads)
    batch = _Batch(_steps(connection, tuple(found.values())))
    verdicts: list[Verdict] = []
    for place, upload in enumerate(uploads):
        task = found.get(upload.token)
        verdict = rejected(UNKNOWN_TOKEN) if task is None else task.verdict(upload, now)
        if task is not None and verdict is None:
            verdict = batch.add(task, upload, judged.get(place))
        verdicts.append(verdict or LATE)
    batch.write(connection)
    return verdicts


class _Batch:
    """What a batch adds, before it is written.

    Args:
        steps: (device, run) -> the steps the device took part in.
    """

    def __init__(self, steps: dict[tuple[bytes, str], list[int]]) -> None:
        self._steps = steps
        self._sums: dict[int, I64] = {}
        self._counts: dict[int, int] = {}
        self._took_part: list[dict[str, Any]] = []
        self._used: list[dict[str, Any]] = []

    def add(self, task: _Task, upload: Upload, judged: Judged | None) -> Verdict:
        """Add one contribution that was judged, if there is room and a right to it, and use its token up."""
        collection = task.collection
        count = self._counts.get(collection.id, task.accepted)
        if judged is None or count >= collection.target:
            return LATE  # there are enough; or it was late a moment ago
        steps = self._steps.setdefault((task.device, collection.terms.run_id), [])
        verdict = _verdict(judged, steps, collection)
        if verdict is ACCEPTED and isinstance(judged, Contribution):
            steps.append(collection.step)
            row = {"device": task.device, "run_id": collection.terms.run_id, "step": collection.step}
            self._took_part.append(row)
            self._counts[collection.id] = count + 1
            self._sum_of(collection)[:] += judged.values.astype(np.int64, copy=False)
        task.use_up(verdict, _content(upload))
        self._used.append({"of": upload.token, "use": task.use, "content": task.content, "reason": verdict.reason})
        return verdict

    def write(self, connection: Connection) -> None:
        """Write sums, participations and used tokens."""
        for collection_id, added in self._sums.items():
            total = read_sum(connection, collection_id) + added
            write_sum(connection, collection_id, total, self._counts[collection_id])
        if self._took_part:
            connection.execute(insert(participations), self._took_part)
        if self._used:
            connection.execute(_USE, self._used)

    def _sum_of(self, collection: Collection) -> I64:
        if collection.id not in self._sums:
            self._sums[collection.id] = np.zeros(collection.dimension, np.int64)
        return self._sums[collection.id]


def _verdict(judged: Judged, steps: Sequence[int], collection: Collection) -> Verdict:
    if isinstance(judged, ContributionRejected):
        return rejected(judged.reason.value)
    mechanism = collection.terms.mechanism
    # counted once more: another gateway's clock may have let a task go that this one still takes
    if participation_denied(steps, collection.step, mechanism.min_separation, mechanism.max_participations):
        return rejected(Reason.DUPLICATE.value)
    return ACCEPTED


def _content(upload: Upload) -> bytes:
    """Digest by which the same bytes are known again."""
    return hashlib.sha256(upload.contribution).digest()


_USE: Final = (
    update(tokens)
    .where(tokens.c.token == bindparam("of"))
    .values(use=bindparam("use"), content=bindparam("content"), reason=bindparam("reason"), issued=None, expires=None)
)


@dataclass(slots=True)
class _Task:
    """What is known of a token."""

    device: bytes
    digest: bytes
    expires: float | None
    use: Use
    content: bytes | None
    reason: str | None
    revoked: bool
    collection: Collection
    stage: Stage
    accepted: int

    def verdict(self, upload: Upload, now: float) -> Verdict | None:
        """Return what there is to say without reading the contribution, or None: read it."""
        if self.revoked:
            return rejected(Denial.REVOKED.value)
        if self.use is not Use.OPEN:
            if _content(upload) != self.content:
                return rejected(TOKEN_USED)
            return ACCEPTED if self.use is Use.ACCEPTED else rejected(self.reason or TOKEN_USED)
        if self.stage is not Stage.OPEN or self.expires is None or now >= self.expires:
            return LATE
        return None

    def use_up(self, verdict: Verdict, content: bytes) -> None:
        """From now on the token stands for these bytes and this verdict."""
        self.use = Use.ACCEPTED if verdict is ACCEPTED else Use.REJECTED
        self.content, self.reason = content, verdict.reason


def _steps(connection: Connection, found: Sequence[_Task]) -> dict[tuple[bytes, str], list[int]]:
    steps: dict[tuple[bytes, str], list[int]] = {}
    rows = connection.execute(
        select(participations).where(
            participations.c.device.in_({task.device for task in found}),
            participations.c.run_id.in_({task.collection.terms.run_id for task in found}),
        )
    )
    for device, run_id, step in rows:
        steps.setdefault((device, run_id), []).append(step)
    return steps


def _tasks(connection: Connection, uploads: Sequence[Upload]) -> dict[bytes, _Task]:
    names = ["terms", "stage", "accepted"]
    wanted = [*COLUMNS, *(collections.c[name] for name in names)]
    rows = connection.execute(
        select(
            tokens.c.token,
            tokens.c.device,
            tokens.c.task_digest.label("device_task"),
            tokens.c.expires,
            tokens.c.use,
            tokens.c.content,
            tokens.c.reason,
            devices.c.revoked,
            *wanted,
        )
        .join(collections, tokens.c.collection == collections.c.id)
        .join(devices, tokens.c.device == devices.c.device)
        .where(tokens.c.token.in_({upload.token for upload in uploads}))
    )
    read: dict[int, Collection] = {}
    return {row.token: _task(row, read) for row in rows}


def _task(row: Row[Any], read: dict[int, Collection]) -> _Task:
    if row.id not in read:
        read[row.id] = collection_of(row)
    return _Task(
        device=row.device,
        digest=row.device_task,
        expires=row.expires,
        use=Use(row.use),
        content=row.content,
        reason=row.reason,
        revoked=row.revoked is not None,
        collection=read[row.id],
        stage=Stage(row.stage),
        accepted=row.accepted,
    )

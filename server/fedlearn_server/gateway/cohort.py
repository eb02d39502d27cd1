"""A gateway as a cohort host: what SuperLink asks of it becomes a collection, and its sum the answer."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, TypeVar

from fedlearn.clock import Clock, system_clock
from fedlearn.errors import GatewayStoreFailed, RoundFailed
from fedlearn.task import CohortReply, RoundTask
from fedlearn.types import I64, Contribution, Level
from fedlearn.wire import NONCE_BYTES, decode_reply, encode_reply, task_digest
from fedlearn_server.gateway.collecting import Collection
from fedlearn_server.gateway.opening import weights_block
from fedlearn_server.gateway.state import GatewayState
from fedlearn_server.gateway.terms import FleetTerms, read_terms
from fedlearn_server.hosting import NodeFunction

LOOK_S: Final = 0.2
"""How often a waiting gateway looks whether its collection is full: phones may be at another one."""

PATIENCE_S: Final = 60.0
"""How long a database may be away before a question ends in a failure."""

logger = logging.getLogger(__name__)
T = TypeVar("T")


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True, eq=False)
class GatewayHost:
    """Hosts an enrolled population's phones (``fedlearn_server.hosting.CohortHost``).

    A question is answered when its collection is full or its deadline has passed. A collection belongs to no gateway:
    this one may wait for a collection that another one opened, and answer with what phones brought there.

    Args:
        state: what the gateways of the population share.
        clock: seconds since the Unix epoch.
        sleep: waits so many seconds.
        leaving: whether this gateway is going away: then it answers no question, and leaves collections to others.
        attest: makes of a ledger's checkpoint what phones are shown, signed by the key that their policy names.
    """

    state: GatewayState
    clock: Clock = system_clock
    sleep: Callable[[float], None] = time.sleep
    leaving: Callable[[], bool] = _never
    attest: Callable[[bytes], bytes] = bytes

    def __call__(self, description: str, partition: int, partitions: int) -> NodeFunction:
        """Open a cohort; raise MalformedMessage for a description that is not ``FleetTerms``."""
        return partial(self.answer, read_terms(description), partition, partitions)

    def answer(self, terms: FleetTerms, part: int, parts: int, task: RoundTask) -> CohortReply:
        """Collect what phones send for one part of one attempt at a step, and return their sum.

        The reply has no figure but the sum and its count: in a deployment all others would need noise.

        Raises:
            RoundFailed: fewer phones than the part's minimum; a task that is not of this run; the gateway is leaving.
        """
        here = (task.run_id, task.step, task.attempt, part)
        known = self._patiently(lambda: self.state.answered(*here))
        if known is not None:
            return self._same(known, task)
        weights, task = weights_block(task), replace(task, ledger_checkpoint=self.attest(task.ledger_checkpoint))
        collection = self._patiently(
            lambda: self.state.open_collection(terms, task, weights, part, parts, self.clock())
        )
        self._wait(collection)
        self._patiently(lambda: self._close(collection))
        known = self._patiently(lambda: self.state.answered(*here))  # maybe another gateway's
        if known is None:
            raise RoundFailed(f"step {task.step}, part {part}: too few phones came; nothing of them was looked at.")
        return self._same(known, task)

    def _close(self, collection: Collection) -> None:
        closed = self.state.close(collection, self.clock())
        if closed is not None:
            self.state.answer(collection, encode_reply(reply_of(collection, *closed)))

    def _wait(self, collection: Collection) -> None:
        while not self._patiently(lambda: self.state.is_full(collection)):
            left = collection.deadline - self.clock()
            if left <= 0.0:
                return
            self._require_staying()
            self.sleep(min(left, LOOK_S))

    def _patiently(self, ask: Callable[[], T]) -> T:
        """Ask a database that may be away for a while; whatever a host asks, it may ask again."""
        until = self.clock() + PATIENCE_S
        while True:
            try:
                return ask()
            except GatewayStoreFailed as error:
                if self.clock() >= until:
                    raise
                logger.warning("the gateway's database does not answer; trying again: %s", error)
            self._require_staying()
            self.sleep(LOOK_S)

    def _require_staying(self) -> None:
        if self.leaving():
            raise RoundFailed("this gateway is leaving; the collection stays open for others.")

    def _same(self, known: bytes, task: RoundTask) -> CohortReply:
        reply = decode_reply(known)
        if reply.contribution.task_digest != task_digest(task):
            raise RoundFailed(f"step {task.step}: attempt {task.attempt} was answered for another task.")
        return reply


def reply_of(collection: Collection, count: int, total: I64) -> CohortReply:
    """Return a cohort's answer: the same bytes from whichever gateway gives it."""
    nonce = hashlib.sha256(b"fedlearn.collection" + collection.task_digest + collection.part.to_bytes(8)).digest()
    contribution = Contribution(
        codec="grid64",
        scale=collection.grid_step,
        level=Level.COHORT,
        count=count,
        l2_bound=count * collection.l2_clip_norm,
        task_digest=collection.task_digest,
        nonce=nonce[:NONCE_BYTES],
        values=total.astype("<i8"),
    )
    return CohortReply(contribution, loss_sum=0.0, trained=0, clipped=0, norm_sum=0.0, rejected={})

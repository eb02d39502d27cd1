"""Drives a swarm: every phone enrols, checks in, fetches, and sends what it is in the habit of sending."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from fedlearn.device.task import DeviceTask
from fedlearn.errors import TaskRefused, TransportFailed
from fedlearn.lab.swarm.habits import Habit, Habits, lie
from fedlearn.lab.swarm.link import GatewayLinks
from fedlearn.lab.swarm.phone import SwarmPhone, fetch, is_weights, upload
from fedlearn.lab.swarm.updates import Updates
from fedlearn.proto import gateway_pb2 as pb
from fedlearn.types import I64

FETCH_BYTES: Final = 2**20
LATE_S: Final = 0.5
OUTCOME: Final = {
    pb.UploadReply.OUTCOME_ACCEPTED: "accepted",
    pb.UploadReply.OUTCOME_LATE: "late",
    pb.UploadReply.OUTCOME_REJECTED: "rejected",
}


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a phone asks.

    Args:
        longest_wait_s: between check-ins of a phone that got no task; a gateway's own wish counts up to this.
        check_ins_a_second: of the whole swarm, at most; None: no limit.
    """

    longest_wait_s: float = 2.0
    check_ins_a_second: float | None = None


@dataclass
class SwarmFigures:
    """What a swarm did.

    Args:
        habits: habit -> tasks.
        outcomes: (habit, outcome) -> uploads; an outcome that was rejected has its reason.
        denials: why there was no task -> check-ins.
        accepted: (step, attempt) -> positions that were told that theirs was accepted.
    """

    habits: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    denials: Counter[str] = field(default_factory=Counter)
    accepted: dict[tuple[int, int], set[int]] = field(default_factory=dict)


class Swarm:
    """Many phones.

    Args:
        phones: who.
        links: to their gateways.
        updates: what they learned.
        habits: what they do with it.
        pace: how often they ask.
    """

    def __init__(
        self,
        phones: Sequence[SwarmPhone],
        links: GatewayLinks,
        updates: Updates,
        habits: Habits,
        pace: Pace,
    ) -> None:
        self._phones = phones
        self._links = links
        self._updates = updates
        self._habits = habits
        self._pace = pace
        self._weights: dict[str, asyncio.Task[bytes]] = {}
        self._turn = asyncio.Lock()
        self._learning = threading.Lock()
        self.figures = SwarmFigures()

    async def run(self, stop: asyncio.Event) -> None:
        """Drive all phones until ``stop`` is set."""
        lives = [asyncio.create_task(self._live(phone, stop)) for phone in self._phones]
        waiting = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([waiting, *lives], return_when=asyncio.FIRST_COMPLETED)
            while not stop.is_set() and any(not life.done() for life in lives):
                await asyncio.wait([waiting, *lives], timeout=0.5, return_when=asyncio.ALL_COMPLETED)
        finally:
            for task in (waiting, *lives):
                task.cancel()
            ended = await asyncio.gather(waiting, *lives, return_exceptions=True)
        broken = [one for one in ended if isinstance(one, Exception)]
        if broken:
            raise broken[0]

    async def _live(self, phone: SwarmPhone, stop: asyncio.Event) -> None:
        await asyncio.sleep(random.uniform(0.0, min(1.0, self._pace.longest_wait_s)))  # noqa: S311 - not all at once
        enrolled = False
        while not stop.is_set():
            try:
                enrolled = enrolled or await self._enrol(phone)
                wait = await self._round(phone) if enrolled else self._pace.longest_wait_s
            except TransportFailed as error:
                self.figures.denials[str(error)] += 1
                wait = self._pace.longest_wait_s
            if wait > 0.0:
                await asyncio.sleep(random.uniform(0.5, 1.0) * wait)  # noqa: S311 - not all at once

    async def _enrol(self, phone: SwarmPhone) -> bool:
        reply = pb.EnrolReply.FromString(await self._links.call("Enrol", phone.enrol(), phone.position))
        if reply.outcome == pb.EnrolReply.OUTCOME_ENROLLED:
            return True
        self.figures.denials[reply.reason] += 1
        return False

    async def _round(self, phone: SwarmPhone) -> float:
        """Do one round and return the seconds to wait after it."""
        await self._my_turn()
        reply = pb.CheckInReply.FromString(await self._links.call("CheckIn", phone.check_in(), phone.position))
        try:
            task = phone.open(reply)
        except TaskRefused as error:
            self.figures.denials[str(error)] += 1
            return self._pace.longest_wait_s
        if task is None:
            self.figures.denials[reply.reason or "no_task"] += 1
            return min(self._pace.longest_wait_s, float(reply.retry_after_s) or self._pace.longest_wait_s)
        habit = self._habits.of(phone.position, task.step)
        self.figures.habits[habit] += 1
        if habit is not Habit.DROP_OUT:
            await self._send(phone, task, habit)
        return 0.0

    async def _send(self, phone: SwarmPhone, task: DeviceTask, habit: Habit) -> None:
        weights = await self._fetched(task.weights_digest, phone.position)
        values = await asyncio.to_thread(self._learned, phone.position, task, weights)
        contribution = phone.contribution(task, values)
        if habit is Habit.LIAR:
            contribution = lie(contribution, phone.position, task.step, self._habits.seed)
        if habit is Habit.STRAGGLER:
            await asyncio.sleep(max(0.0, task.expires - phone.fleet.now()) + LATE_S)
        request = upload(task.token, contribution)
        for _ in range(2 if habit is Habit.TWICE else 1):
            reply = pb.UploadReply.FromString(await self._resent(request, phone.position))
            self._note(phone, task, habit, reply)

    async def _resent(self, request: bytes, position: int) -> bytes:
        """Send an upload until it is answered: the same bytes are counted once."""
        for _ in range(20):
            try:
                return await self._links.call("Upload", request, position)
            except TransportFailed as error:
                self.figures.denials[f"upload: {error}"] += 1
                await asyncio.sleep(0.5)
        return pb.UploadReply(outcome=pb.UploadReply.OUTCOME_LATE).SerializeToString()

    def _note(self, phone: SwarmPhone, task: DeviceTask, habit: Habit, reply: pb.UploadReply) -> None:
        outcome = OUTCOME.get(reply.outcome, "unknown")
        self.figures.outcomes[habit, f"{outcome}: {reply.reason}" if reply.reason else outcome] += 1
        if reply.outcome == pb.UploadReply.OUTCOME_ACCEPTED:
            self.figures.accepted.setdefault((task.step, task.attempt), set()).add(phone.position)

    async def _my_turn(self) -> None:
        rate = self._pace.check_ins_a_second
        if rate is not None:
            async with self._turn:
                await asyncio.sleep(1.0 / rate)

    async def _fetched(self, digest: str, position: int) -> bytes:
        """Return a step's weights: one phone of the swarm fetches them for all."""
        if digest not in self._weights:
            self._weights = {**dict(list(self._weights.items())[-3:])}
            self._weights[digest] = asyncio.create_task(self._fetch(digest, position))
        try:
            return await asyncio.shield(self._weights[digest])
        except TransportFailed:
            self._weights.pop(digest, None)
            raise

    async def _fetch(self, digest: str, position: int) -> bytes:
        data = bytearray()
        while True:
            request = fetch(digest, len(data), FETCH_BYTES)
            reply = pb.FetchReply.FromString(await self._links.call("Fetch", request, position))
            data += reply.data
            if len(data) >= reply.total or not reply.data:
                break
        if not is_weights(bytes(data), digest):
            raise TransportFailed(f"Fetch: the gateway sent {len(data)} bytes that are not the weights of the task.")
        return bytes(data)

    def _learned(self, position: int, task: DeviceTask, weights: bytes) -> I64:
        with self._learning:  # the first phone of a step works out all of them
            return self._updates.of(position, task, weights)

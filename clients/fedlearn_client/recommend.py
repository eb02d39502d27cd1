"""Rankings, and what the owner chose from them.

A ranking made from app A's signals is A's data. So what goes into one is decided by the grants for exactly this purpose
and this recipient, the calling app; where there is none, the ranking is the one that the public catalogue gives, byte
for byte. Every caller takes the same path: without a grant the occasion is empty, and nothing else differs.

Private parameters of the phone play no part in a ranking: they were trained on streams that the recipient may have no
grant for.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from fedlearn.device.bundle import Bundle
from fedlearn.errors import CallerRefused, SignalRefused, WorkerFailed
from fedlearn.policy.document import DataType, Policy, PurposeKind
from fedlearn.proto import device_pb2 as pb
from fedlearn_client import limits
from fedlearn_client.buckets import Buckets
from fedlearn_client.consent import Consent
from fedlearn_client.hooks import Caller, ClockAndRng, ExampleIterator, Occasion, Role
from fedlearn_client.intake import Intake
from fedlearn_client.services.refusals import UnknownName
from fedlearn_client.store.streams import Stream, Streams

NOTHING: Final = Occasion((), (), "")
CATALOGUE_ONLY: Final = frozenset({"catalogue"})
_ATTEMPTS: Final = 3


class Ranker(Protocol):
    """The worker, as far as rankings need it (``reading.Reading``)."""

    def rank(self, bundle: Bundle, occasion: Occasion, sources: frozenset[str], count: int) -> Sequence[pb.RankedItem]:
        """Return the best ``count`` items, best first."""
        ...


@dataclass(frozen=True, slots=True)
class Source:
    """What a ranking may have used: a data type of an app."""

    app: str
    data_type: DataType


@dataclass(frozen=True, slots=True)
class Ranking:
    """What a caller gets.

    Args:
        id: random, for feedback.
        items: best first.
        used: for the phone maker's surface only.
    """

    id: bytes
    items: tuple[pb.RankedItem, ...] = field(repr=False)
    used: tuple[Source, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Recommender:
    """Ranks for callers, and takes their feedback.

    Args:
        policy: in force, or None.
        ranker_for: recommend purpose -> bundle that serves it; raises TrustError where none does now.
        consent: the owner's grants and the off switch.
        examples: what is known, by purpose and recipient.
        ranker: the worker.
        streams: for the feedback streams.
        intake: where feedback goes.
        buckets: how often an app may ask.
        memory: rankings that may still get feedback.
        clock_rng: time and ranking ids.
    """

    policy: Callable[[], Policy | None]
    ranker_for: Callable[[str], Bundle]
    consent: Consent
    examples: ExampleIterator
    ranker: Ranker
    streams: Streams
    intake: Intake
    buckets: Buckets
    memory: RankingMemory
    clock_rng: ClockAndRng

    def get(self, caller: Caller, purpose: str, count: int) -> Ranking:
        """Return a ranking for ``caller``.

        Args:
            caller: its app id is the recipient.
            purpose: a recommend purpose of the policy that lists the caller.
            count: 1..100.

        Raises:
            RateLimited: asked too often.
            CallerRefused: the policy lists no such purpose for this caller.
            BundleRefused: no live bundle serves the purpose.
            WorkerFailed: no ranking was made.

        Guarantee: what the owner or an app took back before the ranking is handed out is not in it. It is made again
        where that happened meanwhile, and after three tries from the public catalogue alone.
        """
        self.buckets.take(caller.app)
        self._require_recipient(caller, purpose)
        bundle = self.ranker_for(purpose)
        for attempt in range(1, _ATTEMPTS + 1):
            granted = self._granted(purpose, caller.app)
            try:
                ranking = self._ranked(bundle, caller, purpose, count, granted)
            except WorkerFailed:
                # whatever anybody takes back kills the worker; who asks must not learn of it by an error
                if attempt == _ATTEMPTS:
                    raise
                continue
            # remembered first and looked at then: what is taken back between the two forgets it
            if self._granted(purpose, caller.app) == granted:
                return ranking
            self.memory.drop(ranking.id)
        # somebody changes all the time what may be used: then nothing is
        return self._keep(caller, self.ranker.rank(bundle, NOTHING, CATALOGUE_ONLY, count), ())

    def _granted(self, purpose: str, app: str) -> tuple[bool, list[Stream]]:
        """Return what a ranking may be made from; equal again only if nothing of it was taken back in between."""
        return self.consent.owner().personal_off, self.consent.effective(purpose, app)

    def _ranked(
        self, bundle: Bundle, caller: Caller, purpose: str, count: int, granted: tuple[bool, list[Stream]]
    ) -> Ranking:
        """Rank with what is known now, and remember it."""
        personal_off, streams = granted
        occasion = self.examples.present(purpose, caller.app)
        sources = self.examples.sources(purpose, caller.app)
        if personal_off:
            occasion, sources = NOTHING, CATALOGUE_ONLY
        used = _used(streams, occasion) if caller.role is Role.SURFACE else ()
        return self._keep(caller, self.ranker.rank(bundle, occasion, sources, count), used)

    def _keep(self, caller: Caller, ranked: Sequence[pb.RankedItem], used: tuple[Source, ...]) -> Ranking:
        items = tuple(ranked)
        ranking_id = self.clock_rng.random_bytes(limits.RANKING_ID_BYTES)
        self.memory.keep(ranking_id, caller.app, tuple(one.item for one in items), self.clock_rng.monotonic())
        return Ranking(ranking_id, items, used)

    def feedback(self, caller: Caller, ranking_id: bytes, item: str) -> None:
        """Take in that the owner chose ``item`` from an earlier ranking: a choice of the calling app, if wanted.

        Raises:
            RateLimited: told too often.
            SignalRefused: no such ranking of this caller in the last hour, or the item was not in it.
            StoreFailed: nothing was kept.
        """
        self.buckets.take(caller.app)
        if len(ranking_id) != limits.RANKING_ID_BYTES:
            raise SignalRefused(f"ranking_id: must be the {limits.RANKING_ID_BYTES} bytes that Get returned.")
        items = self.memory.items(ranking_id, caller.app, self.clock_rng.monotonic())
        if items is None:
            raise UnknownName("ranking_id: no ranking of this app in the last hour; ask for a new one.")
        if item not in items:
            raise SignalRefused("item: was not in that ranking.")
        self.streams.register(caller.app, limits.FEEDBACK_STREAM, DataType.CHOICE)
        stream = self.streams.find(caller.app, limits.FEEDBACK_STREAM)
        signal = pb.Signal(
            id=f"{ranking_id.hex()}-{items.index(item)}",  # told twice, it counts once
            time_ms=round(self.clock_rng.now() * 1000.0),
            choice=pb.ChoiceSignal(item=item),
        )
        self.intake.take(stream, [signal])

    def _require_recipient(self, caller: Caller, purpose: str) -> None:
        policy = self.policy()
        purposes = () if policy is None else policy.purposes
        for one in purposes:
            if one.id == purpose and one.kind is PurposeKind.RECOMMEND and caller.app in one.recipients:
                return
        # one answer for all: an app need not learn what purposes others have
        raise CallerRefused("purpose: the policy in force lists no such recommend purpose for this caller.")


def _used(granted: Sequence[Stream], occasion: Occasion) -> tuple[Source, ...]:
    """Of the streams granted for this ranking, those that it can have used. Messages of an occasion name no app."""
    reporters = {one.app for one in occasion.earlier}
    used = {
        Source(stream.app, stream.data_type)
        for stream in granted
        if (stream.data_type is DataType.MESSAGE_CONTENT and occasion.said)
        or (stream.data_type is DataType.CHOICE and stream.app in reporters)
    }
    return tuple(sorted(used, key=lambda one: (one.app, one.data_type)))


@dataclass(slots=True)
class _Kept:
    app: str
    items: tuple[str, ...]
    until: float


class RankingMemory:
    """Rankings of the last hour, by id. In memory only: a restart forgets them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()  # oldest first

    def keep(self, ranking_id: bytes, app: str, items: tuple[str, ...], now: float) -> None:
        """Remember a ranking; the oldest of the app, or of all, makes room."""
        with self._lock:
            while self._kept and next(iter(self._kept.values())).until <= now:
                self._kept.popitem(last=False)
            own = [one for one, kept in self._kept.items() if kept.app == app]
            if len(own) >= limits.RANKINGS_PER_APP:
                del self._kept[own[0]]
            elif len(self._kept) >= limits.RANKINGS:
                self._kept.popitem(last=False)
            self._kept[ranking_id] = _Kept(app, items, now + limits.RANKING_TTL_S)

    def items(self, ranking_id: bytes, app: str, now: float) -> tuple[str, ...] | None:
        """Return the item keys of a ranking that ``app`` got in the last hour, or None."""
        with self._lock:
            kept = self._kept.get(ranking_id)
        return kept.items if kept is not None and kept.app == app and now < kept.until else None

    def drop(self, ranking_id: bytes) -> None:
        """Forget one ranking, if it is there."""
        with self._lock:
            self._kept.pop(ranking_id, None)

    def forget(self) -> None:
        """Forget all: after a withdrawal, what a ranking held says what it was made from."""
        with self._lock:
            self._kept.clear()

    def __len__(self) -> int:
        return len(self._kept)

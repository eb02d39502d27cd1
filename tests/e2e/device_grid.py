"""Every set of grants on one phone, and what its rankings and uploads must then be made of."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import device_world as worlds
import numpy as np

from fedlearn.features.index import CatalogueIndex
from fedlearn.features.ingest import make_query_from, read_message
from fedlearn.features.match import COLUMN, feature_mask, match_all
from fedlearn.proto import device_pb2 as pb
from fedlearn.proto import gateway_pb2, wire_pb2
from fedlearn.signals import Choice

CHAT, READING, SURFACE, MAPS = worlds.CHAT, worlds.READING, worlds.SURFACE, worlds.MAPS
SHOW, SHOW_MAPS = (worlds.town.RECOMMEND, SURFACE), (worlds.town.RECOMMEND, MAPS)
TRAIN = (worlds.town.TRAIN, worlds.town.OPERATOR)
FOUR = [(app, use) for use in (SHOW, TRAIN) for app in (CHAT, READING)]
SIX = [*FOUR, (CHAT, SHOW_MAPS), (READING, SHOW_MAPS)]

TEXTS = ((-2500.0, "今晚想吃川菜的麻辣火锅"), (-1000.0, "sushi with parking please"), (-500.0, "不要火锅, 便宜一点"))
CHOICES = ((-3000.0, 3), (-2000.0, 8))

Grant = tuple[str, tuple[str, str]]


def sets_of(switches: Sequence[Grant]) -> Iterator[frozenset[Grant]]:
    """Yield all 2^k sets."""
    for mask in range(2 ** len(switches)):
        yield frozenset(switch for bit, switch in enumerate(switches) if mask >> bit & 1)


class Grid:
    """One phone that is granted one set after another; all is taken back in between."""

    def __init__(self, phone: worlds.World, switches: Sequence[Grant]) -> None:
        self.phone, self.switches = phone, switches
        self.uploads: dict[frozenset[str], bytes] = {}
        self.rankings: dict[frozenset[str], bytes] = {}
        for app in (CHAT, READING):
            phone.register(app)

    def check(self, number: int, on: frozenset[Grant]) -> None:
        """Grant just these, let both apps push, and see what everybody gets."""
        for app, use in self.switches:
            if (app, use) in on:
                self.phone.grant(app, *use)
        self._push(number)
        kept = {app for app, _ in on}
        rows = sum((len(TEXTS) if app == CHAT else len(CHOICES)) for app in kept)
        assert self.phone.status().signals == rows, "kept though nothing may use it, or lost though something may"
        for recipient, use in ((SURFACE, SHOW), (MAPS, SHOW_MAPS)):
            self._check_ranking(recipient, frozenset(app for app, of in on if of == use))
        self._check_upload(number, frozenset(app for app, of in on if of == TRAIN))
        for app, use in on:
            assert self.phone.grant(app, *use, on=False).HasField("receipt")
        assert self.phone.status().signals == 0

    def _push(self, number: int) -> None:
        now, keys = worlds.NOW, worlds.items()
        self.phone.push(CHAT, *[worlds.said(text, f"{number}-{ago}", now + ago) for ago, text in TEXTS])
        self.phone.push(READING, *[worlds.chose(keys[item], f"{number}-{ago}", now + ago) for ago, item in CHOICES])

    def _check_ranking(self, recipient: str, sources: frozenset[str]) -> None:
        reply = self.phone.rank(recipient)
        used = {one.app for one in reply.used}
        assert used == (sources if recipient == SURFACE else set())
        plain = pb.GetReply(items=reply.items).SerializeToString(deterministic=True)
        assert self.rankings.setdefault(sources, plain) == plain, "other grants changed a ranking"
        assert [one.item for one in reply.items] == [item for item, _ in expected(sources)]
        scores = [one.score for one in reply.items]
        np.testing.assert_allclose(scores, [score for _, score in expected(sources)], atol=1e-4)

    def _check_upload(self, number: int, sources: frozenset[str]) -> None:
        gateway = self.phone.gateway
        gateway.run_id, gateway.step = f"run-{number}", 0
        before = len(gateway.requests)
        outcome = self.phone.train()
        if READING not in sources:  # without a choice there is nothing to learn from, and so nothing to ask for
            assert outcome == "refused: not_ready"
            assert len(gateway.requests) == before
            return
        assert outcome == "acknowledged"
        sent = gateway_pb2.UploadRequest.FromString(gateway.uploads()[-1])
        values = wire_pb2.Envelope.FromString(sent.contribution).contribution.values
        assert any(values)
        assert self.uploads.setdefault(sources, values) == values, "other grants changed an upload"


@lru_cache
def index() -> CatalogueIndex:
    """Of the town's catalogue."""
    return CatalogueIndex.build(worlds.town.catalogue())


@lru_cache
def expected(sources: frozenset[str]) -> list[tuple[str, float]]:
    """Items and scores of a ranking made of just these apps' signals, best first: from the words to the scores."""
    choices = [(ago, worlds.items()[item]) for ago, item in CHOICES] if READING in sources else []
    since = max((ago for ago, _ in choices), default=-86_400.0)
    texts = [text for ago, text in TEXTS if ago > since] if CHAT in sources else []
    said = [one for text in texts if (one := read_message(text, (), index())) is not None]
    query = make_query_from(said, [Choice(item, READING) for _, item in choices], index())
    names = {"catalogue"} | {{CHAT: "chat", READING: "choices"}[app] for app in sources}
    columns = [COLUMN[name] for name in worlds.town.FEATURE_NEEDS]
    granted = feature_mask(frozenset(names))[columns]
    rows = np.where(granted, match_all(query, index())[:, columns], np.float32(0))
    weights = np.array(struct.unpack(f"<{worlds.town.WIDTH}f", worlds.weights()), np.float32)
    scores: Any = rows @ weights
    keys = list(index().keys)
    return [(keys[place], float(scores[place])) for place in np.argsort(-scores, kind="stable")]


def check_all(switches: Sequence[Grant]) -> Grid:
    """Check every set of grants; return what was seen."""
    with worlds.world() as phone:
        grid = Grid(phone, switches)
        for number, on in enumerate(sets_of(switches)):
            grid.check(number, on)
        phone.gateway.require_lawful()
    subsets = {frozenset(), frozenset({CHAT}), frozenset({READING}), frozenset({CHAT, READING})}
    assert set(grid.rankings) == subsets
    assert len(set(grid.rankings.values())) == len(subsets), "a source that was granted changes no ranking"
    assert len(set(grid.uploads.values())) == len(grid.uploads) == 2, "a source that was granted changes no upload"
    return grid

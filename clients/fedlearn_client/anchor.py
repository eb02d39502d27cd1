"""What a phone knows of its own participations, as one value, and as the few kilobytes that outlive its store.

``History`` is what the rows of the store add up to. Its anchor, kept by the ``KeyStore``, is the same without the
oldest runs, whose cost is kept as a sum. A store that does not contain the anchor's row was wiped, restored or went
its own way: ``merged`` then takes the larger figure of both, so nothing that was ever sealed is forgotten.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import Any, Final

from fedlearn.errors import StoreFailed
from fedlearn_client import zcdp

MAX_BYTES: Final = 14 * 1024
"""Of the 16 KiB that a KeyStore holds; ``shared_anchor`` has the rest."""

MOST_RUNS: Final = 100
VERSION: Final = 1
DIGEST_BYTES: Final = 32
NO_STEP: Final = -1

_FIELDS: Final = frozenset(
    {"version", "counter", "head", "epoch", "waiting", "incomplete", "closed", "taken", "time", "runs"}
)


@dataclass(frozen=True, slots=True)
class RunHistory:
    """One phone in one run.

    Args:
        terms: digest of what every task of the run must say.
        count: participations that were charged, those assumed of a life before included.
        taken: participations of this life.
        barrier: the next step must be at least b after this one; ``NO_STEP`` where nothing holds it back.
        assumed: the barrier is not a participation, but the step in which history was found missing.
        rho: zCDP of ``count`` participations.
        epoch: of the history when the run was last seen; an earlier one than the history's must be seen again.
        sure: whether ``count`` is known to be no lower than the truth.
        order: row of the last change.
    """

    terms: str
    count: int
    taken: int
    barrier: int
    assumed: bool
    rho: float
    epoch: int
    sure: bool
    order: int


@dataclass(frozen=True, slots=True)
class History:
    """All runs.

    Args:
        counter: rows of the store that it adds up.
        head: digest of the last of them; before the first, a random value of this phone.
        epoch: rises when history was lost or the clock moved: each run must then be seen again, and b steps waited.
        waiting: no participation since then.
        incomplete: there may be participations in runs that are not listed.
        closed: zCDP of runs no longer listed.
        taken: participations in runs no longer listed.
        time: latest time that is believed to have been, seconds since the Unix epoch.
        runs: key of the run -> what is known of it.
    """

    counter: int
    head: bytes
    epoch: int
    waiting: bool
    incomplete: bool
    closed: float
    taken: int
    time: float
    runs: dict[str, RunHistory]

    def rho(self, changed: tuple[str, float] | None = None) -> float:
        """Return the zCDP of all runs together, rounded up; with one run's replaced, if ``changed`` names it."""
        parts = {key: run.rho for key, run in self.runs.items()}
        if changed is not None:
            parts[changed[0]] = changed[1]
        return zcdp.total([self.closed, *parts.values()])

    def participations(self) -> int:
        """Return the participations of this life."""
        return self.taken + sum(run.taken for run in self.runs.values())

    def assumed(self) -> int:
        """Return the participations that were charged because they may have been, in a life before."""
        return sum(run.count - run.taken for run in self.runs.values() if run.rho > 0)


def beginning(root: bytes) -> History:
    """Return the history of a phone without one; ``root`` is random, so that no two phones have the same."""
    return History(0, root, 0, False, False, 0.0, 0, 0.0, {})


def to_anchor(history: History) -> bytes:
    """Return at most ``MAX_BYTES``: the newest runs, and the sum of the others."""
    newest = sorted(history.runs, key=lambda key: (history.runs[key].order, key), reverse=True)
    kept = MOST_RUNS
    while True:
        listed, summed = newest[:kept], newest[kept:]
        shortened = replace(
            history,
            incomplete=history.incomplete or bool(summed),
            closed=zcdp.total([history.closed, *(history.runs[key].rho for key in summed)])
            if summed
            else history.closed,
            taken=history.taken + sum(history.runs[key].taken for key in summed),
            runs={key: history.runs[key] for key in listed},
        )
        data = to_json(shortened).encode("ascii")
        if len(data) <= MAX_BYTES:
            return data
        kept = len(listed) * 3 // 4


def to_json(history: History) -> str:
    """Return canonical JSON; floats in hexadecimal, so that any reader gets the same number."""
    body = {
        "version": VERSION,
        "counter": history.counter,
        "head": history.head.hex(),
        "epoch": history.epoch,
        "waiting": history.waiting,
        "incomplete": history.incomplete,
        "closed": history.closed.hex(),
        "taken": history.taken,
        "time": history.time.hex(),
        "runs": {
            key: [
                run.terms,
                run.count,
                run.taken,
                run.barrier,
                run.assumed,
                run.rho.hex(),
                run.epoch,
                run.sure,
                run.order,
            ]
            for key, run in history.runs.items()
        },
    }
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def from_json(text: str | bytes) -> History | None:
    """Read a history back; None where the bytes are damaged.

    Raises:
        StoreFailed: a newer version of the runtime wrote it: an older one must not go on from less than it knows.
    """
    try:
        body = json.loads(text)
        if body["version"] > VERSION:
            raise StoreFailed("anchor: written by a newer version of the runtime; update it.")
        if body["version"] != VERSION or set(body) != _FIELDS:
            return None
        return History(
            counter=_count(body["counter"]),
            head=_digest(body["head"]),
            epoch=_count(body["epoch"]),
            waiting=_flag(body["waiting"]),
            incomplete=_flag(body["incomplete"]),
            closed=_figure(body["closed"]),
            taken=_count(body["taken"]),
            time=_figure(body["time"]),
            runs={key: _run(values) for key, values in body["runs"].items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def merged(anchor: History | None, store: History) -> History:
    """Return what is certainly no less than the truth, after the two were found to disagree.

    Every sealed participation is in the anchor, unless its run is among those that are only summed; every uploaded one
    was sealed. So the anchor's figures stand, a larger one of the store replaces them, and a run that only the store
    knows may have gone on after the copy was made: it is not sure, and is judged by the step it is next seen in.

    Without an anchor everything in the store is such a run, and there may be others.
    """
    known = beginning(bytes(DIGEST_BYTES)) if anchor is None else anchor
    runs = {key: replace(run, sure=False) for key, run in store.runs.items()}
    for key, run in known.runs.items():
        other = runs.get(key)
        runs[key] = run if other is None else _larger(run, other)
    return replace(
        known,
        epoch=max(known.epoch, store.epoch) + 1,
        waiting=True,
        incomplete=anchor is None or anchor.incomplete or store.incomplete,
        closed=max(known.closed, store.closed),
        taken=max(known.taken, store.taken),
        time=max(known.time, store.time),
        runs=runs,
    )


def _larger(run: RunHistory, other: RunHistory) -> RunHistory:
    return replace(
        run,
        count=max(run.count, other.count),
        taken=max(run.taken, other.taken),
        barrier=max(run.barrier, other.barrier),
        rho=max(run.rho, other.rho),
    )


def _run(values: Any) -> RunHistory:
    terms, count, taken, barrier, assumed, rho, epoch, sure, order = values
    if not isinstance(terms, str):
        raise TypeError("terms")
    return RunHistory(
        terms=terms,
        count=_count(count),
        taken=_count(taken),
        barrier=NO_STEP if barrier == NO_STEP else _count(barrier),
        assumed=_flag(assumed),
        rho=_figure(rho),
        epoch=_count(epoch),
        sure=_flag(sure),
        order=_count(order),
    )


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("count")
    return value


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise TypeError("flag")
    return value


def _figure(value: Any) -> float:
    figure = float.fromhex(value)
    if not (math.isfinite(figure) and figure >= 0):
        raise ValueError("figure")
    return figure


def _digest(value: Any) -> bytes:
    digest = bytes.fromhex(value)
    if len(digest) != DIGEST_BYTES:
        raise ValueError("digest")
    return digest

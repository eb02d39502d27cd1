"""A phone that is killed at any moment of ingest, training, upload and withdrawal, and what is asked of the remains.

What the phone called durable is remembered here: signals whose push was acknowledged, withdrawals that returned, and,
by the gateway outside, every byte that left. Signals are told apart by their times, each of which is used once.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import device_canary as canary
import device_world as worlds

from fedlearn.proto import gateway_pb2
from fedlearn_client.hooks import Method
from fedlearn_client.linux.clock import LinuxClock
from fedlearn_client.receipts import Receipt, verify_receipt
from fedlearn_client.store.signals import SignalStore
from fedlearn_client.store.streams import Streams

CHAT, READING = worlds.CHAT, worlds.READING
APPS = (CHAT, READING)
TRAIN = (worlds.town.TRAIN, worlds.town.OPERATOR)
SHOW = (worlds.town.RECOMMEND, worlds.SURFACE)
BATCH = 7


@dataclass
class Kept:
    """What must be, may be and must not be there of one app.

    Args:
        sure: times of acknowledged signals.
        perhaps: pushes that were under way when the phone died: each is there whole, or not at all.
        gone: times of what was destroyed.
    """

    sure: set[float] = field(default_factory=set)
    perhaps: list[set[float]] = field(default_factory=list)
    gone: set[float] = field(default_factory=set)

    def destroyed(self) -> None:
        """Nothing of this may be seen again."""
        self.gone |= self.sure.union(*self.perhaps)
        self.sure, self.perhaps = set(), []


class Killer:
    """Lets a phone live, kills it, and looks.

    Args:
        phone: a daemon in a process of its own, its scheduler running.
        chance: when, and what.
    """

    def __init__(self, phone: worlds.World, chance: random.Random) -> None:
        self.phone, self.chance = phone, chance
        self.kept = {app: Kept() for app in APPS}
        self.on: dict[tuple[str, tuple[str, str]], bool] = {}
        self.unsure: list[tuple[str, tuple[str, str]]] = []
        self.receipts = 0
        self.seen: Counter[str] = Counter()
        self.forbidden: dict[bytes, int] = {}  # tokens from before a withdrawal -> uploads so far when it returned
        self.silent_since: int | None = None  # uploads so far when nothing was left granted for training
        self._number = 0
        self._died = threading.Event()
        self.children: set[int] = set()
        for app in APPS:
            phone.register(app)
            self.grant(app, TRAIN)

    # -- what the owner and the apps do ------------------------------------------------------------------------------

    def grant(self, app: str, use: tuple[str, str]) -> None:
        """Grant, or grant again."""
        self.silence_kept()
        self.silent_since = None
        self.phone.grant(app, *use)
        self.on[app, use] = True

    def push(self, app: str) -> None:
        """Push signals of times that were never used, and remember them as soon as they are acknowledged."""
        times = [worlds.NOW - 20 * 3600.0 + 0.25 * (self._number + number) for number in range(BATCH)]
        self._number += BATCH
        keys = worlds.items()
        signals = [
            worlds.said(f"想吃川菜的麻辣火锅 {at}", f"{at}", at)
            if app == CHAT
            else worlds.chose(self.chance.choice(keys), f"{at}", at)
            for at in times
        ]
        kept = self.kept[app]
        kept.perhaps.append(set(times))
        self.phone.push(app, *signals)
        kept.sure |= kept.perhaps.pop()

    def withdraw(self, app: str, use: tuple[str, str]) -> None:
        """Take back; once it has returned, what it alone allowed is gone."""
        self.unsure.append((app, use))
        reply = self.phone.grant(app, *use, on=False)
        self.unsure.pop()
        self.taken_back(app, use)
        self.receipts += reply.HasField("receipt")

    def taken_back(self, app: str, use: tuple[str, str]) -> None:
        """A use is over."""
        self.on[app, use] = False
        if not any(on for (of, _), on in self.on.items() if of == app):
            self.kept[app].destroyed()
        if use == TRAIN:
            uploads = len(self.phone.gateway.uploads())
            self.forbidden = dict.fromkeys(self.phone.gateway.tasks, uploads) | self.forbidden
        if not any(on for (_, of), on in self.on.items() if of == TRAIN):
            self.silent_since = len(self.phone.gateway.uploads())

    # -- killing -------------------------------------------------------------------------------------------------------

    def in_ingest(self) -> None:
        """Kill while apps push."""
        self._strike_during(lambda: self.push(self.chance.choice(APPS)), repeat=True)

    def in_training(self) -> None:
        """Kill while a round runs."""
        self._next_step()
        self._strike_during(self.phone.train)

    def in_upload(self) -> None:
        """Kill around the moment in which an upload arrives: before the phone hears of it, or a little later."""
        self._next_step()
        self.phone.gateway.step += worlds.SEPARATION
        arrived, before = threading.Event(), self.chance.random() < 0.5

        def on_upload() -> None:
            if before:
                self._strike()
            arrived.set()

        self.phone.gateway.on_upload = on_upload
        with self._under_way(self.phone.train) as working:
            while working.is_alive() and not arrived.wait(0.01):
                pass
            time.sleep(self.chance.uniform(0.0, 0.02))
            self._strike()
        self.phone.gateway.on_upload = lambda: None
        self.seen["uploads caught"] += arrived.is_set()

    def in_withdrawal(self) -> None:
        """Kill while grants are taken back, one that leaves the stream another use among them."""
        self._let_it_finish()
        if self.chance.random() < 0.4:
            self.grant(CHAT, SHOW)
        uses = [use for use, on in self.on.items() if on]
        self.chance.shuffle(uses)

        def all_of_them() -> None:
            for app, use in uses:
                self.withdraw(app, use)

        self._strike_during(all_of_them)

    def _next_step(self) -> None:
        """The run goes on: by enough steps, too few, or none; the tenth time there is another run."""
        gateway = self.phone.gateway
        gateway.step += self.chance.choice([0, 1, worlds.SEPARATION - 1, worlds.SEPARATION, worlds.SEPARATION + 3])
        gateway.attempt += 1
        if len(gateway.participations().get(gateway.run_id, [])) >= worlds.MOST or self.chance.random() < 0.1:
            gateway.run_id, gateway.step = f"run-{self._number}-{self.chance.random()}", 0

    def _strike_during(self, work: Callable[[], object], repeat: bool = False) -> None:
        wait = self.chance.uniform(0.0, 0.9) if repeat else self.chance.choice([0.05, 0.2, 0.6]) * self.chance.random()
        with self._under_way(work, repeat):
            time.sleep(wait)
            self._strike()

    def _strike(self) -> None:
        self._died.set()
        with contextlib.suppress(OSError):  # it may be dead already
            self.children |= set(canary.children(self.phone.pid))
        self.phone.strike()

    def _let_it_finish(self) -> None:
        """What was left by the last death leaves now, or not at all before the next start."""
        for _ in range(100):
            entries = self.phone.call(worlds.SETTINGS, "Audit/Egress").entries
            if not any(one.method == Method.UPLOAD and one.state in {"prepared", "sent"} for one in entries):
                return
            time.sleep(0.02)

    @contextlib.contextmanager
    def _under_way(self, work: Callable[[], object], repeat: bool = False) -> Iterator[threading.Thread]:
        self._died.clear()
        working = threading.Thread(target=self._work, args=(work, repeat))
        self.children = set(canary.children(self.phone.pid))
        working.start()
        yield working
        working.join(60)
        assert not working.is_alive()
        self.phone.kill()

    def _work(self, work: Callable[[], object], repeat: bool) -> None:
        with contextlib.suppress(worlds.Refused, ValueError):
            work()
            while repeat and not self._died.is_set():
                work()

    # -- looking -------------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Ask everything of what the dead phone left, start it again, ask the rest, and let the owner agree anew."""
        self._orphans_end()
        self._look_at_the_store()
        self.phone.gateway.require_lawful()
        if self.chance.random() < 0.3:
            self.phone.start(wait=False)
            time.sleep(self.chance.uniform(0.0, 0.5))
            self.phone.kill()
            self.seen["killed while it started"] += 1
        self.phone.start()
        self._look_at_the_phone()
        for app in APPS:
            if not self.on[app, TRAIN]:
                self.grant(app, TRAIN)

    def _orphans_end(self) -> None:
        deadline = time.monotonic() + 15.0
        while any(_lives(child) for child in self.children):
            assert time.monotonic() < deadline, "a worker outlives its daemon"
            time.sleep(0.02)

    def _look_at_the_store(self) -> None:
        with self.phone.opened_copy() as (database, keystore):
            self._settle_what_was_under_way(database)
            here = _readable(database, keystore)
            for app, kept in self.kept.items():
                found = here.get(app, set())
                assert kept.sure <= found, f"{app}: an acknowledged signal is lost"
                assert not kept.gone & found, f"{app}: resurrected"
                for batch in kept.perhaps:
                    assert not batch & found or batch <= found, f"{app}: half a push is there"
                    self.seen["pushes kept unheard" if batch & found else "pushes lost unheard"] += 1
                kept.sure |= set().union(*(batch & found for batch in kept.perhaps))
                kept.perhaps.clear()
                assert found == kept.sure, f"{app}: more is there than was pushed"
            self._compare_what_left(database)

    def _settle_what_was_under_way(self, database: Any) -> None:
        """A withdrawal that did not return has happened, or it has not: the grant says which."""
        for app, use in self.unsure:
            row = database.rows("SELECT is_on FROM grants WHERE app = ? AND purpose = ? AND recipient = ?", (app, *use))
            if not row[0][0]:
                self.taken_back(app, use)
            self.seen["withdrawals unheard" if not row[0][0] else "withdrawals that never began"] += 1
        self.unsure.clear()
        self.seen["withdrawals half done"] += database.rows("SELECT count(*) FROM withdrawals WHERE finished IS NULL")[
            0
        ][0]

    def _compare_what_left(self, database: Any) -> None:
        logged = {bytes(digest) for (digest,) in database.rows("SELECT sha256 FROM egress")}
        for seen in list(self.phone.gateway.requests):
            assert hashlib.sha256(seen.body).digest() in logged, f"{seen.method}: left without an entry"
        charged = database.rows("SELECT run_id, step FROM participations WHERE kind = 'participation'")
        assert len(charged) == len(set(charged)), "charged twice"
        sent = {(run, step) for run, steps in self.phone.gateway.participations().items() for step in steps}
        assert sent <= set(charged), "an upload that was not charged"
        for state, count in database.rows(
            "SELECT state, count(*) FROM egress WHERE method = ? GROUP BY state", ("Upload",)
        ):
            self.seen[f"most uploads {state}"] = max(self.seen[f"most uploads {state}"], count)

    def _look_at_the_phone(self) -> None:
        phone = self.phone
        grants = phone.call(worlds.SETTINGS, "Consent/List").grants
        found = {(one.app, (one.purpose, one.recipient)): one.on for one in grants}
        assert {use: found[use] for use in self.on} == self.on
        assert phone.status().signals == sum(len(kept.sure) for kept in self.kept.values())
        receipts = phone.call(worlds.SETTINGS, "Audit/Receipts").receipts
        for one in receipts:
            verify_receipt(Receipt(one.statement, one.signature, one.public_key))
        assert len(receipts) >= self.receipts, "a receipt is lost"
        budget = phone.call(worlds.SETTINGS, "Audit/Budget")
        assert budget.participations >= sum(map(len, phone.gateway.participations().values()))
        assert not budget.history_lost
        self.silence_kept()

    def silence_kept(self) -> None:
        """Nothing leaves that came from what was taken back; nothing at all while nothing is granted."""
        uploads = self.phone.gateway.uploads()
        if self.silent_since is not None:
            assert len(uploads) == self.silent_since, "an upload after everything was taken back"
        for number, body in enumerate(uploads):
            token = gateway_pb2.UploadRequest.FromString(body).token
            assert number < self.forbidden.get(token, len(uploads)), "an upload from before a withdrawal"

    def finish(self) -> None:
        """Wait until nothing waits, train once more, and look a last time."""
        self.silence_kept()
        self._next_step()
        self.phone.gateway.step += worlds.SEPARATION
        self.phone.train()
        self.phone.gateway.require_lawful()


def _readable(database: Any, keystore: Any) -> dict[str, set[float]]:
    """Times of the signals that can be read, opened with their keys, by app."""
    streams = Streams(database, keystore, LinuxClock())
    signals = SignalStore(database, streams, LinuxClock())
    found: dict[str, set[float]] = {}
    for (catalogue,) in database.rows("SELECT DISTINCT catalogue FROM signals"):
        for one in signals.read([stream.id for stream in streams.all()], 0.0, worlds.NOW * 2, catalogue):
            found.setdefault(one.app, set()).add(one.time)
    signals.close()
    return found


def _lives(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


KINDS = ("in_ingest", "in_training", "in_upload", "in_withdrawal")


def kill_often(kills: int, seed: int, kinds: Sequence[str] = KINDS, sabotage: str = "") -> Killer:
    """Kill a phone ``kills`` times, each kind in turn; return what was seen."""
    with worlds.world(inside=False, settings={"train": True}, sabotage=sabotage) as phone:
        killer = Killer(phone, random.Random(seed))
        for number in range(kills):
            for app in APPS:
                killer.push(app)
            kind = kinds[number % len(kinds)]
            getattr(killer, kind)()
            killer.look()
            killer.seen[kind] += 1
        killer.finish()
        uploads = phone.gateway.uploads()
        killer.seen["uploads sent again"] = len(uploads) - len(set(uploads))
        assert phone.stderr() == ""
    return killer

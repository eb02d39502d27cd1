"""A phone, its owner, its thief and a server that lies, in any order, beside the truth: what was really uploaded.

The truth keeps every contribution that left, of every life of the phone. It knows nothing of how the phone keeps its
ledger, and computes cost with ``fedlearn.privacy``.

What the phone cannot know is left out on purpose: after a factory reset the server's steps do not go back to before
it, nor do runs of before change their terms, and it does not happen in a run's step 0 (docs/device-budget.md). The same
where the store is lost and the anchor does not name the run.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import random
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from fedlearn.errors import StoreFailed, TaskRefused
from fedlearn.privacy.factorization import INDEPENDENT, Blt, Toeplitz, Tree
from fedlearn.privacy.gaussian import zcdp_epsilon
from fedlearn.privacy.sensitivity import squared_sensitivity
from fedlearn_client import anchor

_spec = importlib.util.spec_from_file_location("phone_history", Path(__file__).parents[1] / "unit" / "phone_history.py")
world = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = world
_spec.loader.exec_module(world)

DELTA = world.CAPS.delta
KINDS = (
    world.terms(steps=60, min_separation=3, max_participations=6),
    world.terms(steps=40, min_separation=1, max_participations=3, noise_multiplier=1.0),
    world.terms(
        kind="blt", factorization=Blt((0.9, 0.5), (0.3, 0.2)), steps=90, min_separation=5, max_participations=9
    ),
    world.terms(
        kind="banded", factorization=Toeplitz((1.0, 0.5, 0.25)), steps=80, min_separation=4, max_participations=12
    ),
    world.terms(
        kind="tree", factorization=Tree(), steps=50, min_separation=2, max_participations=5, noise_multiplier=4.0
    ),
    world.terms(kind="independent", factorization=INDEPENDENT, steps=50, min_separation=10, max_participations=1),
)
SHORT = (
    world.terms(steps=30, min_separation=2, max_participations=2),
    world.terms(steps=30, min_separation=3, max_participations=1),
)
SLOTS = 3
COPIES = 4
DAY = 86_400.0
JUMPS = (-400 * DAY, -3 * DAY, -3600.0, -300.0, 300.0, 3600.0, 3 * DAY, 9000 * DAY)

LIES = ("none", "none", "none", "back", "other_terms", "replay")
CRASHES = ("none", "none", "none", "none", "before_commit", "before_seal", "seal_fails", "after_seal")


def forgets_none() -> bool:
    """Whether the anchor names every run that a short life has."""
    return anchor.MOST_RUNS > 10


@dataclass
class Truth:
    """What really left, and since when the phone can know it."""

    uploads: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    this_life: set[bytes] = field(default_factory=set)

    def steps(self, run: int) -> list[int]:
        return sorted(step for name, step in self.uploads.values() if name == run)

    def rho(self, terms: list[Any]) -> float:
        """zCDP of this life's uploads, by the library."""
        counts = Counter(self.uploads[nonce][0] for nonce in self.this_life)
        return sum(
            squared_sensitivity(terms[run].factorization, terms[run].steps, terms[run].min_separation, count)
            / (2 * terms[run].noise_multiplier ** 2)
            for run, count in counts.items()
        )


class PhoneMachine(RuleBasedStateMachine):
    """One phone; three runs at a time."""

    events: ClassVar[Counter[str]] = Counter()
    kinds = KINDS

    @initialize(
        cap=st.sampled_from([6.0, 12.0, 1e9, 1e9]),
        kinds=st.lists(st.integers(0, 100), min_size=SLOTS, max_size=SLOTS),
        nights=st.lists(st.integers(0, 2), min_size=SLOTS, max_size=SLOTS),
    )
    def begin(self, cap: float, kinds: list[int], nights: list[int]) -> None:
        self.caps = replace(world.CAPS, epsilon=cap)
        self.phone = world.Phone()
        self.truth = Truth()
        self.now = world.NOW
        self.terms: list[Any] = []
        self.step: list[int] = []
        self.least: list[int] = []
        self.slots = list(range(SLOTS))
        self.copies = [world.EMPTY]
        self.tasks: list[Any] = []
        self.granted = True
        for slot, (kind, count) in enumerate(zip(kinds, nights, strict=True)):
            self.a_run_begins(slot=slot, kind=kind)
            self.good_nights(slot=slot, nights=count, early=False)

    @rule(slot=st.integers(0, SLOTS - 1), kind=st.integers(0, 100))
    def a_run_begins(self, slot: int, kind: int) -> None:
        """In place of another, of which old tasks may come again."""
        self.slots[slot] = len(self.terms)
        self.terms.append(self.kinds[kind % len(self.kinds)])
        self.step.append(0)
        self.least.append(0)

    @rule(slot=st.integers(0, SLOTS - 1), by=st.integers(1, 12))
    def the_server_goes_on(self, slot: int, by: int) -> None:
        run = self.slots[slot]
        self.step[run] = min(self.step[run] + by, self.terms[run].steps - 1)
        self._time_passes(3600.0)

    @rule(
        slot=st.integers(0, SLOTS - 1),
        lie=st.sampled_from(LIES),
        crash=st.sampled_from(CRASHES),
        pick=st.integers(0, 1000),
        disk=st.integers(0, 9),
    )
    def check_in(self, slot: int, lie: str, crash: str, pick: int, disk: int) -> None:
        self.events["check-ins"] += 1
        if not self.granted:
            return
        asked = self._task(self.slots[slot], lie, pick)
        try:
            self.phone.ledger.notice_time(self.phone.clock.now(), self.now)
            admission = self.phone.admit(asked, self.caps)
            self._take_part(asked, admission, crash, disk)
        except TaskRefused as refused:
            self.events[refused.reason.value] += 1
        self._check()

    @rule(slot=st.integers(0, SLOTS - 1), nights=st.integers(1, 3), early=st.booleans())
    def good_nights(self, slot: int, nights: int, early: bool) -> None:
        """Honest rounds, every b steps, or every b - 1."""
        self.phone.clock.time, self.granted = self.now, True
        for _ in range(nights):
            self.check_in(slot=slot, lie="none", crash="none", pick=0, disk=0)
            self.the_server_goes_on(slot=slot, by=max(1, self.terms[self.slots[slot]].min_separation - early))

    @rule(slot=st.integers(0, SLOTS - 1))
    def a_round_is_undone_before_it_was_sealed(self, slot: int) -> None:
        """Killed between commit and seal; the copy made just before comes back, and the other is kept."""
        if not self.granted:
            return
        asked = self._task(self.slots[slot], "none", 0)
        try:
            self.phone.ledger.notice_time(self.phone.clock.now(), self.now)
            admission = self.phone.admit(asked, self.caps)
            before = self.phone.store.image()
            self._commit(asked, admission)
        except TaskRefused:
            return
        self.copies = [*self.copies, self.phone.store.image()][-COPIES:]
        self._start(None, before)

    @rule(disk=st.integers(0, 9))
    def a_new_process(self, disk: int) -> None:
        self._start(disk)

    @rule()
    def a_copy_of_the_store(self) -> None:
        self.copies = [*self.copies, self.phone.store.image()][-COPIES:]

    @rule()
    def the_store_is_wiped(self) -> None:
        self._start(None, world.EMPTY)

    @rule(pick=st.integers(0, COPIES))
    def an_older_copy_comes_back(self, pick: int) -> None:
        self._start(None, self.copies[pick % len(self.copies)])

    @rule(pick=st.integers(0, COPIES))
    def an_older_copy_comes_back_and_nobody_starts_it(self, pick: int) -> None:
        self.phone.store.close()
        self.phone.store = world.PlainStore(self.copies[pick % len(self.copies)])
        self._start(0)

    @rule()
    def a_factory_reset(self) -> None:
        self.phone.keystore = world.FaultyKeyStore()
        self._new_life()
        self.step = [max(step, 1) for step in self.step]
        self.least = list(self.step)
        self._start(None, world.EMPTY)

    @rule(damaged=st.booleans())
    def the_anchor_is_lost(self, damaged: bool) -> None:
        self.phone.keystore._anchor = b"damaged" if damaged else None
        self._new_life()
        self.least = list(self.step)
        if not damaged and not self.phone.store.rows("SELECT 1 FROM participations"):
            self.step = self.least = [max(step, 1) for step in self.step]  # that is a factory reset
        self._start(0)

    @rule(seconds=st.sampled_from(JUMPS))
    def the_clock_jumps(self, seconds: float) -> None:
        self.phone.clock.time += seconds

    @rule()
    def the_clock_is_set_right(self) -> None:
        self.phone.clock.time = self.now

    @rule()
    def consent_is_withdrawn_and_given(self) -> None:
        self.granted = True

    @rule()
    def consent_is_withdrawn_or_given(self) -> None:
        self.granted = not self.granted

    def _time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.phone.clock.time += seconds

    def _task(self, run: int, lie: str, pick: int) -> Any:
        step, terms = self.step[run], self.terms[run]
        if lie == "replay" and self.tasks:
            asked = self.tasks[pick % len(self.tasks)]
            if asked.step >= self.least[int(asked.run_id)]:
                return asked
        if lie == "back":
            step = self.least[run] + pick % (step - self.least[run] + 1)
        if lie == "other_terms" and self._remembers(run):
            terms = replace(terms, noise_multiplier=terms.noise_multiplier * 4, min_separation=1)
        asked = world.task(step, str(run), terms, token=os.urandom(16))
        self.tasks = [*self.tasks, asked][-10:]
        return asked

    def _remembers(self, run: int) -> bool:
        """Whether the phone must know the run's terms: it took part in this life, and the anchor names enough runs."""
        here = {self.truth.uploads[nonce][0] for nonce in self.truth.this_life}
        return run in here and forgets_none()

    def _take_part(self, asked: Any, admission: Any, crash: str, disk: int) -> None:
        before = self.phone.store.image() if crash == "seal_fails" else b""
        try:
            self._commit(asked, admission, fails=crash == "before_commit")
        except ZeroDivisionError:
            self._start(disk)
            return
        if crash == "before_seal":
            self._start(disk)
            return
        if crash == "seal_fails":
            self.phone.keystore.fails = True
            try:
                self._resume()
            except StoreFailed:
                self.events["seal failed"] += 1
            self.phone.keystore.fails = False
            if disk >= 5:
                self._start(None, before)
            return
        if crash == "after_seal":
            self.phone.ledger.seal()
            self._start(disk)
            return
        self._resume()

    def _commit(self, asked: Any, admission: Any, fails: bool = False) -> None:
        with self.phone.store.transaction() as connection:
            self.phone.ledger.record(admission, asked, connection)
            connection.execute(
                "INSERT INTO egress (time, method, purpose, recipient, run_id, step, size, sha256, state, body,"
                " expires) VALUES (0, 'Upload', '', '', ?, ?, 16, x'', 'prepared', ?, 9e9)",
                (asked.run_id, asked.step, os.urandom(16)),
            )
            if fails:
                raise ZeroDivisionError

    def _resume(self) -> None:
        """Upload what was prepared, as ``LocalRound`` does: sealed first."""
        self.phone.ledger.seal()
        for number, run_id, step, nonce in self.phone.store.rows(
            "SELECT id, run_id, step, body FROM egress WHERE state = 'prepared'"
        ):
            with self.phone.store.transaction() as connection:
                connection.execute("UPDATE egress SET state = 'sent' WHERE id = ?", (number,))
            if nonce not in self.truth.uploads:
                self.events["uploads"] += 1
            self.truth.uploads[nonce] = (int(run_id), step)
            self.truth.this_life.add(nonce)

    def _start(self, disk: int | None, image: bytes | None = None) -> None:
        """Kill the process; start another over the same disk, or an older copy of it, or over ``image``."""
        if disk is not None and disk >= 7:
            here = self.phone.store.image()
            image = self.copies[disk % len(self.copies)]
            self.copies = [*self.copies, here][-COPIES:]
        self.phone.start(image)
        if not forgets_none():  # the oldest runs may be gone from store and anchor, as after a factory reset
            self.least = list(self.step)
        self.events["lost"] += self.phone.ledger.spent().history_lost
        self._resume()
        self._check()

    def _new_life(self) -> None:
        self.truth.this_life = set()

    def _check(self) -> None:
        for run, terms in enumerate(self.terms):
            steps = self.truth.steps(run)
            assert len(steps) <= terms.max_participations, f"{steps}: over k={terms.max_participations}"
            for earlier, later in pairwise(steps):
                assert later - earlier >= terms.min_separation, f"{steps}: b={terms.min_separation}"
        rho = self.truth.rho(self.terms)
        assert zcdp_epsilon(rho, DELTA) <= self.caps.epsilon, "over the cap"
        assert self.phone.ledger.spent().rho >= rho, "the phone's account is below the truth"

    def teardown(self) -> None:
        if hasattr(self, "phone"):
            self.phone.store.close()


WEIGHTS = {
    "good_nights": 8,
    "check_in": 8,
    "the_server_goes_on": 2,
    "a_run_begins": 5,
    "a_round_is_undone_before_it_was_sealed": 1,
    "a_new_process": 1,
    "a_copy_of_the_store": 3,
    "the_store_is_wiped": 0.5,
    "an_older_copy_comes_back": 2,
    "an_older_copy_comes_back_and_nobody_starts_it": 0.5,
    "a_factory_reset": 0.5,
    "the_anchor_is_lost": 0.5,
    "the_clock_jumps": 0.3,
    "the_clock_is_set_right": 1,
    "consent_is_withdrawn_or_given": 0.5,
}


def wander(seed: int, steps: int) -> None:
    """Do ``steps`` of the machine's rules by weighted chance: faster than hypothesis, and less fond of disasters."""
    chance = random.Random(seed)
    machine = PhoneMachine()
    try:
        machine.begin(chance.choice([8.0, 16.0, 1e9, 1e9]), [chance.randrange(100) for _ in range(SLOTS)], [1] * SLOTS)
        for name in chance.choices(list(WEIGHTS), list(WEIGHTS.values()), k=steps):
            arguments = {
                "slot": chance.randrange(SLOTS),
                "nights": chance.randint(1, 3),
                "early": chance.random() < 0.3,
                "by": chance.randint(1, 12),
                "kind": chance.randrange(100),
                "lie": chance.choice(LIES),
                "crash": chance.choice(CRASHES),
                "pick": chance.randrange(1000),
                "disk": chance.randrange(10),
                "damaged": chance.random() < 0.5,
                "seconds": chance.choice(JUMPS),
            }
            called = getattr(machine, name)
            called(**{key: value for key, value in arguments.items() if key in inspect.signature(called).parameters})
    finally:
        machine.teardown()

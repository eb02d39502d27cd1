"""When local rounds run: at night as a rule, no more often than the policy says, and spread over phones by chance."""

from __future__ import annotations

import contextlib
import math
import threading
from typing import TYPE_CHECKING, Final

from fedlearn_client import runs
from fedlearn_client.outcomes import Outcome, Retry
from fedlearn_client.readiness import PAUSED, WORDS, Obstacle, for_others

if TYPE_CHECKING:
    from fedlearn.device.bundle import Bundle
    from fedlearn_client.rooms import Rooms
    from fedlearn_client.store.facts import Facts
    from fedlearn_client.uplink import LocalRound

TRANSIENT_S: Final = 15 * 60.0
PERMANENT_S: Final = 4 * 3_600.0
JITTER: Final = 0.2
SHORTEST_ASKED_S: Final = 60.0
LONGEST_ASKED_S: Final = 86_400.0
DAY_S: Final = 86_400.0
POLL_S: Final = 30.0
_TIDY_S: Final = 3_600.0
_NOT_BEFORE: Final = "not_before:"
_RESUME: Final = ""  # no purpose has this name
_UNFINISHED: Final = frozenset({runs.PREPARED, runs.SENT})
_BASE_S: Final = {Retry.TRANSIENT: TRANSIENT_S, Retry.PERMANENT: PERMANENT_S}


class Scheduler:
    """Runs local rounds, one at a time, whenever nothing stands against one.

    After a round it waits: as long as the gateway asked (a minute to a day, and up to 20 % more), else 15 minutes after
    what may pass by itself and 4 hours after anything else, both plus or minus 20 %. The wait outlives a restart. A
    phone that the gateway denied for good asks once a day (``standing``).

    Args:
        rooms: what rounds work with.
        local_round: runs one.
        facts: of the store.
        poll_s: seconds between two looks at the conditions.
    """

    def __init__(self, rooms: Rooms, local_round: LocalRound, facts: Facts, *, poll_s: float = POLL_S) -> None:
        self._rooms = rooms
        self._round = local_round
        self._facts = facts
        self._poll_s = poll_s
        self._changed = threading.Condition()
        self._looks = 0
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._busy = threading.Lock()
        self._tidied = -math.inf

    def start(self) -> None:
        """Begin to look for rounds to run, in a thread of its own."""
        self._thread = threading.Thread(target=self._loop, name="schedule", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread. A round under way is abandoned within a second; a request on its way is cut off."""
        self._round.end()
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def wake(self) -> None:
        """Look again now: consent, conditions, the status or what is installed has changed."""
        with self._changed:
            self._looks += 1
            self._changed.notify_all()

    @property
    def paused(self) -> bool:
        """Whether the phone maker paused training."""
        return self._facts.get(PAUSED) == b"1"

    def pause(self, paused: bool) -> None:
        """Stop rounds and uploads, or let them run again; durable. A round under way ends within a second."""
        self._facts.set(PAUSED, b"1" if paused else b"0")
        self.wake()

    def why_not(self) -> str | None:
        """Return why no round runs now, in words that tell nothing of the owner; None if one could.

        What the phone maker must mend comes before what a night mends: on a desk nothing ever charges.
        """
        readiness, bundles = self._rooms.readiness, self._rooms.installed.bundles()
        lasting = [readiness.trust(bundle) for bundle in bundles] or [Obstacle.NO_BUNDLE]
        obstacle = readiness.fitness() if None in lasting else lasting[0]
        if obstacle is not None:
            return _words(obstacle)
        if self._busy.locked():
            return WORDS[Obstacle.RUNNING]
        found = [self._standing_against(bundle) for bundle in bundles]
        if None in found:
            return None
        return _words(next((one for one in found if one is not None), Obstacle.NO_BUNDLE))

    def train_now(self, purpose: str) -> str:
        """Run one round for a training purpose and return its outcome. Only the wait between rounds is passed over."""
        bundle = self._rooms.installed.bundle_for(purpose)
        if bundle is None:
            return f"refused: {Obstacle.NO_BUNDLE}"
        if self._is_enough(bundle):
            return f"refused: {Obstacle.ENOUGH_TODAY}"
        if not self._busy.acquire(blocking=False):
            return f"refused: {Obstacle.RUNNING}"
        try:
            self._tidy()
            if self._rooms.readiness.phone() is None:
                self._resume()  # what a crash or a dead transport left goes first, here too
            return self._attempt(purpose).words
        finally:
            self._busy.release()

    def tick(self) -> None:
        """Look once: finish what was left, run what is due. The thread does this again and again."""
        if not self._busy.acquire(blocking=False):
            return
        try:
            self._tidy()
            if self._rooms.readiness.phone() is not None:
                return
            self._resume()
            for bundle in self._rooms.installed.bundles():
                if self._may_begin(bundle):
                    self._attempt(bundle.plan.purpose)
        finally:
            self._busy.release()

    def _loop(self) -> None:
        while not self._stopping:
            looks = self._looks
            try:
                self.tick()
            except Exception as error:  # noqa: BLE001  # a hook may raise anything, and the schedule must live on
                self._rooms.audit.record("schedule_failed", {"kind": type(error).__name__})
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._looks != looks, self._poll_s)  # noqa: B023

    def _may_begin(self, bundle: Bundle) -> bool:
        return (
            not self._is_enough(bundle)
            and self._left_s(bundle.plan.purpose) <= 0.0
            and self._rooms.readiness.beginning(bundle) is None
            and self._rooms.standing.bars(bundle.plan.purpose) is None
        )

    def _standing_against(self, bundle: Bundle) -> Obstacle | None:
        readiness = self._rooms.readiness
        obstacle = readiness.trust(bundle) or readiness.catalogue()
        obstacle = obstacle or readiness.grants(bundle) or readiness.material(bundle)
        if obstacle is None and self._is_enough(bundle):
            return Obstacle.ENOUGH_TODAY
        if obstacle is None and self._left_s(bundle.plan.purpose) > 0.0:
            return self._rooms.standing.says(bundle.plan.purpose) or Obstacle.WAITING
        return obstacle or self._rooms.standing.bars(bundle.plan.purpose)

    def _is_enough(self, bundle: Bundle) -> bool:
        return self._rooms.runs.trained_within(DAY_S) >= bundle.verified.policy.device.max_rounds_per_day

    def _resume(self) -> None:
        """Finish uploads that a crash or a dead transport left."""
        if self._left_s(_RESUME) > 0.0 or not self._rooms.egress.pending():
            return
        if any(outcome.words in _UNFINISHED for outcome in self._round.resume()):
            self._wait(_RESUME, self._jittered(TRANSIENT_S))

    def _tidy(self) -> None:
        """At the start and each hour, fit or not."""
        uptime = self._rooms.clock_rng.monotonic()
        if uptime - self._tidied >= _TIDY_S:
            self._round.tidy()
            self._tidied = uptime

    def _attempt(self, purpose: str) -> Outcome:
        before = self._facts.get(_NOT_BEFORE + purpose) or b"0"
        self._wait(purpose, self._jittered(TRANSIENT_S))  # first: a round that kills the daemon must not run in a loop
        outcome = self._round.attempt(purpose)
        if outcome.asked:
            self._wait(purpose, self._pause_after(outcome))
        else:
            self._facts.set(_NOT_BEFORE + purpose, before)
        if outcome.words in _UNFINISHED:
            self._wait(_RESUME, self._jittered(TRANSIENT_S))
        return outcome

    def _pause_after(self, outcome: Outcome) -> float:
        """Return the seconds to wait after a round that ended so."""
        base = self._jittered(_BASE_S[outcome.retry])
        if not outcome.retry_after_s > 0.0:
            return base
        asked = min(max(outcome.retry_after_s, SHORTEST_ASKED_S), LONGEST_ASKED_S) * (1.0 + JITTER * self._chance())
        return asked if outcome.words in {runs.NO_TASK, runs.ACKNOWLEDGED} else max(asked, base)

    def _jittered(self, seconds: float) -> float:
        return seconds * (1.0 - JITTER + 2.0 * JITTER * self._chance())

    def _chance(self) -> float:
        return int.from_bytes(self._rooms.clock_rng.random_bytes(8), "big") / 2.0**64

    def _wait(self, name: str, seconds: float) -> None:
        until = self._rooms.clock_rng.now() + seconds
        self._facts.set(_NOT_BEFORE + name, repr(until).encode())

    def _left_s(self, name: str) -> float:
        """Return the seconds still to wait. A time further off than any wait is of a clock that was ahead: none."""
        left = 0.0
        with contextlib.suppress(ValueError):
            left = float(self._facts.get(_NOT_BEFORE + name) or b"0") - self._rooms.clock_rng.now()
        return left if left <= LONGEST_ASKED_S * (1.0 + JITTER) else 0.0


def _words(obstacle: Obstacle) -> str:
    return WORDS[for_others(obstacle) or obstacle]

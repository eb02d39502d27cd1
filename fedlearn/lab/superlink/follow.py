"""Follows a training that a ServerApp does elsewhere: its rounds as they end, its end, its death.

The truth is in the training's directory: the lock that a living ServerApp holds, the rounds it recorded, its model.
SuperLink is asked only while nobody is at work, or no round ends (whether a node is there). ::

    lock held                            at work: show its rounds
    lock free, model there               done
    lock free, a failure was kept        raise it; a lost SuperLink: submit again
    lock free, run over or unknown       submit again; stopped by an operator: interrupted
    lock free, its holder was this run   killed: stop the run, which Flower believes in, and submit again
    lock free, run waiting               its process is being started
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedlearn.errors import FedlearnError, RoundFailed, RunInterrupted, SuperLinkUnreachable
from fedlearn.lab.superlink import marks
from fedlearn.lab.superlink.line import Calls, NodeWatch
from fedlearn.lab.superlink.order import Order, bundle_files
from fedlearn.lab.superlink.serverapp import LOG_FILE
from fedlearn.lab.superlink.tail import Notices, Tail
from fedlearn.report.rounds import RoundRecord
from fedlearn.report.summary import ROUNDS_FILE
from fedlearn_server.app import ORDER
from fedlearn_server.checkpoint import MODEL_FILE
from fedlearn_server.flower import build_bundle

POLL_S = 0.2
SUBMISSIONS = 3
"""How often a training is submitted without a new round before it is given up."""
LOCK_S = 15.0
"""Seconds from the start of a ServerApp's work, as Flower sees it, to its lock; longer: it died in between."""
START_S = 120.0
"""Seconds from a submission to the start of its ServerApp's process; SuperLink itself tries again after 30."""
STOP_S = 15.0
"""Seconds for a ServerApp to end after its run was stopped."""
STOPPED, RUNNING = "stopped", "running"


@dataclass
class Follower:
    """One training over SuperLink, from its submission, or from wherever it is, to its model.

    Args:
        order: the training; its ``submission`` is chosen here.
        line: to SuperLink.
        observe: called once with each round's record, in order, those included that were there before.
        say: told what an engineer should know while waiting.
        patience_s: seconds without an answer from SuperLink and without a round before the run is left as it is.
        advice: what to do to go on, for messages.
        clock: monotonic seconds.
        sleep: waits.
    """

    order: Order
    line: Calls
    observe: Callable[[RoundRecord], None] = field(repr=False)
    say: Callable[[str], None] = field(repr=False)
    patience_s: float
    advice: str
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)

    def __post_init__(self) -> None:
        self._directory: Path = self.order.training_directory
        self._tail = Tail(self._directory / ROUNDS_FILE, self.observe)
        self._notices = Notices(self._directory / LOG_FILE, self.say)
        self._nodes = NodeWatch(self.line, self.say, self.clock)
        self._current: marks.Submission | None = None
        self._submitted = 0  # since the last round
        self._sign = self._since = self.clock()
        self._running_since: float | None = None
        self._silent = False

    def finish(self) -> None:
        """Have the training done, or follow whoever does it, until its model is there.

        Raises:
            FedlearnError: what the ServerApp raised.
            RoundFailed: it ended again and again without a round.
            SuperLinkUnreachable: no answer for ``patience_s``.
            RunInterrupted: the run was stopped at SuperLink.
            KeyboardInterrupt: as it came; the run was stopped first.
        """
        try:
            self._attach()
            while not self._is_done():
                self.sleep(POLL_S)
        except KeyboardInterrupt:
            self._stop()
            raise
        self._settle()

    def _attach(self) -> None:
        """Take up the submission that a follower before this one made, if it may still be at work."""
        found = marks.read_submission(self._directory)
        if found is None or found.order != self.order.digest:
            return
        who = marks.read_at_work(self._directory)
        if marks.is_held(self._directory):
            if who is not None and who.submission == found.submission:
                self._current = replace(found, flower_run=who.flower_run)
            return
        failure = marks.read_failure(self._directory)
        failed = failure is not None and failure.submission == found.submission
        if found.flower_run is None or failed or found.address != self.line.address:
            return
        with suppress(SuperLinkUnreachable):
            run = self.line.call(lambda link: link.run(found.flower_run or 0))
            if run is not None and not run.is_over:
                self._current = found

    def _is_done(self) -> bool:
        self._read()
        if marks.is_held(self._directory):
            who = marks.read_at_work(self._directory)
            if who is not None and self._current is not None and who.submission == self._current.submission:
                self._current = replace(self._current, flower_run=who.flower_run)
                self._sign, self._silent = self.clock(), False
                self._nodes.look()
            elif self.clock() - self._sign > self.patience_s:
                raise RoundFailed(
                    f"{self._directory}: a ServerApp of an earlier submission does not end. {self.advice}"
                )
            return False
        if (self._directory / MODEL_FILE).exists():
            self._read()
            return True
        try:
            self._look()
        except SuperLinkUnreachable as error:
            self._wait_for_answer(error)
        else:
            self._sign, self._silent = self.clock(), False
        return False

    def _read(self) -> None:
        self._notices.read()
        if self._tail.read():
            self._sign, self._submitted = self.clock(), 0
            self._nodes.moved()

    def _look(self) -> None:
        """Nobody is at work and there is no model: find out why, and do what helps."""
        current = self._current
        if current is None or current.flower_run is None:
            return self._submit("the ServerApp could not be submitted")
        failure = marks.read_failure(self._directory)
        if failure is not None and failure.submission == current.submission:
            if failure.is_transient:
                return self._submit(failure.message)
            marks.forget_submission(self._directory)
            raise failure.error()
        run_id = current.flower_run
        run = self.line.call(lambda link: link.run(run_id))
        if run is None:
            return self._submit("SuperLink does not know the run any more")
        if run.is_over and run.sub_status == STOPPED:
            marks.forget_submission(self._directory)
            raise RunInterrupted(f"the run was stopped at SuperLink {current.address}. {self.advice}")
        if run.is_over:
            return self._submit(f"the ServerApp ended, {run.sub_status}: {run.details or 'no reason given'}")
        died = self._how_it_died(current, running=run.status == RUNNING)
        if died:
            with suppress(FedlearnError):
                self.line.call(lambda link: link.stop_run(run_id))
            return self._submit(died)
        return None

    def _how_it_died(self, current: marks.Submission, *, running: bool) -> str:
        who = marks.read_at_work(self._directory)
        if marks.is_held(self._directory):
            return ""  # it began while SuperLink was asked
        if who is not None and who.submission == current.submission:
            return "the ServerApp was killed"  # it had the lock
        now = self.clock()
        if running and self._running_since is None:
            self._running_since = now
        since, longest = (self._since, START_S) if self._running_since is None else (self._running_since, LOCK_S)
        return "the ServerApp did not begin" if now - since > longest else ""

    def _submit(self, why: str) -> None:
        """Submit, unless that was done too often without a round in between."""
        if self._submitted >= SUBMISSIONS:
            marks.forget_submission(self._directory)
            raise RoundFailed(f"{why}; submitted {self._submitted} times without a round. {self.advice}")
        lost, address = self._current, self.line.address
        # one that SuperLink did not answer may have arrived: under its name, its ServerApp is welcome
        name = lost.submission if lost is not None and lost.flower_run is None else secrets.token_hex(16)
        self._current = marks.Submission(name, self.order.digest, address, None)
        marks.write_submission(self._directory, self._current)
        marks.forget_failure(self._directory)
        bundle, order = build_bundle(bundle_files()), replace(self.order, submission=name).to_json()
        run_id = self.line.call(lambda link: link.start_run(bundle, {ORDER: order}))
        self._current = replace(self._current, flower_run=run_id)
        marks.write_submission(self._directory, self._current)
        self._submitted += 1
        self._since, self._running_since = self.clock(), None
        if lost is not None and lost.flower_run is not None:
            self.say(f"{why}; submitted again.")

    def _wait_for_answer(self, error: SuperLinkUnreachable) -> None:
        if not self._silent:
            self.say(f"{error} Waiting; {self.line.remedy}")
            self._submitted = max(0, self._submitted - 1)  # what ended with its SuperLink did not fail by itself
        self._silent, self._running_since = True, None
        if self.clock() - self._sign > self.patience_s:
            raise SuperLinkUnreachable(
                f"{error} For {self.patience_s:g} s there was no answer and no round. {self.advice}"
            ) from error

    def _stop(self) -> None:
        """Stop the run and wait until its ServerApp has ended; one that has not begun will end by itself."""
        current = self._current
        marks.forget_submission(self._directory)
        if current is None or current.flower_run is None:
            return
        run_id = current.flower_run
        with suppress(FedlearnError):
            self.line.call(lambda link: link.stop_run(run_id))
        end = self.clock() + STOP_S
        while marks.is_held(self._directory):
            if self.clock() > end:
                self.say(f"the ServerApp has not ended in {STOP_S:g} s; it ends with its round.")
                return
            self.sleep(POLL_S)

    def _settle(self) -> None:
        """Wait a moment until SuperLink, too, takes the run for over: ``fedlearn down`` asks it."""
        current, end = self._current, self.clock() + STOP_S
        marks.forget_submission(self._directory)
        if current is None or current.flower_run is None:
            return
        run_id = current.flower_run
        with suppress(FedlearnError):
            while self.clock() < end:
                run = self.line.call(lambda link: link.run(run_id))
                if run is None or run.is_over:
                    return
                self.sleep(POLL_S / 2)

"""A SuperLink and a ServerApp for a follower to follow, with a clock of their own: nothing really waits."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from fedlearn.errors import SuperLinkUnreachable
from fedlearn.lab.superlink import marks
from fedlearn.lab.superlink.follow import Follower
from fedlearn.lab.superlink.order import Order
from fedlearn.lab.superlink.serverapp import LOG_FILE
from fedlearn.report.rounds import RoundRecord, round_line
from fedlearn.report.summary import ROUNDS_FILE
from fedlearn_server.checkpoint import MODEL_FILE
from fedlearn_server.flower import FlowerNode, FlowerRun

T = TypeVar("T")


def record(step: int, loss: float = 1.0) -> RoundRecord:
    """Return a round's record."""
    return RoundRecord("m", 0, 0, step, step, loss, 5, 0.5, None, 1.0, 0.1, None, {}, (), 0.1)


class FakeLink:
    """The operator's side of a SuperLink."""

    def __init__(self) -> None:
        self.runs: dict[int, FlowerRun] = {}
        self.orders: list[dict[str, Any]] = []
        self.stopped: list[int] = []
        self.answers = True
        self.nodes_ = (FlowerNode(1, "node-1", "online", 0.0),)

    def nodes(self) -> tuple[FlowerNode, ...]:
        return self.nodes_

    def start_run(self, bundle: bytes, config: dict[str, str]) -> int:
        assert bundle.startswith(b"PK")
        self.orders.append(json.loads(config["fedlearn"]))
        run_id = 100 + len(self.orders)
        self.runs[run_id] = FlowerRun(run_id, "pending", "", "")
        return run_id

    def run(self, run_id: int) -> FlowerRun | None:
        return self.runs.get(run_id)

    def stop_run(self, run_id: int) -> bool:
        self.stopped.append(run_id)
        self.end(run_id, "stopped")
        return True

    def end(self, run_id: int, sub_status: str, details: str = "") -> None:
        self.runs[run_id] = FlowerRun(run_id, "finished", sub_status, details)


@dataclass
class World:
    """One training's directory, the SuperLink it was submitted to, and what happens there at each look.

    Args:
        order: the training.
        events: done one at each wait, in order; when they are over, waiting is a failure of the test.
    """

    order: Order
    events: list[Callable[[], object]] = field(default_factory=list)
    link: FakeLink = field(default_factory=FakeLink)
    told: list[int] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    now: float = 0.0
    address: str = "here:1"
    remedy: str = "start it."
    nodes_remedy: str = "add some."
    lock: ExitStack = field(default_factory=ExitStack)

    @property
    def directory(self) -> Path:
        """Of the training."""
        return self.order.training_directory

    def follow(self, *events: Callable[[], object]) -> None:
        """Follow to the end."""
        self.events = list(events)
        Follower(
            self.order,
            self,
            lambda found: self.told.append(found.step),
            self.said.append,
            patience_s=30.0,
            advice="ADVICE",
            clock=lambda: self.now,
            sleep=self.sleep,
        ).finish()

    def call(self, ask: Callable[[Any], T]) -> T:
        if not self.link.answers:
            raise SuperLinkUnreachable("SuperLink does not answer.")
        return ask(self.link)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if not self.events:
            raise AssertionError(f"waits for nothing; said {self.said}")
        self.events.pop(0)()

    # what happens

    def pause(self, seconds: float) -> Callable[[], None]:
        """Let time pass."""

        def event() -> None:
            self.now += seconds

        return event

    def answering(self, *, answers: bool) -> Callable[[], None]:
        """Let SuperLink die, or come back."""

        def event() -> None:
            self.link.answers = answers

        return event

    @property
    def submission(self) -> marks.Submission:
        """The one that may be at work."""
        found = marks.read_submission(self.directory)
        assert found is not None
        return found

    def begin(self, submission: str | None = None) -> None:
        """Let the ServerApp of the current submission, or of another, take the lock."""
        run = self.submission.flower_run or 1
        self.link.runs[run] = FlowerRun(run, "running", "", "")
        presence = self.lock.enter_context(marks.held(self.directory, 0.0))
        presence.say(marks.AtWork(1, run, submission or self.submission.submission))

    def die(self) -> None:
        """Kill it: the lock is free, and Flower believes that it runs."""
        self.lock.close()

    def write(self, text: str) -> Callable[[], None]:
        """Append to the round log."""

        def event() -> None:
            with (self.directory / ROUNDS_FILE).open("a", encoding="utf-8") as file:
                file.write(text)

        return event

    def online(self, *, online: bool) -> Callable[[], None]:
        """Let the only node go, or come back."""

        def event() -> None:
            self.link.nodes_ = (FlowerNode(1, "node-1", "online" if online else "offline", 0.0),)

        return event

    def log(self, text: str) -> Callable[[], None]:
        """Append to the ServerApp's log."""

        def event() -> None:
            with (self.directory / LOG_FILE).open("a", encoding="utf-8") as file:
                file.write(text)

        return event

    def rounds(self, *steps: int) -> Callable[[], None]:
        """Record rounds."""
        return self.write("".join(round_line(record(step)) for step in steps))

    def replaced(self, steps: Iterable[int]) -> Callable[[], None]:
        """Replace the round log, as a recorder does when it begins."""

        def event() -> None:
            path = self.directory / ROUNDS_FILE
            part = path.with_suffix(".part")
            part.write_text("".join(round_line(record(step, loss=2.0)) for step in steps), encoding="utf-8")
            part.replace(path)

        return event

    def succeed(self) -> None:
        """Write the model and end."""
        (self.directory / MODEL_FILE).write_bytes(b"model")
        self.lock.close()
        self.link.end(self.submission.flower_run or 1, "completed")

    def fail(self, problem: Exception) -> Callable[[], None]:
        """End with an exception that was kept."""

        def event() -> None:
            marks.write_failure(self.directory, marks.Failure.of(problem, self.submission.submission))
            self.lock.close()
            self.link.end(self.submission.flower_run or 1, "failed", "ServerApp failed")

        return event

    def end(self, sub_status: str, details: str = "") -> Callable[[], None]:
        """End without a word in the directory."""

        def event() -> None:
            self.lock.close()
            self.link.end(self.submission.flower_run or 1, sub_status, details)

        return event

    def submitted(self, flower_run: int | None = 101, **changes: Any) -> None:
        """Leave what a follower before this one left."""
        content = marks.Submission("before", self.order.digest, self.address, flower_run)
        marks.write_submission(self.directory, replace(content, **changes))
        if flower_run is not None:
            self.link.runs[flower_run] = FlowerRun(flower_run, "pending", "", "")

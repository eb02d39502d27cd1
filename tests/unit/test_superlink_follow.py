"""Whoever follows a training over SuperLink tells its rounds, its end and its death apart, whoever was killed."""

from __future__ import annotations

import errno
import importlib.util
import json
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fedlearn.errors import (
    BudgetExceeded,
    ContributionRejected,
    DataCorrupt,
    FedlearnError,
    OutOfRange,
    Reason,
    ResumeRefused,
    RoundFailed,
    RunDirectoryInUse,
    RunError,
    RunInterrupted,
    SuperLinkUnreachable,
)
from fedlearn.lab import compose
from fedlearn.lab.superlink import marks
from fedlearn.lab.superlink.follow import LOCK_S, START_S, STOP_S, SUBMISSIONS
from fedlearn.lab.superlink.line import NODES_S
from fedlearn.lab.superlink.order import Order
from fedlearn.report.rounds import round_line

_spec = importlib.util.spec_from_file_location("follow_world", Path(__file__).with_name("follow_world.py"))
_world = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = _world
_spec.loader.exec_module(_world)

if TYPE_CHECKING:
    from follow_world import World


@pytest.fixture(scope="module")
def config():
    return compose(["experiment=city_quick", "runtime=superlink"])


@pytest.fixture
def world(config, tmp_path: Path) -> Iterator[World]:
    order = Order(config, tmp_path, ".", "run", headline=True, fold=0, seed=0, code="c")
    made = _world.World(order)
    with closing(made.lock):
        yield made


def test_a_training_is_submitted_once_and_told_round_by_round(world: World) -> None:
    world.follow(world.begin, world.rounds(0), world.rounds(1, 2), world.rounds(3), world.succeed)
    assert world.told == [0, 1, 2, 3]
    assert [order["submission"] for order in world.link.orders] == [world.link.orders[0]["submission"]]
    assert world.said == []
    assert marks.read_submission(world.directory) is None
    assert world.link.stopped == []


def test_rounds_that_end_with_the_run_are_told(world: World) -> None:
    world.follow(world.begin, lambda: (world.rounds(0, 1)(), world.succeed()))
    assert world.told == [0, 1]


def test_a_line_is_told_when_it_is_whole_and_once(world: World) -> None:
    line = round_line(_world.record(1))
    world.follow(
        world.begin,
        world.rounds(0),
        world.write(line[:30]),
        lambda: world.told.append(-1),
        world.write(line[30:]),
        lambda: world.told.append(-2),
        world.replaced([0]),  # the ServerApp that goes on drops what was not published, and does it again
        world.replaced([0, 1]),
        world.rounds(2),
        world.succeed,
    )
    assert world.told == [0, -1, 1, -2, 2]


def test_a_line_that_is_no_round_is_named(world: World) -> None:
    with pytest.raises(DataCorrupt, match=r"metrics\.jsonl:2"):
        world.follow(world.begin, world.rounds(0), world.write("{}\n"))


def test_a_killed_serverapp_is_replaced(world: World) -> None:
    def first_is_fenced() -> None:
        assert world.link.stopped == [101]
        assert world.submission.flower_run == 102
        assert world.link.orders[1]["submission"] == world.submission.submission != world.link.orders[0]["submission"]

    world.follow(world.begin, world.rounds(0), world.die, first_is_fenced, world.begin, world.rounds(1), world.succeed)
    assert world.told == [0, 1]
    assert world.said == ["the ServerApp was killed; submitted again."]


@pytest.mark.parametrize(
    ("problem", "kind", "words"),
    [
        (RoundFailed("step 3: nobody"), RoundFailed, "^step 3: nobody$"),
        (BudgetExceeded("spent"), BudgetExceeded, "^spent$"),
        (OutOfRange("data.devices=0"), OutOfRange, r"^data\.devices=0$"),
        (ResumeRefused("other data"), ResumeRefused, "other data"),
        (ContributionRejected(Reason.LATE, "slow"), RunError, "FL400 ContributionRejected: late: slow"),
        (OSError(errno.ENOSPC, "No space left on device"), RunError, "OSError.*No space left"),
        (ZeroDivisionError("by zero"), RunError, "ZeroDivisionError: by zero"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else type(value).__name__,
)
def test_what_a_serverapp_raised_is_raised_here(
    world: World, problem: Exception, kind: type[FedlearnError], words: str
) -> None:
    with pytest.raises(kind, match=words) as found:
        world.follow(world.begin, world.fail(problem))
    assert type(found.value) is kind
    assert len(world.link.orders) == 1
    assert marks.read_submission(world.directory) is None


def test_a_code_that_is_not_known_is_a_run_that_cannot_go_on() -> None:
    assert type(marks.Failure("s", "FL999", "Strange", "words").error()) is RunError


def test_a_failure_of_an_earlier_submission_is_not_this_ones(world: World) -> None:
    marks.write_failure(world.directory, marks.Failure("earlier", "FL703", "RoundFailed", "then"))
    world.follow(world.begin, world.succeed)
    assert len(world.link.orders) == 1


def test_a_serverapp_that_lost_its_superlink_is_replaced(world: World) -> None:
    world.follow(world.begin, world.rounds(0), world.fail(SuperLinkUnreachable("lost it")), world.begin, world.succeed)
    assert world.said == ["lost it; submitted again."]
    assert len(world.link.orders) == 2


def test_a_run_that_superlink_has_forgotten_is_submitted_again(world: World) -> None:
    world.follow(world.link.runs.clear, world.begin, world.succeed)
    assert world.said == ["SuperLink does not know the run any more; submitted again."]


def test_a_run_that_was_stopped_is_not_submitted_again(world: World) -> None:
    with pytest.raises(RunInterrupted, match=r"stopped at SuperLink here:1\. ADVICE"):
        world.follow(world.begin, world.end("stopped"))
    assert len(world.link.orders) == 1
    assert marks.read_submission(world.directory) is None


def test_it_is_submitted_three_times_without_a_round(world: World) -> None:
    full = world.end("failed", "disk full")
    with pytest.raises(RoundFailed, match=r"failed: disk full; submitted 3 times without a round\. ADVICE"):
        world.follow(*[full] * SUBMISSIONS)
    assert len(world.link.orders) == SUBMISSIONS == 3
    assert marks.read_submission(world.directory) is None


def test_a_round_in_between_makes_good_for_it(world: World) -> None:
    killed = [world.begin, world.die]
    world.follow(
        *killed, *killed, world.begin, world.rounds(0), world.die, *killed, *killed, world.begin, world.succeed
    )
    assert len(world.link.orders) == 6


def test_a_silent_superlink_is_said_once_and_waited_for(world: World) -> None:
    gone, back = world.answering(answers=False), world.answering(answers=True)
    world.follow(
        world.begin,
        world.rounds(0),
        lambda: (gone(), world.die()),
        world.pause(20.0),
        world.pause(5.0),
        back,
        world.begin,
        lambda: (gone(), world.die()),
        world.pause(20.0),
        back,
        world.begin,
        world.succeed,
    )
    notice = "SuperLink does not answer. Waiting; start it."
    assert world.said == [notice, "the ServerApp was killed; submitted again."] * 2


def test_a_superlink_that_stays_silent_ends_it_with_everything_kept(world: World) -> None:
    with pytest.raises(SuperLinkUnreachable, match=r"For 30 s there was no answer and no round\. ADVICE"):
        world.follow(
            world.begin,
            world.pause(1000.0),  # a ServerApp at work needs no answer from SuperLink to its submitter
            lambda: (world.answering(answers=False)(), world.die()),
            world.pause(29.0),
            world.rounds(0),
            world.pause(29.0),
            world.pause(2.0),
        )
    assert world.told == [0]
    assert world.submission.flower_run == 101, "its ServerApp is taken up again by the next follower"


def test_a_submission_without_an_answer_is_repeated_under_its_name(world: World) -> None:
    world.link.answers = False

    def arrived() -> None:
        assert world.submission.flower_run is None
        name.append(world.submission.submission)
        world.link.answers = True

    name: list[str] = []
    world.follow(arrived, lambda: None, world.begin, world.succeed)
    assert [order["submission"] for order in world.link.orders] == name
    assert world.said == ["SuperLink does not answer. Waiting; start it."]


def test_that_no_node_is_online_is_said_once_each_time(world: World) -> None:
    world.follow(
        world.begin,
        world.online(online=False),
        world.pause(NODES_S - 1.0),
        lambda: world.said.append("nothing yet"),
        world.pause(1.0),
        world.pause(100.0),
        world.pause(100.0),
        world.online(online=True),
        world.pause(NODES_S),
        world.rounds(0),
        world.online(online=False),
        world.pause(NODES_S),
        world.answering(answers=False),  # its ServerApp lives: it is the one to notice
        world.pause(NODES_S),
        world.answering(answers=True),
        world.succeed,
    )
    notice = "waiting: no node is online; add some."
    assert world.said == ["nothing yet", notice, notice]


def test_attempts_that_were_given_up_are_said(world: World) -> None:
    def line(attempt: int) -> str:
        plain = {"level": "warning", "message": "m", "step": 3, "attempt": attempt, "reason": "no node is there"}
        return json.dumps(plain) + "\n"

    world.log(line(1))()
    world.follow(
        world.begin,
        world.log('{"message": "round", "step": 2}\nTraceback\n' + line(2)),
        world.log(line(3)[:20]),
        lambda: world.said.append("half a line"),
        world.log(line(3)[20:]),
        world.succeed,
    )
    assert world.said == [
        "step 3: attempt 2 given up: no node is there; tried again.",
        "half a line",
        "step 3: attempt 3 given up: no node is there; tried again.",
    ]


def test_a_living_serverapp_is_taken_up(world: World) -> None:
    world.submitted()
    world.begin()
    world.rounds(0, 1)()
    world.follow(world.rounds(2), world.succeed)
    assert world.told == [0, 1, 2]
    assert world.link.orders == []


def test_a_living_serverapp_whose_run_was_not_noted_is_taken_up(world: World) -> None:
    """Its submitter was killed between SuperLink's answer and the note of it."""
    world.submitted(flower_run=None)
    world.begin()
    world.follow(world.rounds(0), world.succeed)
    assert world.link.orders == []


def test_a_serverapp_that_is_being_started_is_taken_up(world: World) -> None:
    world.submitted()
    world.follow(world.begin, world.succeed)
    assert world.link.orders == []


def test_one_that_died_unobserved_is_replaced(world: World) -> None:
    world.submitted()
    world.begin()
    world.die()
    world.follow(world.begin, world.succeed)
    assert world.link.stopped == [101]
    assert len(world.link.orders) == 1


@pytest.mark.parametrize("left", ["other order", "failed", "over", "unknown", "elsewhere", "not noted"])
def test_what_cannot_be_taken_up_is_submitted_anew(world: World, left: str) -> None:
    world.submitted(
        None if left == "not noted" else 1,
        order="other" if left == "other order" else world.order.digest,
        address="there:2" if left == "elsewhere" else world.address,
    )
    if left == "failed":
        marks.write_failure(world.directory, marks.Failure("before", "FL703", "RoundFailed", "then"))
    if left == "over":
        world.link.end(1, "stopped")
    if left == "unknown":
        world.link.runs.clear()
    world.follow(world.begin, world.succeed)
    assert len(world.link.orders) == 1
    assert world.link.orders[0]["submission"] != "before"


def test_another_submissions_serverapp_is_waited_for(world: World) -> None:
    world.submitted()
    world.begin("orphan")
    world.follow(lambda: None, world.pause(20.0), world.die, world.begin, world.succeed)
    assert len(world.link.orders) == 1


def test_another_submissions_serverapp_that_does_not_end(world: World) -> None:
    world.submitted()
    world.begin("orphan")
    with pytest.raises(RoundFailed, match="earlier submission does not end"):
        world.follow(world.pause(31.0))
    assert world.link.orders == []


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("ends", [True, False])
def test_ctrl_c_stops_the_run_and_waits_for_its_end(world: World, ends: bool) -> None:
    after = world.die if ends else world.pause(STOP_S)
    with pytest.raises(KeyboardInterrupt):
        world.follow(world.begin, world.rounds(0), interrupt, lambda: None, after)
    assert world.link.stopped == [101]
    assert marks.read_submission(world.directory) is None
    assert marks.is_held(world.directory) is not ends
    assert ("has not ended" in " ".join(world.said)) is not ends


def test_ctrl_c_while_superlink_is_silent(world: World) -> None:
    with pytest.raises(KeyboardInterrupt):
        world.follow(world.answering(answers=False), interrupt)
    assert marks.read_submission(world.directory) is None, "a ServerApp that starts now ends at once"


@pytest.mark.parametrize(("status", "longest"), [("starting", START_S), ("running", LOCK_S)])
def test_one_that_never_takes_the_lock_is_replaced(world: World, status: str, longest: float) -> None:
    def look() -> None:
        world.link.runs[101] = _world.FlowerRun(101, status, "", "")

    def only_one() -> None:
        assert len(world.link.orders) == 1

    world.follow(look, world.pause(longest - 1.0), only_one, world.pause(1.0), lambda: None, world.begin, world.succeed)
    assert world.said == ["the ServerApp did not begin; submitted again."]
    assert world.link.stopped == [101]
    assert len(world.link.orders) == 2


def test_a_training_that_is_done_needs_nobody(world: World) -> None:
    (world.directory / "model.safetensors").write_bytes(b"model")
    world.rounds(0)()
    world.follow()
    assert world.told == [0]
    assert world.link.orders == []


def test_only_one_serverapp_is_at_work(world: World) -> None:
    with marks.held(world.directory, 0.0) as presence:
        presence.say(marks.AtWork(5, 6, "seven"))
        presence.say(marks.AtWork(5, 6, "seven", 8))
        assert marks.is_held(world.directory)
        assert marks.read_at_work(world.directory) == marks.AtWork(5, 6, "seven", 8)
        with pytest.raises(RunDirectoryInUse, match="another ServerApp"), marks.held(world.directory, 0.0):
            pass
    assert not marks.is_held(world.directory)
    with marks.held(world.directory, 0.0):
        pass

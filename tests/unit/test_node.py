"""The resident node against a SuperLink that does what a test says; a real one is in tests/e2e/test_flower_contract."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.app import Message, MessageType, RecordDict

from fedlearn.errors import DataMissing, DeploymentRefused, SuperLinkRefused, SuperLinkUnreachable
from fedlearn.task import RoundTask
from fedlearn.terms import TrainingTerms
from fedlearn.wire import decode_task, encode_task
from fedlearn_server import node_command
from fedlearn_server.flower import identify_message, identify_process, load_node_key
from fedlearn_server.hosting import NodeFunction
from fedlearn_server.message import Question, pack_answer, pack_question, unpack_answer, unpack_question
from fedlearn_server.metrics import NodeMetrics
from fedlearn_server.node import Node
from fedlearn_server.node_answers import Answering, LocalData
from fedlearn_server.node_pace import Pace
from fedlearn_server.node_state import IDENTITY_FILE, STATUS_FILE, NodeDirectory, NodeState
from fedlearn_server.node_stop import Stop

FAST = Pace(0.001, 0.002, 0.004, 0.01, 0.004, 0.004, 0.002)
PATIENCE_S = 20.0
CHALLENGE = bytes(range(16))


def wait_until(holds: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.002)


def question(part: int = 0, *, task: bytes = b"task", challenge: bytes = CHALLENGE, ttl: float = 60.0) -> Message:
    """A question as SuperLink delivers it."""
    identify_process(9)
    message = Message(
        pack_question(Question("{}", task, part, 4, challenge)), 1, MessageType.TRAIN, ttl=ttl, group_id="3"
    )
    identify_message(message, f"message-{part}-{challenge.hex()}")
    return message


def echo(content: RecordDict) -> RecordDict:
    """Answer with the number of the part."""
    asked = unpack_question(content)
    return pack_answer(b"part %d" % asked.partition, asked.challenge)


@dataclass(eq=False)
class FakeFleet:
    """A SuperLink that raises what a test put in ``problems`` of a call, one a call, and hands out ``questions``."""

    node_id: int = 7
    questions: list[Message] = field(default_factory=list)
    problems: dict[str, list[Exception]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    known: list[int | None] = field(default_factory=list)
    replies: list[Message] = field(default_factory=list)
    wanted: bool = True

    def activate(self, known_as: int | None) -> int:
        self.known.append(known_as)
        self._called("activate")
        return self.node_id

    def deactivate(self) -> None:
        self._called("deactivate")

    def heartbeat(self) -> None:
        self._called("heartbeat")

    def pull(self) -> Message | None:
        self._called("pull")
        return self.questions.pop(0) if self.questions else None

    def push(self, reply: Message) -> bool:
        self._called("push")
        self.replies.append(reply)
        return self.wanted

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if self.problems.get(name):
            raise self.problems[name].pop(0)


@dataclass(eq=False)
class World:
    """A node in a thread, and all that is around it."""

    fleet: FakeFleet
    directory: NodeDirectory
    metrics: NodeMetrics
    stop: Stop
    node: Node

    def status(self) -> dict[str, Any]:
        """What ``status.json`` says."""
        said: dict[str, Any] = json.loads((self.directory.path / STATUS_FILE).read_text())
        return said

    def count(self, name: str, **labels: str) -> float:
        """A metric."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the node, and stop it."""
        thread = threading.Thread(target=self.node.run)
        thread.start()
        try:
            yield
        finally:
            self.stop.wish()
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Make a world."""
    made: list[World] = []

    def make(fleet: FakeFleet, answering: Callable[[RecordDict], RecordDict] = echo, pace: Pace = FAST) -> World:
        directory, metrics, stop = NodeDirectory(tmp_path / "state"), NodeMetrics(), Stop()
        world = World(fleet, directory, metrics, stop, Node(fleet, answering, directory, metrics, stop=stop, pace=pace))
        made.append(world)
        return world

    yield make
    for world in made:
        world.directory.close()
        world.stop.__exit__(None, None, None)


def test_it_answers_and_leaves(make_world: Callable[..., World]) -> None:
    world = make_world(FakeFleet(questions=[question(part) for part in range(3)]))
    with world.running():
        wait_until(lambda: len(world.fleet.replies) == 3 and world.status()["state"] == "online", "three answers")
        assert world.node.problem() is None
        assert world.count("fedlearn_node_online") == 1.0
    assert [unpack_answer(reply.content, CHALLENGE) for reply in world.fleet.replies] == [
        b"part 0",
        b"part 1",
        b"part 2",
    ]
    assert world.fleet.calls[-1] == "deactivate", "a heartbeat after it would undo it"
    status = world.status()
    assert (status["state"], status["reason"], status["answered"]) == ("stopped", "", 3)
    assert (status["pid"], status["node_id"]) == (os.getpid(), 7)
    assert world.count("fedlearn_node_answers_total") == 3.0
    assert world.count("fedlearn_node_online") == 0.0
    assert world.node.problem() == "stopped"


def test_it_comes_back_as_who_it_was(make_world: Callable[..., World], tmp_path: Path) -> None:
    first = make_world(FakeFleet())
    with first.running():
        wait_until(lambda: "pull" in first.fleet.calls, "a pull")
    first.directory.close()
    assert json.loads((tmp_path / "state" / IDENTITY_FILE).read_text()) == {"node_id": 7}
    second = make_world(FakeFleet())
    with second.running():
        wait_until(lambda: "pull" in second.fleet.calls, "a pull")
    assert (first.fleet.known, second.fleet.known) == ([None], [7])


@pytest.mark.parametrize("content", ["", "{", "[]", '{"node_id": "x"}', "\x00"])
def test_a_damaged_id_is_not_used(make_world: Callable[..., World], tmp_path: Path, content: str) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / IDENTITY_FILE).write_text(content)
    world = make_world(FakeFleet())
    with world.running():
        wait_until(lambda: "pull" in world.fleet.calls, "a pull")
    assert world.fleet.known == [None]


@pytest.mark.parametrize("call", ["activate", "pull"])
def test_a_silent_superlink_is_tried_again(make_world: Callable[..., World], call: str) -> None:
    problems = {call: [SuperLinkUnreachable("no answer") for _ in range(5)]}
    world = make_world(FakeFleet(questions=[question()], problems=problems))
    with world.running():
        wait_until(lambda: world.fleet.replies, "an answer")
    assert world.count("fedlearn_node_link_errors_total", code="FL705") >= 5.0
    assert len(world.fleet.known) == (6 if call == "activate" else 1), "no activation where it is online already"


def test_after_silence_it_says_that_it_is_there_before_it_pulls(make_world: Callable[..., World]) -> None:
    fleet = FakeFleet(problems={"pull": [SuperLinkUnreachable("no answer")]})
    world = make_world(fleet, pace=Pace(0.001, 0.002, 0.004, 0.01, 0.004, 0.004, heartbeat=PATIENCE_S))
    with world.running():
        wait_until(lambda: fleet.calls.count("pull") >= 2, "two pulls")
    assert fleet.calls[:4] == ["activate", "pull", "heartbeat", "pull"]


def test_a_superlink_that_refuses_is_tried_again_and_its_reason_told(make_world: Callable[..., World]) -> None:
    refused = [SuperLinkRefused("the key is not registered") for _ in range(3)]
    world = make_world(FakeFleet(problems={"activate": refused}), pace=Pace(refused=PATIENCE_S, heartbeat=0.002))
    with world.running():
        wait_until(lambda: world.status()["reason"], "a reason")
        assert world.status()["state"] == "connecting"
        assert world.status()["reason"] == "FL706 the key is not registered"
        assert world.node.problem() == "connecting: FL706 the key is not registered"
    assert "heartbeat" not in world.fleet.calls, "it would put a node online that must not be"
    assert "deactivate" not in world.fleet.calls


def test_a_node_that_is_revoked_asks_to_be_let_in_again(make_world: Callable[..., World]) -> None:
    world = make_world(FakeFleet(problems={"pull": [SuperLinkRefused("unknown node")]}, questions=[question()]))
    with world.running():
        wait_until(lambda: world.fleet.replies, "an answer")
    assert world.fleet.known == [None, 7]


@pytest.mark.parametrize("call", ["pull", "heartbeat"])
def test_a_bug_in_a_call_ends_no_node(make_world: Callable[..., World], call: str) -> None:
    fleet = FakeFleet(problems={call: [KeyError("canary-7")]})
    world = make_world(fleet)
    with world.running():
        wait_until(lambda: fleet.calls.count(call) > 1, "another call")
        fleet.questions.append(question())
        wait_until(lambda: fleet.replies, "an answer")
    assert world.count("fedlearn_node_link_errors_total", code="other") == 1.0


def test_an_answer_that_superlink_was_too_silent_for_is_sent_later(make_world: Callable[..., World]) -> None:
    fleet = FakeFleet(questions=[question()], problems={"push": [SuperLinkUnreachable("gone") for _ in range(4)]})
    world = make_world(fleet)
    with world.running():
        wait_until(lambda: fleet.replies, "an answer")
    assert len(fleet.replies) == 1
    assert world.status()["answered"] == 1, "it was made once"


@pytest.mark.parametrize("kind", ["refused", "over"])
def test_an_answer_that_nobody_wants_is_dropped(make_world: Callable[..., World], kind: str) -> None:
    fleet = FakeFleet(questions=[question(0), question(1)])
    if kind == "over":
        fleet.wanted = False
    else:
        fleet.problems["push"] = [SuperLinkRefused("too large")]
    world = make_world(fleet)
    with world.running():
        wait_until(lambda: fleet.calls.count("push") == 2, "two pushes")
        wait_until(lambda: world.status()["state"] == "online", "online")
    assert fleet.calls.count("activate") == 1


def test_an_answer_after_its_time_is_dropped(make_world: Callable[..., World]) -> None:
    late = question(0, ttl=0.05)
    fleet = FakeFleet(questions=[late, question(1)])

    def slow(content: RecordDict) -> RecordDict:
        if unpack_question(content).partition == 0:
            wait_until(lambda: time.time() > late.metadata.created_at + 0.05, "its time")
        return echo(content)

    with make_world(fleet, slow).running():
        wait_until(lambda: fleet.replies, "an answer")
    assert [unpack_answer(reply.content, CHALLENGE) for reply in fleet.replies] == [b"part 1"]


def test_a_failure_is_told_by_kind_and_the_node_lives_on(
    make_world: Callable[..., World], caplog: pytest.LogCaptureFixture
) -> None:
    def missing(content: RecordDict) -> RecordDict:
        if unpack_question(content).partition == 0:
            raise DataMissing("a chat about canary-7")
        return echo(content)

    world = make_world(FakeFleet(questions=[question(0), question(1)]), missing)
    with caplog.at_level(logging.INFO), world.running():
        wait_until(lambda: len(world.fleet.replies) == 2, "two replies")
    failed, answered = world.fleet.replies
    assert failed.error.reason == "DataMissing FL201"
    assert not answered.has_error()
    assert world.count("fedlearn_node_failures_total", code="FL201") == 1.0
    assert "canary" not in json.dumps(world.status()) + caplog.text


def test_a_message_without_content_is_a_failure_too(make_world: Callable[..., World]) -> None:
    empty = question()
    empty.__dict__["_content"] = None
    world = make_world(FakeFleet(questions=[empty, question(1)]))
    with world.running():
        wait_until(lambda: len(world.fleet.replies) == 2, "two replies")
    assert [reply.has_error() for reply in world.fleet.replies] == [True, False]


def test_it_drains(make_world: Callable[..., World]) -> None:
    begun, finish = threading.Event(), threading.Event()

    def slow(content: RecordDict) -> RecordDict:
        begun.set()
        assert finish.wait(PATIENCE_S)
        return echo(content)

    fleet = FakeFleet(questions=[question(0), question(1)], problems={"push": [SuperLinkUnreachable("gone")]})
    world = make_world(fleet, slow)
    with world.running():
        assert begun.wait(PATIENCE_S)
        beats = fleet.calls.count("heartbeat")
        wait_until(lambda: fleet.calls.count("heartbeat") > beats, "heartbeats while it works")
        world.stop.wish()
        wait_until(lambda: world.status()["state"] == "draining", "draining")
        finish.set()
    assert len(fleet.replies) == 1, "the question in hand is answered, the next one is left to others"
    assert len(fleet.questions) == 1
    assert world.status()["state"] == "stopped"


def test_a_full_disk_stops_no_work(make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world(FakeFleet(questions=[question(part) for part in range(4)]))
    said: list[str] = []

    def full(*arguments: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "No space left" in record.getMessage():
                said.append(record.getMessage())

    # a handler of its own: what other tests of this process did to logging (Flower's migrations switch loggers off)
    # must not matter
    logger = logging.getLogger("fedlearn_server.node_state")
    with monkeypatch.context() as patch:
        patch.setattr(logger, "disabled", False)
        patch.setattr(logger, "handlers", [Kept()])
        logger.setLevel(logging.INFO)  # by its method: what is enabled is cached
        patch.setattr(Path, "write_text", full)
        patch.setattr("fedlearn_server.node_state.write_durably", full)
        with world.running():
            wait_until(lambda: len(world.fleet.replies) == 4, "four answers")
    logger.setLevel(logging.NOTSET)
    assert len(said) == 1, "said once, not at every pull"
    assert world.directory.status.answered == 4


def test_a_status_that_could_not_be_written_is_written_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = NodeDirectory(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(
            "fedlearn_server.node_state._replace", lambda path, text: (_ for _ in ()).throw(OSError(28, "full"))
        )
        directory.say(NodeState.ONLINE)
    directory.say(NodeState.ONLINE)
    assert json.loads((tmp_path / STATUS_FILE).read_text())["state"] == "online"
    directory.close()


def test_a_state_directory_has_one_process(tmp_path: Path) -> None:
    first = NodeDirectory(tmp_path)
    with pytest.raises(DeploymentRefused, match="another process"):
        NodeDirectory(tmp_path)
    first.close()
    NodeDirectory(tmp_path).close()


def test_a_state_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeploymentRefused, match="--state"):
        NodeDirectory(tmp_path / "file" / "state")


def test_stop_wakes_who_waits() -> None:
    with Stop() as stop:
        assert not stop.wait(0.0)
        stop.wish()
        stop.wish()
        assert stop.wait(PATIENCE_S)
        assert stop.wished


# answers


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bytes]]:
    """Count the answers that are made instead of making them."""
    made: list[tuple[int, bytes]] = []

    def answer(host: object, content: RecordDict) -> RecordDict:
        asked = unpack_question(content)
        made.append((asked.partition, asked.task))
        return pack_answer(b"answer %d" % len(made), asked.challenge)

    monkeypatch.setattr("fedlearn_server.node_answers.answer", answer)
    return made


def task(step: int, run: str = "A") -> bytes:
    """The encoded task of one step of a run."""
    terms = TrainingTerms(1, 1, 0.1, False, 4, None)
    return encode_task(RoundTask(run, step, 0, 0, {"w": np.zeros(1, np.float32)}, terms, 1.0, 2.0**-30, 0.1, bytes(32)))


def ask(answering: Answering, part: int, task: bytes, cohort: str = "{}", parts: int = 4) -> bytes:
    challenge = os.urandom(16)
    return unpack_answer(answering(pack_question(Question(cohort, task, part, parts, challenge))), challenge)


def test_a_question_of_the_last_round_is_answered_once(counting: list[tuple[int, bytes]]) -> None:
    answering = Answering(lambda *_: None)
    first = [ask(answering, part, task(1)) for part in (0, 1)]
    assert [ask(answering, part, task(1)) for part in (0, 1, 0)] == [*first, first[0]]
    assert len(counting) == 2


@pytest.mark.parametrize(
    "other",
    [{"task": task(2)}, {"cohort": '{"a": 1}'}, {"parts": 5}, {"part": 1}],
    ids=lambda other: next(iter(other)),
)
def test_another_question_is_another_answer(counting: list[tuple[int, bytes]], other: dict[str, Any]) -> None:
    answering = Answering(lambda *_: None)
    same: dict[str, Any] = {"part": 0, "task": task(1)}
    assert ask(answering, **same) != ask(answering, **{**same, **other})
    assert len(counting) == 2


def test_only_the_last_round_is_kept(counting: list[tuple[int, bytes]]) -> None:
    answering = Answering(lambda *_: None)
    for step in (1, 2, 1):
        ask(answering, 0, task(step))
    assert len(counting) == 3


def test_runs_that_ask_in_turn_are_each_answered_once(counting: list[tuple[int, bytes]]) -> None:
    """Else a phone of either run would draw noise of its own again for the same step."""
    answering = Answering(lambda *_: None)
    said = [ask(answering, 0, task(1, run)) for run in "AABAB"]
    assert said == [said[0], said[0], said[2], said[0], said[2]]
    ask(answering, 0, task(2, "A"))
    assert ask(answering, 0, task(1, "B")) == said[2], "a round of one run does not end that of another"
    assert len(counting) == 3


def test_a_node_that_lives_for_months_keeps_few_runs(counting: list[tuple[int, bytes]]) -> None:
    answering = Answering(lambda *_: None, kept_runs=2)
    for run in ("A", "B", "A", "C", "A", "B"):
        ask(answering, 0, task(1, run))
    assert [unpack(asked) for _, asked in counting] == ["A", "B", "C", "B"], (
        "of those that were silent for longest none"
    )


def unpack(asked: bytes) -> str:
    return decode_task(asked).run_id


def test_what_a_run_that_ended_left_makes_room(counting: list[tuple[int, bytes]]) -> None:
    answering = Answering(lambda *_: None, kept_bytes=len(b"answer 1"))
    for run in ("A", "B", "B", "A"):
        ask(answering, 0, task(1, run))
    assert [unpack(asked) for _, asked in counting] == ["A", "B", "A"]


def test_answers_over_the_bound_are_made_again(counting: list[tuple[int, bytes]]) -> None:
    answering = Answering(lambda *_: None, kept_bytes=len(b"answer 1"))
    for part in (0, 1, 0, 1):
        ask(answering, part, task(1))
    assert [part for part, _ in counting] == [0, 1, 1]


def test_a_failure_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []

    def answer(host: object, content: RecordDict) -> RecordDict:
        tries.append(1)
        if len(tries) == 1:
            raise DataMissing("not yet")
        return echo(content)

    monkeypatch.setattr("fedlearn_server.node_answers.answer", answer)
    answering = Answering(lambda *_: None)
    with pytest.raises(DataMissing):
        ask(answering, 0, task(1))
    assert ask(answering, 0, task(1)) == b"part 0"


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ('{"config": {"data": {"root": "/there"}}, "fold": 1}', '{"config": {"data": {"root": "/here"}}, "fold": 1}'),
        ('{"config": {"data": {"devices": 3}}}', '{"config": {"data": {"devices": 3}}}'),
        ("not json", "not json"),
        ("[]", "[]"),
        ('{"config": 1}', '{"config": 1}'),
    ],
)
def test_data_lie_where_this_machine_has_them(description: str, expected: str) -> None:
    opened: list[str] = []

    def host(told: str, partition: int, partitions: int) -> NodeFunction:
        opened.append(told)
        return lambda task: task

    LocalData(host, Path("/here"))(description, 0, 1)
    assert opened == [expected]


# the command


def write_key(path: Path, key: Any) -> Path:
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(0o600)
    return path


def certificate() -> bytes:
    """A certificate authority's."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(1))
    return made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


@dataclass
class Given:
    """Arguments of the command that are all in order."""

    directory: Path

    def __call__(self, **changes: str) -> list[str]:
        key = write_key(self.directory / "key.pem", ec.generate_private_key(ec.SECP384R1()))
        ca = self.directory / "ca.crt"
        ca.write_bytes(certificate())
        given = {"superlink": "127.0.0.1:1", "ca": str(ca), "key": str(key), "state": str(self.directory / "state")}
        return [f"--{name.replace('_', '-')}={value}" for name, value in {**given, **changes}.items()]


@pytest.fixture
def given(tmp_path: Path) -> Given:
    """The arguments."""
    return Given(tmp_path)


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    assert node_command.main(arguments) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("address", ["", "host", "host:", ":80", "host:0", "host:99999", "https://host:80", "host:x"])
def test_an_address_that_is_none(given: Given, capsys: pytest.CaptureFixture[str], address: str) -> None:
    assert "--superlink" in refused(capsys, given(superlink=address))


@pytest.mark.parametrize("kind", ["absent", "empty", "rsa", "directory", "damaged"])
def test_a_key_that_is_none(given: Given, capsys: pytest.CaptureFixture[str], tmp_path: Path, kind: str) -> None:
    path = tmp_path / "other.pem"
    if kind == "empty":
        path.write_text("")
    elif kind == "rsa":
        write_key(path, rsa.generate_private_key(65537, 2048))
    elif kind == "directory":
        path.mkdir()
    elif kind == "damaged":
        path.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n")
    said = refused(capsys, given(key=str(path)))
    assert f"FL706: --key {path}: " in said


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
def test_a_key_that_others_can_read(
    given: Given, capsys: pytest.CaptureFixture[str], tmp_path: Path, mode: int
) -> None:
    arguments = given(cohort="nobody")  # which would be refused next: no node is started
    (tmp_path / "key.pem").chmod(mode)
    said = refused(capsys, arguments)
    assert f"--key {tmp_path / 'key.pem'}: others can read this node's key: `chmod 600 {tmp_path / 'key.pem'}`" in said


@pytest.mark.parametrize("kind", ["absent", "file"])
def test_data_that_is_not_there(given: Given, capsys: pytest.CaptureFixture[str], tmp_path: Path, kind: str) -> None:
    path = tmp_path / "data"
    if kind == "file":
        path.write_text("")
    said = refused(capsys, given(data_root=str(path), cohort="nobody"))
    assert f"FL102: --data-root {path}: not a directory" in said


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.OpenSSH, PrivateFormat.TraditionalOpenSSL])
def test_a_key_is_read_in_every_form(tmp_path: Path, form: PrivateFormat) -> None:
    key, path = ec.generate_private_key(ec.SECP384R1()), tmp_path / "key"
    path.write_bytes(key.private_bytes(Encoding.PEM, form, NoEncryption()))
    path.chmod(0o600)
    assert load_node_key(path).private_numbers() == key.private_numbers()


def test_the_second_signal_ends_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    alarms, ends = [], []
    monkeypatch.setattr("signal.alarm", alarms.append)
    monkeypatch.setattr("os._exit", ends.append)
    with Stop() as stop:
        handler = node_command._stopping(stop)
        handler(signal.SIGTERM, None)
        assert (stop.wished, alarms, ends) == (True, [node_command.DRAIN_S], [])
        handler(signal.SIGTERM, None)
        assert ends == [143]


@pytest.mark.parametrize("content", [None, "", "no certificate", "\u00e9"])
def test_an_authority_that_is_none(
    given: Given, capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "other.crt"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    assert f"FL706: --ca {path}: " in refused(capsys, given(ca=str(path)))


def test_a_host_that_is_not_installed(given: Given, capsys: pytest.CaptureFixture[str]) -> None:
    assert "FL101" in refused(capsys, given(cohort="nobody"))


def test_a_host_without_its_lab(
    given: Given, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'hydra'", name="hydra")

    monkeypatch.setattr(node_command, "host_named", absent)
    said = refused(capsys, given())
    assert "FL103" in said
    assert "fedlearn[lab]" in said


def test_a_second_process_of_a_node(given: Given, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    first = NodeDirectory(tmp_path / "state")
    assert "another process" in refused(capsys, given())
    first.close()


def test_help_says_what_signals_do(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        node_command.main(["--help"])
    said = capsys.readouterr().out
    assert all(word in said for word in ("SIGTERM", "--data-root", "status.json", "HOST:PORT"))

"""Every call to Flower against a real flower-superlink: what another version of Flower changes fails here, by name.

Whatever fails here after an upgrade of flwr is mended in ``fedlearn_server/flower.py`` alone.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import certifi
import pytest
from flwr.app import Error, Message
from flwr.proto.message_pb2 import PullObjectRequest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from fedlearn.errors import DataMissing, SuperLinkRefused, SuperLinkUnreachable
from fedlearn.lab.superlink.order import bundle_files
from fedlearn_server import flower
from fedlearn_server.flower import (
    ControlLink,
    FleetLink,
    build_bundle,
    bundle_digest,
    failure_reply,
    identify_message,
    limit_retries,
)
from fedlearn_server.message import pack_answer, unpack_question

if TYPE_CHECKING:
    from superlink_world import Member, SuperLinkWorld

SUPPORTED = ">=1.41,<1.42"
AWAY = "127.0.0.1:1"

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern")  # Flower's, when it builds a bundle


def load(name: str) -> ModuleType:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


worlds = load("superlink_world")


def next_message(link: FleetLink) -> Message:
    """Wait for a node's next message."""
    return worlds.wait_until(link.pull, "a message")


def answer(message: Message, payload: bytes) -> Message:
    """The answer of a node that was asked."""
    return Message(pack_answer(payload, unpack_question(message.content).challenge), reply_to=message)


@pytest.fixture
def members(superlink: SuperLinkWorld) -> Iterator[list[Member]]:
    """Two registered nodes; no others are online."""
    made = [superlink.register() for _ in range(2)]
    yield made
    for member in made:
        if superlink.status_of(member) != "unregistered":
            superlink.control.unregister_node(member.node_id)


def test_flower_is_the_version_that_this_was_written_for() -> None:
    version = importlib.metadata.version("flwr")
    assert version in SpecifierSet(SUPPORTED), f"flwr {version}: run this file, mend flower.py, then change SUPPORTED"
    declared = [Requirement(line) for line in importlib.metadata.requires("fedlearn-server") or []]
    pins = {requirement.name: requirement.specifier for requirement in declared if requirement.marker is None}
    assert pins["flwr"] == SpecifierSet(SUPPORTED)


def test_what_the_documents_say_of_time() -> None:
    assert (flower.HEARTBEAT_S, flower.GONE_S) == (10.0, 20.0)
    assert (flower.CLOCK_AHEAD_S, flower.CLOCK_BEHIND_S) == (5, 305)


# rounds


def test_questions_and_answers(superlink: SuperLinkWorld, members: list[Member]) -> None:
    """Three rounds: what a node gets, what arrives of it, what is fetched again, and what others can do to it."""
    methods: set[str] = set()
    fetched: list[set[str]] = [set()]

    def tap(method: str, sent: bytes, got: bytes) -> None:
        methods.add(method.rpartition("/")[2])
        if method.endswith("/PullObject"):
            fetched[-1].add(PullObjectRequest.FromString(sent).object_id)

    links = [superlink.link(members[0], tap), superlink.link(members[1])]
    assert [link.activate(None) for link in links] == [member.node_id for member in members]
    run = superlink.ask([b"first", b"second", b"third"], parts=2, cohort='{"about": 1}')

    first = [next_message(link) for link in links]
    check_questions(first, members, run.run_id)
    assert [link.push(answer(message, b"good")) for link, message in zip(links, first, strict=True)] == [True, True]
    worlds.wait_until(lambda: len(run.answers()) == 2, "two answers")
    assert [bytes.fromhex(said["payload"]) for said in run.answers()] == [b"good", b"good"]

    fetched.append(set())
    second = [next_message(link) for link in links]
    assert [unpack_question(message.content).task for message in second] == [b"second", b"second"]
    # message, list of its records, task and place are new; the cohort is not
    assert [len(ids) for ids in fetched] == [5, 4]
    assert not fetched[0] & fetched[1]
    links[0].push(failure_reply(second[0], DataMissing("canary words")))
    links[1].push(Message(pack_answer(b"guessed", bytes(16)), reply_to=second[1]))
    worlds.wait_until(lambda: len(run.answers()) == 4, "two answers more")
    assert {said["failure"] for said in run.answers()[2:]} == {
        "DataMissing FL201",
        "the answer does not repeat the challenge of its question.",
    }

    third = [next_message(link) for link in links]
    check_forgery(links, third, run)
    assert superlink.wait_for_run(run.run_id) == "completed"
    assert links[0].push(answer(third[0], b"after the end")) is False
    assert methods == {
        "ActivateNode",
        "PullMessages",
        "PullObject",
        "ConfirmMessageReceived",
        "PushMessages",
        "PushObject",
    }, "a node asks for no app and no run"


def check_questions(messages: list[Message], members: list[Member], run_id: int) -> None:
    """The messages of a first round are what was sent."""
    questions = [unpack_question(message.content) for message in messages]
    assert {question.partition for question in questions} == {0, 1}
    assert len({question.challenge for question in questions}) == 2
    for message, question, member in zip(messages, questions, members, strict=True):
        assert (question.cohort, question.task, question.partitions) == ('{"about": 1}', b"first", 2)
        metadata = message.metadata
        assert (metadata.run_id, metadata.dst_node_id, metadata.group_id) == (run_id, member.node_id, "0")
        assert (metadata.message_type, metadata.ttl) == ("train", 120.0)
        assert abs(metadata.created_at - time.time()) < worlds.PATIENCE_S


def check_forgery(links: list[FleetLink], asked: list[Message], run: object) -> None:
    """SuperLink lets a registered node push in another's name, if it knows the id of the question: docs/node.md.

    What it pushes does not know the challenge, so that it is no answer. It takes the place of the answer.
    """
    before = len(run.answers())
    forged = Message(pack_answer(b"forged", bytes(16)), reply_to=asked[1])
    assert forged.metadata.src_node_id == asked[1].metadata.dst_node_id
    assert links[0].push(forged), "SuperLink refuses it now: better, say so in docs/node.md"
    worlds.wait_until(lambda: len(run.answers()) == before + 1, "the forged answer")
    (said,) = run.answers()[before:]
    assert (said["reason"], said["payload"]) == ("malformed", "")
    assert links[1].push(answer(asked[1], b"too late")), "taken and forgotten: a message has one answer"
    links[0].push(answer(asked[0], b"good"))
    worlds.wait_until(lambda: len(run.answers()) == before + 2, "the good answer")
    (good,) = [said for said in run.answers()[before:] if not said["failure"]]
    assert bytes.fromhex(good["payload"]) == b"good"


def test_nobody_pulls_for_another(superlink: SuperLinkWorld, members: list[Member]) -> None:
    link = superlink.link(members[0])
    link.activate(None)
    link._node.node_id = members[1].node_id
    for call in (link.pull, link.heartbeat, link.deactivate):
        with pytest.raises(SuperLinkRefused, match="401"):
            call()


def test_a_message_that_cannot_be_read_a_run_that_is_stopped_and_a_superlink_that_comes_back(
    superlink: SuperLinkWorld, members: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed and started on the same database, SuperLink knows its nodes and runs; what belongs to no run goes."""
    link = superlink.link(members[0])
    link.activate(None)
    run = superlink.ask([b"first", b"second", b"third"], parts=1)

    def broken(message_id: str, contents: dict[str, bytes]) -> Message:
        raise KeyError("another app's record")

    with monkeypatch.context() as patch:
        patch.setattr(flower, "inflate_object_from_contents", broken)
        message = next_message(link)
    assert not message.content
    link.push(failure_reply(message, ValueError("canary words")))

    message = next_message(link)
    assert [said["failure"] for said in run.answers()] == ["ValueError"]
    found = superlink.control.run(run.run_id)
    assert found is not None
    assert (found.status, found.is_over) == ("running", False)
    reply = Message(Error(0, "a reason"), reply_to=message)
    assert reply.metadata.reply_to_message_id == message.metadata.message_id
    identify_message(reply, "its id")
    assert reply.metadata.message_id == "its id"

    assert superlink.control.stop_run(run.run_id)
    assert superlink.wait_for_run(run.run_id).startswith("stopped")
    assert link.push(answer(message, b"late")) is False
    assert link.pull() is None
    assert superlink.control.run(12345) is None
    assert not superlink.control.stop_run(run.run_id)

    link.heartbeat()
    superlink.kill()
    try:
        with pytest.raises(SuperLinkUnreachable):
            link.push(answer(message, b"unsent"))
        with pytest.raises(SuperLinkUnreachable):
            link.heartbeat()
    finally:
        superlink.start()
    assert superlink.control.run(run.run_id) is not None
    assert run.run_id in {known.run_id for known in superlink.control.runs()}
    link.heartbeat()
    assert superlink.status_of(members[0]) == "online"
    assert link.push(answer(message, b"unsent")) is False
    assert link.pull() is None


def test_a_grid_can_be_told_to_give_up() -> None:
    from flwr.superlink.grid.http_grid import HttpGrid

    grid = HttpGrid(AWAY, insecure=True, token="any")
    assert grid._retry_invoker.max_time is None, "it would try for ever"
    limit_retries(grid, 4.0)
    assert grid._retry_invoker.max_time == 4.0


def test_bundles() -> None:
    bundle = build_bundle(bundle_files())
    assert bundle == build_bundle(bundle_files())
    assert len(bundle_digest(bundle)) == 64
    assert len(bundle) < 4096


# who may be a node


def test_a_killed_node_is_let_in_again_at_once(superlink: SuperLinkWorld, members: list[Member]) -> None:
    killed, again = superlink.link(members[0]), superlink.link(members[0])
    killed.activate(None)
    with pytest.raises(SuperLinkRefused, match=r"412.*killed less than 20 s ago"):
        again.activate(None)
    with pytest.raises(SuperLinkRefused, match="412"):
        again.activate(members[1].node_id)
    assert again.activate(members[0].node_id) == members[0].node_id
    assert superlink.status_of(members[0]) == "online"


def test_nobody_takes_another_offline(superlink: SuperLinkWorld, members: list[Member]) -> None:
    links = [superlink.link(member) for member in members]
    links[1].activate(None)
    assert links[0].activate(members[1].node_id) == members[0].node_id
    assert superlink.status_of(members[1]) == "online"


def test_presence(superlink: SuperLinkWorld, members: list[Member]) -> None:
    link = superlink.link(members[0])
    assert superlink.status_of(members[0]) == "registered"
    link.activate(None)

    def online_until() -> float:
        return {node.node_id: node.online_until for node in superlink.control.nodes()}[members[0].node_id]

    before = online_until()
    assert before - time.time() <= flower.GONE_S
    link.heartbeat()
    assert online_until() > before
    link.deactivate()
    assert superlink.status_of(members[0]) == "offline"
    link.heartbeat()
    assert superlink.status_of(members[0]) == "online", "why no heartbeat may follow a good-bye"


def test_an_unregistered_key(superlink: SuperLinkWorld) -> None:
    key, _ = superlink.new_key()
    link = FleetLink(superlink.address, superlink.ca, key)
    for known_as in (None, 1):
        with pytest.raises(SuperLinkRefused, match=r"412.*not registered or was revoked"):
            link.activate(known_as)
    with pytest.raises(SuperLinkRefused, match=r"401.*not registered"):
        link.pull()
    link.close()


def test_a_revoked_node(superlink: SuperLinkWorld, members: list[Member]) -> None:
    link = superlink.link(members[0])
    link.activate(None)
    superlink.control.unregister_node(members[0].node_id)
    assert superlink.status_of(members[0]) == "unregistered"
    for call in (link.pull, link.heartbeat, link.deactivate):
        with pytest.raises(SuperLinkRefused, match=r"401.*not registered there \(any more\)"):
            call()
    with pytest.raises(SuperLinkRefused, match=r"412.*revoked"):
        link.activate(members[0].node_id)
    with pytest.raises(SuperLinkRefused):
        superlink.control.unregister_node(members[0].node_id)


def test_a_key_is_registered_once(superlink: SuperLinkWorld, members: list[Member]) -> None:
    public = {node.node_id: node.public_key for node in superlink.control.nodes()}[members[0].node_id]
    with pytest.raises(SuperLinkRefused):
        superlink.control.register_node(public, "again")
    with pytest.raises((SuperLinkRefused, SuperLinkUnreachable)):
        superlink.control.register_node(b"no key", "nobody")


@pytest.mark.parametrize(("seconds", "accepted"), [(7, False), (-250, True), (-310, False)])
def test_a_clock_that_is_wrong(
    superlink: SuperLinkWorld, members: list[Member], monkeypatch: pytest.MonkeyPatch, seconds: int, accepted: bool
) -> None:
    def shifted() -> datetime.datetime:
        return datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)

    monkeypatch.setattr("flwr.supernode.node_auth_http_interceptor.now", shifted)
    link = superlink.link(members[0])
    if accepted:
        link.activate(None)
    else:
        with pytest.raises(SuperLinkRefused, match=r"401.*clock is wrong.* 5 s ahead .* 305 s behind"):
            link.activate(None)


# who may be a SuperLink


def test_a_superlink_of_another_authority(superlink: SuperLinkWorld) -> None:
    key, _ = superlink.new_key()
    others = Path(certifi.where())
    with (
        closing(FleetLink(superlink.address, others, key)) as node,
        closing(ControlLink(superlink.address, others)) as me,
    ):
        for call in (node.pull, me.nodes):
            with pytest.raises(SuperLinkRefused, match=r"certificate .* is not accepted"):
                call()


def test_an_expired_certificate(superlink: SuperLinkWorld) -> None:
    key, _ = superlink.new_key()
    with worlds.tls_listener(*superlink.authority.server(days=-1)) as address:
        link = FleetLink(address, superlink.ca, key)
        with pytest.raises(SuperLinkRefused, match=r"certificate .* has expired.*make new ones"):
            link.pull()
        link.close()


def test_nobody_answers(superlink: SuperLinkWorld) -> None:
    key, _ = superlink.new_key()
    with worlds.tls_listener(*superlink.authority.server()) as hangs_up:
        for address in (AWAY, hangs_up):
            link = FleetLink(address, superlink.ca, key)
            with pytest.raises(SuperLinkUnreachable, match="does not answer"):
                link.activate(None)
            link.close()


def test_a_superlink_without_tls_where_tls_is_expected(superlink: SuperLinkWorld) -> None:
    key, _ = superlink.new_key()
    link = FleetLink(superlink.address, None, key)
    with pytest.raises((SuperLinkUnreachable, SuperLinkRefused)):
        link.activate(None)
    link.close()


def test_a_submitter_refuses_a_superlink_of_another_version(
    superlink: SuperLinkWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flower, "FLOWER", "1.30.0")
    with pytest.raises(SuperLinkRefused, match=r"is of version 1\.41\.\d+, this side runs flwr 1\.30\.0"):
        superlink.ask([b"task"], parts=1)


def test_flowers_own_superlink_does_not_say_of_which_version_it_is(
    superlink: SuperLinkWorld, members: list[Member]
) -> None:
    link = superlink.link(members[0])
    worlds.be_of_version(link, "1.30.0")
    link.activate(None)  # refused now: better, say so in docs/node.md; test_up_down.py has the one of `fedlearn up`

"""Replies as a ServerApp reads them from a SuperLink: no node holds up the others, nor makes it hold what it sends."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import httpx
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedResponse,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.run import Run
from flwr.supercore.runtime import RuntimeHttpClient

from fedlearn_server import flower
from fedlearn_server.flower import MOST_OBJECTS, _ReplyReader, identify_message, identify_process

MOST_BYTES = 10_000


class Body(httpx.ByteStream):
    """An answer's bytes, and whether anybody read them."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.was_read = False

    def __iter__(self) -> Iterator[bytes]:
        self.was_read = True
        return super().__iter__()


@dataclass
class SuperLink:
    """Holds replies; answers what a ServerApp's own client sends it, and keeps what it was asked."""

    replies: dict[str, tuple[Message, ObjectTree]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)
    pulled: list[str] = field(default_factory=list)
    bodies: list[Body] = field(default_factory=list)
    confirmed: int = 0

    def send(self, sent: str, content: RecordDict) -> list[str]:
        """Let a node send a reply to a message; return its objects' ids, the message's own last."""
        identify_process(9)
        question = Message(RecordDict(), 5, "train")
        identify_message(question, sent)
        reply = Message(content, reply_to=question)
        identify_message(reply, reply.object_id)
        parts = get_all_nested_objects(reply)
        self.replies[sent] = (reply, get_object_tree(reply))
        self.objects.update({name: part.deflate() for name, part in parts.items()})
        return sorted(parts, key=lambda name: name == reply.object_id)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """Answer a call."""
        name = request.url.path.rpartition("/")[2]
        if name == "pull-messages":
            wanted = PullAppMessagesRequest.FromString(request.content).message_ids
            found = [self.replies.pop(sent) for sent in wanted if sent in self.replies]
            heads = [message_to_proto(remove_content_from_message(reply)) for reply, _ in found]
            answer = PullAppMessagesResponse(messages_list=heads, message_object_trees=[tree for _, tree in found])
            return httpx.Response(200, content=answer.SerializeToString())
        if name == "confirm-message-received":
            self.confirmed += 1
            return httpx.Response(200, content=ConfirmMessageReceivedResponse().SerializeToString())
        asked = PullObjectRequest.FromString(request.content).object_id
        self.pulled.append(asked)
        there = asked not in self.absent
        content = self.objects.get(asked, b"") if there else b""
        answer = PullObjectResponse(object_found=True, object_available=there, object_content=content)
        self.bodies.append(Body(answer.SerializeToString()))
        headers = {"content-length": str(len(answer.SerializeToString()))}
        return httpx.Response(200, headers=headers, stream=self.bodies[-1])


@dataclass
class Grid:
    """What the reader needs of Flower's grid."""

    _runtime_client: RuntimeHttpClient
    run: Run = field(default_factory=lambda: Run.create_empty(9))
    node: Node = field(default_factory=lambda: Node(node_id=1))


@pytest.fixture
def superlink() -> SuperLink:
    return SuperLink()


@pytest.fixture
def reader(superlink: SuperLink) -> Iterator[_ReplyReader]:
    """A reader over Flower's own client, without a network."""
    client = RuntimeHttpClient.from_server_address("127.0.0.1:1", True, None, [])
    client._client.close()
    client._client = httpx.Client(transport=httpx.MockTransport(superlink))
    yield _ReplyReader(Grid(client), MOST_BYTES)
    client.close()


def record(size: int, fill: int = 0) -> RecordDict:
    return RecordDict({"r": ConfigRecord({"payload": bytes([fill]) * size})})


def payloads(found: Sequence[Message]) -> list[int | None]:
    """The size of what each reply holds; None: it is an empty one."""
    return [len(message.content["r"]["payload"]) if "r" in message.content else None for message in found]


def test_a_reply_arrives_whole(superlink: SuperLink, reader: _ReplyReader) -> None:
    superlink.send("a", record(9000))
    (reply,) = reader.read(["a"])
    assert reply.content["r"]["payload"] == bytes(9000)
    assert (reply.metadata.reply_to_message_id, superlink.confirmed) == ("a", 1)


def test_a_reply_of_many_parts_is_an_empty_one(superlink: SuperLink, reader: _ReplyReader) -> None:
    superlink.send("a", RecordDict({str(n): ConfigRecord({"n": n}) for n in range(MOST_OBJECTS)}))
    superlink.send("b", record(100))
    assert payloads(list(reader.read(["a", "b"]))) == [None, 100]
    assert len(superlink.pulled) == 3, "not a part of it was fetched"
    assert superlink.confirmed == 2, "it is not offered again"


def test_a_part_that_is_too_large_is_not_even_read(superlink: SuperLink, reader: _ReplyReader) -> None:
    superlink.send("a", record(MOST_BYTES + 1000))
    superlink.send("b", record(100))
    assert payloads(list(reader.read(["a", "b"]))) == [None, 100]
    assert [body.was_read for body in superlink.bodies] == [False, True, True, True]
    assert superlink.confirmed == 2


def test_parts_that_are_too_large_together_make_an_empty_reply(superlink: SuperLink, reader: _ReplyReader) -> None:
    superlink.send("a", RecordDict({str(n): ConfigRecord({"x": bytes([n]) * 4000}) for n in range(5)}))
    superlink.send("b", record(100))
    assert payloads(list(reader.read(["a", "b"]))) == [None, 100]
    assert [body.was_read for body in superlink.bodies[:3]] == [True, True, False], "no more than fits was taken"


def test_a_reading_ends_so_that_its_caller_can_look_at_the_clock(
    superlink: SuperLink, reader: _ReplyReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flower, "READING_S", 0.0)
    for name in "abc":
        superlink.send(name, record(100))
    assert [len(list(reader.read(["a", "b", "c"]))) for _ in range(4)] == [1, 1, 1, 0]


def test_who_is_still_sending_comes_last_next_time(
    superlink: SuperLink, reader: _ReplyReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flower, "READING_S", 0.0)
    superlink.absent.add(superlink.send("a", record(100))[-1])
    superlink.send("b", record(200))
    wanted = ["a", "b"]
    assert [payloads(list(reader.read(wanted))) for _ in range(2)] == [[], [200]]
    superlink.absent.clear()
    before = len(superlink.pulled)
    assert payloads(list(reader.read(["a"]))) == [100]
    assert len(superlink.pulled) - before == 1, "what had come was kept"


def test_unfinished_replies_are_held_up_to_the_bound(superlink: SuperLink, reader: _ReplyReader) -> None:
    names = [f"{n}" for n in range(6)]
    for n, name in enumerate(names):
        superlink.absent.add(superlink.send(name, record(4000, n))[-1])
    for _ in range(3):
        assert list(reader.read(names)) == []
        assert sum(reply.size for reply in reader._incoming.values()) <= MOST_BYTES
    superlink.absent.clear()
    assert payloads(list(reader.read(names))) == [4000] * 6


def test_a_part_that_is_no_part_makes_an_empty_reply(superlink: SuperLink, reader: _ReplyReader) -> None:
    names = superlink.send("a", record(100))
    for name in names[:-1]:
        superlink.objects[name] = json.dumps({"not": "a part"}).encode()
    assert payloads(list(reader.read(["a"]))) == [None]

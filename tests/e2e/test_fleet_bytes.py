"""All that moves between a node and SuperLink, captured before TLS, decodes wholly by docs/fleet-bytes.md.

The decoder here is written from that page. It shares with the code only the generated classes of both schemas.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import re
import shutil
import sys
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from flwr.proto import fleet_pb2, heartbeat_pb2, message_pb2, recorddict_pb2
from google.protobuf.message import Message as Proto
from google.protobuf.unknown_fields import UnknownFieldSet
from rich.console import Console

from fedlearn.errors import DataError
from fedlearn.lab import compose, train
from fedlearn.lab.shards import open_simulated
from fedlearn.ledger import verifier
from fedlearn.proto import wire_pb2
from fedlearn.task import CohortReply, RoundTask
from fedlearn.wire import decode_reply, decode_task, encode_reply, encode_task, task_digest
from fedlearn_server.flower import FleetLink
from fedlearn_server.hosting import NodeFunction
from fedlearn_server.metrics import NodeMetrics
from fedlearn_server.node import Node
from fedlearn_server.node_answers import Answering, LocalData
from fedlearn_server.node_state import NodeDirectory
from fedlearn_server.node_stop import Stop

if TYPE_CHECKING:
    from superlink_world import Member, SuperLinkWorld

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern")  # Flower's, when it builds a bundle

CANARIES = ("CANARY-4711-CHAT", "金丝雀在唱歌")
WORKERS = tuple(range(770_011, 770_019))
PARTS = 2
ROUNDS = 2
FAILS = (1, 1)
"""Step and part of the answer that is a failure."""

CALLS: dict[str, tuple[type[Proto], type[Proto]]] = {
    "ActivateNode": (fleet_pb2.ActivateNodeRequest, fleet_pb2.ActivateNodeResponse),
    "DeactivateNode": (fleet_pb2.DeactivateNodeRequest, fleet_pb2.DeactivateNodeResponse),
    "SendNodeHeartbeat": (heartbeat_pb2.SendNodeHeartbeatRequest, heartbeat_pb2.SendNodeHeartbeatResponse),
    "PullMessages": (fleet_pb2.PullMessagesRequest, fleet_pb2.PullMessagesResponse),
    "PullObject": (message_pb2.PullObjectRequest, message_pb2.PullObjectResponse),
    "ConfirmMessageReceived": (
        message_pb2.ConfirmMessageReceivedRequest,
        message_pb2.ConfirmMessageReceivedResponse,
    ),
    "PushMessages": (fleet_pb2.PushMessagesRequest, fleet_pb2.PushMessagesResponse),
    "PushObject": (message_pb2.PushObjectRequest, message_pb2.PushObjectResponse),
}
QUESTION = {
    "fedlearn.cohort": {"description": "string"},
    "fedlearn.task": {"payload": "bytes"},
    "fedlearn.place": {"partition": "sint64", "partitions": "sint64", "challenge": "bytes"},
}
ANSWER = {"fedlearn.reply": {"payload": "bytes", "challenge": "bytes"}}
DESCRIPTION = {"code", "config", "fold", "roll"}


# a population with canaries


def state(goal: int, domain: str, name: str) -> list[Any]:
    return [goal, domain, "名称", name, True]


def dialogue(number: int) -> list[dict[str, Any]]:
    """A chat that ends with the choice of a restaurant, with canaries in it."""
    said = f"{CANARIES[number % 2]} 想吃{'川菜' if number % 3 else '火锅'}"
    chosen = [state(1, "餐馆", f"餐馆{number % 4}号")]
    return [
        {"role": "usr", "content": said, "user_state": []},
        {"role": "sys", "content": f"好的 {CANARIES[0]}"},
        {"role": "usr", "content": "就这家", "user_state": chosen},
    ]


def release(root: Path) -> Path:
    """Write a data set as CrossWOZ is released."""
    folder = root / "crosswoz"
    folder.mkdir(parents=True)
    tables = {
        "restaurant": [
            [f"餐馆{n}号", {"人均消费": 50 + n, "推荐菜": ["火锅" if n % 2 else "川菜"]}] for n in range(12)
        ],
        "attraction": [["青山公园", {"门票": 0}]],
        "hotel": [["大酒店", {"价格": 400}]],
    }
    for domain, rows in tables.items():
        (folder / f"{domain}_db.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode(), mtime=0))
    dialogues = {
        str(number): {"sys-usr": [1, WORKERS[number % len(WORKERS)]], "messages": dialogue(number)}
        for number in range(32)
    }
    with zipfile.ZipFile(folder / "val.json.zip", "w") as archive:
        archive.writestr("val.json", json.dumps(dialogues))
    return root


# the capture


@dataclass(eq=False)
class Capture:
    """What a node and SuperLink said to each other."""

    calls: list[tuple[str, bytes, bytes]] = field(default_factory=list)

    def __call__(self, method: str, sent: bytes, got: bytes) -> None:
        """Be a tap."""
        self.calls.append((method.removeprefix("/flwr.proto.Fleet/"), sent, got))

    def everything(self) -> bytes:
        """All bytes, both ways."""
        return b"\0".join(part for _, sent, got in self.calls for part in (sent, got))


def open_failing_once(description: str, partition: int, partitions: int) -> NodeFunction:
    """Host a part of the population; one answer is a failure that quotes a phone."""
    cohort = open_simulated(description, partition, partitions)

    def node(task: RoundTask) -> CohortReply:
        if (task.step, partition) == FAILS:
            raise DataError(CANARIES[0])
        return cohort(task)

    return node


@contextmanager
def resident(link: FleetLink, root: Path, state: Path) -> Iterator[Node]:
    """Run a node in a thread."""
    directory, stop = NodeDirectory(state), Stop()
    node = Node(link, Answering(LocalData(open_failing_once, root)), directory, NodeMetrics(), stop=stop)
    thread = threading.Thread(target=node.run)
    thread.start()
    try:
        yield node
    finally:
        stop.wish()
        thread.join()
        directory.close()


def load(name: str) -> ModuleType:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="module")
def capture(superlink: SuperLinkWorld, tmp_path_factory: pytest.TempPathFactory) -> Capture:
    """A private training over one node, one of whose answers is a failure."""
    base = tmp_path_factory.mktemp("bytes")
    told = release(base / "told")
    elsewhere = shutil.copytree(told, base / "elsewhere")  # written anew, its archive would have another time in it
    captured = Capture()
    member: Member = superlink.register()
    link = superlink.link(member, captured)
    overrides = [
        *("experiment=crosswoz_restaurants", f"data.root={told}", f"run.dir={base / 'run'}", "data.folds=1"),
        *(
            "data.fold_by=last_session",
            "seeds=[0]",
            f"cohort.rounds={ROUNDS}",
            "evaluation.controls=false",
            "evaluation.bootstrap=100",
        ),
        *("runtime=superlink", f"runtime.address='{superlink.address}'", f"runtime.ca={superlink.ca}"),
        *(f"runtime.shards={PARTS}", "runtime.minimum=0.1"),
    ]
    with resident(link, elsewhere, base / "state"):
        load("superlink_world").wait_until(lambda: superlink.status_of(member) == "online", "the node")
        train(compose(overrides), console=Console(quiet=True))
    superlink.control.unregister_node(member.node_id)
    verifier.verify(None, directories=[base / "run"])
    return captured


# the decoder


def parse(kind: type[Proto], data: bytes) -> Proto:
    """Parse bytes of which every one is accounted for."""
    message = kind.FromString(data)
    check_known(message)
    assert message.SerializeToString(deterministic=True) == data, kind.__name__
    return message


def check_known(message: Proto) -> None:
    assert len(UnknownFieldSet(message)) == 0, type(message).__name__
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None or descriptor.message_type.GetOptions().map_entry:
            continue
        for part in value if hasattr(value, "__len__") else [value]:
            check_known(part)


@dataclass(frozen=True)
class FlowerObject:
    """An object by docs/fleet-bytes.md: kind, ids of its parts, body."""

    kind: str
    parts: tuple[str, ...]
    body: bytes


def parse_object(content: bytes) -> FlowerObject:
    head, _, body = content.partition(b"\0")
    found = re.fullmatch(r"(Message|RecordDict|ConfigRecord) ((?:[0-9a-f]{64},?)*) (\d+)", head.decode("ascii"))
    assert found is not None, head
    assert int(found[3]) == len(body)
    return FlowerObject(found[1], tuple(filter(None, found[2].split(","))), body)


def objects(capture: Capture) -> dict[str, FlowerObject]:
    """All objects that moved, by id; the id is the digest of the content."""
    found: dict[str, FlowerObject] = {}
    for method, sent, got in capture.calls:
        if method == "PullObject":
            response = message_pb2.PullObjectResponse.FromString(got)
            moved = [(message_pb2.PullObjectRequest.FromString(sent).object_id, response.object_content)]
            moved = moved if response.object_available else []
        elif method == "PushObject":
            request = message_pb2.PushObjectRequest.FromString(sent)
            moved = [(request.object_id, request.object_content)]
        else:
            continue
        for object_id, content in moved:
            assert hashlib.sha256(content).hexdigest() == object_id
            found[object_id] = parse_object(content)
    return found


def record(thing: FlowerObject) -> dict[str, Any]:
    """The fields of a ConfigRecord."""
    assert not thing.parts
    parsed = parse(recorddict_pb2.ConfigRecord, thing.body)
    return {item.key: (item.value.WhichOneof("value"), item.value) for item in parsed.items}


def contents(capture: Capture) -> list[Mapping[str, Mapping[str, Any]]]:
    """Every RecordDict that moved, with its records."""
    known = objects(capture)
    found = []
    for thing in known.values():
        if thing.kind != "RecordDict":
            continue
        names = json.loads(thing.body)
        assert json.dumps(names).encode() == thing.body
        assert sorted(names.values()) == sorted(thing.parts)
        found.append({name: record(known[object_id]) for name, object_id in names.items()})
    return found


def of_kind(capture: Capture, schema: Mapping[str, Mapping[str, str]]) -> list[dict[str, dict[str, Any]]]:
    """The values of all contents of one schema."""
    return [
        {name: {key: getattr(value, kind) for key, (kind, value) in fields.items()} for name, fields in content.items()}
        for content in contents(capture)
        if set(content) == set(schema)
    ]


# what moved


def check_that_every_call_is_one_of_eight_and_parses_wholly(capture: Capture) -> None:
    assert {method for method, _, _ in capture.calls} == set(CALLS)
    for method, sent, got in capture.calls:
        request, response = CALLS[method]
        parse(request, sent)
        parse(response, got)


def check_that_every_object_is_a_message_of_ours(capture: Capture) -> None:
    known = objects(capture)
    used = {part for thing in known.values() for part in thing.parts}
    for object_id, thing in known.items():
        assert set(thing.parts) <= set(known)
        if thing.kind == "Message":
            check_message(thing)
        else:
            assert object_id in used, "an object that no message has"
    schemas = [
        {name: {key: kind for key, (kind, _) in fields.items()} for name, fields in content.items()}
        for content in contents(capture)
    ]
    assert all(schema in (QUESTION, ANSWER) for schema in schemas)
    assert schemas.count(QUESTION) == ROUNDS * PARTS
    assert schemas.count(ANSWER) == schemas.count(QUESTION) - 1


def check_message(thing: FlowerObject) -> None:
    message = parse(message_pb2.Message, thing.body)
    assert (len(thing.parts), message.HasField("error")) in {(1, False), (0, True)}
    assert not message.HasField("content")
    metadata = message.metadata
    assert metadata.message_type == "train"
    assert metadata.group_id.isdigit()
    if message.HasField("error"):
        assert re.fullmatch(r"[A-Za-z]+( FL\d{3})?", message.error.reason)


def check_that_every_payload_is_of_the_wire_schema_and_encodes_to_the_same_bytes(capture: Capture) -> None:
    digests = set()
    for question in of_kind(capture, QUESTION):
        payload = question["fedlearn.task"]["payload"]
        parse(wire_pb2.Envelope, payload)
        task = decode_task(payload)
        assert encode_task(task) == payload
        digests.add(task_digest(task))
        told = json.loads(question["fedlearn.cohort"]["description"])
        assert set(told) == DESCRIPTION
        assert (question["fedlearn.place"]["partition"], question["fedlearn.place"]["partitions"]) in {(0, 2), (1, 2)}
        assert len(question["fedlearn.place"]["challenge"]) == 16
    answers = of_kind(capture, ANSWER)
    for answer in answers:
        payload = answer["fedlearn.reply"]["payload"]
        parse(wire_pb2.Envelope, payload)
        reply = decode_reply(payload)
        assert encode_reply(reply) == payload
        assert reply.contribution.codec == "grid64"
        assert reply.contribution.task_digest in digests
    asked = {question["fedlearn.place"]["challenge"] for question in of_kind(capture, QUESTION)}
    assert {answer["fedlearn.reply"]["challenge"] for answer in answers} < asked


def check_that_nothing_of_a_phone_is_in_it(capture: Capture) -> None:
    moved = capture.everything()
    for canary in CANARIES:
        for encoding in ("utf-8", "utf-16-le", "gb18030", "unicode_escape"):
            assert canary.encode(encoding) not in moved
    assert not [worker for worker in WORKERS if str(worker).encode() in moved]


def check_that_what_somebody_at_the_wire_would_see(capture: Capture) -> None:
    """A negative control, and why SuperLink is inside the trusted base: the secret key and the sums lie open."""
    moved = capture.everything()
    tasks = [decode_task(question["fedlearn.task"]["payload"]) for question in of_kind(capture, QUESTION)]
    assert len({task.round_key for task in tasks}) == ROUNDS
    assert all(any(task.round_key) and task.round_key in moved for task in tasks)
    sums = [decode_reply(answer["fedlearn.reply"]["payload"]).contribution for answer in of_kind(capture, ANSWER)]
    assert any(contribution.values.tobytes() in moved for contribution in sums if contribution.values.any())


def check_that_the_data_were_read_where_the_node_has_them(capture: Capture) -> None:
    """The run names a folder; the node was told another one, and trained."""
    roots = {
        json.loads(question["fedlearn.cohort"]["description"])["config"]["data"]["root"]
        for question in of_kind(capture, QUESTION)
    }
    assert [Path(root).name for root in roots] == ["told"]
    trained = [decode_reply(answer["fedlearn.reply"]["payload"]).trained for answer in of_kind(capture, ANSWER)]
    assert min(trained) > 0


def check_that_the_model_and_the_description_move_once(capture: Capture) -> None:
    """Two parts of a round ask the same; what the node has is not fetched again."""
    fetched = [
        message_pb2.PullObjectRequest.FromString(sent).object_id
        for method, sent, got in capture.calls
        if method == "PullObject" and message_pb2.PullObjectResponse.FromString(got).object_available
    ]
    assert len(fetched) == len(set(fetched))


def test_all_that_moves(capture: Capture) -> None:
    """One test: under xdist each worker would capture anew."""
    check_that_every_call_is_one_of_eight_and_parses_wholly(capture)
    check_that_every_object_is_a_message_of_ours(capture)
    check_that_every_payload_is_of_the_wire_schema_and_encodes_to_the_same_bytes(capture)
    check_that_nothing_of_a_phone_is_in_it(capture)
    check_that_what_somebody_at_the_wire_would_see(capture)
    check_that_the_data_were_read_where_the_node_has_them(capture)
    check_that_the_model_and_the_description_move_once(capture)

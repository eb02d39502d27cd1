"""Nothing the owner wrote leaves, is logged, or lies readable on the disk; and a phone that betrays it is caught."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from fedlearn.device.requests import is_signed
from fedlearn.features.index import CatalogueIndex
from fedlearn.features.ingest import read_message
from fedlearn.features.said import said_bytes
from fedlearn.proto import device_pb2 as pb
from fedlearn.proto import gateway_pb2, wire_pb2
from fedlearn_client.hooks import Method
from fedlearn_client.linux.audit import JsonLines
from fedlearn_client.linux.clock import LinuxClock
from fedlearn_client.linux.keystore import FileKeyStore

sys.path.insert(0, str(Path(__file__).parent))
import device_canary as canary
import device_search as search
import device_world as worlds


@pytest.fixture(scope="module", autouse=True)
def _prepared() -> Iterator[None]:
    yield
    worlds.forget_prepared()


def worker(mode: str, hidden: bytes) -> list[str]:
    """How to start a worker that is not the phone's own."""
    return [sys.executable, "-I", str(worlds.HERE / "device_worker.py"), mode, hidden.hex()]


KNOWN_NONCE = worker("nonce", b"\xab" * 16)


class KnownRandom(LinuxClock):
    """Gives the same bytes to every phone that asks for as many, as often, in the same order."""

    def __init__(self) -> None:
        self._asked: Counter[int] = Counter()

    def random_bytes(self, count: int) -> bytes:
        self._asked[count] += 1
        return hashlib.shake_256(f"{count} {self._asked[count]}".encode()).digest(count)


def requests_of(seed: int, live: Callable[[Any], None] = canary.Evening.live, **options: Any) -> Any:
    """Everything that leaves in an evening with the words of ``seed``; what each phone says of itself is evened out."""
    options.setdefault("hooks", {"clock_rng": KnownRandom()})
    with canary.evening(seed, gateway=worlds.Gateway(worlds.FixedRandom()), **options) as one:
        live(one)
        key = FileKeyStore(one.phone.state / "keys").public_key()
        return [(method, _evened(body, key) if method is Method.CHECK_IN else body) for method, body in one.requests()]


def _evened(check_in: bytes, key: bytes) -> bytes:
    """Return a check-in without the three fields that differ between phones: key, time, and what follows from all."""
    asked = gateway_pb2.CheckInRequest.FromString(check_in)
    assert asked.device_key == key
    assert is_signed(asked), "something is in the signature that is none"  # Ed25519 has one for each message and key
    assert abs(asked.time_ms / 1000 - time.time()) < 600
    asked.device_key, asked.time_ms, asked.signature = bytes(32), 1, bytes(64)
    return asked.SerializeToString(deterministic=True)


@lru_cache
def usual() -> Any:
    """What leaves in an evening of seed 11; the nonces are known."""
    return requests_of(11, worker=KNOWN_NONCE)


def without_nonce(requests: list[tuple[Method, bytes]]) -> list[bytes]:
    """The requests, zeros for the random number of each check-in and of each contribution."""
    made = []
    for method, sent_body in requests:
        body, nonces = sent_body, []
        if method is Method.CHECK_IN:
            nonces = [gateway_pb2.CheckInRequest.FromString(body).nonce]
        elif method is Method.UPLOAD:
            sent = gateway_pb2.UploadRequest.FromString(body)
            nonces = [wire_pb2.Envelope.FromString(sent.contribution).contribution.nonce]
        for nonce in nonces:
            assert len(nonce) == 16
            assert body.count(nonce) == 1
            body = body.replace(nonce, bytes(16))
        made.append(body)
    return made


# -- nothing is found --------------------------------------------------------------------------------------------------


def test_no_word_is_found_anywhere(tmp_path: Path) -> None:
    """A process of its own, so that its error output and its files are all there is; it enrols first."""
    credential = tmp_path / "credential"
    credential.write_bytes(b"a credential")
    gateway = worlds.Gateway(credentials=[b"a credential"])
    settings = {"credential": str(credential)}
    with canary.evening(1, inside=False, gateway=gateway, settings=settings) as one:
        one.agree()
        one.talk()
        one.blunder()
        assert one.kill_readers(2) >= 2
        # a round whose trainer died uploads zeros: the gateway must not learn from a silence
        assert "acknowledged" in {one.kill_trainer() for _ in range(2)}
        assert any(f"FL9{code}" in line for line in one.fill_disk() for code in ("04", "05", "06", "07", "08"))
        one.picture("after the faults")
        one.phone.stop()
        one.phone.start()
        one.stream = one.words.note(one.words.ascii())  # a second stream, on the same store
        one.live(pictures=True)
        one.phone.kill()
        places = one.everything()
        assert {method for method, _ in one.requests()} == set(Method)
        assert {"stderr", "state/log.jsonl", "after the faults: state/store.db"} <= set(places)
        assert one.found() == {}
        assert one.phone.stderr() == ""


ENDS_AT_ONCE = """
import ctypes, os, resource, signal
from unittest.mock import MagicMock
from fedlearn_client import daemon

daemon.Daemon = MagicMock()
daemon.serve(None, None, lambda: os.kill(os.getpid(), signal.SIGTERM))
print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
"""


def test_neither_daemon_nor_worker_leaves_a_dump() -> None:
    done = subprocess.run([sys.executable, "-c", ENDS_AT_ONCE], capture_output=True, text=True, check=True)
    assert done.stdout == "(0, 0) 0\n"
    with canary.evening(2, inside=False) as one:
        one.agree()
        one.talk()
        (child,) = canary.children(one.phone.pid)
        limits = Path(f"/proc/{child}/limits").read_text()
        assert "Max core file size        0                    0 " in limits
        assert "Max file size             0                    0 " in limits


# -- what leaves depends on nothing but the Query ----------------------------------------------------------------------


def test_other_words_around_the_same_wish_change_no_byte_that_leaves() -> None:
    index = CatalogueIndex.build(worlds.town.catalogue())
    one, other = usual(), requests_of(12, worker=KNOWN_NONCE)
    read = [
        [
            said and said_bytes(said)
            for signal in canary.messages(canary.Words(canary.random.Random(seed)))
            for said in [
                read_message(
                    signal.message.text, [(span.start, span.end) for span in signal.message.foreign_spans], index
                )
            ]
        ]
        for seed in (11, 12)
    ]
    assert read[0] == read[1]  # equal Queries, so
    assert [method for method, _ in one] == [Method.CHECK_IN, Method.FETCH, Method.UPLOAD]
    assert one == other
    # the phone's own worker and generator: two random numbers differ, and nothing else
    assert without_nonce(requests_of(13, hooks={})) == without_nonce(one)


def test_what_others_said_and_what_was_quoted_changes_no_byte_that_leaves() -> None:
    def only_own(one: canary.Evening) -> None:
        one.agree()
        own = [said for said in canary.messages(one.words) if said.message.direction == pb.DIRECTION_OUTGOING]
        for said in own:
            for span in said.message.foreign_spans:
                said.message.text = said.message.text[span.end :]
            del said.message.foreign_spans[:]
        one.phone.push(canary.CHAT, *own, stream=one.stream)
        one.phone.push(canary.READING, *canary.choices(one.words))
        one.phone.rank(canary.SURFACE)  # as in the other evening, so that random numbers are as many
        assert one.phone.train() == "acknowledged"

    assert requests_of(14, only_own, worker=KNOWN_NONCE) == usual()


def test_another_wish_changes_the_upload_and_nothing_else() -> None:
    """So the equality above is no accident of phones that send zeros."""

    def another(one: canary.Evening) -> None:
        one.agree()
        one.phone.push(canary.CHAT, worlds.said("想吃寿司 wifi", "x", worlds.NOW - 7100.0), stream=one.stream)
        one.phone.push(canary.READING, *canary.choices(one.words))
        one.phone.rank(canary.SURFACE)  # as in the other evening, so that random numbers are as many
        assert one.phone.train() == "acknowledged"

    one, other = usual(), requests_of(15, another, worker=KNOWN_NONCE)
    assert one[:2] == other[:2]
    assert one[2] != other[2]
    assert len(one[2][1]) == len(other[2][1])


# -- the search finds what is there ------------------------------------------------------------------------------------


class LeakyTransport:
    """Hides bytes in what is sent for filling."""

    def __init__(self, gateway: Any, hidden: bytes) -> None:
        self._gateway, self._hidden = gateway, hidden

    def call(self, method: Method, request: bytes) -> bytes:
        kind: type[Message] = {
            Method.ENROL: gateway_pb2.EnrolRequest,
            Method.CHECK_IN: gateway_pb2.CheckInRequest,
            Method.FETCH: gateway_pb2.FetchRequest,
            Method.UPLOAD: gateway_pb2.UploadRequest,
        }[method]
        changed: Any = kind.FromString(request)
        changed.padding = self._hidden + changed.padding[len(self._hidden) :]
        return bytes(self._gateway.call(method, changed.SerializeToString()))

    def hang_up(self) -> None:
        return None


class LeakyLog(JsonLines):
    """Writes what it should not know."""

    hidden = ""

    def record(self, kind: str, fields: dict[str, str | int | float | bool]) -> None:
        super().record(kind, fields | {"note": self.hidden})


def first_text(seed: int) -> str:
    """The first thing that the owner of ``seed`` writes; the name of the stream is drawn before it."""
    words = canary.Words(canary.random.Random(seed))
    words.ascii()
    return canary.messages(words)[0].message.text


def in_text(text: str) -> bytes:
    """Eight bytes of a text, from the middle of it."""
    return text.encode()[5:13]


def in_hash(text: str) -> bytes:
    """Eight bytes of a hash of one of its words."""
    return next(search.hashes(text.rsplit(maxsplit=1)[-1]))


@pytest.mark.parametrize(("mode", "part"), [("nonce", in_text), ("values", in_hash)])
def test_a_worker_that_sends_eight_bytes_is_found(mode: str, part: Callable[[str], bytes]) -> None:
    with canary.evening(21, worker=worker(mode, part(first_text(21)))) as one:
        one.live()
        assert {place.split()[2] for place in one.found()} == {"Upload:"}


@pytest.mark.parametrize("part", [in_text, in_hash])
def test_a_transport_that_sends_eight_bytes_is_found(part: Callable[[str], bytes]) -> None:
    gateway = worlds.Gateway()
    with canary.evening(22, gateway=gateway, transport=LeakyTransport(gateway, part(first_text(22)))) as one:
        one.live()
        assert {place.split()[2] for place in one.found()} == {"CheckIn:", "Fetch:", "Upload:"}


@pytest.mark.parametrize(
    "form", [str, ascii, lambda text: text.encode().hex(), lambda text: next(search.hashes(text)).hex()]
)
def test_a_log_that_holds_a_word_is_found(form: Callable[[str], str], tmp_path: Path) -> None:
    needles = search.Needles(["xfgz7qk 髟鶞閃黑鱯颤"])
    log = LeakyLog(tmp_path / "log.jsonl", LinuxClock())
    log.hidden = form("髟鶞閃黑鱯颤")
    log.record("refused", {"code": "FL903"})
    log.hidden = ""
    (data,) = search.files_under(tmp_path).values()
    assert needles.hits(data)
    log.record("refused", {"code": "FL903"})
    assert not needles.hits(search.files_under(tmp_path)["log.jsonl"].splitlines()[-1])


def test_every_eight_bytes_are_looked_for() -> None:
    """In whatever field, at whatever depth, in numbers too."""
    text = "tkx93 麻辣火锅 qwhd 鶞閃黑鱯"
    needles = search.Needles([text])
    data = text.encode()
    for at in range(len(data) - 7):
        gram = data[at : at + 8]
        number = int.from_bytes(gram, "little")
        for request in (
            gateway_pb2.FetchRequest(digest=b"." + gram),
            gateway_pb2.FetchRequest(offset=number),
            gateway_pb2.CheckInRequest(attestation=gateway_pb2.FetchRequest(offset=number).SerializeToString()),
        ):
            views = search.decoded(Method.FETCH, request.SerializeToString())
            assert any(needles.hits(view) for view in views), (at, request)
        assert not needles.hits(data[at : at + 7])

"""The egress log: what is written when, what is kept how long, and requests of fixed sizes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedlearn.device.padding import MAX_REQUEST_BYTES, MIB, SIZE_CLASSES, padded, size_class
from fedlearn.errors import MessageTooLarge, StoreFailed, TransportFailed
from fedlearn.proto import gateway_pb2 as pb
from fedlearn_client.egress import KEEP_BODIES_S, EgressLog, State, keep_s_of
from fedlearn_client.fakes import FakeClock, FakeKeyStore
from fedlearn_client.hooks import Method
from fedlearn_client.store.database import Database
from fedlearn_client.transport import FETCH_BYTES, NoTransport, read_check_in, read_enrol, read_fetch, read_upload


class Log:
    def __init__(self, directory: Path) -> None:
        self.clock = FakeClock()
        self.keystore = FakeKeyStore()
        self.kept_s = KEEP_BODIES_S
        self.database = Database.open(directory, self.keystore, self.clock)
        self.egress = EgressLog(self.database, self.keystore, self.clock, keep_s=lambda: self.kept_s)

    def prepare(self, method: Method = Method.UPLOAD, body: bytes = b"body", **changes: Any) -> int:
        words = {"run_id": "run", "step": 3, "expires": self.clock.now() + 3600.0} | changes
        return self.egress.prepare(method, "train", "lab", body=body, **words)

    def states(self) -> list[str]:
        return [entry.state.value for entry in reversed(self.egress.entries(100, False))]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    tmp_path.chmod(0o700)
    made = Log(tmp_path)
    yield made
    made.database.close()


def test_an_entry_says_what_left(log: Log) -> None:
    number = log.prepare(basis="of these streams")
    (entry,) = log.egress.entries(10, with_bytes=True)
    assert (entry.id, entry.method, entry.purpose, entry.recipient) == (number, Method.UPLOAD, "train", "lab")
    assert (entry.run_id, entry.step, entry.size, entry.state) == ("run", 3, 4, State.PREPARED)
    assert entry.sha256 == hashlib.sha256(b"body").digest()
    assert (entry.body, entry.basis, entry.time) == (b"body", "of these streams", log.clock.now())
    assert "body=" not in repr(entry)
    assert log.egress.entries(10, with_bytes=False)[0].body is None


def test_an_entry_is_there_only_if_its_transaction_is(log: Log) -> None:
    with pytest.raises(StoreFailed), log.database.transaction() as connection:  # noqa: PT012
        log.prepare(connection=connection)
        raise StoreFailed("store: injected.")
    assert log.states() == []


def test_from_prepared_to_acknowledged(log: Log) -> None:
    number = log.prepare()
    log.egress.mark(number, State.ACKNOWLEDGED)  # never sent
    assert log.states() == ["prepared"]
    assert log.egress.depart(number)
    assert log.egress.depart(number)  # again, with the same bytes
    log.egress.mark(number, State.DESTROYED)  # it has left
    assert log.states() == ["sent"]
    assert [entry.id for entry in log.egress.pending()] == [number]
    log.egress.mark(number, State.ACKNOWLEDGED)
    assert log.states() == ["acknowledged"]
    assert not log.egress.depart(number)
    assert log.egress.pending() == []


def test_what_was_destroyed_does_not_depart(log: Log) -> None:
    number = log.prepare()
    log.egress.forget(number)
    assert log.states() == ["destroyed"]
    assert not log.egress.depart(number)
    assert not log.egress.depart(number + 1)  # and what was never written does not either


def test_a_withdrawal_forgets_the_bytes_of_every_upload_of_its_pair(log: Log) -> None:
    done, sent, ready, check_in = log.prepare(), log.prepare(), log.prepare(), log.prepare(Method.CHECK_IN)
    other = log.egress.prepare(Method.UPLOAD, "train", "rival", run_id="", step=0, body=b"x", expires=2e9)
    for number in (done, sent):
        log.egress.depart(number)
    log.egress.mark(done, State.ACKNOWLEDGED)
    assert log.egress.destroy("train", "lab") == 1
    entries = {entry.id: entry for entry in log.egress.entries(100, with_bytes=True)}
    assert [entries[number].state.value for number in (done, sent, ready)] == ["acknowledged", "sent", "destroyed"]
    assert all(entries[number].body is None and entries[number].size == 4 for number in (done, sent, ready))
    assert entries[check_in].body == b"body"
    assert entries[other].body == b"x"
    assert [entry.id for entry in log.egress.pending()] == [other]


def test_bytes_are_kept_for_thirty_days(log: Log) -> None:
    number = log.prepare(Method.FETCH)
    log.egress.depart(number)
    log.egress.mark(number, State.ACKNOWLEDGED)
    log.clock.advance(KEEP_BODIES_S - 1.0)
    log.egress.expire(log.clock.now())
    assert log.egress.entries(1, with_bytes=True)[0].body == b"body"
    log.clock.advance(1.0)
    log.egress.expire(log.clock.now())
    (entry,) = log.egress.entries(1, with_bytes=True)
    assert (entry.body, entry.size, entry.sha256) == (None, 4, hashlib.sha256(b"body").digest())


@pytest.mark.parametrize("method", [Method.UPLOAD, Method.CHECK_IN])
def test_bytes_are_kept_no_longer_than_the_shortest_lived_source(log: Log, method: Method) -> None:
    log.kept_s = 2 * 86_400.0
    log.prepare(method, expires=2e9)
    log.clock.advance(2 * 86_400.0 - 1.0)
    log.egress.forget_old(log.clock.now())
    assert log.egress.entries(1, with_bytes=True)[0].body == b"body"
    log.clock.advance(1.0)
    log.egress.forget_old(log.clock.now())
    assert log.egress.entries(1, with_bytes=True)[0].body is None


def test_how_long_a_policy_keeps_bytes() -> None:
    days = [SimpleNamespace(retention_days=count) for count in (14, 3, 30)]
    assert keep_s_of(SimpleNamespace(sources=days)) == 3 * 86_400.0  # type: ignore[arg-type]
    assert keep_s_of(None) == keep_s_of(SimpleNamespace(sources=())) == KEEP_BODIES_S  # type: ignore[arg-type]


def _keys(log: Log) -> list[tuple[Any, ...]]:
    return log.database.rows("SELECT purpose, recipient, key_alias, wrapped_key FROM egress_keys ORDER BY key_alias")


def _destroy(log: Log) -> None:
    """As a withdrawal does."""
    with log.database.transaction() as connection:
        log.egress.destroy("train", "lab", connection)
        aliases = log.egress.renew_key("train", "lab", connection)
    for alias in aliases:
        log.keystore.destroy(alias)


def test_an_upload_is_sealed_under_a_key_of_its_pair(log: Log) -> None:
    log.prepare()
    log.prepare()
    log.egress.prepare(Method.UPLOAD, "train", "rival", run_id="", step=0, body=b"body", expires=2e9)
    log.prepare(Method.CHECK_IN)
    bodies = [bytes(body) for (body,) in log.database.rows("SELECT body FROM egress ORDER BY id")]
    assert len(set(bodies)) == 4
    assert all(b"body" not in body for body in bodies[:3])
    assert bodies[3] == b"body"  # what every phone with this bundle says
    assert sorted(key[:2] for key in _keys(log)) == [("train", "lab"), ("train", "rival")]
    assert {alias.partition("-")[0] for _, _, alias, _ in _keys(log)} == {"egress"}


def test_an_old_copy_opens_no_upload_after_its_key_is_destroyed(log: Log) -> None:
    number = log.prepare()
    (old,) = log.database.rows("SELECT body FROM egress")
    (key,) = _keys(log)
    _destroy(log)
    with pytest.raises(StoreFailed):
        log.keystore.unwrap(key[2], bytes(key[3]))
    with log.database.transaction() as connection:  # somebody puts the old copy back
        connection.execute("UPDATE egress SET body = ?, state = 'prepared' WHERE id = ?", (bytes(old[0]), number))
        connection.execute("INSERT INTO egress_keys VALUES (?, ?, ?, ?)", key)
    assert log.egress.pending() == []
    assert log.egress.entries(1, with_bytes=True)[0].body is None
    fresh = log.prepare()  # and goes on under another key
    assert [(entry.id, entry.body) for entry in log.egress.pending()] == [(fresh, b"body")]
    assert _keys(log)[0][2] != key[2]


def test_after_a_withdrawal_another_key_is_used(log: Log) -> None:
    log.prepare()
    (before,) = _keys(log)
    _destroy(log)
    assert _keys(log) == []
    log.prepare()
    (after,) = _keys(log)
    assert after[2] != before[2]
    assert log.egress.pending()[0].body == b"body"


def test_no_body_passes_for_another(log: Log) -> None:
    first, second = log.prepare(body=b"one"), log.prepare(body=b"two")
    with log.database.transaction() as connection:
        connection.execute("UPDATE egress SET body = (SELECT body FROM egress WHERE id = ?) WHERE id = ?",
                           (first, second))  # fmt: skip
    assert [entry.body for entry in log.egress.pending()] == [b"one"]


def test_what_expires(log: Log) -> None:
    ready, sent = log.prepare(), log.prepare()
    log.egress.depart(sent)
    log.clock.advance(3599.0)
    log.egress.expire(log.clock.now())
    assert [entry.id for entry in log.egress.pending()] == [ready, sent]
    log.clock.advance(1.0)
    log.egress.expire(log.clock.now())
    assert log.egress.pending() == []
    assert log.states() == ["destroyed", "failed"]


def test_after_a_crash_only_uploads_are_open(log: Log) -> None:
    log.prepare(Method.CHECK_IN)
    log.egress.depart(log.prepare(Method.FETCH))
    log.prepare()
    log.egress.settle()
    assert log.states() == ["destroyed", "failed", "prepared"]


# -- sizes ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 5 * MIB))
@example(256)
@example(257)
@example(MIB)
@example(MIB + 1)
def test_a_size_class_is_the_least_that_fits(size: int) -> None:
    classes = [*SIZE_CLASSES, 2 * MIB, 3 * MIB, 4 * MIB, 5 * MIB, 6 * MIB]
    assert size_class(size) == min(one for one in classes if one >= size)


@given(st.integers(0, 300) | st.integers(900, 1100) | st.integers(16_000, 17_000) | st.integers(60_000, 66_000))
def test_a_request_has_exactly_the_size_of_a_class(size: int) -> None:
    request = pb.UploadRequest(token=bytes(16), contribution=b"\x01" * size, padding=b"old")
    data = padded(request)
    plain = pb.UploadRequest(token=bytes(16), contribution=b"\x01" * size).ByteSize()
    assert len(data) == size_class(len(data))
    assert len(data) in {size_class(plain), size_class(size_class(plain) + 1)}
    read = pb.UploadRequest.FromString(data)
    assert (read.token, read.contribution) == (bytes(16), b"\x01" * size)
    assert not any(read.padding)


@pytest.mark.parametrize("target", [*SIZE_CLASSES, 2 * MIB, 3 * MIB])
def test_every_length_near_a_class(target: int) -> None:
    """The next class is taken only for the lengths that no padding can reach."""
    head = pb.UploadRequest(token=bytes(16)).ByteSize()
    skipped = []
    for short in range(140):
        request = pb.UploadRequest(token=bytes(16), contribution=b"\x01" * (target - head - 6 - short))
        size = request.ByteSize()
        data = padded(request)
        assert len(data) == size_class(len(data))
        if len(data) != size_class(size):
            skipped.append(target - size)
    assert set(skipped) <= {1, 2, 130}


def test_two_check_ins_have_the_same_size_whatever_the_attestation() -> None:
    sizes = {len(padded(pb.CheckInRequest(version=1, attestation=bytes(count)))) for count in range(0, 200, 7)}
    assert sizes == {1024}


def test_an_enrolment_has_the_size_of_a_check_in() -> None:
    sizes = {len(padded(pb.EnrolRequest(version=1, credential=bytes(count)))) for count in (0, 300, 900)}
    assert sizes == {1024}


def test_a_request_over_the_cap() -> None:
    with pytest.raises(MessageTooLarge, match="over the cap"):
        size_class(MAX_REQUEST_BYTES + 1)


@pytest.mark.parametrize("read", [read_enrol, read_check_in, read_fetch, read_upload])
def test_a_reply_that_is_none(read: Any) -> None:
    for data in (b"\xff\xfe\xfd", bytes(3 * FETCH_BYTES)):
        with pytest.raises(TransportFailed):
            read(data)


def test_a_reply_without_an_outcome() -> None:
    with pytest.raises(TransportFailed, match="outcome"):
        read_upload(b"")
    later = pb.UploadReply(outcome=99).SerializeToString()  # type: ignore[arg-type]  # of a newer protocol
    with pytest.raises(TransportFailed, match="outcome"):
        read_upload(later)


@pytest.mark.parametrize("data", [b"", pb.EnrolReply(outcome=99).SerializeToString()])  # type: ignore[arg-type]
def test_an_enrolment_without_an_outcome(data: bytes) -> None:
    with pytest.raises(TransportFailed, match="outcome"):
        read_enrol(data)


def test_without_an_uplink_nothing_leaves() -> None:
    with pytest.raises(TransportFailed, match="no uplink"):
        NoTransport().call(Method.CHECK_IN, b"")

"""Signals in the store: durable when acknowledged, sealed, counted once, and gone in time."""

from __future__ import annotations

import importlib.util
import math
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

from fedlearn.errors import SignalRefused, StoreFailed
from fedlearn_client.store.group_commit import GroupCommit
from fedlearn_client.store.sealing import Sealer, signal_context
from fedlearn_client.store.signals import DAY_S, MAX_BODY_BYTES
from fedlearn_client.store.streams import MAX_STREAMS_PER_APP


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


world = _load("store_world")
NOW, CHAT, CHOICE = world.NOW, world.CHAT, world.CHOICE


@pytest.fixture
def phone(tmp_path: Path):
    phone = world.open_phone(tmp_path)
    phone.stream("chat"), phone.stream("dining"), phone.stream("maps")
    phone.grant_all()
    yield phone
    phone.close()


def _rows(count: int, start: float = NOW - 1_000) -> list[tuple[str, float, bytes]]:
    return [(f"id-{number}", start + number, f"body-{number}".encode()) for number in range(count)]


# streams


def test_registering_again_changes_nothing(phone) -> None:
    first = phone.stream("chat")
    generation = phone.consent.generation
    assert phone.stream("chat") == first
    assert phone.consent.generation == generation
    assert phone.streams.find("chat", "main") == first
    with pytest.raises(SignalRefused, match="data_type"):
        phone.stream("chat", CHOICE)
    with pytest.raises(SignalRefused, match="Register"):
        phone.streams.find("maps", "nothing")
    with pytest.raises(SignalRefused, match="Register"):
        phone.streams.find("maps", "chat")


@pytest.mark.parametrize("name", ["", "A", "a b", "x" * 65, "ä", "a/b", "a\n"])
def test_odd_names_are_refused(phone, name: str) -> None:
    with pytest.raises(SignalRefused, match="stream"):
        phone.streams.register("chat", name, CHAT)


def test_an_app_has_so_many_streams(phone) -> None:
    for number in range(MAX_STREAMS_PER_APP - 1):
        phone.stream("chat", name=f"s{number}")
    with pytest.raises(SignalRefused, match="at most"):
        phone.stream("chat", name="more")
    phone.stream("maps", name="more")


def test_restrictions_are_kept(phone) -> None:
    assert not phone.streams.restrict("chat", "main", ["train"]).serves("train")
    assert phone.streams.find("chat", "main").serves("rank")
    assert not phone.streams.restrict("chat", "main", ["*"]).serves("rank")
    assert phone.streams.restrict("chat", "main", []).serves("train")
    with pytest.raises(SignalRefused, match="purposes"):
        phone.streams.restrict("chat", "main", ["x"] * 65)
    with pytest.raises(SignalRefused, match="purposes"):
        phone.streams.restrict("chat", "main", [""])


# keeping and reading


def test_reads_what_was_kept_in_order(phone) -> None:
    phone.push("chat", [("b", NOW - 5, b"2"), ("a", NOW - 9, b"1"), ("c", NOW - 5, b"3")])
    phone.push("dining", [("a", NOW - 7, b"restaurant:x")])
    assert phone.read("chat") == [b"1", b"2", b"3"]
    assert phone.read("chat", "dining") == [b"1", b"restaurant:x", b"2", b"3"]
    assert phone.read("chat", "dining", newest=2) == [b"2", b"3"]
    assert phone.read("chat", newest=0) == []
    assert phone.read("maps") == []
    assert phone.signals.count() == 4


def test_bounds_are_exclusive(phone) -> None:
    phone.push("chat", _rows(5, NOW - 5))
    found = phone.signals.read([phone.stream("chat").id], NOW - 5, NOW - 2, world.INDEX)
    assert [row.time for row in found] == [NOW - 4, NOW - 3]
    assert {row.app for row in found} == {"chat"}


def test_survives_a_restart(phone, tmp_path: Path) -> None:
    phone.push("chat", _rows(3))
    phone.close()
    again = world.open_phone(tmp_path)
    assert again.read("chat") == [b"body-0", b"body-1", b"body-2"]
    again.push("chat", _rows(3))
    assert again.signals.count() == 3, "the marks are of another key"
    again.close()


def test_counts_once(phone) -> None:
    phone.push("chat", _rows(3))
    phone.push("chat", [("id-1", NOW, b"other"), ("new", NOW - 1, b"new"), ("new", NOW - 1, b"twice")])
    assert phone.read("chat") == [b"body-0", b"body-1", b"body-2", b"new"]
    phone.push("dining", [("id-1", NOW - 1, b"restaurant:x")])  # another stream, another signal
    assert phone.signals.count() == 5


def test_marks_tell_no_id(phone, tmp_path: Path) -> None:
    phone.push("chat", [("id-1", NOW - 1, b"x")])
    phone.push("dining", [("id-1", NOW - 1, b"x")])
    marks = {bytes(mark) for (mark,) in phone.database.rows("SELECT mark FROM signals")}
    assert len(marks) == 2
    other = world.open_phone(tmp_path / "other")
    other.stream("chat")
    other.grant_all()
    other.push("chat", [("id-1", NOW - 1, b"x")])
    assert bytes(other.database.rows("SELECT mark FROM signals")[0][0]) not in marks
    other.close()


def test_messages_of_another_index_are_not_read_and_choices_are(phone) -> None:
    phone.push("chat", _rows(2), catalogue="old")
    phone.push("dining", _rows(2), catalogue="old")
    assert phone.read("chat") == []
    assert phone.read("chat", catalogue="old") == [b"body-0", b"body-1"]
    assert phone.read("dining") == [b"body-0", b"body-1"]


@pytest.mark.parametrize("row", [("a", math.nan, b""), ("a", math.inf, b""), ("a", NOW, b"x" * (MAX_BODY_BYTES + 1))])
def test_unsound_rows_keep_the_whole_push_out(phone, row) -> None:
    with pytest.raises(SignalRefused):
        phone.push("chat", [("good", NOW - 1, b"good"), row])
    with pytest.raises(SignalRefused, match="retention"):
        phone.push("chat", [("good", NOW - 1, b"good")], retention_days=0)
    assert phone.signals.count() == 0
    phone.push("chat", [])


# bodies


def test_a_row_cannot_pass_for_another(phone) -> None:
    phone.push("chat", [("a", NOW - 2, b"said at noon"), ("b", NOW - 1, b"said at night")])
    with phone.database.transaction() as connection:
        connection.execute("UPDATE signals SET time = time + 0.5 WHERE id = 2")
    with pytest.raises(StoreFailed, match="does not fit"):
        phone.read("chat")


def test_sealed_twice_differs_and_opens_only_in_place() -> None:
    sealer = Sealer(bytes(32), lambda count: bytes([count]) * count)
    drawn = iter([b"n" * 12, b"m" * 12])
    other = Sealer(bytes(32), lambda count: next(drawn))
    context = signal_context(1, b"mark", 3.5)
    assert other.seal(b"body", context) != other.seal(b"body", context)
    sealed = sealer.seal(b"body", context)
    assert sealer.open(sealed, context) == b"body"
    for wrong in (signal_context(2, b"mark", 3.5), signal_context(1, b"marl", 3.5), signal_context(1, b"mark", 3.6)):
        with pytest.raises(StoreFailed):
            sealer.open(sealed, wrong)
    with pytest.raises(StoreFailed):
        sealer.open(b"", context)


def test_no_body_or_id_shows(phone) -> None:
    row = world.new_signal("secret-id", NOW, b"secret-body")
    phone.signals.add(phone.stream("chat"), [row])
    shown = f"{row!r} {phone.signals.read([phone.stream('chat').id], 0, NOW + 1, world.INDEX)!r} {phone.streams!r}"
    assert "secret" not in shown


# time


def test_expired_rows_are_not_read_and_then_deleted(phone) -> None:
    phone.push("chat", _rows(2), retention_days=1)
    phone.push("chat", [("long", NOW - 1, b"long")], retention_days=400)  # cut to 30 days
    phone.clock.advance(DAY_S - 1)
    assert len(phone.read("chat")) == 3
    phone.clock.advance(1)
    assert phone.read("chat") == [b"long"]
    assert phone.signals.count() == 1
    assert phone.database.rows("SELECT count(*) FROM signals") == [(3,)]
    assert phone.signals.expire(phone.clock.now()) == 2
    assert phone.signals.expire(phone.clock.now()) == 0
    assert phone.database.rows("SELECT count(*) FROM signals") == [(1,)]
    phone.clock.advance(29 * DAY_S)
    assert phone.read("chat") == []


def test_a_clock_that_was_ahead_lengthens_no_life(phone) -> None:
    phone.clock.time = NOW + 900 * DAY_S
    phone.push("chat", _rows(1))
    phone.clock.time = NOW
    phone.push("chat", [("honest", NOW - 1, b"honest")])
    assert phone.read("chat") == [b"honest"]
    assert phone.signals.count() == 1
    assert phone.signals.expire(NOW) == 1


# quotas


def test_oldest_go_first(tmp_path: Path) -> None:
    phone = world.open_phone(tmp_path, stream_quota=5)
    phone.stream("chat")
    phone.grant_all()
    phone.push("chat", _rows(4))
    phone.push("chat", [("old", NOW - 9_999, b"old"), ("new", NOW - 1, b"new")])
    assert phone.read("chat") == [b"body-0", b"body-1", b"body-2", b"body-3", b"new"]
    phone.push("chat", [("id-3", NOW, b"again")])
    assert len(phone.read("chat")) == 5
    phone.close()
    phone = world.open_phone(tmp_path, stream_quota=2)
    phone.push("chat", [("newer", NOW - 0.5, b"newer")])
    assert phone.read("chat") == [b"new", b"newer"]
    phone.close()


def test_no_app_displaces_anothers(tmp_path: Path) -> None:
    phone = world.open_phone(tmp_path, stream_quota=20, total_quota=24)
    phone.stream("chat"), phone.stream("dining"), phone.stream("maps")
    phone.grant_all()
    phone.push("dining", _rows(3, NOW - 9_000))
    phone.push("maps", _rows(8, NOW - 9_000))
    phone.push("chat", _rows(20))
    counts = {app: len(phone.read(app)) for app in ("dining", "maps", "chat")}
    assert counts == {"dining": 3, "maps": 8, "chat": 13}
    phone.push("maps", [(f"more-{number}", NOW - 1, b"more") for number in range(12)])
    assert {app: len(phone.read(app)) for app in ("dining", "chat")} == {"dining": 3, "chat": 10}
    assert len(phone.read("maps")) == 11
    phone.close()


# what is left out


def test_a_stream_read_before_a_purge_adds_nothing(phone) -> None:
    stale = phone.stream("chat")
    phone.signals.add(stale, [world.new_signal("a", NOW - 1, b"a")])
    phone.withdrawals.purge(stale)
    phone.signals.add(stale, [world.new_signal("b", NOW - 1, b"b")])
    assert phone.database.rows("SELECT count(*) FROM signals") == [(0,)]
    phone.signals.add(phone.stream("chat"), [world.new_signal("a", NOW - 1, b"again")])
    assert phone.read("chat") == [b"again"]


def test_consent_is_asked_again_at_the_commit(phone) -> None:
    stream = phone.stream("chat")
    sealer = phone.streams.sealer_to_write(stream)

    def withdraw_first(given):
        for use in world.USES:
            phone.withdrawals.withdraw("chat", CHAT, *use)
        return sealer

    phone.streams.sealer_to_write = withdraw_first  # between sealing and committing
    phone.signals.add(stream, [world.new_signal("late", NOW - 1, b"late")])
    assert phone.database.rows("SELECT count(*) FROM signals") == [(0,)]


def test_a_full_store_tells_every_caller(tmp_path: Path) -> None:
    phone = world.open_phone(tmp_path, database_options={"max_bytes": 300 * 1024})
    phone.stream("chat")
    phone.grant_all()
    kept: list[str] = []
    failures: list[str] = []

    def push(worker: int) -> None:
        for number in range(30):
            rows = [(f"{worker} {number} {part}", NOW - 1, bytes(1_000)) for part in range(10)]
            try:
                phone.push("chat", rows)
            except StoreFailed as error:
                failures.append(str(error))
                return
            kept.extend(row[0] for row in rows)

    threads = [threading.Thread(target=push, args=(worker,)) for worker in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(failures) == 3
    assert all("free space" in failure for failure in failures)
    assert 0 < len(kept) == phone.signals.count()
    phone.close()


# group commit


def test_a_group_is_one_commit() -> None:
    groups: list[list[int]] = []
    first_runs, go_on = threading.Event(), threading.Event()

    def commit(jobs) -> None:
        groups.append(list(jobs))
        first_runs.set()
        go_on.wait(10)

    group = GroupCommit(commit, group_size=3, linger_s=10)
    threads = [threading.Thread(target=group.submit, args=(number, 1)) for number in range(6)]
    for thread in threads[:3]:
        thread.start()
    assert first_runs.wait(10)
    for thread in threads[3:]:
        thread.start()
    go_on.set()
    for thread in threads:
        thread.join()
    assert sorted(map(len, groups)) == [3, 3]
    assert sorted(job for jobs in groups for job in jobs) == list(range(6))
    group.submit(7, 500)  # larger than a group: at once, and whole
    assert groups[-1] == [7]
    group.close()
    with pytest.raises(StoreFailed, match="closing"):
        group.submit(8, 1)


def test_a_lone_job_waits_for_the_linger_only() -> None:
    groups: list[list[int]] = []
    group = GroupCommit(lambda jobs: groups.append(list(jobs)), group_size=100, linger_s=0.001)
    group.submit(1, 1)
    assert groups == [[1]]
    group.close()
    GroupCommit(lambda jobs: None, 1, 0.0).close()


def test_a_fault_reaches_exactly_its_group() -> None:
    def commit(jobs) -> None:
        if 13 in jobs:
            raise StoreFailed("store: the disk is full.")

    group = GroupCommit(commit, group_size=1, linger_s=0.0)
    group.submit(1, 1)
    with pytest.raises(StoreFailed, match="full"):
        group.submit(13, 1)
    group.submit(2, 1)
    group.close()


def _save(phone, data: bytes, *, plan: str = "plan", basis: str = "streams", days: float = 3.0) -> None:
    expires = phone.clock.now() + days * 86_400
    with phone.database.transaction() as connection:
        phone.private.save(plan, "train", "operator", data, connection, basis=basis, expires=expires)


def test_private_parameters_are_sealed_and_bound_to_their_plan(phone) -> None:
    assert phone.private.load("plan", "streams") == b""
    _save(phone, b"first")
    _save(phone, b"second")
    _save(phone, b"other", plan="other")
    assert phone.private.load("plan", "streams") == b"second"
    with phone.database.transaction() as connection:
        connection.execute(
            "UPDATE private_parameters SET (key_alias, wrapped_key, body) ="
            " (SELECT key_alias, wrapped_key, body FROM private_parameters WHERE plan = 'other') WHERE plan = 'plan'"
        )
    with pytest.raises(StoreFailed):
        phone.private.load("plan", "streams")


def _private_alias(phone) -> str:
    return phone.database.rows("SELECT key_alias FROM private_parameters WHERE plan = 'plan'")[0][0]


def test_private_parameters_of_other_streams_are_destroyed(phone) -> None:
    _save(phone, b"mine")
    alias = _private_alias(phone)
    assert phone.private.load("plan", "fewer streams") == b""
    with pytest.raises(StoreFailed, match="gone"):
        phone.keystore.unwrap(alias, b"anything")
    assert phone.private.load("plan", "streams") == b"", "what was destroyed comes back with no streams"


@pytest.mark.parametrize("call", ["load", "expire"])
def test_private_parameters_expire_from_their_first_training_on(phone, call: str) -> None:
    _save(phone, b"first")
    phone.clock.advance(2 * 86_400)
    _save(phone, b"second")
    phone.private.expire()
    assert phone.private.load("plan", "streams") == b"second"
    alias = _private_alias(phone)
    phone.clock.advance(86_400)
    if call == "load":
        assert phone.private.load("plan", "streams") == b""
    else:
        phone.private.expire()
    assert phone.database.rows("SELECT count(*) FROM private_parameters") == [(0,)]
    with pytest.raises(StoreFailed, match="gone"):
        phone.keystore.unwrap(alias, b"anything")


def test_private_parameters_are_kept_for_30_days_at_most(phone) -> None:
    _save(phone, b"mine", days=1000.0)
    phone.clock.advance(30 * 86_400)
    assert phone.private.load("plan", "streams") == b""


def test_a_destruction_of_private_parameters_that_broke_off_is_done_again(phone, monkeypatch) -> None:
    _save(phone, b"mine")

    def fail(alias: str) -> None:
        raise StoreFailed("keystore: injected.")

    with monkeypatch.context() as patched:
        patched.setattr(phone.keystore, "destroy", fail)
        with pytest.raises(StoreFailed):
            phone.private.load("plan", "fewer streams")
    assert phone.private.load("plan", "streams") == b""
    assert phone.database.rows("SELECT count(*) FROM private_parameters") == [(0,)]

"""What is made on a phone is made of exactly what was granted; where nothing was, it asks for nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from fedlearn.errors import WorkerFailed
from fedlearn.proto import device_pb2 as pb
from fedlearn_client.examples import StoredExamples
from fedlearn_client.linux.clock import LinuxClock
from fedlearn_client.linux.keystore import FileKeyStore
from fedlearn_client.reading import Reading
from fedlearn_client.store.database import Database
from fedlearn_client.store.signals import NewSignal, SignalStore
from fedlearn_client.store.streams import Streams
from fedlearn_client.workers import Workers

sys.path.insert(0, str(Path(__file__).parent))
import device_grid as grids
import device_world as worlds

CHAT, READING, MAPS, SURFACE = worlds.CHAT, worlds.READING, worlds.MAPS, worlds.SURFACE


@pytest.fixture(scope="module", autouse=True)
def _prepared() -> Iterator[None]:
    yield
    worlds.forget_prepared()


def test_all_sets_of_four_grants() -> None:
    grids.check_all(grids.FOUR)


def test_a_source_that_is_not_granted_and_used_all_the_same_is_found() -> None:
    """Everything that is granted for anything is used for everything."""

    def greedy(self: StoredExamples, purpose: str, recipient: str) -> object:
        del purpose, recipient
        return present(self, *grids.TRAIN)

    present = StoredExamples.present
    with patch.object(StoredExamples, "present", greedy), pytest.raises(AssertionError):
        grids.check_all(grids.FOUR)


@pytest.mark.parametrize("age", [pb.AGE_CLASS_UNKNOWN, pb.AGE_CLASS_MINOR, pb.AGE_CLASS_ADULT])
def test_a_fresh_phone_takes_part_in_none_of_ten_rounds(age: pb.AgeClass) -> None:
    """Apps push as much as they like, and the schedule runs; the gateway hears nothing at all."""
    with worlds.world(settings={"train": True}) as phone:
        phone.call(worlds.SETTINGS, "Consent/SetOwner", pb.SetOwnerRequest(age=age))
        for app in (CHAT, READING):
            phone.register(app)
        for number in range(10):
            phone.push(CHAT, worlds.said("想吃火锅", f"{number}", worlds.NOW - 50.0))
            phone.push(READING, worlds.chose(worlds.items()[number], f"{number}", worlds.NOW - 40.0))
            phone.gateway.advance(worlds.SEPARATION)
            assert phone.train() == "refused: not_ready"
        assert phone.gateway.requests == []
        assert phone.call(worlds.SETTINGS, "Audit/Egress").entries == []
        assert phone.status().signals == 0


def test_without_a_grant_a_ranking_is_bit_equal_whether_or_not_the_chat_stream_exists() -> None:
    replies = []
    for with_chat in (False, True):
        with worlds.world() as phone:
            if with_chat:
                phone.register(CHAT)
                phone.grant(CHAT, *grids.SHOW)
                phone.grant(CHAT, *grids.TRAIN)
                phone.push(CHAT, worlds.said("今晚想吃川菜的麻辣火锅", "1", worlds.NOW - 60.0))
                assert phone.rank(SURFACE).used
            replies.append(worlds.without_id(phone.rank(MAPS)))
            assert len(phone.rank(MAPS).ranking_id) == 16
    assert replies[0] == replies[1]


def test_a_withdrawal_from_twenty_thousand_rows(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = withdrawal_s(20_000)
    with capsys.disabled():
        sys.stdout.write(f"\nwithdrawal of 20,000 rows: {seconds:.3f} s\n")


def withdrawal_s(rows: int) -> float:
    """Fill a store, take back what it was kept for, and return how long that took to return."""
    with worlds.world() as phone:
        phone.register(READING)
        phone.grant(READING, *grids.TRAIN)
        phone.stop()
        fill(phone, rows)
        phone.start()
        phone.rank(SURFACE)  # a worker is up, as on a phone in use
        assert phone.status().signals == rows
        began = time.perf_counter()
        reply = phone.grant(READING, *grids.TRAIN, on=False)
        seconds = time.perf_counter() - began
        assert f'"rows_destroyed":{rows}'.encode() in reply.receipt.statement
        assert phone.status().signals == 0
    return seconds


def fill(phone: worlds.World, rows: int) -> None:
    """Write rows of one stream into the store of a phone that has stopped."""
    clock, keystore = LinuxClock(), FileKeyStore(phone.state / "keys")
    database = Database.open(phone.state, keystore, clock)
    streams = Streams(database, keystore, clock)
    signals = SignalStore(database, streams, clock)
    (stream,) = streams.all()
    body = worlds.items()[0].encode()
    for start in range(0, rows, 2_000):
        signals.add(
            stream,
            [NewSignal(f"{number}", worlds.NOW - number, 30, "", body) for number in range(start, start + 2_000)],
        )
    signals.close()
    database.close()


@pytest.mark.parametrize("take_back", ["grant", "owner", "purge"])
def test_what_is_taken_back_while_a_ranking_is_made_is_not_in_it(take_back: str) -> None:
    """The signals were read; before they are ranked, consent to them ends, and the call that ended it returns."""
    with worlds.world() as phone:
        plain = worlds.without_id(phone.rank(SURFACE))
        phone.register(CHAT)
        phone.grant(CHAT, *grids.SHOW)
        phone.push(CHAT, worlds.said("今晚想吃川菜的麻辣火锅", "1", worlds.NOW - 60.0))
        assert worlds.without_id(phone.rank(SURFACE)) != plain
        rank, done = Reading.rank, []

        def late(self: Reading, *args: Any) -> Any:
            if not done:
                done.append(True)
                if take_back == "grant":
                    phone.grant(CHAT, *grids.SHOW, on=False)
                elif take_back == "owner":
                    phone.call(worlds.SETTINGS, "Consent/SetOwner", pb.SetOwnerRequest(age=pb.AGE_CLASS_UNKNOWN))
                else:
                    phone.call(CHAT, "Signals/Purge", pb.PurgeRequest(stream=worlds.STREAM))
            return rank(self, *args)

        with patch.object(Reading, "rank", late):
            assert worlds.without_id(phone.rank(SURFACE)) == plain
        assert done


def test_what_one_app_takes_back_is_no_error_for_another() -> None:
    """A destruction kills the worker that is just ranking for somebody else."""
    with worlds.world() as phone:
        phone.register(CHAT)
        plain = worlds.without_id(phone.rank(MAPS))
        rank, done = Workers.rank, []

        def killed(self: Workers, *args: Any) -> Any:
            if not done:
                done.append(True)
                phone.call(CHAT, "Signals/Purge", pb.PurgeRequest(stream=worlds.STREAM))
                raise WorkerFailed("worker: ended before it had answered.")
            return rank(self, *args)

        with patch.object(Workers, "rank", killed):
            assert worlds.without_id(phone.rank(MAPS)) == plain

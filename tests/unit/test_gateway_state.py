"""A gateway's state: who gets a task, (b, k), collections that are answered, abandoned, opened again; what is wiped."""

from __future__ import annotations

import importlib.util
import sqlite3
import stat
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedlearn.device.credential import Credential
from fedlearn.device.requests import Denial
from fedlearn.device.task_codec import task_from_bytes
from fedlearn.errors import GatewayStoreFailed, Refusal, RoundFailed, TaskRefused
from fedlearn.proto import gateway_pb2 as pb
from fedlearn_server.gateway import store
from fedlearn_server.gateway.offers import participation_denied
from fedlearn_server.gateway.state import GatewayState, Offer

_spec = importlib.util.spec_from_file_location("gateway_fleet", Path(__file__).with_name("gateway_fleet.py"))
fleet = sys.modules.setdefault(_spec.name, importlib.util.module_from_spec(_spec))
if not hasattr(fleet, "Fleet"):
    _spec.loader.exec_module(fleet)

ACCEPTED = (pb.UploadReply.OUTCOME_ACCEPTED, "")
LATE = (pb.UploadReply.OUTCOME_LATE, "late")
REJECTED = pb.UploadReply.OUTCOME_REJECTED


@pytest.fixture
def state(tmp_path: Path) -> Iterator[GatewayState]:
    opened = GatewayState.open(tmp_path / "gateway.sqlite")
    yield opened
    opened.disconnect()


def town(state: GatewayState, phones: int = 8, **changes) -> fleet.Fleet:
    made = fleet.Fleet(state, fleet.terms(**changes))
    made.enrol(*range(phones))
    return made


class TestDevices:
    def test_a_credential_makes_one_key_known(self, state: GatewayState) -> None:
        credential = Credential(fleet.POPULATION, b"s" * 16, fleet.NOW + 1)
        assert state.is_enrolled(fleet.device(0)) is Denial.UNKNOWN
        assert state.enrol(credential, fleet.device(0), fleet.NOW) is None
        assert state.enrol(credential, fleet.device(0), fleet.NOW) is None
        assert state.enrol(credential, fleet.device(1), fleet.NOW) is Denial.CREDENTIAL
        assert state.enrol(replace(credential, population="x"), fleet.device(0), fleet.NOW) is Denial.POPULATION
        assert state.is_enrolled(fleet.device(0)) is None
        (known,) = state.devices()
        assert (known.key, known.population, known.revoked) == (fleet.device(0), fleet.POPULATION, None)

    def test_revoked_is_for_ever(self, state: GatewayState) -> None:
        phones = town(state, 1)
        assert state.revoke(fleet.device(0), fleet.NOW)
        assert not state.revoke(fleet.device(0), fleet.NOW)
        assert not state.revoke(fleet.device(9), fleet.NOW)
        assert state.is_enrolled(fleet.device(0)) is Denial.REVOKED
        assert phones.ask(0) is Denial.REVOKED
        fresh = Credential(fleet.POPULATION, b"t" * 16, fleet.NOW + 1)
        assert state.enrol(fresh, fleet.device(0), fleet.NOW) is Denial.REVOKED

    def test_revoked_with_a_task_in_hand(self, state: GatewayState) -> None:
        phones = town(state, over_selection=1.0)
        collection = phones.open()
        uploads = [phones.upload(number) for number in range(3)]
        assert phones.ask(3) is Denial.NO_TASK
        assert list(phones.outcomes(uploads[0])) == [ACCEPTED]
        assert state.revoke(fleet.device(0), fleet.NOW)
        assert state.revoke(fleet.device(1), fleet.NOW)
        assert list(phones.outcomes(*uploads)) == [(REJECTED, "revoked"), (REJECTED, "revoked"), ACCEPTED]
        assert list(phones.outcomes(phones.upload(3))) == [ACCEPTED]  # the place is free again
        count, total = state.close(collection, fleet.NOW)
        assert count == 3
        assert total.tolist()[:4] == [1000, 0, 1002, 1003]


class TestReserve:
    def test_a_task_says_what_the_collection_says(self, state: GatewayState) -> None:
        phones = town(state)
        collection = phones.open(step=4)
        offer = phones.ask(0)
        assert isinstance(offer, Offer)
        sent = pb.SignedTask.FromString(offer.signed)
        assert task_from_bytes(sent.task) == offer.task
        assert (offer.task.step, offer.task.attempt, offer.task.round_size) == (4, 0, 2)
        assert offer.task.weights_digest == collection.weights_digest
        assert offer.task.expires == fleet.NOW + 300
        assert state.object(bytes.fromhex(collection.weights_digest)) == np.full(fleet.WIDTH, 4, "<f4").tobytes()

    def test_who_gets_none(self, state: GatewayState) -> None:
        phones = town(state)
        assert phones.ask(0) is Denial.NO_TASK
        phones.open()
        assert phones.ask(99) is Denial.UNKNOWN
        assert phones.ask(0, population="other") is Denial.POPULATION
        assert phones.ask(0, purpose="other") is Denial.NO_TASK
        assert phones.ask(0, bundle_digest=bytes(32)) is Denial.BUNDLE
        assert isinstance(phones.ask(0, nonce=b"n" * 16), Offer)
        assert phones.ask(0, nonce=b"n" * 16) is Denial.REPLAYED
        assert isinstance(phones.ask(1, nonce=b"n" * 16), Offer)  # another phone's nonces are its own

    def test_a_denied_request_cannot_be_replayed_either(self, state: GatewayState) -> None:
        phones = town(state)
        assert phones.ask(0, nonce=b"n" * 16) is Denial.NO_TASK
        phones.open()
        assert phones.ask(0, nonce=b"n" * 16) is Denial.REPLAYED

    def test_asked_again_the_same_task(self, state: GatewayState) -> None:
        phones = town(state)
        phones.open()
        first = phones.ask(0)
        phones.now += 50
        assert phones.ask(0) == first
        phones.now += 250  # expired: another one
        again = phones.ask(0)
        assert isinstance(again, Offer)
        assert again.task.token != first.task.token

    def test_over_selection(self, state: GatewayState) -> None:
        phones = town(state, over_selection=1.5)  # ceil(3 * 1.5)
        collection = phones.open()
        uploads = [phones.upload(number) for number in range(5)]
        assert phones.ask(5) is Denial.NO_TASK
        outcomes = list(phones.outcomes(*uploads))
        assert outcomes == [ACCEPTED] * 3 + [LATE] * 2
        assert phones.ask(5) is Denial.NO_TASK
        assert phones.ask(4) is Denial.NO_TASK  # not even the task that it has: it would come too late
        assert state.is_full(collection)
        assert state.close(collection, phones.now)[0] == 3
        assert list(phones.outcomes(*uploads)) == outcomes

    def test_a_task_that_expired_makes_room(self, state: GatewayState) -> None:
        phones = town(state, over_selection=1.0)
        phones.open()
        early = [phones.upload(number) for number in range(3)]
        assert phones.ask(3) is Denial.NO_TASK
        phones.now += 300
        late = phones.upload(3)
        assert list(phones.outcomes(*early, late)) == [LATE] * 3 + [ACCEPTED]

    def test_no_task_when_there_is_no_time_left(self, state: GatewayState) -> None:
        phones = town(state, attempt_s=100.0, task_s=80.0)
        phones.open()
        phones.now += 50
        assert phones.task(0).expires == fleet.NOW + 100
        phones.now += 31
        assert phones.ask(1) is Denial.NO_TASK
        phones.now += 20
        assert phones.ask(1) is Denial.NO_TASK

    def test_a_task_that_cannot_be_signed_is_not_given(self, state: GatewayState) -> None:
        phones = town(state, over_selection=1.0, target=2)
        phones.open()

        def refuse(task: object) -> bytes:
            raise TaskRefused(Refusal.PLAN, "no")

        for number in (0, 1, 2):
            with pytest.raises(TaskRefused):
                phones.ask(number, sign=refuse)
        assert isinstance(phones.ask(3), Offer)
        assert isinstance(phones.ask(4), Offer)

    def test_parts_fill_evenly_and_a_phone_is_in_one(self, state: GatewayState) -> None:
        phones = town(state, target=6, over_selection=1.0)
        both = [phones.open(part=part, parts=2) for part in (0, 1)]
        assert [(c.target, c.minimum, c.most) for c in both] == [(3, 1, 3)] * 2
        uploads = [phones.upload(number) for number in range(6)]
        assert phones.ask(6) is Denial.NO_TASK
        assert list(phones.outcomes(*uploads)) == [ACCEPTED] * 6
        sums = [state.close(collection, phones.now) for collection in both]
        assert [count for count, _ in sums] == [3, 3]
        assert (sums[0][1] + sums[1][1]).tolist()[:6] == [1000, 1001, 1002, 1003, 1004, 1005]


class TestParticipation:
    @pytest.mark.parametrize(
        ("steps", "step", "denial"),
        [
            ([], 0, None),
            ([0], 3, None),
            ([0], 2, Denial.SEPARATION),
            ([5], 5, Denial.SEPARATION),
            ([5], 3, Denial.SEPARATION),  # backwards too
            ([0, 3], 6, Denial.PARTICIPATIONS),
            ([0, 3], 5, Denial.SEPARATION),
        ],
    )
    def test_the_rule(self, steps: list[int], step: int, denial: Denial | None) -> None:
        assert participation_denied(steps, step, separation=3, most=2) is denial

    def test_b_and_k_over_a_run(self, state: GatewayState) -> None:
        """One phone asks in every step: it gets what the rule gives, and every one of its bounds is reached."""
        phones = town(state, separation=3, participations=4, round_size=1, target=1, over_selection=1.0)
        took_part, denied = [], set()
        for step in range(20):
            collection = phones.open(step)
            found = phones.ask(0)
            if isinstance(found, Offer):
                assert list(phones.outcomes(phones.upload(0, found.task))) == [ACCEPTED]
                took_part.append(step)
            else:
                denied.add(found)
            if state.close(collection, phones.now) is not None:
                state.answer(collection, b"reply")
        assert took_part == [0, 3, 6, 9]
        assert denied == {Denial.SEPARATION, Denial.PARTICIPATIONS}

    def test_an_open_task_counts(self, state: GatewayState) -> None:
        """Two attempts at one time do not exist; two runs do, and each has its own counts."""
        phones = town(state, participations=1)
        other = fleet.Fleet(state, replace(phones.terms, run_id="run-2"))
        both = [phones.open(part=part, parts=2) for part in (0, 1)]
        first = phones.task(0)
        assert phones.task(0) == first  # not one in the other part
        assert list(phones.outcomes(phones.upload(0, first))) == [ACCEPTED]
        assert phones.ask(0) is Denial.SEPARATION
        other.open()
        assert other.task(0).run_id == "run-2"
        assert len(both) == 2

    def test_a_task_that_was_never_answered_costs_nothing_here(self, state: GatewayState) -> None:
        phones = town(state, separation=5)
        phones.open(0)
        phones.task(0)
        phones.open(1)
        assert phones.task(0).step == 1

    def test_abandoned_attempts_count(self, state: GatewayState) -> None:
        """Many abandoned attempts at a step: the step stays, and who sent takes no part in it, or near it, again."""
        phones = town(state, 12, separation=2, round_size=2, target=2)
        for tries in range(10):
            collection = phones.open(step=1)
            assert collection.tries == tries
            assert phones.task(tries).attempt == tries
            assert list(phones.outcomes(phones.upload(tries))) == [ACCEPTED]
            assert state.close(collection, phones.now) is None
            assert state.answered("run-1", 1, 0, 0) is None
        for step in (1, 2):
            collection = phones.open(step=step)
            assert {phones.ask(number) for number in range(10)} == {Denial.SEPARATION}
            assert isinstance(phones.ask(10), Offer)
        phones.open(step=3)
        assert isinstance(phones.ask(0), Offer)

    def test_a_clock_that_goes_behind_cannot_break_the_bounds(self, state: GatewayState) -> None:
        """One gateway let a task go as expired, and another one, whose clock is behind, would still take it."""
        phones = town(state, separation=2)
        phones.open(0)
        first = phones.upload(0)
        phones.now += 301
        second = phones.upload(0)
        phones.now -= 301
        assert list(phones.outcomes(first, second)) == [ACCEPTED, (REJECTED, "duplicate")]


class TestCollections:
    def test_joined_by_who_asks_the_same(self, state: GatewayState) -> None:
        phones = town(state)
        assert phones.open() == phones.open()

    def test_closed_once_answered_once(self, state: GatewayState) -> None:
        phones = town(state)
        collection = phones.open()
        phones.send(*[phones.upload(number) for number in range(3)])
        with pytest.raises(RoundFailed, match="is open"):
            state.answer(collection, b"too early")
        count, total = state.close(collection, phones.now)
        assert phones.ask(3) is Denial.NO_TASK
        again = state.close(collection, phones.now)  # another gateway, or this one after a crash
        assert again[0] == count
        assert np.array_equal(again[1], total)
        assert phones.open() == collection
        state.answer(collection, b"first")
        state.answer(collection, b"second")
        assert state.answered("run-1", 0, 0, 0) == b"first"
        assert state.close(collection, phones.now) is None

    def test_below_its_minimum_it_is_abandoned(self, state: GatewayState) -> None:
        phones = town(state)
        collection = phones.open()
        sent = phones.upload(0)
        in_hand = phones.upload(1)
        assert list(phones.outcomes(sent)) == [ACCEPTED]
        assert state.close(collection, phones.now) is None
        assert state.close(collection, phones.now) is None
        assert list(phones.outcomes(in_hand)) == [LATE]
        assert list(phones.outcomes(sent)) == [ACCEPTED]  # what was said stands
        assert state.figures().accepted == 0
        again = phones.open()
        assert (again.step, again.attempt, again.tries) == (0, 0, 1)
        phones.send(*[phones.upload(number) for number in (1, 2)])
        count, total = state.close(again, phones.now)
        assert count == 2
        assert total.tolist()[:3] == [0, 1001, 1002]

    def test_a_new_attempt_gives_up_the_old_one(self, state: GatewayState) -> None:
        phones = town(state)
        old = phones.open()
        phones.send(*[phones.upload(number) for number in range(3)])
        new = phones.open(attempt=1)
        assert (new.attempt, new.tries) == (1, 1)
        assert state.close(old, phones.now) is None
        assert {phones.ask(number) for number in range(3)} == {Denial.SEPARATION}
        assert phones.task(4).attempt == 1

    def test_a_question_that_was_overtaken(self, state: GatewayState) -> None:
        phones = town(state)
        phones.open(step=3, attempt=1)
        for step, attempt in ((2, 5), (3, 0)):
            with pytest.raises(RoundFailed, match="has gone on to step 3, attempt 1"):
                phones.open(step, attempt)

    @pytest.mark.parametrize(
        "change",
        [
            {"run_id": "another"},
            {"l2_clip_norm": 2.0},
            {"grid_step": 2.0**-29},
            {"grid_step": None},
            {"count_scale": 0.5},
            {"step": 40},
        ],
    )
    def test_a_task_that_is_not_the_runs(self, state: GatewayState, change: dict[str, object]) -> None:
        phones = town(state)
        task = replace(fleet.round_task(), **change)
        with pytest.raises(RoundFailed):
            state.open_collection(phones.terms, task, bytes(4 * task.dimension), 0, 1, phones.now)
        assert state.figures().collections == 0

    def test_weights_and_parts_that_do_not_fit(self, state: GatewayState) -> None:
        phones, task = town(state), fleet.round_task()
        with pytest.raises(RoundFailed, match="weights"):
            state.open_collection(phones.terms, task, bytes(4), 0, 1, phones.now)
        with pytest.raises(RoundFailed, match="no such part"):
            state.open_collection(phones.terms, task, bytes(4 * fleet.WIDTH), 1, 1, phones.now)
        phones.open()
        with pytest.raises(RoundFailed, match="another task"):
            state.open_collection(phones.terms, replace(task, seed=8), bytes(4 * fleet.WIDTH), 0, 1, phones.now)

    def test_a_part_that_was_abandoned_opens_again_after_the_oldest_were_tidied_away(self, state: GatewayState) -> None:
        """Their number is no number for the next: it was taken twice, and the part never opened again."""
        phones = town(state)
        for _ in range(3):
            assert state.close(phones.open(), phones.now) is None
            phones.now += 3600.0
        state.tidy(phones.now - 3 * 3600.0 + phones.terms.attempt_s + 86_401.0)
        with state._store.reading() as connection:
            assert connection.exec_driver_sql("SELECT count(*) FROM gateway_collections").scalar_one() == 2
        assert phones.open().tries == 3

    def test_asked_again_it_shows_the_newer_checkpoint(self, state: GatewayState) -> None:
        phones = town(state)
        task = fleet.round_task()
        for shown in (b"length 5", b"length 7"):
            told = replace(task, ledger_checkpoint=shown)
            state.open_collection(phones.terms, told, bytes(4 * fleet.WIDTH), 0, 1, phones.now)
        offer = phones.ask(0)
        assert isinstance(offer, fleet.Offer)
        assert offer.checkpoint == b"length 7"

    def test_a_sum_that_could_overflow(self, state: GatewayState) -> None:
        phones = town(state, target=2**33)
        with pytest.raises(RoundFailed, match="does not fit the grid"):
            phones.open()


class TestWiped:
    """The bytes of a sum are in no file when the collection ended, and those of an answer when the run went on."""

    MARK = 0x5EC2E7_0DDBA11

    def bytes_on_disk(self, directory: Path) -> bytes:
        return b"".join(path.read_bytes() for path in sorted(directory.iterdir()))

    def collect(self, state: GatewayState, phones: fleet.Fleet, step: int, numbers: range) -> None:
        values = np.zeros(phones.width, "<i8")
        values[5] = self.MARK
        values[4000:4100] = 77
        phones.send(*[phones.upload(number, values=values // 2**28) for number in numbers])

    @pytest.mark.parametrize("how", ["answered", "abandoned", "given up"])
    def test_it(self, tmp_path: Path, state: GatewayState, how: str) -> None:
        phones = fleet.Fleet(state, fleet.terms(), width=5000)
        phones.enrol(*range(8))
        collection = phones.open()
        self.collect(state, phones, 0, range(1 if how == "abandoned" else 2))
        summed = np.int64(self.MARK // 2**28 * (1 if how == "abandoned" else 2)).tobytes()
        assert summed in self.bytes_on_disk(tmp_path)  # else the test could not fail
        closed = state.close(collection, phones.now) if how != "given up" else None
        if how == "answered":
            assert closed is not None
            state.answer(collection, b"answer of step 0, as bytes")
            assert b"answer of step 0" in self.bytes_on_disk(tmp_path)
        if how != "abandoned":
            phones.open(step=1)
        found = self.bytes_on_disk(tmp_path)
        assert summed not in found
        assert b"answer of step 0" not in found

    def test_secure_delete_is_what_does_it(self, tmp_path: Path, state: GatewayState) -> None:
        with state._store.reading() as connection:
            assert connection.exec_driver_sql("PRAGMA secure_delete").scalar_one() == 1
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"


class TestTidy:
    def test_what_is_forgotten_when(self, state: GatewayState) -> None:
        def counted() -> dict[str, int]:
            with state._store.reading() as connection:
                tables = ("check_ins", "nonces", "tokens", "sums", "answers", "objects", "collections")
                count = "SELECT count(*) FROM gateway_"
                return {table: connection.exec_driver_sql(count + table).scalar_one() for table in tables}

        phones = town(state)
        bundle = state.put_object(b"bundle")
        collection = phones.open()
        phones.send(*[phones.upload(number) for number in range(3)])
        state.note_check_in(fleet.device(0), "192.0.2.1", "task", phones.now)
        state.tidy(phones.now)
        assert counted() == {
            "check_ins": 1, "nonces": 3, "tokens": 3, "sums": 1, "answers": 0, "objects": 2, "collections": 1
        }  # fmt: skip
        state.close(collection, phones.now)
        state.answer(collection, b"reply")
        state.tidy(phones.now + 1201)
        assert counted() == {
            "check_ins": 1, "nonces": 0, "tokens": 3, "sums": 0, "answers": 1, "objects": 1, "collections": 1
        }  # fmt: skip
        state.tidy(phones.now + 600 + 86_401)
        assert counted() == {
            "check_ins": 1, "nonces": 0, "tokens": 0, "sums": 0, "answers": 0, "objects": 1, "collections": 0
        }  # fmt: skip
        state.tidy(phones.now + 7 * 86_400 + 1)
        assert counted()["check_ins"] == 0
        assert state.object(bundle) == b"bundle"
        phones.open()  # a run that comes back is the same run
        assert phones.ask(0) is Denial.SEPARATION

    def test_nothing_links_an_address_or_a_time_to_a_contribution(self, state: GatewayState) -> None:
        phones = town(state)
        phones.open()
        phones.now += 12.345
        phones.send(phones.upload(0))
        state.note_check_in(fleet.device(0), "192.0.2.1", "task", phones.now)
        state.tidy(phones.now)
        with state._store.reading() as connection:
            token = connection.exec_driver_sql("SELECT * FROM gateway_tokens").one()
            took_part = connection.exec_driver_sql("SELECT * FROM gateway_participations").one()
        assert (token.issued, token.expires) == (None, None)
        assert set(took_part._fields) == {"device", "run_id", "step"}
        assert phones.now not in [*token, *took_part]


class TestFile:
    def test_it_is_the_owners_alone(self, tmp_path: Path, state: GatewayState) -> None:
        state.put_object(b"x")
        assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}

    def test_another_version(self, tmp_path: Path, state: GatewayState) -> None:
        with sqlite3.connect(tmp_path / "gateway.sqlite") as connection:
            connection.execute("UPDATE gateway_about SET version = 99")
        with pytest.raises(GatewayStoreFailed, match="another version"):
            GatewayState.open(tmp_path / "gateway.sqlite")

    def test_what_is_no_database(self, tmp_path: Path) -> None:
        (tmp_path / "text").write_bytes(b"no database at all " * 100)
        with pytest.raises(GatewayStoreFailed, match="not a database"):
            GatewayState.open(tmp_path / "text")
        with pytest.raises(GatewayStoreFailed, match="cannot be made"):
            GatewayState.open(tmp_path / "text" / "below")

    def test_held_by_another_process(
        self, tmp_path: Path, state: GatewayState, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(store, "BUSY_SECONDS", 0.05)
        impatient = GatewayState.open(tmp_path / "gateway.sqlite")
        with sqlite3.connect(tmp_path / "gateway.sqlite", isolation_level=None) as holder:
            holder.execute("BEGIN IMMEDIATE")
            with pytest.raises(GatewayStoreFailed, match="locked; nothing was acknowledged"):
                impatient.put_object(b"x")
            holder.execute("ROLLBACK")
        assert impatient.object(impatient.put_object(b"x")) == b"x"
        impatient.disconnect()

    def test_a_server_that_is_not_there(self) -> None:
        with pytest.raises(GatewayStoreFailed, match=r"someone:\*\*\*@127.0.0.1:1/x") as refused:
            GatewayState.open("postgresql://someone:hidden@127.0.0.1:1/x")
        assert "hidden" not in str(refused.value)

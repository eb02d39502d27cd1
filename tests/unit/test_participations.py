"""The phone's own ledger: separation, count, budget, first sight, and what outlives a store."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from fedlearn.errors import Refusal, StoreFailed, TaskRefused
from fedlearn.privacy.factorization import Blt, Tree
from fedlearn.privacy.gaussian import zcdp_epsilon
from fedlearn.privacy.sensitivity import squared_sensitivity
from fedlearn_client import anchor as anchors
from fedlearn_client.fakes import FakeClock, FakeKeyStore
from fedlearn_client.participation import Participations
from fedlearn_client.store.database import Database

_spec = importlib.util.spec_from_file_location("phone_history", Path(__file__).with_name("phone_history.py"))
world = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = world
_spec.loader.exec_module(world)
Phone, task, terms, CAPS, NOW = world.Phone, world.task, world.terms, world.CAPS, world.NOW


def refused(phone, asked, reason: Refusal, caps=CAPS) -> str:
    """Assert that the phone refuses, and that refusing records no participation."""
    before = phone.ledger.spent().participations
    with pytest.raises(TaskRefused) as caught:
        phone.admit(asked, caps)
    assert caught.value.reason is reason, caught.value
    assert phone.ledger.spent().participations == before
    return str(caught.value)


class TestSeparationAndCount:
    def test_a_phone_that_meets_a_run_in_step_0_takes_part_at_once_and_b_steps_later(self) -> None:
        phone = Phone()
        assert phone.take_part(task(0)).count == 1
        for step in (0, 1, 9):
            assert "next may be step 10" in refused(phone, task(step), Refusal.SEPARATION)
        assert phone.take_part(task(10)).count == 2
        refused(phone, task(5), Refusal.SEPARATION)  # a server whose step goes back

    def test_another_attempt_of_a_step_is_a_second_participation(self) -> None:
        phone = Phone()
        phone.take_part(task(0))
        refused(phone, task(0, attempt=1), Refusal.SEPARATION)

    def test_k_participations_and_no_more(self) -> None:
        phone = Phone()
        for step in range(0, 50, 10):
            phone.take_part(task(step))
        refused(phone, task(60), Refusal.PARTICIPATIONS)
        assert phone.ledger.spent().participations == 5

    def test_runs_are_apart_and_so_are_operators_who_name_theirs_alike(self) -> None:
        phone = Phone()
        phone.take_part(task(0))
        phone.take_part(task(0, run_id="run-2"))
        phone.take_part(task(0, recipient="other-lab"))
        assert phone.ledger.spent().participations == 3

    @pytest.mark.parametrize(
        "changes",
        [
            {"mechanism": terms(noise_multiplier=1.0)},
            {"mechanism": terms(min_separation=1)},
            {"mechanism": terms(max_participations=6)},
            {"mechanism": terms(steps=200)},
            {"mechanism": terms(kind="tree", factorization=Tree())},
            {"purpose": "another"},
            {"population": "another"},
        ],
    )
    def test_a_run_never_changes_its_terms(self, changes) -> None:
        phone = Phone()
        phone.take_part(task(0))
        refused(phone, task(20, **changes), Refusal.PLAN)
        phone.start(world.EMPTY)  # not even when the store is gone
        refused(phone, task(40, **changes), Refusal.PLAN)

    @pytest.mark.parametrize("step", [-1, 100, 10_000])
    def test_no_step_of_the_run(self, step) -> None:
        refused(Phone(), replace(task(0), step=step), Refusal.PLAN)

    def test_terms_that_contradict_themselves(self) -> None:
        phone = Phone()
        refused(phone, task(0, mechanism=terms(steps=2**30)), Refusal.PLAN)
        refused(phone, task(0, run_id="2", mechanism=terms(noise_multiplier=1e-9)), Refusal.PLAN)


class TestBudget:
    def test_figures_are_those_of_the_library(self) -> None:
        blt = terms(kind="blt", factorization=Blt((0.9, 0.5), (0.3, 0.2)))
        phone = Phone()
        first = phone.take_part(task(0))
        second = phone.take_part(task(0, run_id="blt", mechanism=blt))
        third = phone.take_part(task(30, run_id="blt", mechanism=blt))
        expected = 1 / 8 + squared_sensitivity(blt.factorization, 100, 10, 2) / 8
        assert first.rho_total == pytest.approx(1 / 8, rel=1e-12)
        assert second.rho_run < third.rho_run
        assert expected <= third.rho_total <= expected * (1 + 1e-9)
        assert zcdp_epsilon(expected, 1e-6) <= third.epsilon <= zcdp_epsilon(expected, 1e-6) * (1 + 1e-6)
        spent = phone.ledger.spent()
        assert (spent.rho, spent.participations, spent.assumed) == (third.rho_total, 3, 0)
        assert not spent.history_lost

    def test_the_cap_holds_over_all_runs_and_purposes(self) -> None:
        phone = Phone()
        cap = replace(CAPS, epsilon=zcdp_epsilon(2.5 / 8, 1e-6))
        phone.take_part(task(0), cap)
        phone.take_part(task(0, run_id="other", purpose="another"), cap)
        assert "device.epsilon" in refused(phone, task(0, run_id="third"), Refusal.BUDGET, cap)
        assert phone.ledger.spent().rho == pytest.approx(2 / 8)

    def test_the_cap_itself_may_be_reached(self) -> None:
        phone = Phone()
        exact = phone.admit(task(0)).epsilon
        refused(phone, task(0), Refusal.BUDGET, replace(CAPS, epsilon=math.nextafter(exact, 0)))
        phone.take_part(task(0), replace(CAPS, epsilon=exact))

    def test_a_cap_that_is_no_number_allows_nothing(self) -> None:
        refused(Phone(), task(0), Refusal.BUDGET, replace(CAPS, epsilon=math.nan))


class TestFirstSight:
    @pytest.mark.parametrize(("step", "assumed"), [(1, 1), (9, 1), (10, 2), (11, 2), (39, 4), (40, 5), (95, 5)])
    def test_a_run_met_late_may_have_been_met_before(self, step, assumed) -> None:
        phone = Phone()
        reason = Refusal.PARTICIPATIONS if assumed == 5 else Refusal.HISTORY
        refused(phone, task(step), reason)
        spent = phone.ledger.spent()
        assert (spent.participations, spent.assumed, spent.rho, spent.history_lost) == (0, 0, 0.0, False)
        if assumed < 5:
            refused(phone, task(step + 9), Refusal.HISTORY)
            assert phone.take_part(task(step + 10)).count == assumed + 1
            assert phone.ledger.spent().assumed == assumed
            assert phone.ledger.spent().rho == pytest.approx((assumed + 1) / 8)

    def test_a_server_that_names_many_runs_uses_up_nothing(self) -> None:
        """What was not joined cost nothing: an honest run still fits, with what it is assumed to have cost."""
        phone = Phone()
        cap = replace(CAPS, epsilon=zcdp_epsilon(3.5 / 8, 1e-6), max_rounds_per_day=1000)
        for number in range(200):
            refused(phone, task(39, run_id=f"burn-{number}"), Refusal.HISTORY, cap)
        assert phone.ledger.spent().rho == 0.0
        refused(phone, task(49, run_id="burn-0"), Refusal.BUDGET, cap)  # four assumed and one are over the cap
        refused(phone, task(12, run_id="late"), Refusal.HISTORY, cap)
        assert phone.take_part(task(22, run_id="late"), cap).count == 3
        refused(phone, task(0, run_id="fresh"), Refusal.BUDGET, cap)

    def test_only_so_many_runs_of_a_recipient_are_met_in_a_day(self) -> None:
        phone = Phone()
        few = replace(CAPS, max_rounds_per_day=3)
        for number in range(3):
            refused(phone, task(5, run_id=f"run-{number}"), Refusal.HISTORY, few)
        assert "met in 24 hours" in refused(phone, task(0, run_id="run-3"), Refusal.SEPARATION, few)
        assert phone.kinds() == ["seen"] * 3
        phone.take_part(task(0, recipient="other-lab"), few)
        phone.take_part(task(15, run_id="run-0"), few)  # one that was met is not met again
        phone.clock.advance(86_401)
        assert phone.take_part(task(0, run_id="run-3"), few).count == 1

    def test_the_wait_does_not_begin_anew(self) -> None:
        phone = Phone()
        refused(phone, task(3), Refusal.HISTORY)
        for step in (4, 8, 12):
            phone.start()
            refused(phone, task(step), Refusal.HISTORY)
        assert phone.take_part(task(13)).count == 2

    def test_a_run_seen_in_step_0_is_known_from_its_beginning(self) -> None:
        phone = Phone()
        phone.admit(task(0))  # and the round is abandoned
        phone.start()
        assert phone.take_part(task(7)).count == 1

    def test_a_task_of_an_earlier_step_does_not_help(self) -> None:
        phone = Phone()
        refused(phone, task(20), Refusal.HISTORY)
        refused(phone, task(0), Refusal.HISTORY)

    def test_a_phone_reset_in_a_step_that_it_took_part_in_stays_within_k(self) -> None:
        """Steps before s alone, of which there are ceil(s / b), would leave room for one too many."""
        twice = terms(max_participations=2)
        phone = Phone()
        phone.take_part(task(0, mechanism=twice))
        phone.take_part(task(10, mechanism=twice))
        phone = Phone()  # store and anchor are lost
        for step in range(10, 100):
            refused(phone, task(step, mechanism=twice), Refusal.PARTICIPATIONS)


class TestOneTransaction:
    def test_what_is_rolled_back_never_was(self) -> None:
        phone = Phone()
        admission = phone.admit(task(0))
        with pytest.raises(ZeroDivisionError), phone.store.transaction() as connection:
            phone.ledger.record(admission, task(0), connection) or 1 / 0
        phone.ledger.seal()
        assert phone.ledger.spent().participations == 0
        assert phone.take_part(task(0)).count == 1

    def test_an_admission_is_good_once(self) -> None:
        phone = Phone()
        admission = phone.take_part(task(0))
        with pytest.raises(TaskRefused), phone.store.transaction() as connection:
            phone.ledger.record(admission, task(0), connection)
        assert phone.ledger.spent().participations == 1

    def test_two_admissions_do_not_make_two_participations_over_the_cap(self) -> None:
        phone = Phone()
        cap = replace(CAPS, epsilon=zcdp_epsilon(1.5 / 8, 1e-6))
        one, other = phone.admit(task(0), cap), phone.admit(task(0, run_id="other"), cap)
        with phone.store.transaction() as connection:
            phone.ledger.record(one, task(0), connection)
        with pytest.raises(TaskRefused, match="history_lost") as caught, phone.store.transaction() as connection:
            phone.ledger.record(other, task(0, run_id="other"), connection)
        assert caught.value.reason is Refusal.HISTORY

    def test_an_admission_of_another_run_is_refused(self) -> None:
        phone = Phone()
        admission = phone.admit(task(0))
        with pytest.raises(TaskRefused), phone.store.transaction() as connection:
            phone.ledger.record(admission, task(0, run_id="never seen"), connection)

    def test_nothing_is_admitted_while_the_anchor_cannot_be_written(self) -> None:
        phone = Phone()
        admission = phone.admit(task(0))
        phone.keystore.fails = True
        with phone.store.transaction() as connection:
            phone.ledger.record(admission, task(0), connection)
        with pytest.raises(StoreFailed):
            phone.ledger.seal()
        with pytest.raises(StoreFailed):
            phone.admit(task(0, run_id="other"))
        assert phone.ledger.spent().participations == 1
        phone.keystore.fails = False
        phone.ledger.seal()
        assert phone.take_part(task(10)).count == 2

    def test_a_crash_between_commit_and_seal_is_counted_and_sealed_at_the_next_start(self) -> None:
        phone = Phone()
        admission = phone.admit(task(0))
        with phone.store.transaction() as connection:
            phone.ledger.record(admission, task(0), connection)
        phone.start()
        assert not phone.ledger.spent().history_lost
        assert phone.ledger.spent().participations == 1
        assert anchors.from_json(phone.keystore.read_anchor()).participations() == 1
        refused(phone, task(3), Refusal.SEPARATION)


class TestChain:
    def test_rows_are_chained_and_never_change(self) -> None:
        phone = Phone()
        phone.take_part(task(0))
        rows = phone.store.rows("SELECT * FROM participations ORDER BY id")
        phone.take_part(task(10))
        assert phone.store.rows("SELECT * FROM participations ORDER BY id")[:2] == rows
        assert phone.kinds() == ["seen", "participation", "participation"]

    @pytest.mark.parametrize(
        "change",
        [
            "UPDATE participations SET count = 0 WHERE id = 2",
            "UPDATE participations SET step = 90 WHERE id = 2",
            "UPDATE participations SET rho = 0.0 WHERE id = 2",
            "UPDATE participations SET run_id = 'x' WHERE id = 2",
            "UPDATE participations SET digest = zeroblob(32) WHERE id = 1",
            "UPDATE participations SET previous = zeroblob(32) WHERE id = 2",
            "DELETE FROM participations WHERE id = 1",
            "DELETE FROM participations WHERE id = 2",
            "DELETE FROM participations WHERE id = 3",
        ],
    )
    def test_a_changed_row_is_noticed_and_forgets_nothing(self, change) -> None:
        phone = Phone()
        phone.take_part(task(0))
        phone.take_part(task(10))
        spent = phone.ledger.spent().rho
        with phone.store.transaction() as connection:
            connection.execute(change)
        phone.start()
        assert phone.ledger.spent().history_lost
        assert phone.ledger.spent().rho >= spent
        assert phone.kinds()[-1] == "lost"
        refused(phone, task(15), Refusal.HISTORY)
        phone.start()
        assert phone.kinds().count("lost") == 1
        assert phone.take_part(task(25)).count == 3

    @pytest.mark.parametrize("value", ["NULL", "'x'", "-1.0", "zeroblob(3)"])
    def test_a_column_that_holds_what_it_cannot(self, value) -> None:
        phone = Phone()
        phone.take_part(task(0))
        with phone.store.transaction() as connection:
            connection.execute("ALTER TABLE participations RENAME TO old")
            connection.execute("CREATE TABLE participations AS SELECT * FROM old")
            connection.execute(f"UPDATE participations SET rho = {value} WHERE id = 2")
        with pytest.raises(StoreFailed, match="column"):
            phone.start()

    def test_rows_of_a_newer_runtime(self) -> None:
        phone = Phone()
        phone.take_part(task(0))
        with phone.store.transaction() as connection:
            connection.execute("UPDATE participations SET kind = 'new' WHERE id = 2")
        with pytest.raises(StoreFailed, match="update the runtime"):
            phone.start()

    def test_a_store_that_changes_under_a_running_process(self) -> None:
        phone = Phone()
        phone.take_part(task(0))
        with phone.store.transaction() as connection:
            connection.execute(
                "INSERT INTO participations SELECT 3, kind, recipient, run_id, step, attempt, purpose,"
                " mechanism, count, rho, time, nonce, previous, digest FROM participations WHERE id = 2"
            )
        with pytest.raises(StoreFailed, match="does not follow"):
            phone.admit(task(20))


class TestLostHistory:
    def test_a_wiped_store(self) -> None:
        phone = Phone()
        phone.take_part(task(0))
        phone.take_part(task(10))
        spent = phone.ledger.spent()
        phone.start(world.EMPTY)
        after = phone.ledger.spent()
        assert (after.rho, after.participations, after.history_lost) == (spent.rho, 2, True)
        refused(phone, task(20), Refusal.HISTORY)  # b steps since it took part, but none since the loss
        refused(phone, task(29), Refusal.HISTORY)
        assert phone.take_part(task(30)).count == 3
        assert not phone.ledger.spent().history_lost

    def test_after_a_loss_an_unknown_run_is_waited_for_even_in_step_0(self) -> None:
        phone = Phone()
        phone.take_part(task(0))
        phone.start(world.EMPTY)
        refused(phone, task(0, run_id="new"), Refusal.HISTORY)
        assert phone.take_part(task(10, run_id="new")).count == 2

    def test_an_older_copy(self) -> None:
        phone = Phone()
        phone.take_part(task(0))
        copy = phone.store.image()
        phone.take_part(task(10))
        phone.take_part(task(20))
        phone.start(copy)
        assert phone.ledger.spent().participations == 3
        refused(phone, task(30), Refusal.HISTORY)
        assert phone.take_part(task(40)).count == 4

    def test_the_newest_copy_is_no_loss(self) -> None:
        phone = Phone()
        phone.take_part(task(0))
        phone.start(phone.store.image())
        assert not phone.ledger.spent().history_lost
        assert phone.take_part(task(10)).count == 2

    def test_copies_that_went_their_own_way(self) -> None:
        phone = Phone()
        phone.take_part(task(0))
        first = phone.store.image()
        phone.take_part(task(10))
        second = phone.store.image()
        phone.start(first)
        refused(phone, task(12), Refusal.HISTORY)
        phone.take_part(task(22))
        for image in (second, first, second, world.EMPTY, second):
            phone.start(image)
            spent = phone.ledger.spent()
            assert spent.participations == 3
            assert spent.history_lost
            assert spent.rho >= 3 / 8

    def test_a_crash_while_the_loss_is_noted(self) -> None:
        phone = Phone()
        phone.take_part(task(0))
        phone.store.close()
        phone.store = world.PlainStore()
        phone.keystore.fails = True
        for _ in range(3):
            with pytest.raises(StoreFailed):
                phone.start()
        phone.keystore.fails = False
        phone.start()
        assert phone.ledger.spent().participations == 1
        refused(phone, task(10), Refusal.HISTORY)
        assert phone.take_part(task(20)).count == 2

    def test_a_store_of_a_life_before(self) -> None:
        phone = Phone()
        phone.take_part(task(0))
        old = phone.store.image()
        phone.take_part(task(10))
        phone.keystore = world.FaultyKeyStore()
        phone.start(world.EMPTY)
        assert phone.ledger.spent().participations == 0
        phone.start(old)
        assert phone.ledger.spent().history_lost
        refused(phone, task(15), Refusal.HISTORY)
        assert phone.take_part(task(25)).count == 3  # 0, and one more that step 15 leaves room for

    @pytest.mark.parametrize("data", [None, b"", b"{}", b"\xff", b'{"version":1}', b"[1]", b'{"version":"1"}'])
    def test_an_anchor_that_is_gone_or_damaged(self, data) -> None:
        phone = Phone()
        phone.take_part(task(0))
        copy = phone.store.image()
        phone.take_part(task(10))
        phone.keystore._anchor = data
        phone.start(copy)
        assert phone.ledger.spent().history_lost
        refused(phone, task(15), Refusal.HISTORY)
        assert phone.take_part(task(25)).count == 3
        refused(phone, task(0, run_id="new"), Refusal.HISTORY)

    def test_an_anchor_of_a_newer_runtime(self) -> None:
        phone = Phone()
        body = json.loads(phone.keystore.read_anchor())
        phone.keystore.write_anchor(json.dumps({**body, "version": 2}).encode())
        with pytest.raises(StoreFailed, match="newer"):
            phone.start()

    def test_a_prepared_upload_of_a_lost_store_never_leaves(self) -> None:
        """It was committed but never sealed; the phone went on without it, and its copy comes back."""
        phone = Phone()
        admission = phone.admit(task(0))
        copy = phone.store.image()
        with phone.store.transaction() as connection:
            phone.ledger.record(admission, task(0), connection)
            connection.execute(
                "INSERT INTO egress VALUES (1, 0, 'Upload', '', '', '', 0, 1, x'00', 'prepared', x'00', 9e9, '')"
            )
        unsealed = phone.store.image()
        phone.start(copy)
        assert not phone.ledger.spent().history_lost
        phone.take_part(task(5))
        phone.start(unsealed)
        assert phone.store.rows("SELECT state, body FROM egress") == [("destroyed", None)]

    def test_the_first_start_writes_the_anchor(self) -> None:
        phone = Phone()
        assert anchors.from_json(phone.keystore.read_anchor()).counter == 0
        written = phone.keystore.written
        phone.start()
        assert phone.keystore.written == written


class TestAnchor:
    def test_it_reads_back(self) -> None:
        phone = Phone()
        phone.take_part(task(0))
        refused(phone, task(7, run_id="late"), Refusal.HISTORY)
        data = phone.keystore.read_anchor()
        assert anchors.to_json(anchors.from_json(data)).encode() == data
        assert anchors.from_json(data) == phone.ledger._history

    def test_many_runs_fit_in_16_kib_and_their_cost_is_kept(self) -> None:
        phone = Phone()
        for number in range(250):
            phone.take_part(task(0, run_id=f"run-{number}"), replace(CAPS, max_rounds_per_day=1000))
        data = phone.keystore.read_anchor()
        kept = anchors.from_json(data)
        assert len(data) <= anchors.MAX_BYTES
        assert 64 <= len(kept.runs) <= anchors.MOST_RUNS
        assert kept.incomplete
        assert kept.participations() == 250
        assert 250 / 8 <= kept.rho() <= 250 / 8 * (1 + 1e-9)
        spent = phone.ledger.spent()
        assert not phone.ledger._history.incomplete
        phone.start(world.EMPTY)
        assert spent.rho <= phone.ledger.spent().rho <= spent.rho * (1 + 1e-12)
        assert phone.ledger.spent().participations == 250
        # a forgotten run is one that may have been taken part in, in step 0 too, for good
        phone.start()
        phone.clock.advance(86_401)
        refused(phone, task(0, run_id="run-0"), Refusal.HISTORY)
        assert phone.take_part(task(10, run_id="run-0")).count == 2
        refused(phone, task(0, run_id="run-1"), Refusal.HISTORY)

    def test_the_widest_entries_fit(self) -> None:
        run = anchors.RunHistory("f" * 32, 2**31, 2**31, 2**31, True, 0.1 + 1e-9, 2**31, False, 2**31)
        runs = {f"{number:032x}": replace(run, order=number) for number in range(400)}
        history = replace(anchors.beginning(b"h" * 32), runs=runs, closed=1 / 3, time=NOW)
        data = anchors.to_anchor(history)
        assert len(data) <= anchors.MAX_BYTES
        read = anchors.from_json(data)
        assert set(read.runs) == set(sorted(runs)[-len(read.runs) :])
        assert read.rho() >= history.rho()
        assert read.participations() == history.participations()

    def test_a_run_that_only_an_older_copy_knows_may_have_gone_on(self, monkeypatch) -> None:
        monkeypatch.setattr(anchors, "MOST_RUNS", 1)
        phone = Phone()
        phone.take_part(task(0))
        copy = phone.store.image()
        phone.take_part(task(10))
        phone.take_part(task(20))
        phone.take_part(task(0, run_id="newer"))  # the anchor forgets run-1
        phone.start(copy)
        refused(phone, task(25), Refusal.HISTORY)
        assert phone.take_part(task(35)).count == 4


class TestClock:
    def test_a_clock_that_went_back(self) -> None:
        phone = Phone()
        phone.ledger.notice_time(NOW, NOW)
        phone.take_part(task(0))
        phone.ledger.notice_time(NOW - 600, NOW - 600)  # within the tolerance
        for _ in range(3):
            with pytest.raises(TaskRefused, match="minutes behind") as caught:
                phone.ledger.notice_time(NOW - 601, NOW)
            assert caught.value.reason is Refusal.CLOCK
        assert phone.kinds() == ["seen", "participation", "clock"]
        assert phone.ledger.spent().history_lost
        phone.start()
        with pytest.raises(TaskRefused, match="clock"):
            phone.ledger.notice_time(NOW - 3600, NOW)
        phone.ledger.notice_time(NOW - 100, NOW)
        refused(phone, task(20), Refusal.HISTORY)
        assert phone.take_part(task(30)).count == 2  # nothing was lost: nothing is assumed
        assert phone.kinds() == ["seen", "participation", "clock", "seen", "participation"]

    def test_the_store_alone_does_not_know_the_time(self) -> None:
        phone = Phone()
        phone.ledger.notice_time(NOW, NOW)
        phone.start(world.EMPTY)
        with pytest.raises(TaskRefused, match="clock"):
            phone.ledger.notice_time(NOW - 7200, NOW - 7200)

    def test_a_wrong_date_far_ahead_locks_nobody_out(self) -> None:
        phone = Phone()
        phone.ledger.notice_time(NOW, NOW - 60)
        phone.ledger.notice_time(NOW + 20 * 365 * 86_400, NOW + 3600)
        phone.ledger.notice_time(math.inf, NOW + 3600)
        phone.ledger.notice_time(NOW + 3600, NOW + 3600)  # and back to the right one

    def test_a_date_a_day_ahead_costs_at_most_that_day(self) -> None:
        phone = Phone()
        phone.ledger.notice_time(NOW + 86_000, NOW)
        with pytest.raises(TaskRefused, match="clock"):
            phone.ledger.notice_time(NOW, NOW)
        phone.ledger.notice_time(NOW + 86_000, NOW)

    def test_what_is_signed_for_the_future_raises_nothing(self) -> None:
        phone = Phone()
        phone.ledger.notice_time(NOW, NOW + 1e9)
        phone.ledger.notice_time(NOW, NOW)

    def test_a_clock_that_is_no_number(self) -> None:
        with pytest.raises(TaskRefused, match="clock"):
            Phone().ledger.notice_time(math.nan, NOW)

    def test_a_damaged_fact_is_not_believed(self) -> None:
        for value in (b"", b"nan", b"inf", b"-5", b"\xff", b"noon"):
            phone = Phone()
            phone.ledger.notice_time(NOW, NOW)
            with phone.store.transaction() as connection:
                connection.execute("UPDATE facts SET value = ? WHERE name = 'latest_time'", (value,))
            phone.start()
            with pytest.raises(TaskRefused, match="clock"):
                phone.ledger.notice_time(NOW - 7200, NOW)

    def test_the_keystore_is_spared(self) -> None:
        phone = Phone()
        phone.ledger.notice_time(NOW, NOW)
        written = phone.keystore.written
        for minute in range(59):
            phone.ledger.notice_time(NOW + 60 * minute, NOW)
        assert phone.keystore.written == written
        phone.ledger.notice_time(NOW + 3600, NOW)
        assert phone.keystore.written == written + 1


@pytest.fixture
def keystore() -> FakeKeyStore:
    return FakeKeyStore()


def test_in_the_encrypted_store(tmp_path: Path, keystore: FakeKeyStore) -> None:
    clock = FakeClock(NOW)
    for step in (0, 10, 20):
        database = Database.open(tmp_path, keystore, clock)
        ledger = Participations(database, keystore, clock)
        ledger.notice_time(clock.now(), NOW)
        admission = ledger.admit(task(step), caps=CAPS)
        with database.transaction() as connection:
            ledger.record(admission, task(step), connection)
        ledger.seal()
        assert ledger.since(NOW - 1) == ledger.spent().participations == step // 10 + 1
        database.close()


def test_threads(tmp_path: Path, keystore: FakeKeyStore) -> None:
    """Many rounds at once, of three runs: each run once, and all of it sealed."""
    clock = FakeClock(NOW)
    database = Database.open(tmp_path, keystore, clock)
    ledger = Participations(database, keystore, clock)
    done: list[str] = []

    def work(run_id: str) -> None:
        for _ in range(20):
            try:
                admission = ledger.admit(task(0, run_id), caps=CAPS)
                with database.transaction() as connection:
                    ledger.record(admission, task(0, run_id), connection)
                ledger.seal()
            except TaskRefused:
                continue
            done.append(run_id)

    threads = [threading.Thread(target=work, args=(f"run-{number % 3}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == ["run-0", "run-1", "run-2"]
    assert ledger.spent().participations == 3
    assert anchors.from_json(keystore.read_anchor()).participations() == 3
    database.close()


def test_nothing_that_needs_numpy_is_imported() -> None:
    code = "import sys, fedlearn_client.guard, fedlearn_client.zcdp; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""One run in a ledger of its own: what may follow what, what it spends, and what damages it."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedlearn.errors import BudgetExceeded, ChargeMismatch, LedgerDamaged, LedgerError, LedgerLocked, OutOfRange
from fedlearn.ledger import (
    LEDGER_FILE,
    Charged,
    Committed,
    GateKind,
    Ledger,
    Opened,
    Planned,
    Reserved,
    Rule,
    RunAccount,
    RunOpened,
    Scope,
    Voided,
    new_scope,
    store,
)
from fedlearn.ledger.signing import operator_key
from fedlearn.privacy.accountants import epsilon
from fedlearn.privacy.events import PoissonGaussian
from fedlearn.privacy.mechanisms import GaussianMechanism
from fedlearn.types import BoundedSum

EVENT = PoissonGaussian(2.0, 0.1)
STEPS = 5
DELTA = 1e-5
CAP = epsilon([(EVENT, STEPS)], DELTA)
PLAN = (Planned(EVENT, STEPS),)
TASK = hashlib.sha256(b"task").hexdigest()
SUM = hashlib.sha256(b"sum").hexdigest()
MODEL = hashlib.sha256(b"model").hexdigest()
CONFIG = hashlib.sha256(b"config").hexdigest()


def scope() -> Scope:
    return new_scope("10 phones", CAP, DELTA, operator_key().public, gate=GateKind.PLAN)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / LEDGER_FILE


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger.create(path, scope(), lambda: 1000.0) as made:
        yield made


@pytest.fixture
def account(ledger: Ledger) -> RunAccount:
    return ledger.open_run("run-1", "training", "once", PLAN, CONFIG)


def release(account: RunAccount, step: int) -> None:
    reservation = account.reserve(step, account.next_attempt(step))
    account.commit(account.charge(reservation, TASK, SUM), MODEL)


def test_a_round_as_it_is_written(ledger: Ledger, account: RunAccount) -> None:
    reservation = account.reserve(0, 0)
    charge = account.charge(reservation, TASK, SUM)
    account.commit(charge, MODEL)
    assert (charge.step, charge.noise_multiplier, charge.sum_digest) == (0, 2.0, SUM)
    assert ledger.entries() == (
        Opened(0, 1000.0, ledger.scope),
        RunOpened(1, 1000.0, "run-1", "training", "once", PLAN, CONFIG),
        Reserved(2, 1000.0, "run-1", 0, 0, 0),
        Charged(3, 1000.0, 2, "run-1", 0, 0, TASK, SUM),
        Committed(4, 1000.0, 3, MODEL),
    )
    assert account.committed() == (ledger.entries()[4],)
    assert account.uncommitted() == ()


def test_every_charge_counts_committed_or_not(account: RunAccount) -> None:
    assert account.spent() == 0.0
    account.charge(account.reserve(0, 0), TASK, SUM)
    assert account.spent() == epsilon([(EVENT, 1)], DELTA)
    release(account, 0)
    assert account.spent() == epsilon([(EVENT, 2)], DELTA)
    assert account.spent(1e-3) == epsilon([(EVENT, 2)], 1e-3)
    assert account.charged_digests() == (SUM, SUM)


def test_a_run_spends_its_plan_and_not_one_charge_more(account: RunAccount) -> None:
    for step in range(STEPS):
        assert account.remaining() == STEPS - step
        release(account, step)
    assert account.remaining() == 0
    with pytest.raises(BudgetExceeded, match="The run ends here"):
        account.reserve(STEPS, 0)
    assert account.spent() <= CAP


def test_a_wasted_charge_ends_the_run_a_step_early(path: Path) -> None:
    with Ledger.create(path, scope()) as first:
        account = first.open_run("run-1", "training", "once", PLAN, CONFIG)
        release(account, 0)
        account.charge(account.reserve(1, 0), TASK, SUM)  # killed before the release was published
    with Ledger.open(path) as second:
        account = second.run("run-1")
        (wasted,) = account.uncommitted()
        assert (wasted.step, account.next_attempt(1)) == (1, 1)
        with pytest.raises(ChargeMismatch, match="attempt must be 1"):
            account.reserve(1, 0)
        for step in range(1, 4):
            release(account, step)
        with pytest.raises(BudgetExceeded):
            account.reserve(4, 0)
        assert len(account.committed()) == STEPS - 1
        assert account.uncommitted() == (wasted,)


def test_published_before_the_crash_is_committed_after_it(path: Path) -> None:
    with Ledger.create(path, scope()) as first:
        account = first.open_run("run-1", "training", "once", PLAN, CONFIG)
        account.charge(account.reserve(0, 0), TASK, SUM)
    with Ledger.open(path) as second:
        account = second.run("run-1")
        (charged,) = account.uncommitted()
        account.commit(charged, MODEL)
        assert account.uncommitted() == ()
        with pytest.raises(ChargeMismatch, match="released once"):
            account.reserve(0, 1)


def test_an_open_reservation_is_taken_up_again(path: Path) -> None:
    with Ledger.create(path, scope()) as first:
        reservation = first.open_run("run-1", "training", "once", PLAN, CONFIG).reserve(0, 0)
    with Ledger.open(path) as second:
        account = second.run("run-1")
        assert account.announced
        assert account.open_reservation() == reservation
        assert account.reserve(0, 0) == reservation
        assert len(second.entries()) == 3


def test_a_reservation_is_voided_only_while_no_noise_was_drawn(ledger: Ledger, account: RunAccount) -> None:
    reservation = account.reserve(0, 0)
    account.void(reservation, "no reply arrived; no noise was drawn")
    assert isinstance(ledger.entries()[-1], Voided)
    again = account.reserve(0, 0)
    account.charge(again, TASK, SUM)
    for gone in (reservation, again):
        with pytest.raises(ChargeMismatch, match="never voided"):
            account.void(gone, "too late")


def test_what_may_not_follow_is_refused_and_leaves_no_entry(ledger: Ledger, account: RunAccount) -> None:
    reservation = account.reserve(0, 0)
    with pytest.raises(ChargeMismatch, match="still reserved"):
        account.reserve(1, 0)
    with pytest.raises(ChargeMismatch, match="sum_digest"):
        account.charge(reservation, TASK, "abc")
    with pytest.raises(ChargeMismatch, match="task_digest"):
        account.charge(reservation, TASK.upper(), SUM)
    with pytest.raises(ChargeMismatch, match="void it first"):
        account.close(Rule.COMPLETED, "over")
    charge = account.charge(reservation, TASK, SUM)
    with pytest.raises(ChargeMismatch, match="not open"):
        account.charge(reservation, TASK, SUM)
    with pytest.raises(ChargeMismatch, match="published_digest"):
        account.commit(charge, "")
    account.commit(charge, MODEL)
    with pytest.raises(ChargeMismatch, match="committed before"):
        account.commit(charge, MODEL)
    with pytest.raises(ChargeMismatch, match="no such charge"):
        account.commit(replace(charge, id=99), MODEL)
    with pytest.raises(ChargeMismatch, match="step=-1"):
        account.reserve(-1, 0)
    with pytest.raises(ChargeMismatch, match="has 1 parts"):
        ledger.append(lambda sequence, time: Reserved(sequence, time, "run-1", 1, 0, 0))
    with pytest.raises(ChargeMismatch, match="has 1 parts"):
        ledger.append(lambda sequence, time: Reserved(sequence, time, "run-1", -1, 0, 0))
    assert len(ledger.entries()) == 5


def test_a_charge_is_for_the_step_that_was_reserved(ledger: Ledger, account: RunAccount) -> None:
    held = account.reserve(0, 0)
    with pytest.raises(ChargeMismatch, match="is for step 0"):
        account.charge(replace(held, step=1), TASK, SUM)
    with pytest.raises(ChargeMismatch, match="is of run"):
        ledger.append(lambda sequence, time: Charged(sequence, time, held.id, "run-2", 0, 0, TASK, SUM))


def test_a_step_is_committed_under_one_charge(account: RunAccount) -> None:
    wasted = account.charge(account.reserve(0, 0), TASK, SUM)
    release(account, 0)
    with pytest.raises(ChargeMismatch, match="another charge"):
        account.commit(wasted, MODEL)


def test_nothing_follows_a_closed_run(account: RunAccount) -> None:
    wasted = account.charge(account.reserve(0, 0), TASK, SUM)
    account.close(Rule.COMPLETED, "over")
    assert account.closed
    assert account.remaining() == 0
    for call in (
        lambda: account.reserve(1, 0),
        lambda: account.commit(wasted, MODEL),
        lambda: account.close(Rule.COMPLETED, "twice"),
    ):
        with pytest.raises(ChargeMismatch, match="was closed"):
            call()


def test_a_plan_over_its_budget_is_not_opened(ledger: Ledger) -> None:
    with pytest.raises(BudgetExceeded, match=f"at most {STEPS} releases"):
        ledger.open_run("run-1", "training", "once", (Planned(EVENT, STEPS + 3),), CONFIG)
    assert len(ledger.entries()) == 1


def test_a_ledger_of_gate_plan_has_one_run_ever(ledger: Ledger, account: RunAccount) -> None:
    account.close(Rule.COMPLETED, "over")
    with pytest.raises(BudgetExceeded, match="its one run"):
        ledger.open_run("run-2", "training", "once", (Planned(EVENT, 1),), CONFIG)
    with pytest.raises(ChargeMismatch, match="opened before"):
        ledger.open_run("run-1", "training", "once", (Planned(EVENT, 1),), CONFIG)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epsilon": 0}, "epsilon=0"),
        ({"epsilon": float("nan")}, "epsilon=nan"),
        ({"delta": 1.0}, "delta=1.0"),
        ({"population": ""}, "population"),
        ({"operator_key": "ab"}, "operator_key"),
        ({"authority_key": "AB" * 32}, "authority_key"),
        ({"order": 3.0}, "order=3.0"),
        ({"ledger_id": "x"}, "ledger_id"),
    ],
)
def test_scope_out_of_range(change: dict[str, object], words: str) -> None:
    with pytest.raises(OutOfRange, match=words):
        replace(scope(), **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [0, -1, True, 1.0])
def test_planned_out_of_range(count: object) -> None:
    with pytest.raises(OutOfRange, match="count="):
        Planned(EVENT, count)  # type: ignore[arg-type]


def test_bad_runs(ledger: Ledger) -> None:
    for arguments, words in (
        (("", "p", "e", PLAN, CONFIG), "run:"),
        (("r", "p" * 5000, "e", PLAN, CONFIG), "purpose:"),
        (("r", "p", "", PLAN, CONFIG), "epoch:"),
        (("r", "p", "e", (), CONFIG), "plan is empty"),
        (("r", "p", "e", PLAN, "x"), "config_digest"),
    ):
        with pytest.raises((OutOfRange, ChargeMismatch), match=words):
            ledger.open_run(*arguments)
    with pytest.raises(ChargeMismatch, match="open it first"):
        ledger.run("r")


def test_a_ledger_is_made_once_and_opened_where_it_is(path: Path, ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="there already"):
        Ledger.create(path, scope())
    for absent in (path.with_name("other"), path.parent):
        with pytest.raises(LedgerError, match="no ledger here"):
            Ledger.read(absent)
    assert sorted(item.name for item in path.parent.iterdir()) == [
        LEDGER_FILE,
        f"{LEDGER_FILE}-shm",
        f"{LEDGER_FILE}-wal",
    ]


def test_reading_and_closing_leave_one_file(path: Path, ledger: Ledger, account: RunAccount) -> None:
    release(account, 0)
    entries = ledger.entries()
    assert Ledger.read(path) == entries  # beside the writer
    ledger.close()
    assert Ledger.read(path) == entries == Ledger.read(path)
    assert [item.name for item in path.parent.iterdir()] == [LEDGER_FILE]


def test_one_charge_pays_for_one_release(account: RunAccount) -> None:
    bounded = BoundedSum(np.zeros(3), 1.0, 2.0**-30, 0, 4)
    charge = account.charge(account.reserve(0, 0), TASK, bounded.digest)
    mechanism = GaussianMechanism(2.0, 100.0)
    mean = mechanism.release(bounded, charge)
    account.commit(charge, hashlib.sha256(mean.values.tobytes()).hexdigest())
    with pytest.raises(ChargeMismatch):
        mechanism.release(bounded, charge)


# --- disks that fail ------------------------------------------------------------------------------------------------


def test_a_full_disk_records_nothing_and_stops_the_ledger(path: Path, ledger: Ledger, account: RunAccount) -> None:
    reservation = account.reserve(0, 0)
    cursor = ledger._store._cursor
    pages = cursor.execute("PRAGMA page_count").fetchone()[0]
    cursor.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(LedgerError, match="full"):
        account.void(reservation, "x" * 4096)  # more than what is left of the last page
    with pytest.raises(LedgerError, match="earlier write failed"):
        account.charge(reservation, TASK, SUM)
    held = ledger.entries()
    ledger.close()
    assert Ledger.read(path) == held


def test_a_writer_that_does_not_let_go(
    path: Path, ledger: Ledger, account: RunAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BUSY_SECONDS", 0.05)
    other = sqlite3.connect(path, isolation_level=None)
    with Ledger.open(path) as hasty:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerLocked, match="another process is writing"):
            hasty.run("run-1").reserve(0, 0)
        other.execute("ROLLBACK")
        release(hasty.run("run-1"), 0)  # it may be tried again
    other.close()
    release(account, 1)
    assert account.remaining() == STEPS - 2


def test_a_folder_that_cannot_be_written(path: Path, ledger: Ledger, account: RunAccount) -> None:
    release(account, 0)
    entries = ledger.entries()
    ledger.close()
    path.chmod(0o400)
    path.parent.chmod(0o500)
    try:
        if os.access(path.parent, os.W_OK):
            pytest.skip("this user writes everywhere")
        assert Ledger.read(path) == entries
        with pytest.raises(LedgerError, match="fix permissions"):
            Ledger.open(path)
    finally:
        path.parent.chmod(0o700)


# --- damage ---------------------------------------------------------------------------------------------------------


def rewrite(path: Path, *statements: str) -> None:
    """Change a closed ledger behind its back."""
    connection = sqlite3.connect(path)
    try:
        connection.executescript("DROP TRIGGER no_update; DROP TRIGGER no_delete;" + ";".join(statements))
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("statement", "first_bad"),
    [
        ("UPDATE entries SET body = replace(body, '2.0', '9.0') WHERE sequence = 1", 1),
        ("UPDATE entries SET hash = iif(hash LIKE 'a%', 'b', 'a') || substr(hash, 2) WHERE sequence = 3", 3),
        (
            "UPDATE entries SET signature = iif(signature LIKE 'a%', 'b', 'a') || substr(signature, 2) "
            "WHERE sequence = 3",
            3,
        ),
        ("UPDATE entries SET signature = upper(signature) WHERE sequence = 3", 3),
        ("UPDATE entries SET signature = (SELECT signature FROM entries WHERE sequence = 2) WHERE sequence = 3", 3),
        ("UPDATE entries SET kind = 'voided' WHERE sequence = 3", 3),
        ("UPDATE entries SET kind = x'00ff' WHERE sequence = 3", 3),
        ("DELETE FROM entries WHERE sequence = 2", 2),
        ("DELETE FROM entries", 0),
        ("INSERT INTO entries SELECT 8, kind, body, hash, signature FROM entries WHERE sequence = 3", 8),
        (
            "UPDATE entries SET sequence = -1 WHERE sequence = 2; UPDATE entries SET sequence = 2 WHERE sequence = 3;"
            "UPDATE entries SET sequence = 3 WHERE sequence = -1",
            2,
        ),
    ],
)
def test_an_altered_entry_is_named(path: Path, statement: str, first_bad: int) -> None:
    with Ledger.create(path, scope()) as ledger:
        account = ledger.open_run("run-1", "training", "once", PLAN, CONFIG)
        release(account, 0)
        release(account, 1)
    rewrite(path, statement)
    with pytest.raises(LedgerDamaged, match=f"{LEDGER_FILE}.*entry {first_bad}"):
        Ledger.open(path)


def test_rows_cannot_be_changed_in_passing(path: Path, ledger: Ledger) -> None:
    ledger.close()
    connection = sqlite3.connect(path)
    try:
        for statement in ("DELETE FROM entries", "UPDATE entries SET body = ''"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                connection.execute(statement)
    finally:
        connection.close()


@pytest.mark.parametrize("content", [b"", b"not a database", b"SQLite format 3\x00", bytes(8192)])
def test_what_is_not_a_ledger(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(LedgerDamaged, match=LEDGER_FILE):
        Ledger.open(path)


def test_another_database_is_not_a_ledger(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE other (x)")
    connection.close()
    with pytest.raises(LedgerDamaged, match="no such table"):
        Ledger.open(path)


def test_a_truncated_file_is_found(path: Path, ledger: Ledger, account: RunAccount) -> None:
    for step in range(STEPS):
        release(account, step)
    ledger.close()
    whole = path.read_bytes()
    for keep in (100, len(whole) // 2, len(whole) - 4096, len(whole) - 1):
        path.write_bytes(whole[:keep])
        with pytest.raises(LedgerDamaged, match=LEDGER_FILE):
            Ledger.read(path)

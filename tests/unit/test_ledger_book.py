from __future__ import annotations

import hashlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedlearn.errors import BudgetExceeded, ChargeMismatch, LedgerDamaged, LedgerError, LedgerLocked, OutOfRange
from fedlearn.ledger import LEDGER_FILE, Budget, Charged, Committed, Ledger, Opened, Reserved, Voided
from fedlearn.privacy.accountants import epsilon
from fedlearn.privacy.events import PoissonGaussian
from fedlearn.privacy.mechanisms import GaussianMechanism
from fedlearn.privacy.plan import PrivacySettings, make_plan

EVENT = PoissonGaussian(2.0, 0.1)
STEPS = 5
DELTA = 1e-5
BUDGET = Budget("run-1", epsilon([(EVENT, STEPS)], DELTA), DELTA, EVENT, STEPS)
SUM = hashlib.sha256(b"sum").hexdigest()
MODEL = hashlib.sha256(b"model").hexdigest()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / LEDGER_FILE


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger.open(path, BUDGET, lambda: 1000.0) as opened:
        yield opened


def release(ledger: Ledger, step: int) -> None:
    reservation = ledger.reserve(step, ledger.next_attempt(step))
    ledger.commit(ledger.charge(reservation, EVENT, SUM), MODEL)


def test_a_round_as_it_is_written(ledger: Ledger) -> None:
    reservation = ledger.reserve(0, 0)
    charge = ledger.charge(reservation, EVENT, SUM)
    ledger.commit(charge, MODEL)
    assert (charge.step, charge.noise_multiplier, charge.sum_digest) == (0, 2.0, SUM)
    assert ledger.events() == (
        Opened(0, 1000.0, BUDGET),
        Reserved(1, 1000.0, 0, 0),
        Charged(2, 1000.0, 1, 0, EVENT, SUM),
        Committed(3, 1000.0, 2, MODEL),
    )
    assert ledger.committed() == (ledger.events()[3],)
    assert ledger.uncommitted() == ()


def test_every_charge_counts_committed_or_not(ledger: Ledger) -> None:
    assert ledger.spent() == 0.0
    ledger.charge(ledger.reserve(0, 0), EVENT, SUM)
    assert ledger.spent() == epsilon([(EVENT, 1)], DELTA)
    release(ledger, 0)
    assert ledger.spent() == epsilon([(EVENT, 2)], DELTA)
    assert ledger.spent(1e-3) == epsilon([(EVENT, 2)], 1e-3)


def test_a_run_spends_its_budget_and_not_one_charge_more(ledger: Ledger) -> None:
    for step in range(STEPS):
        assert ledger.remaining_charges() == STEPS - step
        release(ledger, step)
    assert ledger.remaining_charges() == 0
    assert not ledger.fits(EVENT)
    with pytest.raises(BudgetExceeded, match="The run ends here"):
        ledger.reserve(STEPS, 0)
    assert ledger.spent() <= BUDGET.epsilon


def test_a_wasted_charge_ends_the_run_a_step_early(path: Path) -> None:
    with Ledger.open(path, BUDGET) as first:
        release(first, 0)
        first.charge(first.reserve(1, 0), EVENT, SUM)  # killed before the release was published
    with Ledger.open(path, BUDGET, must_exist=True) as second:
        (wasted,) = second.uncommitted()
        assert (wasted.step, second.next_attempt(1)) == (1, 1)
        with pytest.raises(ChargeMismatch, match="attempt must be 1"):
            second.reserve(1, 0)
        for step in range(1, 4):
            release(second, step)
        with pytest.raises(BudgetExceeded):
            second.reserve(4, 0)
        assert len(second.committed()) == STEPS - 1
        assert second.uncommitted() == (wasted,)


def test_published_before_the_crash_is_committed_after_it(path: Path) -> None:
    with Ledger.open(path, BUDGET) as first:
        first.charge(first.reserve(0, 0), EVENT, SUM)
    with Ledger.open(path, BUDGET) as second:
        (charged,) = second.uncommitted()
        second.commit(charged, MODEL)
        assert second.uncommitted() == ()
        with pytest.raises(ChargeMismatch, match="released once"):
            second.reserve(0, 1)


def test_an_open_reservation_is_taken_up_again(path: Path) -> None:
    with Ledger.open(path, BUDGET) as first:
        reservation = first.reserve(0, 0)
    with Ledger.open(path, BUDGET) as second:
        assert second.open_reservation() == reservation
        assert second.reserve(0, 0) == reservation
        assert len(second.events()) == 2


def test_a_reservation_is_voided_only_while_no_noise_was_drawn(ledger: Ledger) -> None:
    reservation = ledger.reserve(0, 0)
    ledger.void(reservation, "no reply arrived; no noise was drawn")
    assert isinstance(ledger.events()[-1], Voided)
    again = ledger.reserve(0, 0)
    ledger.charge(again, EVENT, SUM)
    for gone in (reservation, again):
        with pytest.raises(ChargeMismatch, match="never voided"):
            ledger.void(gone, "too late")


def test_what_may_not_follow_is_refused_and_leaves_no_entry(ledger: Ledger) -> None:
    reservation = ledger.reserve(0, 0)
    with pytest.raises(ChargeMismatch, match="still reserved"):
        ledger.reserve(1, 0)
    with pytest.raises(ChargeMismatch, match="sum_digest"):
        ledger.charge(reservation, EVENT, "abc")
    charge = ledger.charge(reservation, EVENT, SUM)
    with pytest.raises(ChargeMismatch, match="not open"):
        ledger.charge(reservation, EVENT, SUM)
    with pytest.raises(ChargeMismatch, match="published_digest"):
        ledger.commit(charge, "")
    ledger.commit(charge, MODEL)
    with pytest.raises(ChargeMismatch, match="committed before"):
        ledger.commit(charge, MODEL)
    with pytest.raises(ChargeMismatch, match="step=-1"):
        ledger.reserve(-1, 0)
    assert len(ledger.events()) == 4


def test_a_step_is_committed_under_one_charge(ledger: Ledger) -> None:
    wasted = ledger.charge(ledger.reserve(0, 0), EVENT, SUM)
    release(ledger, 0)
    with pytest.raises(ChargeMismatch, match="another charge"):
        ledger.commit(wasted, MODEL)


def test_a_plan_over_its_budget_does_not_start(path: Path) -> None:
    greedy = Budget("run-1", BUDGET.epsilon, DELTA, EVENT, STEPS + 3)
    with pytest.raises(BudgetExceeded, match=f"at most {STEPS} fit"):
        Ledger.open(path, greedy)
    assert not path.exists()


def test_another_event_is_composed_not_counted(ledger: Ledger) -> None:
    assert ledger.fits(PoissonGaussian(50.0, 0.01))
    loud = PoissonGaussian(0.8, 0.3)
    assert not ledger.fits(loud)
    with pytest.raises(BudgetExceeded):
        ledger.charge(ledger.reserve(0, 0), loud, SUM)
    assert len(ledger.events()) == 2


def test_budget_of_a_plan(path: Path) -> None:
    settings = PrivacySettings(delta=DELTA, l2_clip_norm=1.0, noise_multiplier=2.0)
    plan = make_plan(settings, population=1000, rounds=STEPS, cohort=100)
    assert Budget.of(plan, "run-1") == BUDGET


@pytest.mark.parametrize("change", [{"epsilon": 0}, {"epsilon": float("nan")}, {"delta": 1.0}, {"steps": 0}])
def test_budget_out_of_range(change: dict[str, float]) -> None:
    arguments = {"run_id": "r", "epsilon": 1.0, "delta": 1e-5, "event": EVENT, "steps": 1} | change
    with pytest.raises(OutOfRange):
        Budget(**arguments)  # type: ignore[arg-type]


def test_another_run_cannot_use_the_file(path: Path, ledger: Ledger) -> None:
    ledger.close()
    with pytest.raises(LedgerError, match="another run or plan"):
        Ledger.open(path, Budget("run-2", BUDGET.epsilon, DELTA, EVENT, STEPS))


def test_a_removed_ledger_is_not_begun_anew(path: Path) -> None:
    with pytest.raises(LedgerError, match="is gone"):
        Ledger.open(path, BUDGET, must_exist=True)
    with pytest.raises(LedgerError, match="no ledger here"):
        Ledger.read(path)


def test_read_lets_go(path: Path, ledger: Ledger) -> None:
    release(ledger, 0)
    entries = ledger.events()
    ledger.close()
    assert Ledger.read(path) == entries == Ledger.read(path)


def test_a_second_holder_is_refused_by_name(path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedlearn.ledger.store.BUSY_SECONDS", 0.05)
    with pytest.raises(LedgerLocked, match=f"{LEDGER_FILE}: held by process {os.getpid()}"):
        Ledger.open(path, BUDGET)
    release(ledger, 0)  # the first holder is unharmed


def test_another_process_is_refused(path: Path, ledger: Ledger) -> None:
    code = (
        "import sys, pathlib; from fedlearn.ledger import Ledger, store; store.BUSY_SECONDS = 0.05\n"
        "Ledger.read(pathlib.Path(sys.argv[1]))"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode != 0
    assert f"LedgerLocked: {path}: held by process {os.getpid()}" in done.stderr


def test_one_charge_pays_for_one_release(ledger: Ledger) -> None:
    import numpy as np

    from fedlearn.types import BoundedSum

    bounded = BoundedSum(np.zeros(3), 1.0, 2.0**-30, 0, 4)
    charge = ledger.charge(ledger.reserve(0, 0), EVENT, bounded.digest)
    mechanism = GaussianMechanism(2.0, 100.0)
    mean = mechanism.release(bounded, charge)
    ledger.commit(charge, hashlib.sha256(mean.values.tobytes()).hexdigest())
    with pytest.raises(ChargeMismatch):
        mechanism.release(bounded, charge)


def test_a_full_disk_records_nothing_and_stops_the_ledger(path: Path, ledger: Ledger) -> None:
    reservation = ledger.reserve(0, 0)
    connection = ledger._store._connection
    pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
    connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    with pytest.raises(LedgerError, match="full"):
        ledger.void(reservation, "x" * 20_000)  # more than what is left of the last page
    with pytest.raises(LedgerError, match="earlier write failed"):
        ledger.charge(reservation, EVENT, SUM)
    held = ledger.events()
    ledger.close()
    assert Ledger.read(path) == held


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
        ("UPDATE entries SET body = replace(body, '2.0', '9.0') WHERE sequence = 2", 2),
        ("UPDATE entries SET hash = replace(hash, 'a', 'b') WHERE sequence = 3", 3),
        ("UPDATE entries SET kind = 'voided' WHERE sequence = 3", 3),
        ("UPDATE entries SET kind = x'00ff' WHERE sequence = 3", 3),
        ("DELETE FROM entries WHERE sequence = 2", 2),
        ("DELETE FROM entries", 0),
        ("INSERT INTO entries SELECT 7, kind, body, hash FROM entries WHERE sequence = 3", 7),
        (
            "UPDATE entries SET sequence = -1 WHERE sequence = 2; UPDATE entries SET sequence = 2 WHERE sequence = 3;"
            "UPDATE entries SET sequence = 3 WHERE sequence = -1",
            2,
        ),
    ],
)
def test_an_altered_entry_is_named(path: Path, statement: str, first_bad: int) -> None:
    with Ledger.open(path, BUDGET) as ledger:
        release(ledger, 0)
        release(ledger, 1)
    rewrite(path, statement)
    with pytest.raises(LedgerDamaged, match=f"{LEDGER_FILE}.*entry {first_bad}"):
        Ledger.open(path, BUDGET)


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
        Ledger.open(path, BUDGET)


def test_another_database_is_not_a_ledger(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE other (x)")
    connection.close()
    with pytest.raises(LedgerDamaged, match="no such table"):
        Ledger.open(path, BUDGET)


def test_a_truncated_file_is_found(path: Path, ledger: Ledger) -> None:
    for step in range(STEPS):
        release(ledger, step)
    ledger.close()
    whole = path.read_bytes()
    for keep in (100, len(whole) // 2, len(whole) - 4096, len(whole) - 1):
        path.write_bytes(whole[:keep])
        with pytest.raises(LedgerDamaged, match=LEDGER_FILE):
            Ledger.read(path)

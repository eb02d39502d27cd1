from __future__ import annotations

import hashlib
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fedlearn.errors import BudgetExceeded, ChargeMismatch, LedgerDamaged
from fedlearn.ledger import LEDGER_FILE, Budget, Charged, Committed, Ledger, Reservation
from fedlearn.privacy.accountants import epsilon
from fedlearn.privacy.events import PoissonGaussian
from fedlearn.types import Charge

EVENT = PoissonGaussian(2.0, 0.1)
STEPS = 4
BUDGET = Budget("run-1", epsilon([(EVENT, STEPS)], 1e-5), 1e-5, EVENT, STEPS)
SUM = hashlib.sha256(b"sum").hexdigest()


class LedgerMachine(RuleBasedStateMachine):
    """Calls in any order, with crashes between them, beside what was really released."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.ledger = Ledger.open(self.directory / LEDGER_FILE, BUDGET)
        self.reservations: list[Reservation] = []
        self.charges: list[Charge] = []
        self.released: list[int] = []
        self.spent = 0.0

    def teardown(self) -> None:
        self.ledger.close()
        shutil.rmtree(self.directory)

    @rule(step=st.integers(-1, 4), attempt=st.integers(-1, 2), proper=st.booleans())
    def reserve(self, step: int, attempt: int, proper: bool) -> None:
        try:
            chosen = self.ledger.next_attempt(step) if proper else attempt
            self.reservations.append(self.ledger.reserve(step, chosen))
        except (ChargeMismatch, BudgetExceeded):
            pass

    @precondition(lambda self: self.reservations)
    @rule(data=st.data())
    def charge(self, data: st.DataObject) -> None:
        reservation = data.draw(st.sampled_from(self.reservations))
        try:
            self.charges.append(self.ledger.charge(reservation, EVENT, SUM))
        except (ChargeMismatch, BudgetExceeded):
            return
        if data.draw(st.booleans()):
            self.released.append(self.charges[-1].id)

    @precondition(lambda self: self.charges)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        charge = data.draw(st.sampled_from(self.charges))
        before = {entry.charge for entry in self.ledger.committed()}
        try:
            self.ledger.commit(charge, SUM)
        except ChargeMismatch:
            return
        assert charge.id not in before

    @precondition(lambda self: self.reservations)
    @rule(data=st.data())
    def void(self, data: st.DataObject) -> None:
        reservation = data.draw(st.sampled_from(self.reservations))
        charged = {e.reservation for e in self.ledger.events() if isinstance(e, Charged)}
        try:
            self.ledger.void(reservation, "no noise was drawn")
        except ChargeMismatch:
            return
        assert reservation.id not in charged

    @rule()
    def crash(self) -> None:
        before = self.ledger.events()
        self.ledger._store.close()
        self.ledger = Ledger.open(self.directory / LEDGER_FILE, BUDGET, must_exist=True)
        assert self.ledger.events() == before

    @invariant()
    def never_less_than_was_released(self) -> None:
        entries = self.ledger.events()
        charged = [entry.sequence for entry in entries if isinstance(entry, Charged)]
        committed = [entry.charge for entry in entries if isinstance(entry, Committed)]
        assert [entry.sequence for entry in entries] == list(range(len(entries)))
        assert set(self.released) <= set(charged)
        assert len(committed) == len(set(committed))
        assert set(committed) <= set(charged)
        spent = self.ledger.spent()
        assert self.spent <= spent <= BUDGET.epsilon
        assert self.ledger.remaining_charges() == STEPS - len(charged)
        self.spent = spent


LedgerMachine.TestCase.settings = settings(derandomize=True, deadline=None, max_examples=25, stateful_step_count=20)
TestLedgerMachine = LedgerMachine.TestCase


def test_a_flipped_byte_is_found_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / LEDGER_FILE
    with Ledger.open(path, BUDGET) as ledger:
        for step in range(STEPS):
            ledger.commit(ledger.charge(ledger.reserve(step, 0), EVENT, SUM), SUM)
        entries = ledger.events()
    whole = path.read_bytes()
    used = [place for place, byte in enumerate(whole) if byte]
    chance = random.Random(1)
    found = 0
    for place in [*range(0, 100, 7), *chance.sample(used, 250)]:
        damaged = bytearray(whole)
        damaged[place] ^= chance.randrange(1, 256)
        path.write_bytes(damaged)
        try:
            assert Ledger.read(path) == entries
        except LedgerDamaged:
            found += 1
    assert found > 100
    path.write_bytes(whole)
    assert Ledger.read(path) == entries


def test_every_entry_is_under_the_chain(tmp_path: Path) -> None:
    path = tmp_path / LEDGER_FILE
    with Ledger.open(path, BUDGET) as ledger:
        ledger.commit(ledger.charge(ledger.reserve(0, 0), EVENT, SUM), SUM)
    whole = path.read_bytes()
    for fragment in (b'"epsilon":', b'"attempt":', b'"sum_digest":"', b'"published_digest":"', b"reserved", b"charged"):
        place = whole.index(fragment) + len(fragment) - 1
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(LedgerDamaged, match="entry"):
            Ledger.read(path)

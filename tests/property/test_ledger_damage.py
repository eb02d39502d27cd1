"""A ledger with a changed byte is found out, or the byte meant nothing."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from fedlearn.errors import LedgerDamaged
from fedlearn.ledger import LEDGER_FILE, GateKind, Ledger, Planned, new_scope
from fedlearn.ledger.signing import operator_key
from fedlearn.privacy.events import PoissonGaussian

STEPS = 4
PLAN = (Planned(PoissonGaussian(4.0, 0.1), STEPS),)
SUM = hashlib.sha256(b"sum").hexdigest()


def written(path: Path, steps: int) -> Ledger:
    with Ledger.create(path, new_scope("phones", 3.0, 1e-5, operator_key().public, gate=GateKind.PLAN)) as ledger:
        account = ledger.open_run("run-1", "training", "once", PLAN, SUM)
        for step in range(steps):
            account.commit(account.charge(account.reserve(step, 0), SUM, SUM), SUM)
    return ledger


def test_a_flipped_byte_is_found_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / LEDGER_FILE
    entries = written(path, STEPS).entries()
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
    written(path, 1)
    whole = path.read_bytes()
    for fragment in (b'"epsilon":', b'"attempt":', b'"sum_digest":"', b'"published_digest":"', b"reserved", b"charged"):
        place = whole.index(fragment) + len(fragment) - 1
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(LedgerDamaged, match="entry"):
            Ledger.read(path)

"""The ledger in PostgreSQL; `make test-postgres` starts a server and runs these."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedlearn.errors import LedgerDamaged, LedgerError, LedgerLocked, LedgerRestored, OutOfRange
from fedlearn.ledger import GateKind, Ledger, Planned, Scope, new_scope, store
from fedlearn.ledger.postgres import TABLE, PostgresStore
from fedlearn.ledger.signing import operator_key
from fedlearn.privacy.events import MetricRelease, NeighboringRelation

URL = os.environ.get("FEDLEARN_TEST_POSTGRES", "")
DIGEST = hashlib.sha256(b"x").hexdigest()
needs_server = [
    pytest.mark.postgres,
    pytest.mark.skipif(not URL, reason="FEDLEARN_TEST_POSTGRES names no database; make test-postgres does"),
    pytest.mark.xdist_group("postgres"),
]

_spec = importlib.util.spec_from_file_location("processes", Path(__file__).with_name("test_ledger_processes.py"))
processes = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = processes
_spec.loader.exec_module(processes)


def scope() -> Scope:
    return new_scope(
        "phones",
        1.0,
        1e-6,
        operator_key().public,
        neighboring_relation=NeighboringRelation.ZERO_OUT,
        gate=GateKind.ZCDP,
    )


def execute(*statements: str) -> None:
    connection = store.connect(URL.replace("postgresql://", "postgresql+psycopg://", 1))
    for statement in statements:
        connection.exec_driver_sql(statement)
    connection.close()
    connection.engine.dispose()


@pytest.fixture
def url() -> Iterator[str]:
    execute(f"DROP TABLE IF EXISTS {TABLE}", f"DROP FUNCTION IF EXISTS {TABLE}_append_only")
    yield URL
    execute(f"DROP TABLE IF EXISTS {TABLE}", f"DROP FUNCTION IF EXISTS {TABLE}_append_only")


class TestOnAServer:
    pytestmark = needs_server

    def test_a_run(self, url: str) -> None:
        with Ledger.create(url, scope()) as ledger:
            account = ledger.open_run("r", "p", "e", [Planned(MetricRelease(40.0), 3)], DIGEST)
            account.commit(account.charge(account.reserve(0, 0), DIGEST, DIGEST), DIGEST)
            entries = ledger.entries()
        assert Ledger.read(url) == entries
        with Ledger.open(url) as ledger:
            assert ledger.run("r").remaining() == 2
            assert not ledger.restored

    def test_one_ledger_a_database(self, url: str) -> None:
        with pytest.raises(LedgerError, match="no ledger here"):
            Ledger.open(url)
        Ledger.create(url, scope()).close()
        with pytest.raises(LedgerError, match="there already"):
            Ledger.create(url, scope())

    def test_two_processes_empty_one_ledger(self, url: str) -> None:
        Ledger.create(url, scope()).close()
        processes.race(url)
        processes.emptied(url)

    def test_rows_cannot_be_changed_in_passing(self, url: str) -> None:
        Ledger.create(url, scope()).close()
        for statement in (f"DELETE FROM {TABLE}", f"UPDATE {TABLE} SET body = ''", f"TRUNCATE {TABLE}"):
            with pytest.raises(store.database_error(), match="append-only"):
                execute(statement)

    def test_a_changed_row_is_named(self, url: str) -> None:
        with Ledger.create(url, scope()) as ledger:
            ledger.open_run("r", "p", "e", [Planned(MetricRelease(40.0), 3)], DIGEST).reserve(0, 0)
        execute(
            f"DROP TRIGGER append_only ON {TABLE}",
            f"UPDATE {TABLE} SET body = replace(body, '40.0', '90.0') WHERE sequence = 1",
        )
        with pytest.raises(LedgerDamaged, match="entry 1"):
            Ledger.open(url)

    def test_rows_that_vanish_under_an_open_ledger(self, url: str) -> None:
        with Ledger.create(url, scope()) as ledger:
            account = ledger.open_run("r", "p", "e", [Planned(MetricRelease(40.0), 3)], DIGEST)
            execute(f"DROP TRIGGER append_only ON {TABLE}", f"DELETE FROM {TABLE} WHERE sequence = 1")
            with pytest.raises(LedgerRestored, match="not there any more"):
                account.reserve(0, 0)

    def test_an_older_copy_is_refused(self, url: str) -> None:
        with Ledger.create(url, scope()) as ledger:
            account = ledger.open_run("r", "p", "e", [Planned(MetricRelease(40.0), 3)], DIGEST)
            account.charge(account.reserve(0, 0), DIGEST, DIGEST)
        execute(f"DROP TRIGGER append_only ON {TABLE}", f"DELETE FROM {TABLE} WHERE sequence = 3")
        with Ledger.open(url) as ledger, pytest.raises(LedgerRestored, match="older copy"):
            ledger.run("r").reserve(0, 0)

    def test_a_writer_that_does_not_let_go(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(store, "BUSY_SECONDS", 0.1)
        with Ledger.create(url, scope()) as ledger:
            account = ledger.open_run("r", "p", "e", [Planned(MetricRelease(40.0), 3)], DIGEST)
            other = PostgresStore(url)
            other.begin(2, ledger.rows()[1].hash)
            with pytest.raises(LedgerLocked, match="another process is writing"):
                account.reserve(0, 0)
            other.close()
            account.reserve(0, 0)


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(LedgerError, match=r"postgresql.*@127.0.0.1:1/x") as refused:
        Ledger.open("postgresql://someone:hidden@127.0.0.1:1/x")
    assert "hidden" not in str(refused.value)


def test_another_kind_of_database() -> None:
    with pytest.raises(OutOfRange, match="postgresql://"):
        Ledger.open("mysql://root@localhost/x")

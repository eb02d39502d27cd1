"""The state of gateways in PostgreSQL: what holds in SQLite holds there; `make test-postgres` starts a server."""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from sqlalchemy import create_engine, text

from fedlearn.errors import GatewayStoreFailed
from fedlearn_server.gateway import store
from fedlearn_server.gateway.state import GatewayState
from fedlearn_server.gateway.tables import metadata

URL = os.environ.get("FEDLEARN_TEST_POSTGRES", "")
pytestmark = [
    pytest.mark.postgres,
    pytest.mark.skipif(not URL, reason="FEDLEARN_TEST_POSTGRES names no database; make test-postgres does"),
    pytest.mark.xdist_group("postgres"),
]


def _sibling(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = sys.modules.setdefault(name, importlib.util.module_from_spec(spec))
    if not hasattr(module, "pytest") and not hasattr(module, "Fleet"):
        spec.loader.exec_module(module)
    return module


fleet = _sibling("gateway_fleet")
states = _sibling("test_gateway_state")
intakes = _sibling("test_gateway_intake")
cohorts = _sibling("test_gateway_cohort")


def execute(*statements: str) -> None:
    engine = create_engine(URL.replace("postgresql://", "postgresql+psycopg://", 1), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


@pytest.fixture
def where() -> Iterator[str]:
    tables = ", ".join(table.name for table in metadata.sorted_tables)
    execute(f"DROP TABLE IF EXISTS {tables}")
    yield URL
    execute(f"DROP TABLE IF EXISTS {tables}")


@pytest.fixture
def state(where: str) -> Iterator[GatewayState]:
    opened = GatewayState.open(where)
    yield opened
    opened.disconnect()


street = cohorts.street
TestDevices = states.TestDevices
TestReserve = states.TestReserve
TestParticipation = states.TestParticipation
TestCollections = states.TestCollections
TestTidy = states.TestTidy
TestAnswer = cohorts.TestAnswer
TestRefused = cohorts.TestRefused

test_each_kind_for_its_reason = intakes.test_each_kind_for_its_reason_and_the_rest_is_summed
test_tokens_that_are_not_ours = intakes.test_tokens_that_are_not_ours
test_the_same_upload_twice_in_one_batch = intakes.test_the_same_upload_twice_in_one_batch
test_two_gateways_of_many_threads_and_one_task = intakes.test_two_gateways_of_many_threads_and_one_task
test_two_gateways_give_no_task_too_many = intakes.test_two_gateways_give_no_task_too_many
test_two_processes_and_one_task = intakes.test_two_processes_and_one_task
test_through_an_intake_of_many_threads = intakes.test_through_an_intake_of_many_threads
test_stopped_at_every_statement = intakes.test_stopped_at_every_statement
test_killed_again_and_again = intakes.test_killed_again_and_again


def test_gateways_that_open_an_empty_database_at_once(where: str) -> None:
    opened, problems = [], []

    def open_it() -> None:
        try:
            opened.append(GatewayState.open(where))
        except GatewayStoreFailed as error:
            problems.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in opened:
        each.disconnect()
    assert (len(opened), problems) == (6, [])


def test_a_writer_that_does_not_let_go(where: str, state: GatewayState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BUSY_SECONDS", 0.1)
    impatient = GatewayState.open(where)
    with state._store.writing(), pytest.raises(GatewayStoreFailed, match="lock timeout"):
        impatient.put_object(b"x")
    assert impatient.object(impatient.put_object(b"x")) == b"x"
    impatient.disconnect()


def test_a_server_that_went_away_and_is_back(state: GatewayState) -> None:
    """Its connections are cut in the middle of a transaction: nothing of it is there, and the next one is good."""
    phones = fleet.Fleet(state, fleet.terms())
    phones.enrol(0, 1)
    collection = phones.open()
    uploads = [phones.upload(number) for number in (0, 1)]
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname IS NOT NULL"

    def half_done() -> None:
        with state._store.writing() as connection:
            connection.execute(text("UPDATE gateway_collections SET accepted = 77"))
            execute(cut)

    with pytest.raises(GatewayStoreFailed, match="nothing was acknowledged"):
        half_done()
    assert state.figures().accepted == 0
    execute(cut)
    assert [verdict.reason for verdict in phones.send(*uploads)] == ["", ""]
    count, total = state.close(collection, phones.now)
    assert count == 2
    assert np.array_equal(total, fleet.canary(0) + fleet.canary(1))

"""Faults in a round: the store, the KeyStore or the transport break, or the phone dies, at the n-th call."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedlearn.errors import StoreFailed, TransportFailed
from fedlearn_client.hooks import Method


class Killed(BaseException):
    """The process is gone: nothing catches this."""


class Points:
    """Counts the moments at which something can break, and breaks at one of them.

    Args:
        at: breaks at this moment, counted from 0; -1: never, to count them.
        kill: the process dies; otherwise the call fails as its hook says it may.
        reads: reading the store counts too.
    """

    def __init__(self, at: int = -1, *, kill: bool = True, reads: bool = False) -> None:
        self.at, self.kill, self.reads = at, kill, reads
        self.seen = 0
        self.armed = False

    def pass_by(self, error: Callable[[], Exception] | None) -> None:
        """Break here, if it is the moment. Without ``error`` the call can not fail here, but the process can die."""
        if not self.armed or (error is None and not self.kill):
            return
        number, self.seen = self.seen, self.seen + 1
        if number == self.at:
            self.armed = False
            raise Killed if self.kill or error is None else error()


def _store_failed() -> Exception:
    return StoreFailed("store: injected.")


class FaultyDatabase:
    def __init__(self, database: Any, points: Points) -> None:
        self._database, self._points = database, points

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        self._points.pass_by(_store_failed)
        with self._database.transaction() as connection:
            yield _Connection(connection, self._points)
            self._points.pass_by(_store_failed)  # the commit fails
        self._points.pass_by(None)

    def rows(self, *args: Any) -> Any:
        if self._points.reads:
            self._points.pass_by(_store_failed)
        return self._database.rows(*args)


class _Connection:
    def __init__(self, connection: Any, points: Points) -> None:
        self._connection, self._points = connection, points

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, *args: Any) -> Any:
        self._points.pass_by(_store_failed)
        return self._connection.execute(*args)


class FaultyKeyStore:
    def __init__(self, keystore: Any, points: Points) -> None:
        self._keystore, self._points = keystore, points

    def __getattr__(self, name: str) -> Any:
        return getattr(self._keystore, name)

    def write_anchor(self, data: bytes) -> None:
        self._points.pass_by(_store_failed)
        self._keystore.write_anchor(data)
        self._points.pass_by(None)


class FaultyTransport:
    def __init__(self, transport: Any, points: Points) -> None:
        self._transport, self._points = transport, points

    def call(self, method: Method, request: bytes) -> bytes:
        self._points.pass_by(lambda: TransportFailed("injected."))
        reply: bytes = self._transport.call(method, request)
        self._points.pass_by(lambda: TransportFailed("injected."))
        return reply

    def hang_up(self) -> None:
        self._transport.hang_up()


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


uplink_town = _load("uplink_town")
town = uplink_town.town


def faulty_phone(directory: Path, points: Points) -> Any:
    """A phone whose every upload is compared, at the moment it arrives, with what the store holds."""
    phone = uplink_town.Phone(
        directory,
        database=lambda database: FaultyDatabase(database, points),
        keystore=lambda keystore: FaultyKeyStore(keystore, points),
        transport=lambda gateway: FaultyTransport(gateway, points),
    )
    phone.gateway.on_call = lambda method: _see_that_it_was_written_first(phone, method)
    return phone


def run_with_fault(phone: Any, points: Points) -> str:
    """One round; returns its outcome, or "killed"."""
    points.armed = True
    try:
        outcome: str = phone.run()
    except Killed:
        outcome = "killed"
    finally:
        points.armed = False
    return outcome


def _see_that_it_was_written_first(phone: Any, method: Method) -> None:
    sent = [
        (run_id, step)
        for made, state, run_id, step in phone.store.rows("SELECT method, state, run_id, step FROM egress")
        if made == method.value and state == "sent"
    ]
    assert sent, "a request leaves that the log does not have"
    if method is Method.UPLOAD:
        charged = phone.store.rows("SELECT run_id, step FROM participations WHERE kind = 'participation'")
        assert set(sent) <= set(charged), "an upload leaves that was not charged"
        anchor = phone.keystore.read_anchor()
        head = phone.store.rows("SELECT digest FROM participations ORDER BY id DESC LIMIT 1")[0][0]
        assert anchor is not None
        assert bytes(head).hex() in anchor.decode(), "an upload leaves that the anchor does not know"


def check(phone: Any) -> None:
    """What holds at any time."""
    steps = phone.participated()
    assert len(steps) == len(set(steps)), "a step was charged twice"
    assert phone.store.rows("SELECT count(*) FROM tokens") == [(len(steps),)]
    logged = {bytes(digest) for (digest,) in phone.store.rows("SELECT sha256 FROM egress")}
    for seen in phone.gateway.requests:
        assert hashlib.sha256(seen.body).digest() in logged, "a request left that the log does not have"
    assert len(phone.gateway.contributions) <= len(steps)
    assert len(set(phone.uploads())) <= len(steps)


def moments(directory: Path, *, kill: bool, reads: bool = False) -> int:
    """How many moments of a round that goes well can break."""
    points = Points(kill=kill, reads=reads)
    phone = faulty_phone(directory, points)
    assert run_with_fault(phone, points) == "acknowledged"
    phone.store.close()
    return points.seen


def go_on_after_fault(directory: Path, points: Points) -> bool:
    """Break a round, start again, and see that it is finished, or sent nothing. Return whether it was charged."""
    phone = faulty_phone(directory, points)
    outcome = run_with_fault(phone, points)
    check(phone)
    phone.restart()
    check(phone)
    resumed = [one.words for one in phone.round.resume()]
    check(phone)
    charged = bool(phone.participated())
    if charged:
        written = ("Upload", "acknowledged") in phone.states()
        assert len(phone.gateway.contributions) == written, (
            f"{points.at}: {outcome}, {resumed}: written, and never sent"
        )
        assert phone.outcomes()[-1] in (["acknowledged"] if written else ["charged", "abandoned: store"])
        assert phone.egress.pending() == []
        phone.gateway.advance(10)
    assert phone.run() == "acknowledged", f"{points.at}: the next round"
    check(phone)
    phone.store.close()
    return charged


def withdraw_after_fault(directory: Path, points: Points) -> None:
    """Break a round, start again, withdraw and grant anew, and see that nothing of it leaves or can be read."""
    phone = faulty_phone(directory, points)
    run_with_fault(phone, points)
    phone.restart()
    phone.withdraw()
    before = len(phone.gateway.requests)
    phone.grant()
    phone.round.resume()
    assert len(phone.gateway.requests) == before
    assert all(entry.body is None for entry in phone.egress.entries(10, True) if entry.method is Method.UPLOAD)
    check(phone)
    phone.store.close()

"""Answers guard cases with this runtime's own guard, on a made-up phone in memory. For test builds."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

from fedlearn.device.bundle import Bundle
from fedlearn.device.mechanism_codec import mechanism_from_json
from fedlearn.device.plan_codec import plan_digest, plan_from_json
from fedlearn.device.task import DeviceTask
from fedlearn.errors import TaskRefused
from fedlearn.policy.load import policy_from_json
from fedlearn.policy.roster import Roster
from fedlearn.policy.status import Status
from fedlearn.policy.verify import VerifiedPolicy
from fedlearn.proto import conformance_pb2 as pb
from fedlearn_client.conformance.keys import fresh_key
from fedlearn_client.conformance.situations import ADMITTED
from fedlearn_client.fakes import FakeClock, FakeKeyStore
from fedlearn_client.guard import Guard
from fedlearn_client.participation import Admission, Participations


def judge(situation: str) -> pb.VerdictReply:
    """Return the verdict on the last task of a situation (``situations``).

    Raises:
        ValueError, KeyError, TypeError: the situation is none.
    """
    asked = json.loads(situation)["asked"]
    phone = _Phone()
    for event in asked[:-1]:
        if event.get("event") == "store_wiped":
            phone.wipe()
            continue
        _take_part(phone, event)
    try:
        admission = phone.check(asked[-1])
    except TaskRefused as refused:
        return pb.VerdictReply(verdict=refused.reason.value, rho=phone.participations.spent().rho)
    return pb.VerdictReply(verdict=ADMITTED, rho=admission.rho_total)


def _take_part(phone: _Phone, question: Mapping[str, Any]) -> None:
    try:
        phone.take_part(question)
    except TaskRefused:
        return


class _Memory:
    """The store's tables, unencrypted, in memory."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect(":memory:", isolation_level=None)
        self._connection.executescript((files("fedlearn_client.store") / "schema.sql").read_text("utf-8"))

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        self._connection.execute("BEGIN")
        try:
            yield self._connection
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def rows(self, sql: str, args: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        return self._connection.execute(sql, tuple(args)).fetchall()

    def close(self) -> None:
        self._connection.close()


class _Phone:
    def __init__(self) -> None:
        self._keystore, self._clock = FakeKeyStore(), FakeClock()
        self._store = _Memory()
        self.participations = Participations(self._store, self._keystore, self._clock)

    def wipe(self) -> None:
        """A new process over an empty store; the KeyStore's anchor stays."""
        self._store.close()
        self._store = _Memory()
        self.participations = Participations(self._store, self._keystore, self._clock)

    def check(self, question: Mapping[str, Any]) -> Admission:
        self._clock.time = float(question["now"])
        guard = Guard(self.participations, self._store, self._clock)
        return guard.check_task(_task(question), _bundle(question), _status(question), self._clock.time)

    def take_part(self, question: Mapping[str, Any]) -> None:
        admission, task = self.check(question), _task(question)
        with self._store.transaction() as connection:
            self.participations.record(admission, task, connection)
            connection.execute("INSERT INTO tokens VALUES (?, ?)", (task.token, task.expires))
        self.participations.seal()


def _task(question: Mapping[str, Any]) -> DeviceTask:
    fields = dict(question["task"])
    fields["token"] = bytes.fromhex(fields["token"])
    fields["mechanism"] = mechanism_from_json(fields["mechanism"], "task.mechanism")
    return DeviceTask(**fields, digest=bytes(32))


def _bundle(question: Mapping[str, Any]) -> Bundle:
    about, plan = dict(question["bundle"]), plan_from_json(question["plan"])
    policy = policy_from_json(question["policy"])
    key = (fresh_key().public,)  # a roster must name somebody; no signature is part of a case
    verified = VerifiedPolicy(policy, about.pop("policy_digest"), Roster(1, policy.expires, 1, key, key))
    return Bundle(plan=plan, plan_digest=plan_digest(plan), verified=verified, files={}, **about)


def _status(question: Mapping[str, Any]) -> Status | None:
    fields = question["status"]
    if fields is None:
        return None
    return Status(fields["version"], fields["issued"], tuple(fields["stopped"]), tuple(fields["revoked"]))

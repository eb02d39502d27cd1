"""Daemons that break a promise, so that the proofs can be seen to fail. Each name is a promise that is broken."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

from fedlearn_client.calls import GatewayCalls
from fedlearn_client.participation import Participations
from fedlearn_client.store.signals import SignalStore
from fedlearn_client.withdrawal import Withdrawals


def answers_before_it_is_durable() -> None:
    """A push is acknowledged half a second before it is kept."""
    add = SignalStore.add
    SignalStore.add = lambda self, stream, rows: threading.Timer(0.5, add, (self, stream, rows)).start()  # type: ignore[assignment, misc]


def sends_what_was_not_logged() -> None:
    """An upload leaves with other bytes than its entry has: an empty field more."""
    upload = GatewayCalls.upload

    def other(self: GatewayCalls, entry: Any) -> Any:
        return upload(self, replace(entry, body=entry.body + b"\x1a\x00"))

    GatewayCalls.upload = other  # type: ignore[method-assign]


def sends_what_was_not_charged() -> None:
    """No participation is written."""
    Participations.record = lambda *_: None  # type: ignore[assignment, method-assign]
    Participations.seal = lambda _: None  # type: ignore[assignment, method-assign]


def keeps_what_was_taken_back() -> None:
    """A withdrawal switches the grant off and destroys nothing."""
    begin: Any = Withdrawals._begin

    def nothing(self: Withdrawals, reason: str, scope: Any, *found: Any) -> int:
        return int(begin(self, reason, scope, (), (), found[-1]))

    Withdrawals._begin = nothing  # type: ignore[assignment, method-assign]


ALL = (
    answers_before_it_is_durable,
    sends_what_was_not_logged,
    sends_what_was_not_charged,
    keeps_what_was_taken_back,
)

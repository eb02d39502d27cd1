"""What a local round works with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedlearn_client.hooks import AuditSink, ClockAndRng, ExampleIterator

if TYPE_CHECKING:
    from fedlearn_client.calls import GatewayCalls
    from fedlearn_client.consent import Consent
    from fedlearn_client.egress import EgressLog
    from fedlearn_client.guard import Guard
    from fedlearn_client.participation import Participations
    from fedlearn_client.pins import LedgerPins
    from fedlearn_client.readiness import Installed, Readiness
    from fedlearn_client.runs import RunLog
    from fedlearn_client.standing import Standing
    from fedlearn_client.store.database import Database
    from fedlearn_client.store.private_parameters import PrivateParameters
    from fedlearn_client.workers import Workers


@dataclass(frozen=True, slots=True)
class Rooms:
    """What a round works with; each is made once by the daemon."""

    database: Database
    consent: Consent
    installed: Installed
    readiness: Readiness
    examples: ExampleIterator
    guard: Guard
    participations: Participations
    workers: Workers
    private: PrivateParameters
    calls: GatewayCalls
    standing: Standing
    pins: LedgerPins
    egress: EgressLog
    runs: RunLog
    clock_rng: ClockAndRng
    audit: AuditSink

"""From a push to the store: what is not wanted is left out, what is wanted is read by the worker, and text ends there.

Used for what apps push and for what they report as feedback.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from fedlearn.errors import WorkerFailed
from fedlearn.policy.document import DataType, Policy
from fedlearn.proto import device_pb2 as pb
from fedlearn_client.consent import Consent
from fedlearn_client.reading import Derived
from fedlearn_client.store.signals import NewSignal, SignalStore
from fedlearn_client.store.streams import Stream


class Reader(Protocol):
    """The worker, as far as the intake needs it (``reading.Reading``)."""

    def require_catalogue(self) -> None:
        """Raise BundleRefused where there is no catalogue to read with."""
        ...

    def ingest(self, signals: Sequence[pb.Signal]) -> Derived:
        """Return what is kept of each signal."""
        ...


@dataclass(frozen=True, slots=True)
class Intake:
    """Takes in signals that were checked already.

    Args:
        consent: says whether anything of a stream is wanted.
        signals: the store.
        reader: the worker.
        policy: in force, or None.
    """

    consent: Consent
    signals: SignalStore
    reader: Reader
    policy: Callable[[], Policy | None]

    def take(self, stream: Stream, signals: Sequence[pb.Signal]) -> None:
        """Keep what may be kept of ``signals``, durably, or leave it out; the caller cannot tell which.

        Args:
            stream: of the calling app.
            signals: checked against the contract; those of others than the owner are left out here, unread.

        Raises:
            BundleRefused: no catalogue is installed; the same whatever the owner consented to.
            WorkerFailed: the worker died twice.
            StoreFailed: nothing was kept.
        """
        self.reader.require_catalogue()
        own = [one for one in signals if _by_owner(one)]
        if not own or not self._wanted(stream):
            return
        derived = self._read(stream, own)
        days = self._retention_days(stream)
        rows = [
            NewSignal(one.id, one.time_ms / 1000.0, days, derived.index, body)
            for one, body in zip(own, derived.bodies, strict=True)
            if body
        ]
        # the store asks for consent once more in its own transaction: what is withdrawn meanwhile is left out
        self.signals.add(stream, rows)

    def _read(self, stream: Stream, own: list[pb.Signal]) -> Derived:
        try:
            return self.reader.ingest(own)
        except WorkerFailed:
            # a withdrawal kills the worker; the app must not learn of it by an error
            if not self._wanted(stream):
                return Derived("", [b""] * len(own))
            return self.reader.ingest(own)

    def _wanted(self, stream: Stream) -> bool:
        return self.consent.wanted(stream.app, stream.data_type)

    def _retention_days(self, stream: Stream) -> int:
        policy = self.policy()
        sources = () if policy is None else policy.sources
        # every listing of the source counts: the shortest holds
        return min((one.retention_days for one in sources if _is_of(one.app, one.data_type, stream)), default=1)


def _is_of(app: str, data_type: DataType, stream: Stream) -> bool:
    return app == stream.app and data_type == stream.data_type


def _by_owner(signal: pb.Signal) -> bool:
    return signal.WhichOneof("body") == "choice" or signal.message.direction == pb.DIRECTION_OUTGOING

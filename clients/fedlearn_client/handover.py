"""The last steps of an upload: wait while the owner may read it, see that it may still leave, send it.

A prepared upload was charged before it was made, and logged when it was written. From here on it
leaves with just those bytes, once or again, or it is destroyed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from fedlearn.errors import StoreFailed, TransportFailed
from fedlearn.policy.canonical import canonical_bytes, sha256_hex
from fedlearn.proto import gateway_pb2 as pb
from fedlearn_client import runs
from fedlearn_client.egress import State
from fedlearn_client.outcomes import Outcome, Retry

if TYPE_CHECKING:
    from threading import Event

    from fedlearn.device.bundle import Bundle
    from fedlearn_client.consent import Consent
    from fedlearn_client.egress import Entry
    from fedlearn_client.rooms import Rooms

DAY_S: Final = 86_400.0
_OUTCOMES: Final = {
    pb.UploadReply.OUTCOME_ACCEPTED: runs.ACKNOWLEDGED,
    pb.UploadReply.OUTCOME_LATE: runs.LATE,
    pb.UploadReply.OUTCOME_REJECTED: runs.REJECTED,
}


def basis_of(consent: Consent, bundle: Bundle) -> str:
    """Return a digest of what an upload comes from: the bundle, and each granted stream since its last destruction."""
    return _digest(consent, bundle, bundle.digest)


def private_basis_of(consent: Consent, bundle: Bundle) -> str:
    """Return a digest of what private parameters come from: the same streams, under whichever bundle of the plan."""
    return _digest(consent, bundle, "")


def _digest(consent: Consent, bundle: Bundle, digest: str) -> str:
    plan = bundle.plan
    streams = consent.effective(plan.purpose, plan.recipient)
    named = sorted([stream.id, stream.key_alias] for stream in streams)
    return sha256_hex(canonical_bytes([digest, plan.purpose, plan.recipient, named]))


def _retention_s(consent: Consent, bundle: Bundle) -> float:
    """Return the shortest retention of the streams that are learned from."""
    plan = bundle.plan
    used = {(stream.app, stream.data_type) for stream in consent.effective(plan.purpose, plan.recipient)}
    days = [one.retention_days for one in bundle.verified.policy.sources if (one.app, one.data_type) in used]
    return min(days, default=1) * DAY_S


class HandOver:
    """Sends prepared uploads.

    Args:
        rooms: what it works with.
        egress_hold_s: seconds, >= 0, that an upload waits after it was prepared.
        wait: sleeps.
        ending: set when the daemon ends: what is held stays prepared.
    """

    def __init__(self, rooms: Rooms, *, egress_hold_s: float, wait: Callable[[float], None], ending: Event) -> None:
        self._rooms = rooms
        self._hold_s = egress_hold_s
        self._wait = wait
        self._ending = ending

    def send(self, entry: Entry, private: bytes = b"") -> Outcome:
        """Send a prepared upload, or the same again, if it still may leave; it was charged already."""
        rooms = self._rooms
        left = entry.state is State.SENT
        try:
            rooms.participations.seal()
            if not self._may_leave(entry):
                return Outcome(runs.SENT if left else runs.PREPARED, Retry.TRANSIENT)
            if not self._depart(entry, private):
                return Outcome(runs.SENT if left else runs.DESTROYED, Retry.PERMANENT)
            left = True
            reply = rooms.calls.upload(entry)
            outcome = _OUTCOMES[reply.outcome]
            with rooms.database.transaction() as connection:
                rooms.egress.mark(entry.id, State.ACKNOWLEDGED, connection)
                rooms.runs.close(entry, outcome, connection)
        except (StoreFailed, TransportFailed) as error:
            rooms.audit.record("upload_waits", {"code": error.code})
            return Outcome(runs.SENT if left else runs.PREPARED, Retry.TRANSIENT)
        bundle = rooms.installed.bundle_for(entry.purpose)
        if bundle is not None:
            rooms.pins.notice(reply.ledger_checkpoint, bundle)
        return Outcome(outcome, Retry.PERMANENT)

    def _may_leave(self, entry: Entry) -> bool:
        """Wait as long as the owner may read the entry first; return whether phone and status still let it leave."""
        rooms = self._rooms
        held_s = min(max(entry.time + self._hold_s - rooms.clock_rng.now(), 0.0), self._hold_s)
        until = rooms.clock_rng.monotonic() + held_s
        while not self._ending.is_set() and self._fit(entry):
            left_s = until - rooms.clock_rng.monotonic()
            if left_s <= 0.0:
                return True
            self._wait(min(left_s, 1.0))
        return False

    def _fit(self, entry: Entry) -> bool:
        """Whether phone and status let an upload leave; one whose consent changed goes on, to be destroyed."""
        bundle = self._rooms.installed.bundle_for(entry.purpose)
        if bundle is None or not self._stands(entry, bundle):
            return True
        return (self._rooms.readiness.phone() or self._rooms.readiness.trust(bundle)) is None

    def _depart(self, entry: Entry, private: bytes) -> bool:
        """In one transaction: see that consent stands and the task lives, and write that the upload leaves."""
        rooms = self._rooms
        bundle = rooms.installed.bundle_for(entry.purpose)
        with rooms.database.transaction() as connection:
            stands = bundle is not None and self._stands(entry, bundle)
            if not (stands and rooms.clock_rng.now() < entry.expires and rooms.egress.depart(entry.id, connection)):
                rooms.egress.forget(entry.id, connection)
                if entry.state is State.PREPARED:
                    rooms.runs.close(entry, runs.DESTROYED, connection)
                return False
            if bundle is not None and private:
                rooms.private.save(
                    bundle.plan_digest,
                    entry.purpose,
                    entry.recipient,
                    private,
                    connection,
                    basis=private_basis_of(rooms.consent, bundle),
                    expires=rooms.clock_rng.now() + _retention_s(rooms.consent, bundle),
                )
            rooms.runs.close(entry, runs.SENT, connection)
            return True

    def _stands(self, entry: Entry, bundle: Bundle) -> bool:
        return basis_of(self._rooms.consent, bundle) == entry.basis

"""The four calls to the gateway, each written into the egress log before its first byte leaves."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from fedlearn.device.padding import Request, padded
from fedlearn.device.requests import NONCE_BYTES, Denial, Signed, challenge_bytes, signed_bytes
from fedlearn.device.task import DeviceTask
from fedlearn.device.weights import expected_bytes, require_weights
from fedlearn.errors import Refusal, TaskRefused, TransportFailed
from fedlearn.proto import gateway_pb2 as pb
from fedlearn_client import __version__
from fedlearn_client.egress import EgressLog, Entry, State
from fedlearn_client.hooks import Attestation, ClockAndRng, KeyStore, Method, Transport
from fedlearn_client.transport import (
    FETCH_BYTES,
    PROTOCOL_VERSION,
    read_check_in,
    read_enrol,
    read_fetch,
    read_upload,
)

if TYPE_CHECKING:
    from fedlearn.device.bundle import Bundle

ANSWER_S: Final = 600.0
"""An enrolment, check-in or fetch that was not answered by then has no use any more."""
_SPARE_FETCHES: Final = 16
_FINAL: Final = frozenset({Denial.REVOKED, Denial.UNKNOWN, Denial.MALFORMED, Denial.VERSION})

_Reply = TypeVar("_Reply", pb.EnrolReply, pb.CheckInReply, pb.FetchReply)


@dataclass(frozen=True, slots=True)
class _Cause:
    purpose: str
    recipient: str
    run_id: str = ""
    step: int = 0


class GatewayCalls:
    """Speaks ``gateway.proto`` through the ``Transport`` hook.

    Args:
        transport: carries bytes.
        attestation: evidence for check-ins.
        egress: where each request is written first.
        clock_rng: the time, and nonces.
        keystore: signs enrolments and check-ins.
        credential: as the phone maker issued it; b"" where this phone has none.
    """

    def __init__(
        self,
        transport: Transport,
        attestation: Attestation,
        egress: EgressLog,
        clock_rng: ClockAndRng,
        *,
        keystore: KeyStore,
        credential: bytes = b"",
    ) -> None:
        self._transport = transport
        self._attestation = attestation
        self._egress = egress
        self._clock_rng = clock_rng
        self._keystore = keystore
        self._credential = credential

    @property
    def may_enrol(self) -> bool:
        """Whether there is a credential to enrol with."""
        return bool(self._credential)

    def hang_up(self) -> None:
        """Keep no connection open; see ``Transport.hang_up``."""
        self._transport.hang_up()

    def enrol(self, bundle: Bundle) -> pb.EnrolReply:
        """Make this phone's key known to the gateway, for the credential that the phone maker issued to it.

        Raises:
            TransportFailed: no reply, or none that can be read.
            StoreFailed: the entry could not be written; nothing left.
        """
        request = pb.EnrolRequest(version=PROTOCOL_VERSION, credential=self._credential)
        self._sign(request)
        plan = bundle.plan
        try:
            return self._ask(Method.ENROL, request, _Cause(plan.purpose, plan.recipient), read_enrol)
        except TransportFailed as error:
            if not error.denial:
                raise
            return pb.EnrolReply(outcome=pb.EnrolReply.OUTCOME_REFUSED, reason=error.denial)

    def check_in(self, bundle: Bundle, status_version: int) -> pb.CheckInReply:
        """Ask for work for the bundle's purpose. A denial, however it arrived, is a reply with a reason.

        Raises:
            TransportFailed: no reply, or none that can be read.
            StoreFailed: the entry could not be written; nothing left.
        """
        plan = bundle.plan
        request = pb.CheckInRequest(
            version=PROTOCOL_VERSION,
            population=plan.population,
            purpose=plan.purpose,
            bundle_digest=bytes.fromhex(bundle.digest),
            runtime=__version__,
            status_version=status_version,
        )
        self._sign(request)
        try:
            return self._ask(Method.CHECK_IN, request, _Cause(plan.purpose, plan.recipient), read_check_in)
        except TransportFailed as error:
            if not error.denial:
                raise
            return pb.CheckInReply(reason=error.denial)

    def weights(self, task: DeviceTask, bundle: Bundle, go_on: Callable[[], None]) -> bytes:
        """Fetch the step's weights, piece by piece.

        Args:
            task: names them by digest.
            bundle: its plan says how many there are; no more is ever read.
            go_on: called before each piece; raises when the round has to stop.

        Raises:
            TaskRefused: WEIGHTS: another size or digest, a value that is not finite, or pieces without end.
            TransportFailed: as ``check_in``.
            StoreFailed: as ``check_in``.
        """
        total = expected_bytes(bundle.plan.shared)
        cause = _Cause(task.purpose, task.recipient, task.run_id, task.step)
        data = bytearray()
        for _ in range(4 * -(-total // FETCH_BYTES) + _SPARE_FETCHES):
            go_on()
            wanted = min(FETCH_BYTES, total - len(data))
            request = pb.FetchRequest(digest=bytes.fromhex(task.weights_digest), offset=len(data), max_bytes=wanted)
            reply = self._ask(Method.FETCH, request, cause, read_fetch)
            if reply.total != total or not 1 <= len(reply.data) <= wanted:
                raise TaskRefused(Refusal.WEIGHTS, f"weights: the plan's parameters have {total} bytes, these do not.")
            data += reply.data
            if len(data) == total:
                whole = bytes(data)
                require_weights(whole, bundle.plan.shared, task.weights_digest)
                return whole
        raise TaskRefused(Refusal.WEIGHTS, "weights: they come in too many pieces.")

    def upload(self, entry: Entry) -> pb.UploadReply:
        """Send the bytes of an entry for which ``EgressLog.depart`` returned True. A denial for good is a rejection.

        Raises:
            TransportFailed: no reply; the gateway may have the bytes all the same.
        """
        if entry.body is None:
            raise TransportFailed("The upload's bytes are no longer kept.")
        try:
            return read_upload(self._transport.call(Method.UPLOAD, entry.body))
        except TransportFailed as error:
            if error.denial not in _FINAL:
                raise
            return pb.UploadReply(outcome=pb.UploadReply.OUTCOME_REJECTED, reason=error.denial)

    def _sign(self, request: Signed) -> None:
        """Fill in nonce, time, evidence and key, and sign it all."""
        request.nonce = self._clock_rng.random_bytes(NONCE_BYTES)
        request.time_ms = round(self._clock_rng.now() * 1000)
        request.device_key = self._keystore.public_key()
        request.attestation = self._attestation.evidence(hashlib.sha256(challenge_bytes(request)).digest())
        request.signature = self._keystore.sign(signed_bytes(request))

    def _ask(self, method: Method, request: Request, cause: _Cause, read: Callable[[bytes], _Reply]) -> _Reply:
        body = padded(request)
        entry = self._egress.prepare(
            method,
            cause.purpose,
            cause.recipient,
            run_id=cause.run_id,
            step=cause.step,
            body=body,
            expires=self._clock_rng.now() + ANSWER_S,
        )
        if not self._egress.depart(entry):
            raise TransportFailed(f"{method}: the request was destroyed before it left.")
        try:
            reply = read(self._transport.call(method, body))
        except TransportFailed as error:
            self._egress.mark(entry, State.ACKNOWLEDGED if error.denial else State.FAILED)
            raise
        self._egress.mark(entry, State.ACKNOWLEDGED)
        return reply

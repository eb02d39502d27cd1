"""The three calls to the gateway, each written into the egress log before its first byte leaves."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from fedlearn.device.task import DeviceTask
from fedlearn.device.weights import expected_bytes, require_weights
from fedlearn.errors import Refusal, TaskRefused, TransportFailed
from fedlearn.proto import gateway_pb2 as pb
from fedlearn_client import __version__
from fedlearn_client.egress import EgressLog, Entry, State
from fedlearn_client.hooks import Attestation, ClockAndRng, Method, Transport
from fedlearn_client.transport import (
    FETCH_BYTES,
    PROTOCOL_VERSION,
    Request,
    padded,
    read_check_in,
    read_fetch,
    read_upload,
)

if TYPE_CHECKING:
    from fedlearn.device.bundle import Bundle

ANSWER_S: Final = 600.0
NONCE_BYTES: Final = 16
"""A check-in or fetch that was not answered by then has no use any more."""
_SPARE_FETCHES: Final = 16


_Reply = TypeVar("_Reply", pb.CheckInReply, pb.FetchReply)


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
        clock_rng: the time.
    """

    def __init__(
        self, transport: Transport, attestation: Attestation, egress: EgressLog, clock_rng: ClockAndRng
    ) -> None:
        self._transport = transport
        self._attestation = attestation
        self._egress = egress
        self._clock_rng = clock_rng

    def check_in(self, bundle: Bundle, status_version: int) -> pb.CheckInReply:
        """Ask for work for the bundle's purpose.

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
            nonce=self._clock_rng.random_bytes(NONCE_BYTES),
        )
        challenge = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
        request.attestation = self._attestation.evidence(challenge)
        return self._ask(Method.CHECK_IN, request, _Cause(plan.purpose, plan.recipient), read_check_in)

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
        """Send the bytes of an entry for which ``EgressLog.depart`` returned True.

        Raises:
            TransportFailed: no reply; the gateway may have the bytes all the same.
        """
        if entry.body is None:
            raise TransportFailed("The upload's bytes are no longer kept.")
        return read_upload(self._transport.call(Method.UPLOAD, entry.body))

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
        except TransportFailed:
            self._egress.mark(entry, State.FAILED)
            raise
        self._egress.mark(entry, State.ACKNOWLEDGED)
        return reply

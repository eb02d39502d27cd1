"""What a gateway answers to a phone: bytes in, bytes out, whatever the bytes are. ::

    address -> size -> message -> version -> signature -> clock -> device's rate -> attestation -> state

Nothing touches the state before the signature, the clock and the rate are good; the nonce is the state's to check.
Fetch and Upload carry no signature: a digest and a token are secrets of 32 and 16 bytes that a task gave to one phone.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import TimeoutError as NotInTime
from typing import Final

import grpc
from google.protobuf.message import Message

from fedlearn.clock import Clock, system_clock
from fedlearn.device.credential import open_credential
from fedlearn.device.requests import (
    CLOCK_TOLERANCE_S,
    KEY_BYTES,
    NONCE_BYTES,
    SIGNATURE_BYTES,
    Denial,
    Signed,
    challenge_bytes,
    is_signed,
)
from fedlearn.device.task import TOKEN_BYTES
from fedlearn.device.task_codec import sign_task
from fedlearn.errors import GatewayStoreFailed, SignatureRefused
from fedlearn.proto import gateway_pb2 as pb
from fedlearn_server.gateway.documents import Documents
from fedlearn_server.gateway.figures import GatewayMetrics
from fedlearn_server.gateway.intake import Intake
from fedlearn_server.gateway.limits import address_of, limited_as
from fedlearn_server.gateway.objects import ObjectCache
from fedlearn_server.gateway.rules import (
    FETCHED_BYTES,
    MOST_FETCH_BYTES,
    MOST_SIGNED_BYTES,
    Denied,
    Rules,
    parsed,
    require,
    upload_bytes,
)
from fedlearn_server.gateway.state import GatewayState, Upload

logger = logging.getLogger(__name__)

VERSION: Final = 1
DIGEST_BYTES: Final = 32
ANSWER_S: Final = 30.0
"""An upload that is not durable by then is answered with BUSY; the phone sends it again."""
_LONGEST_NAME: Final = 128
_LONGEST_RUNTIME: Final = 64

_STRANGERS: Final = frozenset({Denial.UNKNOWN, Denial.REVOKED, Denial.ATTESTATION})


class Handlers:
    """Answers phones.

    Guarantee: for any bytes, ``call`` returns a reply or raises ``Denied``, and nothing of what is refused is kept.

    Args:
        state: shared by the gateways of a population.
        intake: takes uploads.
        rules: of this gateway.
        figures: counts, and logs each refusal.
        documents: handed on to enrolled devices.
        clock: seconds since the Unix epoch.
        draining: whether no new work is given.
    """

    def __init__(
        self,
        state: GatewayState,
        intake: Intake,
        rules: Rules,
        figures: GatewayMetrics,
        *,
        documents: Documents | None = None,
        clock: Clock = system_clock,
        draining: Callable[[], bool] = lambda: False,
    ) -> None:
        self._state = state
        self._intake = intake
        self._rules = rules
        self._figures = figures
        self._documents = documents or Documents()
        self._clock = clock
        self._draining = draining
        self._objects = ObjectCache(state.object, rules.max_cache_bytes)
        self._answers: dict[str, Callable[[bytes, str], Message]] = {
            "Enrol": self._enrol,
            "CheckIn": self._check_in,
            "Fetch": self._fetch,
            "Upload": self._upload,
        }

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods, as in ``gateway.proto``."""
        return tuple(self._answers)

    @property
    def max_bytes(self) -> int:
        """Length of the longest request that any method takes."""
        return max(MOST_SIGNED_BYTES, upload_bytes(self._rules.max_upload_bytes))

    def call(self, method: str, request: bytes, peer: str) -> bytes:
        """Return the reply's bytes.

        Args:
            method: one of ``methods``.
            request: what came; its length a size class.
            peer: as gRPC names it, e.g. ``ipv4:192.0.2.7:51000``.

        Raises:
            Denied: there is no reply.
        """
        began = time.monotonic()
        try:
            address = address_of(peer)
            self._require_room(address)
            return self._answers[method](request, address).SerializeToString()
        except Denied as denied:
            self._figures.denied(method, denied.denial)
            raise
        except (GatewayStoreFailed, NotInTime) as error:
            self._figures.store_failed(method)
            raise Denied(Denial.BUSY, grpc.StatusCode.UNAVAILABLE) from error
        except Exception as error:  # a bug must not end a thread, or tell a stranger about itself
            self._figures.fault()
            logger.exception("a bug in the gateway")
            raise Denied(Denial.BUSY, grpc.StatusCode.INTERNAL) from error
        finally:
            self._figures.call_took(time.monotonic() - began)

    def _require_room(self, address: str) -> None:
        if not self._rules.peer_limit.take(limited_as(address)):
            raise Denied(Denial.RATE, grpc.StatusCode.RESOURCE_EXHAUSTED)

    # --- signed requests ---

    def _enrol(self, data: bytes, address: str) -> pb.EnrolReply:
        del address
        request = parsed(pb.EnrolRequest, data, MOST_SIGNED_BYTES)
        now = self._clock()
        denial = self._identity_denied(request, now) or self._enrolment_denied(request, now)
        if denial is None:
            return pb.EnrolReply(outcome=pb.EnrolReply.OUTCOME_ENROLLED)
        self._figures.denied("Enrol", denial)
        return pb.EnrolReply(outcome=pb.EnrolReply.OUTCOME_REFUSED, reason=denial.value)

    def _enrolment_denied(self, request: pb.EnrolRequest, now: float) -> Denial | None:
        try:
            credential = open_credential(request.credential, self._rules.issuers, now)
        except SignatureRefused:
            return Denial.CREDENTIAL
        if credential.population not in self._rules.populations:
            return Denial.POPULATION
        return self._attestation_denied(request) or self._state.enrol(credential, request.device_key, now)

    def _check_in(self, data: bytes, address: str) -> pb.CheckInReply:
        request = parsed(pb.CheckInRequest, data, MOST_SIGNED_BYTES)
        names = (request.population, request.purpose, request.runtime)
        require(all(map(str.isprintable, names)) and max(map(len, names[:2])) <= _LONGEST_NAME)
        require(len(request.runtime) <= _LONGEST_RUNTIME and len(request.bundle_digest) == DIGEST_BYTES)
        now = self._clock()
        reply = pb.CheckInReply(retry_after_s=self._rules.retry_after_s)
        denial = self._identity_denied(request, now)
        if denial is Denial.CLOCK:
            reply.time_ms = round(now * 1000)
        if denial is None:
            denial = self._state.is_enrolled(request.device_key) or self._attestation_denied(request)
            if denial is None:
                denial = self._reserved(request, now, reply)
            if denial not in _STRANGERS:
                self._hand_out(request, reply)
            if denial is not Denial.UNKNOWN:  # anybody can make keys without end
                self._state.note_check_in(request.device_key, address, denial.value if denial else "task", now)
        if denial is not None:
            reply.reason = denial.value
            self._figures.denied("CheckIn", denial)
        return reply

    def _identity_denied(self, request: Signed, now: float) -> Denial | None:
        """Return why a signed request is not heard at all; reads nothing but the request."""
        if request.version != VERSION:
            return Denial.VERSION
        require(len(request.device_key) == KEY_BYTES and len(request.nonce) == NONCE_BYTES)
        require(len(request.signature) == SIGNATURE_BYTES)
        if not is_signed(request):
            return Denial.SIGNATURE
        if abs(request.time_ms / 1000 - now) > CLOCK_TOLERANCE_S:
            return Denial.CLOCK
        # only the device itself can use up what it is granted
        if not self._rules.device_limit.take(request.device_key):
            return Denial.RATE
        return Denial.BUSY if self._draining() else None

    def _attestation_denied(self, request: Signed) -> Denial | None:
        verifier = self._rules.verifier
        if verifier is None:
            return None
        challenge = hashlib.sha256(challenge_bytes(request)).digest()
        try:
            good = verifier.verify(challenge, request.attestation, request.device_key)
        except Exception:  # the phone maker's code; whatever it raises, the evidence was not accepted
            logger.exception("the verifier of attestation failed")
            good = False
        return None if good is True else Denial.ATTESTATION

    def _reserved(self, request: pb.CheckInRequest, now: float, reply: pb.CheckInReply) -> Denial | None:
        """Put a task into the reply, or return why there is none."""
        if request.population not in self._rules.populations:
            return Denial.POPULATION
        found = self._state.reserve(
            request.device_key,
            request.population,
            request.purpose,
            request.bundle_digest,
            request.nonce,
            now,
            lambda task: sign_task(task, self._rules.signer),
        )
        if isinstance(found, Denial):
            return found
        reply.task.ParseFromString(found.signed)
        if found.checkpoint:
            reply.ledger_checkpoint = found.checkpoint  # of the ledger that this very step is reserved in
        reply.retry_after_s = 0
        return None

    def _hand_out(self, request: pb.CheckInRequest, reply: pb.CheckInReply) -> None:
        reply.status = self._documents.status(request.status_version)
        reply.release = self._documents.release(request.release)
        reply.ledger_checkpoint = reply.ledger_checkpoint or self._documents.checkpoint()

    # --- requests by secret ---

    def _fetch(self, data: bytes, address: str) -> pb.FetchReply:
        del address
        request = parsed(pb.FetchRequest, data, MOST_FETCH_BYTES)
        require(len(request.digest) == DIGEST_BYTES)
        found = self._objects.get(request.digest)
        if found is None:
            return pb.FetchReply()
        end = request.offset + min(request.max_bytes, FETCHED_BYTES)
        return pb.FetchReply(data=found[request.offset : end], total=len(found))

    def _upload(self, data: bytes, address: str) -> pb.UploadReply:
        del address
        request = parsed(pb.UploadRequest, data, upload_bytes(self._rules.max_upload_bytes))
        require(len(request.token) == TOKEN_BYTES)
        require(1 <= len(request.contribution) <= self._rules.max_upload_bytes)
        verdict = self._intake.submit(Upload(request.token, request.contribution)).result(ANSWER_S)
        if verdict.outcome == pb.UploadReply.OUTCOME_REJECTED:
            self._figures.rejected(verdict.reason)
        else:
            self._figures.uploaded("late" if verdict.outcome == pb.UploadReply.OUTCOME_LATE else "accepted")
        return pb.UploadReply(
            outcome=verdict.outcome, reason=verdict.reason, ledger_checkpoint=self._documents.checkpoint()
        )

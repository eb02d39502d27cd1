"""A gateway's desk for tests: its state in a file, a clock that a test sets, and phones of bytes with real keys."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

sys.path.insert(0, str(Path(__file__).parent))
import gateway_fleet as fleets

from fedlearn.device.credential import Credential, issue_credential
from fedlearn.device.padding import padded, size_class
from fedlearn.device.requests import signed_bytes
from fedlearn.device.task_codec import open_task
from fedlearn.ledger.signing import SigningKey
from fedlearn.proto import gateway_pb2 as pb
from fedlearn.wire import encode_contribution
from fedlearn_server.gateway.documents import Documents
from fedlearn_server.gateway.figures import GatewayMetrics
from fedlearn_server.gateway.handlers import Handlers
from fedlearn_server.gateway.intake import Intake
from fedlearn_server.gateway.limits import Buckets
from fedlearn_server.gateway.rules import Denied, Rules
from fedlearn_server.gateway.state import GatewayState

PEER = "ipv4:192.0.2.7:51000"
REPLIES: dict[str, Any] = {
    "Enrol": pb.EnrolReply,
    "CheckIn": pb.CheckInReply,
    "Fetch": pb.FetchReply,
    "Upload": pb.UploadReply,
}
ISSUER = SigningKey(Ed25519PrivateKey.from_private_bytes(b"i" * 32))
OPERATOR = SigningKey(Ed25519PrivateKey.from_private_bytes(b"o" * 32))


class Clock:
    """The gateway's and, unless a test says otherwise, every phone's."""

    def __init__(self, now: float = fleets.NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Phone:
    """A phone that has no runtime: it makes frames.

    Args:
        number: phone ``n`` always has the same key.
        clock: its time.
    """

    def __init__(self, number: int, clock: Callable[[], float]) -> None:
        self.number = number
        self.clock = clock
        self.key = Ed25519PrivateKey.from_private_bytes(number.to_bytes(32, "big"))
        self.device = self.key.public_key().public_bytes_raw()

    def sign(self, request: Any) -> Any:
        request.signature = self.key.sign(signed_bytes(request))
        return request

    def enrolment(self, **changes: Any) -> pb.EnrolRequest:
        values = {
            "version": 1,
            "credential": credential(self.number, self.clock()),
            "device_key": self.device,
            "nonce": fleets.nonce(),
            "time_ms": round(self.clock() * 1000),
        }
        return self.sign(pb.EnrolRequest(**{**values, **changes}))

    def check_in(self, **changes: Any) -> pb.CheckInRequest:
        values = {
            "version": 1,
            "population": fleets.POPULATION,
            "purpose": fleets.PURPOSE,
            "bundle_digest": fleets.BUNDLE,
            "runtime": "1.0",
            "device_key": self.device,
            "nonce": fleets.nonce(),
            "time_ms": round(self.clock() * 1000),
        }
        return self.sign(pb.CheckInRequest(**{**values, **changes}))

    def upload(self, task: Any, **changes: Any) -> pb.UploadRequest:
        values = fleets.canary(self.number)
        made = encode_contribution(replace(fleets.contribution(task, values), **changes))
        return pb.UploadRequest(token=task.token, contribution=made)


def task_in(reply: pb.CheckInReply) -> Any:
    """Return the task of a reply, after its signature was checked."""
    return open_task(reply.task.SerializeToString(), OPERATOR.public)


def credential(number: int, now: float, issuer: SigningKey = ISSUER, **changes: Any) -> bytes:
    made = Credential(fleets.POPULATION, number.to_bytes(16, "big"), now + 1e6)
    return issue_credential(replace(made, **changes), issuer)


class Desk:
    """Handlers over a state in a file; limits that no test meets by chance."""

    def __init__(
        self,
        directory: Path,
        *,
        documents: Documents | None = None,
        draining: Callable[[], bool] = lambda: False,
        clock: Clock | None = None,
        **rules: Any,
    ) -> None:
        self.clock = clock or Clock()
        self.state = GatewayState.open(directory / "gateway.db")
        self.intake = Intake(self.state, self.clock)
        self.figures = GatewayMetrics(unprotected=True)
        self.fleet = fleets.Fleet(self.state, now=self.clock.now)
        values = {
            "populations": frozenset({fleets.POPULATION}),
            "issuers": (ISSUER.public,),
            "signer": OPERATOR,
            "device_limit": Buckets(1e6, 1_000_000),
            "peer_limit": Buckets(1e6, 1_000_000),
        }
        self.rules = Rules(**{**values, **rules})
        self.handlers = Handlers(
            self.state,
            self.intake,
            self.rules,
            self.figures,
            documents=documents,
            clock=self.clock,
            draining=draining,
        )

    def close(self) -> None:
        self.intake.close()
        self.state.disconnect()

    def phone(self, number: int = 1, *, enrolled: bool = True) -> Phone:
        made = Phone(number, self.clock)
        if enrolled:
            assert self.ask(made.enrolment()).outcome == pb.EnrolReply.OUTCOME_ENROLLED
        return made

    def ask(self, request: Any, peer: str = PEER) -> Any:
        """Send a request as a phone does; return the reply, or raise Denied."""
        method = type(request).DESCRIPTOR.name.removesuffix("Request")
        return self.frame(method, padded(request), peer)

    def frame(self, method: str, data: bytes, peer: str = PEER) -> Any:
        return REPLIES[method].FromString(self.handlers.call(method, data, peer))

    def counted(self, name: str, **labels: str) -> float:
        return self.figures.registry.get_sample_value(name, labels) or 0.0


class Fuzzer:
    """Frames from good ones: damaged, cut, invented, signed again; and noise.

    Args:
        desk: of a gateway with an open collection.
        seed: of all choices.
    """

    def __init__(self, desk: Desk, seed: int) -> None:
        self.chance = random.Random(seed)
        self._phones = [desk.phone(number) for number in range(1, 5)] + [desk.phone(9, enrolled=False)]
        self.collection = desk.fleet.open()
        self._digest = desk.state.put_object(bytes(range(256)) * 10)
        reply = desk.ask(self._phones[0].check_in())
        self._task = task_in(reply)
        self._methods = tuple(REPLIES)

    def frame(self) -> tuple[str, bytes]:
        """Return a method and a frame for it."""
        method = self.chance.choice(self._methods)
        how = self.chance.random()
        if how < 0.1:
            size = self.chance.choice([0, 1, 255, 256, 257, 1024, 4096, 65_536])
            return method, self.chance.randbytes(size)
        good = self._good(method)
        if how < 0.4:
            return method, self._damaged(padded(good))
        if how < 0.6:
            good.ClearField("padding")
            return method, _filled(self._damaged(good.SerializeToString()))
        self._invent(good)
        if hasattr(good, "signature") and self.chance.random() < 0.8:
            phone = self.chance.choice(self._phones)
            if self.chance.random() < 0.9:
                good.device_key = phone.device
            phone.sign(good)
        if how > 0.97:
            return self.chance.choice(self._methods), padded(good)
        return method, padded(good)

    def _good(self, method: str) -> Any:
        phone = self.chance.choice(self._phones)
        if method == "Enrol":
            return phone.enrolment()
        if method == "CheckIn":
            return phone.check_in()
        if method == "Fetch":
            return pb.FetchRequest(digest=self._digest, offset=0, max_bytes=100)
        return phone.upload(self._task)

    def _damaged(self, data: bytes) -> bytes:
        made, chance = bytearray(data), self.chance
        for _ in range(chance.randint(1, 4)):
            at, how = chance.randrange(len(made) + 1), chance.randrange(5)
            if how == 0:
                made[at:at] = chance.randbytes(chance.randint(1, 12))
            elif how == 1:
                del made[at : at + chance.randint(1, 6)]
            elif how == 2 and at < len(made):
                made[at] ^= 1 << chance.randrange(8)
            elif how == 3:
                made[at:at] = b"\xff" * chance.randint(1, 9) + b"\x01"
            else:
                made[at : at + 2] = chance.randbytes(2)
        return bytes(made)

    def _invent(self, message: Any) -> None:
        for _ in range(self.chance.randint(1, 3)):
            field = self.chance.choice([one for one in message.DESCRIPTOR.fields if one.name != "padding"])
            old = getattr(message, field.name)
            if isinstance(old, str):
                odd = ["", "\0", "x" * 128, "x" * 129, "城市", "\u202e", "a\nb", "'; --", fleets.POPULATION]
                setattr(message, field.name, self.chance.choice(odd))
            elif isinstance(old, bytes):
                sized = bytes(len(old)) if old else bytes(32)
                odd = [b"", sized, self.chance.randbytes(16), self.chance.randbytes(32), self._damaged(old), b"[" * 900]
                setattr(message, field.name, self.chance.choice(odd))
            else:
                signed = field.type == field.TYPE_INT64
                bits = 32 if field.type == field.TYPE_UINT32 else 63 if signed else 64
                setattr(message, field.name, self.chance.choice([0, 1, 2, 2**bits - 1, -1 if signed else 7]))


def _filled(data: bytes) -> bytes:
    """Bring to a size class what is perhaps no message: by a field that nobody knows."""
    size = size_class(len(data))
    while size != len(data):
        room = size - len(data) - 2
        for length_bytes in (1, 2, 3):
            count = room - length_bytes
            if count >= 0 and max(1, -(-count.bit_length() // 7)) == length_bytes:
                return data + b"\xfa\x7f" + _varint(count) + bytes(count)  # field 2047
        size = size_class(size + 1)
    return data


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    return bytes([*made, value])


def is_answered(desk: Desk, method: str, data: bytes) -> str:
    """Send a frame; return its outcome. Anything but a reply or Denied is raised."""
    try:
        reply = desk.frame(method, data)
    except Denied as denied:
        return f"{denied.status.name}/{denied.denial.value}"
    return str(getattr(reply, "reason", "")) or "OK"

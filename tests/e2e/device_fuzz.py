"""Frames for every method of the contract, good ones damaged and bad ones well formed, and what it says of each.

``allowed`` is written from ``device.proto`` and ``docs/device-api.md`` alone, so that the daemon's own checks are not
what they are compared with.
"""

from __future__ import annotations

import contextlib
import math
import random
import re
import socket
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import device_world as worlds
import grpc
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from fedlearn.proto import device_pb2 as pb
from fedlearn_client.linux.clock import LinuxClock

CHAT, READING, MAPS, SURFACE = worlds.CHAT, worlds.READING, worlds.MAPS, worlds.SURFACE
SETTINGS, SYSTEM = worlds.SETTINGS, worlds.SYSTEM
RECOMMEND, TRAIN, OPERATOR = worlds.town.RECOMMEND, worlds.town.TRAIN, worlds.town.OPERATOR
STREAM = worlds.STREAM
SPARE = "spare"

CALLERS = {
    "Signals/Register": CHAT,
    "Signals/Push": CHAT,
    "Signals/Restrict": CHAT,
    "Signals/Purge": CHAT,
    "Recommend/Get": MAPS,
    "Recommend/Feedback": MAPS,
    "Consent/List": SETTINGS,
    "Consent/Set": SETTINGS,
    "Consent/SetOwner": SETTINGS,
    "Audit/Runs": SETTINGS,
    "Audit/Budget": SETTINGS,
    "Audit/Egress": SETTINGS,
    "Audit/Receipts": SETTINGS,
    "Runtime/Status": SYSTEM,
    "Runtime/Conditions": SYSTEM,
    "Runtime/Pause": SYSTEM,
    "Runtime/TrainNow": SYSTEM,
    "Runtime/Install": SYSTEM,
    "Runtime/UpdateStatus": SYSTEM,
}
"""Method -> who may call it. ``Consent/Watch`` streams, and has a test of its own."""

REFUSALS = {
    *("INVALID_ARGUMENT", "FAILED_PRECONDITION", "NOT_FOUND", "ALREADY_EXISTS"),
    *("RESOURCE_EXHAUSTED", "PERMISSION_DENIED"),
}
"""INTERNAL, UNKNOWN and UNAVAILABLE are none: something broke."""


def kind_of(method: str) -> type[Message]:
    """The message that a method takes."""
    kind: type[Message] = getattr(pb, f"{method.partition('/')[2]}Request")
    return kind


class Fuzzer:
    """Makes frames for one phone.

    Args:
        phone: everything installed; ``ready`` is called.
        chance: of one seed.
    """

    def __init__(self, phone: worlds.World, chance: random.Random) -> None:
        self.phone, self.chance = phone, chance
        self._number = 0
        self.streams = {STREAM: 1}  # of the chat app, by data type
        phone.register(CHAT)
        self.ready()

    def ready(self) -> None:
        """Bring the phone to where frames go deep: an adult's, with grants and a ranking to give feedback on."""
        self.phone.adult()
        self.phone.call(CHAT, "Signals/Restrict", pb.RestrictRequest(stream=STREAM))
        for purpose, recipient in ((RECOMMEND, SURFACE), (TRAIN, OPERATOR)):
            self.phone.grant(CHAT, purpose, recipient)
        self.phone.call(SYSTEM, "Runtime/Conditions", pb.ConditionsRequest(clear=True))
        self.phone.call(SYSTEM, "Runtime/Pause", pb.PauseRequest(paused=False))
        self.ranking = self.phone.rank(MAPS)

    def good(self, method: str) -> Message | bytes:
        """A frame that is accepted, or nearly."""
        self._number += 1
        now = round(time.time() * 1000)
        signals = [
            pb.Signal(
                id=f"{self._number}-{one}",
                time_ms=now - 60_000,
                message=pb.MessageSignal(
                    text="今晚想吃麻辣火锅 with parking", direction=1 + one % 2, foreign_spans=[pb.Span(start=1, end=3)]
                ),
            )
            for one in range(self.chance.randint(1, 3))
        ]
        made: dict[str, Message] = {
            "Signals/Register": pb.RegisterRequest(stream=STREAM, data_type=1),
            "Signals/Push": pb.PushRequest(stream=STREAM, signals=signals),
            "Signals/Restrict": pb.RestrictRequest(stream=STREAM, purposes=[TRAIN]),
            "Signals/Purge": pb.PurgeRequest(stream=STREAM),
            "Recommend/Get": pb.GetRequest(purpose=RECOMMEND, count=3),
            "Recommend/Feedback": pb.FeedbackRequest(
                ranking_id=self.ranking.ranking_id, item=self.ranking.items[0].item
            ),
            "Consent/Set": pb.SetRequest(
                app=CHAT,
                data_type=1,
                purpose=RECOMMEND,
                recipient=SURFACE,
                on=self.chance.random() < 0.7,
                text_version=1,
            ),
            "Consent/SetOwner": pb.SetOwnerRequest(age=pb.AGE_CLASS_ADULT),
            "Audit/Runs": pb.RunsRequest(limit=5),
            "Audit/Egress": pb.EgressRequest(limit=5, with_bytes=True),
            "Runtime/Conditions": pb.ConditionsRequest(battery=0.5, thermal="none", charging=True),
            "Runtime/Pause": pb.PauseRequest(paused=True),
            "Runtime/TrainNow": pb.TrainNowRequest(purpose=TRAIN),
            "Runtime/Install": pb.InstallRequest(task_bundle=worlds.bundle()),
            "Runtime/UpdateStatus": pb.UpdateStatusRequest(envelope=worlds.town.signed_status(now=worlds.NOW)),
        }
        return made.get(method, kind_of(method)())

    def frame(self, method: str) -> bytes:
        """A frame: damaged, invented, or noise."""
        if method == "Runtime/Install":
            return self._installation()
        good = self.good(method)
        data = good if isinstance(good, bytes) else good.SerializeToString()
        how = self.chance.random()
        if how < 0.55:
            return damaged(data, self.chance)
        if how < 0.9:
            message = kind_of(method).FromString(data)
            self._invent(message)
            return message.SerializeToString()
        return self.chance.randbytes(self.chance.randint(0, 200))

    def _installation(self) -> bytes:
        """A frame for Install; few catalogues, since each is looked at in a process of its own."""
        how = self.chance.random()
        if how < 0.6:
            return pb.InstallRequest(task_bundle=damaged(worlds.bundle(), self.chance)).SerializeToString()
        if how < 0.63:
            catalogue = damaged(worlds.town.signed_catalogue(now=worlds.NOW), self.chance)
            return pb.InstallRequest(catalogue_bundle=catalogue).SerializeToString()
        if how < 0.9:
            return damaged(pb.InstallRequest(task_bundle=worlds.bundle()).SerializeToString(), self.chance)
        return self.chance.randbytes(self.chance.randint(0, 200))

    def _invent(self, message: Message) -> None:
        """Change one to three fields to what their type allows, at any depth."""
        for _ in range(self.chance.randint(1, 3)):
            at: Any = message
            while True:
                fields = at.DESCRIPTOR.fields
                if not fields:
                    break
                field = self.chance.choice(fields)
                if field.type == FieldDescriptor.TYPE_MESSAGE:
                    inner = getattr(at, field.name)
                    if field.label == FieldDescriptor.LABEL_REPEATED:
                        inner = self.chance.choice(inner) if inner and self.chance.random() < 0.8 else inner.add()
                    at = inner
                    continue
                self._set(at, field)
                break

    def _set(self, message: Any, field: Any) -> None:
        value = _values(field, self.chance)
        if field.label != FieldDescriptor.LABEL_REPEATED:
            setattr(message, field.name, value)
            return
        many = self.chance.choice([1, 1, 2, 70])
        getattr(message, field.name).extend([value] * many)

    def send(self, method: str, frames: int, call: Callable[[str, str, bytes], str]) -> Counter[str]:
        """Send frames and compare each answer with the contract; return how often each status came back.

        Args:
            method: of the contract.
            frames: how many.
            call: app, method, frame -> name of the status.
        """
        self.ready()
        codes: Counter[str] = Counter()
        for _ in range(frames):
            frame = self.frame(method)
            allowed = self.allowed(method, frame)
            code = call(CALLERS[method], method, frame)
            assert code in REFUSALS | {"OK"}, (method, code, frame)
            assert code != "OK" or allowed, (method, frame)
            codes[code] += 1
            if code == "OK":
                self.accepted(method, frame)
        return codes

    def through_the_channel(self, app: str, method: str, frame: bytes) -> str:
        """Call as an app does; return the name of the status."""
        return code_of(partial(self.phone.raw, app, method, frame))

    # -- what the contract says ---------------------------------------------------------------------------------

    def allowed(self, method: str, frame: bytes) -> bool:
        """Whether the contract lets this frame be answered with OK, in a phone that is ``ready``."""
        try:
            request: Any = kind_of(method).FromString(frame)
        except DecodeError:
            return False
        rules: dict[str, Callable[[Any], bool]] = {
            "Signals/Register": lambda one: (
                _is_stream(one.stream)
                and one.data_type in {1, 2}
                and self.streams.get(one.stream, one.data_type) == one.data_type
                and (one.stream != "feedback" or one.data_type == 2)
            ),
            "Signals/Push": lambda one: _is_push(one, self.streams.get(one.stream, 0)),
            "Signals/Restrict": lambda one: (
                one.stream in self.streams
                and len(one.purposes) <= 64
                and len(set(one.purposes)) == len(one.purposes)
                and set(one.purposes) <= {"*", TRAIN, RECOMMEND}
            ),
            "Signals/Purge": lambda one: one.stream in self.streams,
            "Recommend/Get": lambda one: one.purpose == RECOMMEND and one.count <= 100,
            "Recommend/Feedback": lambda one: (
                one.ranking_id == self.ranking.ranking_id and one.item in {ranked.item for ranked in self.ranking.items}
            ),
            "Consent/Set": self._is_set,
            "Consent/SetOwner": lambda one: one.age in {0, 1, 2},
            "Audit/Runs": lambda one: one.limit <= 1000,
            "Audit/Egress": lambda one: one.limit <= 1000,
            "Runtime/Conditions": _are_conditions,
            "Runtime/TrainNow": lambda one: one.purpose == TRAIN,
            "Runtime/Install": lambda one: (
                (one.task_bundle or one.catalogue_bundle)
                in {worlds.bundle(), worlds.town.signed_catalogue(now=worlds.NOW)}
            ),
            "Runtime/UpdateStatus": lambda one: one.envelope == worlds.town.signed_status(now=worlds.NOW),
        }
        return len(frame) <= 9 << 20 and rules.get(method, lambda _: True)(request)

    def accepted(self, method: str, frame: bytes) -> None:
        """Note what an accepted frame has changed."""
        if method == "Signals/Register":
            request = pb.RegisterRequest.FromString(frame)
            self.streams.setdefault(request.stream, request.data_type)

    @staticmethod
    def _is_set(one: Any) -> bool:
        named = all(1 <= len(name.encode()) <= 128 for name in (one.app, one.purpose, one.recipient))
        if not named or one.data_type not in {1, 2}:
            return False
        kind = 1 if one.app == CHAT else 2
        listed = (
            one.app in worlds.KINDS
            and one.data_type == kind
            and (one.purpose, one.recipient) in {(RECOMMEND, SURFACE), (RECOMMEND, MAPS), (TRAIN, OPERATOR)}
        )
        return not one.on or (listed and one.text_version == 1)


def _is_stream(name: str) -> bool:
    return re.fullmatch(r"[a-z0-9._-]{1,64}", name) is not None


def _is_push(push: pb.PushRequest, data_type: int) -> bool:
    ids = [one.id for one in push.signals]
    is_body = {1: _is_message, 2: _is_choice}.get(data_type, lambda _: False)
    return (
        data_type in {1, 2}
        and len(ids) <= 500
        and len(set(ids)) == len(ids)
        and all(1 <= len(one.id.encode()) <= 64 for one in push.signals)
        and all(0 <= one.time_ms <= (time.time() + 301.0) * 1000 for one in push.signals)
        and all(map(is_body, push.signals))
    )


def _is_choice(signal: pb.Signal) -> bool:
    domain, colon, name = signal.choice.item.partition(":")
    return signal.HasField("choice") and bool(domain and colon and name) and len(signal.choice.item.encode()) <= 512


def _is_message(signal: pb.Signal) -> bool:
    text, message = signal.message.text, signal.message
    return (
        signal.HasField("message")
        and len(text.encode()) <= 16 * 1024
        and message.direction in {1, 2}
        and all(span.start < span.end <= len(text) for span in message.foreign_spans)
    )


def _are_conditions(one: pb.ConditionsRequest) -> bool:
    battery = not one.HasField("battery") or (math.isfinite(one.battery) and 0.0 <= one.battery <= 1.0)
    thermal = not one.HasField("thermal") or one.thermal in {"none", "light", "moderate", "severe"}
    return one.clear or (battery and thermal)


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Bytes put in, taken out, changed, doubled or cut off."""
    made = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(made) + 1)
        how = chance.randrange(6)
        if how == 0:
            made[at:at] = chance.randbytes(chance.randint(1, 12))
        elif how == 1:
            del made[at : at + chance.randint(1, 6)]
        elif how == 2 and made:
            made[at % len(made)] ^= 1 << chance.randrange(8)
        elif how == 3:
            made[at:at] = made[: chance.randint(0, 60)]
        elif how == 4:
            del made[at:]
        else:
            made[at:at] = b"\xff" * chance.randint(1, 9) + b"\x01"  # a number that is too long, or nearly
    return bytes(made)


def _values(field: Any, chance: random.Random) -> Any:
    """Any value of the field's type, odd ones first."""
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        if field.type == FieldDescriptor.TYPE_BYTES:
            return chance.choice([b"", bytes(16), chance.randbytes(16), chance.randbytes(3000)])
        names = [
            STREAM,
            SPARE,
            CHAT,
            MAPS,
            SURFACE,
            OPERATOR,
            TRAIN,
            RECOMMEND,
            "*",
            "feedback",
            "none",
            worlds.items()[0],
        ]
        odd = ["", "\0", "x" * 64, "x" * 65, "a" * 129, "../../etc", "A", "麻辣火锅", "\u202e", "1" * 17_000, "'; --"]
        return chance.choice([*names, *odd])
    if kind in {FieldDescriptor.CPPTYPE_BOOL}:
        return chance.random() < 0.5
    if kind in {FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT}:
        return chance.choice([math.nan, math.inf, -math.inf, -0.0, -1.0, 0.3, 1.0, 1.0000001, 1e308])
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return chance.choice([0, 1, 2, 3, -1, 2**31 - 1])
    signed = kind in {FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64}
    bits = 31 if kind == FieldDescriptor.CPPTYPE_INT32 else 63 if signed else 32
    whole = [0, 1, 2, 100, 101, 1000, 1001, 2**bits - 1, round(time.time() * 1000), 2**53 + 1]
    return chance.choice([one for one in whole if one < 2**bits] + ([-1, -(2**bits)] if signed else []))


def code_of(call: Callable[[], object]) -> str:
    """Return the name of the status that a call ends with."""
    try:
        call()
    except worlds.Refused as refused:
        return refused.code
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


class SetClock(LinuxClock):
    """A phone whose date is what the test says."""

    time = 0.0

    def now(self) -> float:
        return self.time or time.time()


def refuse_bundles(each: int) -> int:
    """Offer a fresh phone ``each`` bundles of every kind of mutation; return how many it refused, all of them.

    At the end it takes the bundle that they were all made from.
    """
    import device_mutations

    clock, count = SetClock(), 0
    with (
        patch.object(device_mutations, "town", worlds.town),
        worlds.world(installed=False, hooks={"clock_rng": clock}) as phone,
    ):
        for name, mutate in sorted(device_mutations.MUTATIONS.items()):
            for number in range(each):
                attempt = mutate(random.Random(f"{name}-{number}"))
                if attempt.seen_roster or attempt.root or attempt.runtime != worlds.town.RUNTIME:
                    continue  # about another phone, not about another bundle
                clock.time = attempt.now
                offered = pb.InstallRequest(task_bundle=attempt.data).SerializeToString()
                code = code_of(partial(phone.raw, SYSTEM, "Runtime/Install", offered))
                assert code == "FAILED_PRECONDITION", (name, number, code)
                count += 1
        assert not phone.status().bundles
        clock.time = worlds.town.NOW
        phone.call(SYSTEM, "Runtime/Install", pb.InstallRequest(task_bundle=device_mutations.good()))
        assert len(phone.status().bundles) == 1
    return count


def noise_at(socket_path: str, chance: random.Random) -> None:
    """Say something that is no HTTP/2 to the relay, and hang up."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link, contextlib.suppress(OSError):
        link.connect(socket_path)
        start = chance.choice([b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"])
        link.sendall(start + chance.randbytes(chance.randint(0, 2000)))
        if chance.random() < 0.3:
            link.shutdown(socket.SHUT_WR)

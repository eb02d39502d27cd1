"""The target, as its callers see it: calls, refusals, and the few steps that every case begins with."""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf.message import Message

from fedlearn.proto import device_pb2 as pb
from fedlearn_client.conformance.callers import Callers
from fedlearn_client.conformance.cases import Differs, NotServed, require
from fedlearn_client.conformance.lines import Answer, Line
from fedlearn_client.conformance.papers import Papers
from fedlearn_client.conformance.town import CHAT, OTHER, READING, RECOMMEND

PACKAGE: Final = "fedlearn.device.v1"
WATCH: Final = "Consent/Watch"
TEXT_VERSION: Final = 3
STREAMS: Final = {
    "chat": ("messages", pb.DATA_TYPE_MESSAGE_CONTENT),
    "reading": ("picked", pb.DATA_TYPE_CHOICE),
    "other": ("places", pb.DATA_TYPE_CHOICE),
}
DATA_TYPES: Final = {CHAT: pb.DATA_TYPE_MESSAGE_CONTENT, READING: pb.DATA_TYPE_CHOICE, OTHER: pb.DATA_TYPE_CHOICE}
ITEMS: Final = 40
WISH: Final = "今晚想吃麻辣火锅，最好有停车位, or mala hotpot"
PICKED: Final = ("attraction:River Walk", "restaurant:Kitchen 1", "book:日料入门")

_CODE: Final = re.compile(r"FL[0-9]{3}\b")
_NO_REFUSAL: Final = frozenset({"UNAVAILABLE", "INTERNAL", "UNKNOWN", "DEADLINE_EXCEEDED", "CANCELLED", "DATA_LOSS"})
_CALLER_CODES: Final = frozenset({"PERMISSION_DENIED", "UNAUTHENTICATED"})
_RATE_TRIES, _RATE_S = 80, 0.25

Grant = tuple[str, str, str]
"""App, purpose, recipient."""


@dataclass(slots=True)
class Phone:
    """One target under test.

    Args:
        callers: whom the kit can be.
        papers: signs what is installed; None where there are no keys.
    """

    callers: Callers
    papers: Papers | None
    _installed: bool = False
    _number: int = 0
    _ids: Any = field(default_factory=lambda: (f"{os.urandom(4).hex()}-{i}" for i in itertools.count()))

    # -- calls ---------------------------------------------------------------------------------------------------

    def ask(self, caller: str, method: str, request: Message | bytes = b"") -> Any:
        """Return the reply of ``Service/Method``; raise Differs where it is refused."""
        answer = self._answer(self.callers.line(caller), method, request)
        if answer.code != "OK":
            raise Differs(f"{method} answers {caller}", f"{answer.code}: {answer.details}")
        return reply_of(method).FromString(answer.body)

    def refused(self, caller: str, method: str, request: Message | bytes, why: str) -> None:
        """Require a refusal with a code of docs/errors.md.

        Args:
            caller: by its name in the kit.
            method: ``Service/Method``.
            request: what must be refused.
            why: what is wrong with it, for the report.
        """
        answer = self._answer(self.callers.line(caller), method, request)
        require(answer.code != "OK", f"{method} refuses {why}", came(answer))
        self._require_refusal(answer, method, why)

    def ask_or_refusal(self, caller: str, method: str, request: Message, why: str) -> Any:
        """Return the reply, or None for a refusal in good order; both may be right."""
        answer = self._answer(self.callers.line(caller), method, request)
        if answer.code == "OK":
            return reply_of(method).FromString(answer.body)
        self._require_refusal(answer, method, why)
        return None

    @staticmethod
    def _require_refusal(answer: Answer, method: str, why: str) -> None:
        """A refusal is a decision: neither a crash, nor a deadline, nor a target that went away."""
        require(answer.code not in _NO_REFUSAL, f"{method} refuses {why}", came(answer))
        require(bool(_CODE.match(answer.details)), "a message that begins with a code, FLnnn", came(answer))

    def denied(self, caller: str, method: str) -> None:
        """Require that ``caller`` may not call ``method`` at all."""
        line = self.callers.line(caller)
        if method == WATCH:  # one message is enough: a target that lets the caller in would never end
            answer = next(line.watch(f"/{PACKAGE}.{method}", b"", 1))
            if answer.code == "UNIMPLEMENTED":
                raise NotServed(f"{method} is not served")
        else:
            answer = self._answer(line, method, b"")
        require(answer.code in _CALLER_CODES, f"{method} is denied to {caller}", came(answer))

    def _answer(self, line: Line, method: str, request: Message | bytes) -> Answer:
        data = request if isinstance(request, bytes) else request.SerializeToString()
        answer = line.call(f"/{PACKAGE}.{method}", data)
        for _ in range(_RATE_TRIES if method.startswith("Recommend/") else 0):
            if answer.code != "RESOURCE_EXHAUSTED":
                break
            time.sleep(_RATE_S)  # the target limits how often an app may ask; the kit asks often
            answer = line.call(f"/{PACKAGE}.{method}", data)
        if answer.code == "UNIMPLEMENTED":
            raise NotServed(f"{method} is not served")
        return answer

    # -- what cases begin with -----------------------------------------------------------------------------------

    @property
    def documents(self) -> Papers:
        """What the kit signs; raise NotServed where it has no keys."""
        if self.papers is None:
            raise NotServed("the kit has no keys to sign with: name a callers file of --prepare")
        return self.papers

    def ready(self) -> None:
        """Install bundle, catalogue and status, once; register streams; adult owner; every switch off."""
        if not self._installed:
            self.install()
        self.owner()
        self.all_off()
        for caller in STREAMS:
            self.register(caller)

    def install(self) -> None:
        """Install the good documents."""
        papers = self.documents
        self.ask("system", "Runtime/Install", pb.InstallRequest(task_bundle=papers.task_bundle()))
        self.ask("system", "Runtime/Install", pb.InstallRequest(catalogue_bundle=papers.catalogue_bundle()))
        self.ask("system", "Runtime/UpdateStatus", pb.UpdateStatusRequest(envelope=papers.status(self.next_status())))
        self._installed = True

    def next_status(self) -> int:
        """Return the number of one more status."""
        self._number += 1
        return self._number

    def owner(self, age: int = pb.AGE_CLASS_ADULT, *, off: bool = False) -> None:
        """Say who the owner is, and whether the off switch is set."""
        request = pb.SetOwnerRequest(age=age, personal_off=off)  # type: ignore[arg-type]
        self.ask("settings", "Consent/SetOwner", request)

    def switches(self) -> Sequence[pb.Grant]:
        """Return every switch."""
        reply: pb.ListReply = self.ask("settings", "Consent/List")
        return reply.grants

    def all_off(self) -> None:
        """Withdraw whatever is granted."""
        for one in self.switches():
            if one.on:
                self.ask("settings", "Consent/Set", pb.SetRequest(
                    app=one.app, data_type=one.data_type, purpose=one.purpose, recipient=one.recipient
                ))  # fmt: skip

    def register(self, caller: str) -> None:
        """Declare the stream of an app."""
        name, kind = STREAMS[caller]
        self.ask(caller, "Signals/Register", pb.RegisterRequest(stream=name, data_type=kind))

    def set(self, grant: Grant, on: bool = True, text_version: int = TEXT_VERSION) -> pb.SetReply:
        """Switch one grant."""
        reply: pb.SetReply = self.ask("settings", "Consent/Set", set_request(grant, on, text_version))
        return reply

    def push(self, caller: str, signals: Iterable[pb.Signal]) -> pb.PushReply:
        """Hand over signals as an app."""
        request = pb.PushRequest(stream=STREAMS[caller][0], signals=signals)
        reply: pb.PushReply = self.ask(caller, "Signals/Push", request)
        return reply

    def new_id(self) -> str:
        """Return an id that no signal had."""
        return str(next(self._ids))

    def said(self, text: str = WISH, ago_s: float = 60.0, **message: Any) -> pb.Signal:
        """Return a message of the owner's."""
        message.setdefault("direction", pb.DIRECTION_OUTGOING)
        body = pb.MessageSignal(text=text, **message)
        return pb.Signal(id=self.new_id(), time_ms=moment(-ago_s), message=body)

    def picked(self, item: str, ago_s: float = 3600.0) -> pb.Signal:
        """Return a choice of the owner's."""
        return pb.Signal(id=self.new_id(), time_ms=moment(-ago_s), choice=pb.ChoiceSignal(item=item))

    def push_everything(self) -> None:
        """Hand over a wish in chat and choices in reading: what rankings are made of."""
        self.push("chat", [self.said()])
        self.push("reading", [self.picked(item, 3600.0 - at) for at, item in enumerate(PICKED)])

    def ranking(self, caller: str) -> bytes:
        """Return everything a ranking says but its random id and what it used, byte for byte."""
        reply = self.full_ranking(caller)
        reply.ClearField("ranking_id")
        reply.ClearField("used")
        return bytes(reply.SerializeToString(deterministic=True))

    def full_ranking(self, caller: str, count: int = ITEMS) -> pb.GetReply:
        """Return a ranking."""
        reply: pb.GetReply = self.ask(caller, "Recommend/Get", pb.GetRequest(purpose=RECOMMEND, count=count))
        return reply

    def kept(self) -> int:
        """Return how many signals are kept."""
        return int(self.ask("system", "Runtime/Status").signals)


def set_request(grant: Grant, on: bool = True, text_version: int = TEXT_VERSION) -> pb.SetRequest:
    """Return the request that switches a grant."""
    app, purpose, recipient = grant
    return pb.SetRequest(
        app=app,
        data_type=DATA_TYPES.get(app, pb.DATA_TYPE_CHOICE),
        purpose=purpose,
        recipient=recipient,
        on=on,
        text_version=text_version,
    )


def reply_of(method: str) -> type[Message]:
    """Return the class of a method's reply."""
    kind: type[Message] = pb.ListReply if method == WATCH else getattr(pb, f"{method.partition('/')[2]}Reply")
    return kind


def moment(seconds: float) -> int:
    """Return now, and so many seconds later, in milliseconds since the Unix epoch."""
    return round((time.time() + seconds) * 1000.0)


def came(answer: Answer) -> str:
    """Return an answer in words."""
    return "an answer" if answer.code == "OK" else f"{answer.code}: {answer.details}"[:300]


def same(found: bytes, expected: bytes, words: str) -> None:
    """Require that two rankings are equal, bit for bit."""
    require(found == expected, words, f"another one, beginning {_head(found)} where {_head(expected)} was expected")


def other(found: bytes, than: bytes, words: str) -> None:
    """Require that two rankings differ."""
    require(found != than, words, "the same ranking, bit for bit")


def _head(ranking: bytes) -> str:
    return ", ".join(f"{one.item} {one.score!r}" for one in pb.GetReply.FromString(ranking).items[:2])

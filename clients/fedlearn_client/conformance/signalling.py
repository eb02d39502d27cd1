"""Streams and signals: what an app may hand over, and what is refused whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from fedlearn.proto import device_pb2 as pb
from fedlearn_client.conformance.cases import Case, require
from fedlearn_client.conformance.phone import STREAMS, WISH, Phone, moment, same
from fedlearn_client.conformance.town import CHAT, READING, RECOMMEND, SURFACE

_MESSAGES = STREAMS["chat"][0]
_SURFACE: Final = (CHAT, RECOMMEND, SURFACE)


def cases(phone: Phone) -> Iterator[Case]:
    """Yield every case."""
    yield Case("signals.not_registered", "A push to a stream that was not registered is refused.",
               lambda: _not_registered(phone))  # fmt: skip
    yield Case("signals.not_mine", "An app's stream exists for that app alone.", lambda: _not_mine(phone))
    yield Case("signals.registered_twice", "Registering again changes nothing; with another type it is refused.",
               lambda: _registered_twice(phone))  # fmt: skip
    yield Case("signals.bad_stream", "A stream name outside a-z 0-9 . _ - or over 64 characters is refused.",
               lambda: _bad_stream(phone))  # fmt: skip
    for name, what, make in _BAD_MESSAGES:
        sentence = f"Refuses {what}; nothing of the push is kept, its good signals included."
        yield Case(f"signals.{name}", sentence, _refused_whole(phone, "chat", what, make))
    for name, what, make in _BAD_CHOICES:
        sentence = f"Refuses {what}; nothing of the push is kept."
        yield Case(f"signals.{name}", sentence, _refused_whole(phone, "reading", what, make))
    yield Case("signals.too_many", "More than 500 signals in one push are refused.", lambda: _too_many(phone))
    yield Case("signals.not_utf8", "A text that is not UTF-8 is refused.", lambda: _not_utf8(phone))
    yield Case("signals.nonsense", "Bytes that are no message are refused.", lambda: _nonsense(phone))
    yield Case("signals.near_future", "A signal one minute ahead of the clock is taken.", lambda: _near_future(phone))
    yield Case("signals.duplicate", "A signal that is pushed twice counts once, whatever it says the second time.",
               lambda: _duplicate(phone))  # fmt: skip
    yield Case("signals.silent", "The answer to a push is the same with a grant and without one.",
               lambda: _silent(phone))  # fmt: skip
    yield Case("signals.incoming", "What others wrote changes no ranking.", lambda: _incoming(phone))
    yield Case("signals.foreign", "What lies in a foreign span changes no ranking.", lambda: _foreign(phone))


def _not_registered(phone: Phone) -> None:
    phone.ready()
    request = pb.PushRequest(stream="nowhere", signals=[phone.said()])
    phone.refused("chat", "Signals/Push", request, "a push to an unknown stream")
    phone.refused("chat", "Signals/Purge", pb.PurgeRequest(stream="nowhere"), "a purge of an unknown stream")
    phone.refused(
        "chat", "Signals/Restrict", pb.RestrictRequest(stream="nowhere"), "a restriction of an unknown stream"
    )


def _not_mine(phone: Phone) -> None:
    phone.ready()
    request = pb.PushRequest(stream=_MESSAGES, signals=[phone.said()])
    phone.refused("reading", "Signals/Push", request, "a push to another app's stream")
    phone.refused("reading", "Signals/Purge", pb.PurgeRequest(stream=_MESSAGES), "a purge of another app's stream")


def _registered_twice(phone: Phone) -> None:
    phone.ready()
    phone.register("chat")
    request = pb.RegisterRequest(stream=_MESSAGES, data_type=pb.DATA_TYPE_CHOICE)
    phone.refused("chat", "Signals/Register", request, "a stream that has another type")
    phone.refused("chat", "Signals/Register", pb.RegisterRequest(stream="untyped"), "a stream without a type")


def _bad_stream(phone: Phone) -> None:
    phone.ready()
    for name in ("", "a" * 65, "Messages", "a b", "../x", "聊天", "a\n"):
        request = pb.RegisterRequest(stream=name, data_type=pb.DATA_TYPE_CHOICE)
        phone.refused("chat", "Signals/Register", request, f"the stream name {name[:8]!r}")


def _message(**fields: object) -> Callable[[Phone], pb.Signal]:
    return lambda phone: phone.said(**fields)  # type: ignore[arg-type]


def _changed(**fields: object) -> Callable[[Phone], pb.Signal]:
    def make(phone: Phone) -> pb.Signal:
        signal = phone.said()
        for name, value in fields.items():
            setattr(signal, name, value)
        return signal

    return make


def _later(phone: Phone, seconds: float) -> pb.Signal:
    signal = phone.said()
    signal.time_ms = moment(seconds)
    return signal


def _span(start: int, end: int) -> Callable[[Phone], pb.Signal]:
    return lambda phone: phone.said("abc", foreign_spans=[pb.Span(start=start, end=end)])


_BAD_MESSAGES: Final[tuple[tuple[str, str, Callable[[Phone], pb.Signal]], ...]] = (
    ("no_direction", "a message without a direction", _message(direction=pb.DIRECTION_UNSPECIFIED)),
    ("odd_direction", "a message with a direction that does not exist", _message(direction=7)),
    ("oversize", "a text of more than 16 KiB", _message(text="x" * (16 * 1024 + 1))),
    ("oversize_bytes", "a text of more than 16 KiB in UTF-8", _message(text="火" * 5500)),
    ("future", "a signal 10 minutes ahead of the clock", lambda phone: _later(phone, 600)),
    ("before_1970", "a signal from before 1970", _changed(time_ms=-1)),
    ("no_id", "a signal without an id", _changed(id="")),
    ("long_id", "an id of 65 bytes", _changed(id="x" * 65)),
    ("span_outside", "a foreign span that ends behind the text", _span(1, 4)),
    ("span_reversed", "a foreign span that ends before it starts", _span(2, 1)),
    ("no_body", "a signal that holds nothing", lambda phone: pb.Signal(id=phone.new_id(), time_ms=moment(-60))),
    ("wrong_body", "a choice in a stream of messages", lambda phone: phone.picked("restaurant:Kitchen 1")),
)
_BAD_CHOICES: Final[tuple[tuple[str, str, Callable[[Phone], pb.Signal]], ...]] = (
    ("message_among_choices", "a message in a stream of choices", lambda phone: phone.said()),
    ("no_item", "a choice without an item", lambda phone: phone.picked("")),
    ("no_domain", "a choice of an item without a domain", lambda phone: phone.picked("Kitchen 1")),
)


def _refused_whole(phone: Phone, caller: str, what: str, make: Callable[[Phone], pb.Signal]) -> Callable[[], None]:
    def check() -> None:
        phone.ready()
        phone.set(_SURFACE)
        phone.set((READING, RECOMMEND, SURFACE))
        before = phone.kept()
        good = phone.said() if caller == "chat" else phone.picked("restaurant:Kitchen 1")
        request = pb.PushRequest(stream=STREAMS[caller][0], signals=[good, make(phone)])
        phone.refused(caller, "Signals/Push", request, what)
        require(phone.kept() == before, "nothing kept of a refused push", f"{phone.kept() - before} more signals")

    return check


def _too_many(phone: Phone) -> None:
    phone.ready()
    request = pb.PushRequest(stream=_MESSAGES, signals=[phone.said("x") for _ in range(501)])
    phone.refused("chat", "Signals/Push", request, "501 signals")


def _not_utf8(phone: Phone) -> None:
    phone.ready()
    good = pb.PushRequest(stream=_MESSAGES, signals=[phone.said("sushi")]).SerializeToString()
    phone.refused("chat", "Signals/Push", good.replace(b"sushi", b"su\xff\xfei"), "a text that is not UTF-8")


def _nonsense(phone: Phone) -> None:
    phone.ready()
    phone.refused("chat", "Signals/Push", b"\xff\xff\xff\xff", "bytes that are no message")


def _near_future(phone: Phone) -> None:
    phone.ready()
    reply = phone.push("chat", [phone.said(ago_s=-60.0)])
    require(reply.received == 1, "received 1", str(reply.received))


def _duplicate(phone: Phone) -> None:
    phone.ready()
    phone.set(_SURFACE)
    signal = phone.said()
    phone.push("chat", [signal])
    kept, ranking = phone.kept(), phone.ranking("surface")
    again = phone.push("chat", [signal])
    require(again.received == 1, "received 1, as the first time", str(again.received))
    signal.message.text = "不要火锅, sushi please"
    phone.push("chat", [signal])
    require(phone.kept() == kept, f"{kept} signals kept", str(phone.kept()))
    same(phone.ranking("surface"), ranking, "the ranking of the first push")


def _silent(phone: Phone) -> None:
    phone.ready()
    without = phone.push("chat", [phone.said(), phone.said("hello")])
    phone.set(_SURFACE)
    granted = phone.push("chat", [phone.said(), phone.said("hello")])
    require(without == granted, f"received {without.received}, and nothing more", f"received {granted.received}")


def _incoming(phone: Phone) -> None:
    phone.ready()
    phone.set(_SURFACE)
    before = phone.ranking("surface")
    phone.push("chat", [phone.said(direction=pb.DIRECTION_INCOMING)])
    same(phone.ranking("surface"), before, "the ranking from before an incoming message")


def _foreign(phone: Phone) -> None:
    phone.ready()
    phone.set(_SURFACE)
    before = phone.ranking("surface")
    phone.push("chat", [phone.said(foreign_spans=[pb.Span(start=0, end=len(WISH))])])
    same(phone.ranking("surface"), before, "the ranking from before a quoted message")

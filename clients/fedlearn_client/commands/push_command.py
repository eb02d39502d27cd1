"""``fedlearn-device push``: an app that hands over signals from a file of JSON lines. ::

{"id": "m1", "time_ms": 1763000000000, "text": "noodles?", "direction": "outgoing", "foreign_spans": [[0, 3]]}
{"id": "c1", "time_ms": 1763000000000, "item": "restaurant:Noodle House"}
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

import grpc

from fedlearn.errors import ConfigError, SignalRefused
from fedlearn.proto import device_pb2 as pb
from fedlearn.proto.device_pb2_grpc import SignalsStub
from fedlearn_client import limits
from fedlearn_client.commands.connection import TIMEOUT_S, as_error, connected, parser, show
from fedlearn_client.commands.files import leave_no_core, opened
from fedlearn_client.commands.words import DATA_TYPES, DIRECTIONS

LARGEST_LINE: Final = 256 * 1024
"""Bytes: a text of the most that is taken, every character of it escaped, fits."""

_LARGEST_FILE: Final = 1 << 40  # lines are read one by one
_FIELDS: Final = ("id", "time_ms", "text", "direction", "foreign_spans", "item")
_AT: Final = re.compile(r"signals\[(\d+)\]\.?")


@dataclass(frozen=True, slots=True)
class Line:
    """One signal and the line that it stood in, counted from 1."""

    number: int
    signal: pb.Signal = field(repr=False)


def main(arguments: Sequence[str]) -> int:
    """Register the stream, then push the file's signals."""
    given = _parse(arguments)
    leave_no_core()
    with _reading(given.file) as file, connected(given.device) as channel:
        done = hand_over(channel, given.stream, DATA_TYPES[given.data_type], _lines(file, given.file), given.file)
    total = pb.PushReply(received=done)
    show(total, given.json, lambda: iter([f"{done} signals handed over"]))
    return 0


def hand_over(channel: grpc.Channel, stream: str, data_type: pb.DataType, lines: Iterator[Line], name: str) -> int:
    """Register a stream and push; return how many signals the daemon took.

    Args:
        channel: from ``connected``.
        stream: of the calling app.
        data_type: of the stream.
        lines: read as they are pushed.
        name: of the file, for messages.

    Raises:
        SignalRefused: names the line, and how many signals before it were handed over.
        grpc.RpcError: any other refusal.
    """
    signals = SignalsStub(channel)
    signals.Register(pb.RegisterRequest(stream=stream, data_type=data_type), timeout=TIMEOUT_S)
    done = 0
    try:
        for batch in _batches(lines):
            done += _push(signals, stream, batch, name)
    except SignalRefused as error:
        so_far = f" {done} signals before it were handed over; pushing them again counts them once." if done else ""
        raise SignalRefused(f"{error}{so_far}") from None
    return done


def _push(signals: SignalsStub, stream: str, batch: Sequence[Line], name: str) -> int:
    request = pb.PushRequest(stream=stream, signals=[line.signal for line in batch])
    try:
        return int(signals.Push(request, timeout=TIMEOUT_S).received)
    except grpc.RpcError as error:
        found = as_error(error, "")
        if not isinstance(found, SignalRefused):
            raise
    position = _AT.match(str(found))
    if position is None or int(position[1]) >= len(batch):
        raise SignalRefused(f"{name}: {found}")
    line, what = batch[int(position[1])].number, str(found)[position.end() :].removeprefix(": ")
    raise SignalRefused(f"{name}, line {line}: {what}")


def _batches(lines: Iterator[Line]) -> Iterator[list[Line]]:
    """Yield what one request may hold, no id twice in one: the phone counts an id once however often it comes."""
    batch: dict[str, Line] = {}
    for line in lines:
        if len(batch) == limits.SIGNALS_PER_PUSH or line.signal.id in batch:
            yield list(batch.values())
            batch = {}
        batch[line.signal.id] = line
    if batch:
        yield list(batch.values())


def signal_of(body: object) -> pb.Signal:
    """Return one line as a signal.

    Raises:
        SignalRefused: it is none; the message names the field, never what stands in it.
    """
    if not isinstance(body, Mapping) or not set(body) <= set(_FIELDS):
        raise SignalRefused(f"must be a JSON object with no fields but {', '.join(_FIELDS)}.")
    if ("text" in body) == ("item" in body):
        raise SignalRefused("must have a text (a message) or an item (a choice), not both.")
    signal = pb.Signal(id=_text(body, "id"), time_ms=_time(body))
    if "item" in body:
        if {"direction", "foreign_spans"} & set(body):
            raise SignalRefused("direction and foreign_spans are for a text, not for an item.")
        signal.choice.item = _text(body, "item")
        return signal
    signal.message.text = _text(body, "text")
    direction = body.get("direction")
    if not isinstance(direction, str) or direction not in DIRECTIONS:
        raise SignalRefused(f"direction: must be one of {', '.join(DIRECTIONS)}.")
    signal.message.direction = DIRECTIONS[direction]
    for start, end in _spans(body.get("foreign_spans", [])):
        signal.message.foreign_spans.add(start=start, end=end)
    return signal


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or any("\ud800" <= character <= "\udfff" for character in value):
        raise SignalRefused(f"{name}: must be a text of valid characters.")
    return value


def _time(body: Mapping[str, Any]) -> int:
    value = body.get("time_ms")
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise SignalRefused("time_ms: must be a whole number of milliseconds since 1970.")
    return value


def _spans(value: object) -> Iterator[tuple[int, int]]:
    for span in value if isinstance(value, list) else [value]:
        numbers = span if isinstance(span, list) else []
        if len(numbers) != 2 or not all(type(number) is int and 0 <= number < 2**32 for number in numbers):
            raise SignalRefused("foreign_spans: must be a list of [start, end), counted in code points from 0.")
        yield numbers[0], numbers[1]


def _lines(file: BinaryIO, name: str) -> Iterator[Line]:
    number = 0
    while raw := file.readline(LARGEST_LINE + 1):
        number += 1
        if not raw.strip():
            continue
        try:
            yield Line(number, signal_of(_json(raw)))
        except SignalRefused as error:
            raise SignalRefused(f"{name}, line {number}: {error}") from None


def _json(raw: bytes) -> object:
    if len(raw) > LARGEST_LINE:
        raise SignalRefused(f"longer than {LARGEST_LINE >> 10} KiB; a text may have 16.")
    try:
        return json.loads(raw.decode())
    except UnicodeDecodeError:
        raise SignalRefused("not UTF-8; write the file as UTF-8.") from None
    except (ValueError, RecursionError):  # its message could quote the line
        raise SignalRefused("not JSON; write one object a line.") from None


@contextmanager
def _reading(name: str) -> Iterator[BinaryIO]:
    if name != "-":
        with opened(Path(name), _LARGEST_FILE, "file") as file:
            yield file
    elif sys.stdin is None:
        raise ConfigError("file=-: standard input is closed; name a file of JSON lines.")
    else:
        yield sys.stdin.buffer


def _parse(arguments: Sequence[str]) -> Any:
    made = parser(
        "push",
        "Hand over signals, one JSON object a line, as the calling app: "
        '{"id": "m1", "time_ms": 1763000000000, "text": "noodles?", "direction": "outgoing"} or '
        '{"id": "c1", "time_ms": 1763000000000, "item": "restaurant:Noodle House"}.',
    )
    made.add_argument("stream", help="1 to 64 of a-z 0-9 . _ -; registered if it is new")
    made.add_argument("data_type", choices=sorted(DATA_TYPES))
    made.add_argument("file", help="JSON lines, or - for standard input")
    return made.parse_args(arguments)

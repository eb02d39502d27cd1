"""``fedlearn-device push``: an app that hands over signals from a file of JSON lines. ::

{"id": "m1", "time_ms": 1763000000000, "text": "noodles?", "direction": "outgoing", "foreign_spans": [[0, 3]]}
{"id": "c1", "time_ms": 1763000000000, "item": "restaurant:Noodle House"}
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final, TextIO

from fedlearn.errors import ConfigError, SignalRefused
from fedlearn.proto import device_pb2 as pb
from fedlearn.proto.device_pb2_grpc import SignalsStub
from fedlearn_client.commands.connection import TIMEOUT_S, connected, parser, show
from fedlearn_client.commands.words import DATA_TYPES, DIRECTIONS

BATCH: Final = 500
_FIELDS: Final = {"id", "time_ms", "text", "direction", "foreign_spans", "item"}


def main(arguments: Sequence[str]) -> int:
    """Register the stream, then push the file's signals."""
    made = parser("push", "Hand over signals, one JSON object a line, as the calling app.")
    made.add_argument("stream")
    made.add_argument("data_type", choices=sorted(DATA_TYPES))
    made.add_argument("file", help="JSON lines, or - for standard input")
    given = made.parse_args(arguments)
    received = 0
    with connected(given.device) as channel:
        signals = SignalsStub(channel)
        register = pb.RegisterRequest(stream=given.stream, data_type=DATA_TYPES[given.data_type])
        signals.Register(register, timeout=TIMEOUT_S)
        for batch in _batches(_read(given.file)):
            received += signals.Push(pb.PushRequest(stream=given.stream, signals=batch), timeout=TIMEOUT_S).received
    total = pb.PushReply(received=received)
    show(total, given.json, lambda: iter([f"{received} signals handed over"]))
    return 0


def _read(name: str) -> Iterator[pb.Signal]:
    if name == "-":
        yield from _signals(sys.stdin, name)
        return
    try:
        with open(name, encoding="utf-8") as file:  # noqa: PTH123 - "-" is no path
            yield from _signals(file, name)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: cannot be read as UTF-8 text; name a file of JSON lines.") from error


def _signals(file: TextIO, name: str) -> Iterator[pb.Signal]:
    for number, line in enumerate(file, 1):
        try:
            yield signal_of(json.loads(line))
        except (ValueError, TypeError, KeyError) as error:
            # the message of a parser could quote the line
            raise SignalRefused(
                f"{name}, line {number}: need id, time_ms, and text with a direction (outgoing or incoming), or item."
            ) from error


def signal_of(body: Mapping[str, Any]) -> pb.Signal:
    """Return one line as a signal; raise ValueError, TypeError or KeyError if it is none."""
    if not set(body) <= _FIELDS or ("text" in body) == ("item" in body):
        raise ValueError("fields")
    signal = pb.Signal(id=body["id"], time_ms=body["time_ms"])
    if "item" in body:
        signal.choice.item = body["item"]
        return signal
    signal.message.text = body["text"]
    signal.message.direction = DIRECTIONS[body["direction"]]
    for start, end in body.get("foreign_spans", []):
        signal.message.foreign_spans.add(start=start, end=end)
    return signal


def _batches(signals: Iterator[pb.Signal]) -> Iterator[list[pb.Signal]]:
    while batch := list(islice(signals, BATCH)):
        yield batch

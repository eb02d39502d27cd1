"""The owner's lines as an app would push them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence

from fedlearn.proto import device_pb2
from fedlearn_client.imports.line import OwnLine


def signal_of(line: OwnLine, name: str) -> device_pb2.Signal:
    """Return a line as a signal with the id ``name``."""
    signal = device_pb2.Signal(id=name, time_ms=int(line.time * 1000))
    signal.message.text = line.text
    signal.message.direction = device_pb2.DIRECTION_OUTGOING
    for start, end in line.foreign_spans:
        signal.message.foreign_spans.add(start=start, end=end)
    return signal


def signals_of(lines: Sequence[OwnLine]) -> Iterator[device_pb2.Signal]:
    """Yield signals whose ids a second import of the same file, or of a longer one, gives again.

    The same words in the same minute are told apart by their order. The phone keeps a keyed hash of an id.
    """
    seen: Counter[str] = Counter()
    for line in lines:
        words = f"{line.time}\x00{line.text}"
        seen[words] += 1
        yield signal_of(line, hashlib.sha256(f"{seen[words]}\x00{words}".encode()).hexdigest()[:32])

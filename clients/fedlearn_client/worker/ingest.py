"""A signal becomes what may be stored of it: text ends here."""

from __future__ import annotations

from collections.abc import Iterable

from fedlearn.errors import OutOfRange, SignalRefused
from fedlearn.features.index import CatalogueIndex
from fedlearn.features.ingest import read_message
from fedlearn.features.said import said_bytes
from fedlearn.proto import device_pb2, worker_pb2


def derive(signals: Iterable[device_pb2.Signal], index: CatalogueIndex) -> worker_pb2.IngestReply:
    """Return the body to store for each signal, in order; empty where there is nothing to store.

    Of a message that the owner wrote: one Said, from its words outside the foreign spans. Of a choice: the item's key.
    Nothing is kept of incoming messages, of messages that say nothing about the catalogue, and of unknown items.

    Raises:
        SignalRefused: no content, no direction, or a foreign span outside its text; nothing was derived.
    """
    return worker_pb2.IngestReply(derived=[worker_pb2.Derived(body=_body(signal, index)) for signal in signals])


def _body(signal: device_pb2.Signal, index: CatalogueIndex) -> bytes:
    kind = signal.WhichOneof("body")
    if kind == "message":
        return _message(signal.message, index)
    if kind == "choice":
        return signal.choice.item.encode() if signal.choice.item in index.keys else b""
    raise SignalRefused("signals.body: must be a message or a choice.")


def _message(message: device_pb2.MessageSignal, index: CatalogueIndex) -> bytes:
    if message.direction == device_pb2.DIRECTION_INCOMING:
        return b""
    if message.direction != device_pb2.DIRECTION_OUTGOING:
        raise SignalRefused("signals.message.direction: must be outgoing or incoming.")
    spans = [(span.start, span.end) for span in message.foreign_spans]
    try:
        said = read_message(message.text, spans, index)
    except OutOfRange:
        raise SignalRefused("signals.message.foreign_spans: each must lie in the text, 0 <= start <= end.") from None
    return b"" if said is None else said_bytes(said)

"""Domain objects -> messages of the contract, where more than one servicer needs them."""

from __future__ import annotations

from fedlearn.proto import device_pb2 as pb
from fedlearn_client.receipts import Receipt


def receipt_message(receipt: Receipt) -> pb.Receipt:
    """Return a receipt as the contract spells it."""
    return pb.Receipt(statement=receipt.statement, signature=receipt.signature, public_key=receipt.public_key)


def milliseconds(seconds: float) -> int:
    """Return a time in milliseconds since the Unix epoch."""
    return round(seconds * 1000.0)

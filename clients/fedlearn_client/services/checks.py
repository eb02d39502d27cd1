"""Checks of request fields that several services share. Each message names the field, never what stood in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from fedlearn.errors import SignalRefused
from fedlearn.policy.document import DataType
from fedlearn.proto import device_pb2 as pb
from fedlearn_client import limits

DATA_TYPES: Final[Mapping[int, DataType]] = {
    pb.DATA_TYPE_MESSAGE_CONTENT: DataType.MESSAGE_CONTENT,
    pb.DATA_TYPE_CHOICE: DataType.CHOICE,
}
DATA_TYPE_NUMBERS: Final = {
    DataType.MESSAGE_CONTENT: pb.DATA_TYPE_MESSAGE_CONTENT,
    DataType.CHOICE: pb.DATA_TYPE_CHOICE,
}


def data_type(number: int) -> DataType:
    """Return the data type of an enum value; raise SignalRefused for none or an unknown one."""
    found = DATA_TYPES.get(number)  # an open enum: any integer may arrive
    if found is None:
        raise SignalRefused("data_type: must be DATA_TYPE_MESSAGE_CONTENT or DATA_TYPE_CHOICE.")
    return found


def stream_name(name: str) -> str:
    """Return ``name``; raise SignalRefused where it is no stream name."""
    if not limits.STREAM_NAME.fullmatch(name):
        raise SignalRefused("stream: must be 1 to 64 characters of a-z 0-9 . _ -.")
    return name


def short_name(name: str, field: str) -> str:
    """Return an id of the policy from a request; raise SignalRefused where it is empty or too long."""
    if not 1 <= len(name.encode()) <= limits.NAME_BYTES:
        raise SignalRefused(f"{field}: must be 1 to {limits.NAME_BYTES} bytes.")
    return name


def rows_wanted(limit: int) -> int:
    """Return how many rows of a log a request asks for; raise SignalRefused where too many."""
    if limit > limits.LOG_ROWS:
        raise SignalRefused(f"limit: must be 0 to {limits.LOG_ROWS}; 0 means {limits.LOG_ROWS_DEFAULT}.")
    return limit or limits.LOG_ROWS_DEFAULT

"""Words of the command line for values of the contract."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fedlearn.proto import device_pb2 as pb

DATA_TYPES: Final = {"message_content": pb.DATA_TYPE_MESSAGE_CONTENT, "choice": pb.DATA_TYPE_CHOICE}
AGES: Final = {"adult": pb.AGE_CLASS_ADULT, "minor": pb.AGE_CLASS_MINOR, "unknown": pb.AGE_CLASS_UNKNOWN}
DIRECTIONS: Final = {"outgoing": pb.DIRECTION_OUTGOING, "incoming": pb.DIRECTION_INCOMING}


def data_type_word(number: int) -> str:
    """Return the word for a data type, or its number where this version knows none."""
    return next((word for word, value in DATA_TYPES.items() if value == number), str(number))


def missing(now: pb.StatusReply) -> Iterator[str]:
    """Yield what is still to be installed, in order."""
    if not now.bundles:
        yield "install the task bundle (*.task.flb)"
        return
    if not now.status_fresh:
        yield "install a signed status of the last 24 hours; without it no round runs"
    if not now.catalogue:
        yield "install the catalogue bundle (*.catalogue.flb); without it nothing is read or ranked"

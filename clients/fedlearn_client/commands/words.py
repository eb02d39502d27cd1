"""Words of the command line for values of the contract."""

from __future__ import annotations

from typing import Final

from fedlearn.proto import device_pb2 as pb

DATA_TYPES: Final = {"message_content": pb.DATA_TYPE_MESSAGE_CONTENT, "choice": pb.DATA_TYPE_CHOICE}
AGES: Final = {"adult": pb.AGE_CLASS_ADULT, "minor": pb.AGE_CLASS_MINOR, "unknown": pb.AGE_CLASS_UNKNOWN}
DIRECTIONS: Final = {"outgoing": pb.DIRECTION_OUTGOING, "incoming": pb.DIRECTION_INCOMING}

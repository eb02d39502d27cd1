"""Who may call what. The one table: what is not in it is refused, whoever asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from google.protobuf.message import Message

from fedlearn.proto import device_pb2 as pb
from fedlearn_client import limits
from fedlearn_client.hooks import Role

PACKAGE: Final = "fedlearn.device.v1"


@dataclass(frozen=True, slots=True)
class Method:
    """One method of the contract.

    Args:
        service: name inside the package.
        name: of the method.
        roles: of callers that may call it.
        request: class of its request.
        max_bytes: a longer request is refused unread.
        streams: whether it answers with a stream.
    """

    service: str
    name: str
    roles: frozenset[Role]
    request: type[Message]
    max_bytes: int = limits.SMALL_REQUEST_BYTES
    streams: bool = False

    @property
    def path(self) -> str:
        """As gRPC spells it."""
        return f"/{PACKAGE}.{self.service}/{self.name}"


_APPS: Final = frozenset({Role.APP})
_READERS: Final = frozenset({Role.APP, Role.SURFACE})
_SETTINGS: Final = frozenset({Role.SETTINGS})
_SYSTEM: Final = frozenset({Role.SYSTEM})

_METHODS: Final = (
    Method("Signals", "Register", _APPS, pb.RegisterRequest),
    Method("Signals", "Push", _APPS, pb.PushRequest, limits.PUSH_REQUEST_BYTES),
    Method("Signals", "Restrict", _APPS, pb.RestrictRequest),
    Method("Signals", "Purge", _APPS, pb.PurgeRequest),
    Method("Recommend", "Get", _READERS, pb.GetRequest),
    Method("Recommend", "Feedback", _READERS, pb.FeedbackRequest),
    Method("Consent", "List", _SETTINGS, pb.ListRequest),
    Method("Consent", "Set", _SETTINGS, pb.SetRequest),
    Method("Consent", "SetOwner", _SETTINGS, pb.SetOwnerRequest),
    Method("Consent", "Watch", _SETTINGS, pb.WatchRequest, streams=True),
    Method("Audit", "Runs", _SETTINGS, pb.RunsRequest),
    Method("Audit", "Budget", _SETTINGS, pb.BudgetRequest),
    Method("Audit", "Egress", _SETTINGS, pb.EgressRequest),
    Method("Audit", "Receipts", _SETTINGS, pb.ReceiptsRequest),
    Method("Runtime", "Status", _SYSTEM, pb.StatusRequest),
    Method("Runtime", "Conditions", _SYSTEM, pb.ConditionsRequest),
    Method("Runtime", "Pause", _SYSTEM, pb.PauseRequest),
    Method("Runtime", "TrainNow", _SYSTEM, pb.TrainNowRequest),
    Method("Runtime", "Install", _SYSTEM, pb.InstallRequest, limits.INSTALL_REQUEST_BYTES),
    Method("Runtime", "UpdateStatus", _SYSTEM, pb.UpdateStatusRequest, limits.STATUS_REQUEST_BYTES),
)

METHODS: Final[Mapping[str, Method]] = MappingProxyType({method.path: method for method in _METHODS})
"""Path -> method."""

"""Errors -> gRPC status. Details are ``FLnnn message`` of fedlearn's own errors; any other error says nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import grpc

from fedlearn.errors import (
    CallerRefused,
    ConfigError,
    ConsentRefused,
    DataError,
    FedlearnError,
    RateLimited,
    SignalRefused,
    StoreFailed,
    TaskRefused,
    TransportFailed,
    TrustError,
    WireError,
    WorkerFailed,
)
from fedlearn_client.store.opening import StoreFull

LONGEST_DETAILS: Final = 500
"""Characters; details travel in a header."""

INTERNAL: Final = "FL000 internal error; the log of the runtime has its kind."


class UnknownName(SignalRefused):
    """A stream or ranking that the caller does not have."""


class OtherType(SignalRefused):
    """A stream that exists with another data type."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a caller hears."""

    status: grpc.StatusCode
    details: str


# the first that fits
_STATUS: Final[tuple[tuple[type[FedlearnError], grpc.StatusCode], ...]] = (
    (CallerRefused, grpc.StatusCode.PERMISSION_DENIED),
    (UnknownName, grpc.StatusCode.NOT_FOUND),
    (OtherType, grpc.StatusCode.ALREADY_EXISTS),
    (SignalRefused, grpc.StatusCode.INVALID_ARGUMENT),
    (WireError, grpc.StatusCode.INVALID_ARGUMENT),
    (ConfigError, grpc.StatusCode.INVALID_ARGUMENT),
    (ConsentRefused, grpc.StatusCode.FAILED_PRECONDITION),
    (TrustError, grpc.StatusCode.FAILED_PRECONDITION),
    (TaskRefused, grpc.StatusCode.FAILED_PRECONDITION),
    (DataError, grpc.StatusCode.FAILED_PRECONDITION),
    (StoreFull, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (RateLimited, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (StoreFailed, grpc.StatusCode.UNAVAILABLE),
    (WorkerFailed, grpc.StatusCode.UNAVAILABLE),
    (TransportFailed, grpc.StatusCode.UNAVAILABLE),
)


def refusal_of(error: BaseException) -> Refusal:
    """Return the status and details for ``error``."""
    for kind, status in _STATUS:
        if isinstance(error, kind):
            return Refusal(status, f"{error.code} {error}"[:LONGEST_DETAILS])
    return Refusal(grpc.StatusCode.INTERNAL, INTERNAL)

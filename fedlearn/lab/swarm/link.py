"""Connections of a swarm to its gateways: one channel each, over TLS, with every call's time."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import grpc

from fedlearn.errors import TransportFailed

SERVICE: Final = "fedlearn.gateway.v1.Gateway"
MOST_BYTES: Final = 256 * 2**20
CALL_S: Final = 30.0


@dataclass
class CallFigures:
    """What calls took.

    Args:
        seconds: method -> of each answered call.
        failed: (method, status) -> calls without an answer.
    """

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    failed: Counter[tuple[str, str]] = field(default_factory=Counter)

    def quantile(self, method: str, q: float) -> float | None:
        """Return a quantile of a method's seconds, q in [0, 1]; None without a call."""
        ordered = sorted(self.seconds[method])
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else None


class Refused(TransportFailed):
    """A gateway answered that it will not: its words are a ``Denial``."""


class GatewayLinks:
    """Speaks to gateways; each phone has one of its own, and goes on to the next where that is silent.

    Args:
        addresses: ``host:port``, at least one.
        ca: PEM of the authority of their certificates.
    """

    def __init__(self, addresses: Sequence[str], ca: bytes) -> None:
        credentials = grpc.ssl_channel_credentials(root_certificates=ca)
        options = [
            ("grpc.max_receive_message_length", MOST_BYTES),
            ("grpc.max_send_message_length", MOST_BYTES),
            ("grpc.enable_http_proxy", 0),
            ("grpc.max_reconnect_backoff_ms", 2000),
        ]
        self._channels = [grpc.aio.secure_channel(address, credentials, options) for address in addresses]
        self.figures = CallFigures()

    async def call(self, method: str, request: bytes, phone: int) -> bytes:
        """Return the answer of the phone's gateway.

        Raises:
            Refused: it will not answer; the words say why.
            TransportFailed: no gateway answers.
        """
        status = ""
        for turn in range(len(self._channels)):
            channel = self._channels[(phone + turn) % len(self._channels)]
            started = time.perf_counter()
            try:
                answer: bytes = await channel.unary_unary(f"/{SERVICE}/{method}")(request, timeout=CALL_S)
            except grpc.aio.AioRpcError as error:
                status = error.code().name
                self.figures.failed[method, status] += 1
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise Refused(error.details() or status) from error
            else:
                self.figures.seconds[method].append(time.perf_counter() - started)
                return answer
        raise TransportFailed(f"{method}: no gateway answers ({status}).")

    async def close(self) -> None:
        """Close all connections."""
        for channel in self._channels:
            await channel.close()

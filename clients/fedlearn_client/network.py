"""``Transport`` over gRPC and TLS: one gateway at a time, vouched for by the phone maker's own certificates alone.

A connection is made when there is something to ask and closed when the round, or its first half, is over; nothing is
kept between rounds that would tell one from the next. No proxy of the environment is used, no certificate of the
system, no configuration from DNS, no compression. Every call has a deadline.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import grpc

from fedlearn.device.padding import KIB, MAX_REQUEST_BYTES
from fedlearn.device.requests import Denial
from fedlearn.errors import ConfigError, TransportFailed
from fedlearn.proto import gateway_pb2 as pb
from fedlearn_client.hooks import Method
from fedlearn_client.standing import read_setting
from fedlearn_client.transport import MAX_REPLY_BYTES

CONNECT_S: Final = 10.0
CALL_S: Final = 30.0
SLOWEST_BYTES_S: Final = 32.0 * KIB
"""A call may take ``CALL_S``, and as long as its bytes take at this rate."""

_SERVICE: Final = pb.DESCRIPTOR.services_by_name["Gateway"].full_name
_LOOK_S: Final = 0.1
_IDENTITY_ONLY: Final = 1
_OPTIONS: Final = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),  # closing a channel closes its connection
    ("grpc.enable_retries", 0),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.compression_enabled_algorithms_bitset", _IDENTITY_ONLY),
    ("grpc.max_receive_message_length", MAX_REPLY_BYTES),
    ("grpc.max_send_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_metadata_size", 8 * KIB),
)
_SETTLED: Final = frozenset(
    {
        grpc.ChannelConnectivity.READY,
        grpc.ChannelConnectivity.TRANSIENT_FAILURE,
        grpc.ChannelConnectivity.SHUTDOWN,
    }
)
_DENIALS: Final = frozenset(denial.value for denial in Denial)


def read_ca(path: Path) -> bytes:
    """Return the certificates of a PEM file.

    Raises:
        ConfigError: ``gateway_ca`` cannot be read, or holds no certificate.
    """
    pem = read_setting("gateway_ca", path)
    if b"-----BEGIN CERTIFICATE-----" not in pem:
        raise ConfigError(f"gateway_ca={path}: holds no certificate in PEM; put the gateway's CA there.")
    return pem


class GatewayTransport:
    """Speaks to one of several gateways that can be reached. One call at a time; ``hang_up`` from any thread.

    Which one is drawn for each connection, so that phones spread, and one that gives no work is not asked for ever. A
    request goes to one gateway only: the next one is tried where no connection could be made, not where a call failed,
    since that may have arrived. The call after a failure begins with the next one.

    Args:
        addresses: ``host:port``, one or more.
        ca: PEM; a gateway's certificate must lead to one of these, and name its host.
        random_bytes: the operating system's generator.
        connect_s: longest wait for a connection to one gateway, seconds, > 0.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        ca: bytes,
        *,
        random_bytes: Callable[[int], bytes],
        connect_s: float = CONNECT_S,
    ) -> None:
        self._addresses = tuple(addresses)
        self._credentials = grpc.ssl_channel_credentials(root_certificates=ca)
        self._connect_s = connect_s
        self._random = random_bytes
        self._turn = self._drawn()
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._hangups = 0

    def call(self, method: Method, request: bytes) -> bytes:
        """Return the reply's bytes.

        Raises:
            TransportFailed: no gateway can be reached, the call failed, or its deadline passed; with ``denial`` where
                the gateway says why it does not answer.
        """
        channel = self._connected(method)
        ask = channel.unary_unary(f"/{_SERVICE}/{method}")
        try:
            reply: bytes = ask(request, timeout=deadline_s(method, len(request)))
        except grpc.RpcError as error:
            self._give_up(channel)
            raise _failure(method, error) from None
        except ValueError:  # hung up between the two lines
            raise TransportFailed(f"{method}: hung up.") from None
        return reply

    def hang_up(self) -> None:
        """Close the connection, if there is one. A call under way fails."""
        with self._lock:
            self._hangups += 1
            channel, self._channel = self._channel, None
        if channel is not None:
            self._turn = self._drawn()
            channel.close()

    def _drawn(self) -> int:
        return int.from_bytes(self._random(4), "big") % len(self._addresses)

    def _connected(self, method: Method) -> grpc.Channel:
        with self._lock:
            if self._channel is not None:
                return self._channel
            hangups = self._hangups
        for _ in self._addresses:
            channel = self._open(self._addresses[self._turn])
            if self._is_ready(channel, hangups):
                with self._lock:
                    if self._hangups == hangups:
                        self._channel = channel
                        return channel
            channel.close()
            if self._hangups != hangups:
                raise TransportFailed(f"{method}: hung up.")
            self._turn = (self._turn + 1) % len(self._addresses)
        raise TransportFailed(f"{method}: none of {len(self._addresses)} gateways can be reached and trusted.")

    def _open(self, address: str) -> grpc.Channel:
        return grpc.secure_channel(f"dns:///{address}", self._credentials, options=_OPTIONS)

    def _is_ready(self, channel: grpc.Channel, hangups: int) -> bool:
        """Wait until the connection stands, failed, took too long or is no longer wanted."""
        settled = threading.Event()
        states: list[grpc.ChannelConnectivity] = []

        def note(state: grpc.ChannelConnectivity) -> None:
            if state in _SETTLED:
                states.append(state)
                settled.set()

        channel.subscribe(note, try_to_connect=True)
        try:
            for _ in range(max(1, round(self._connect_s / _LOOK_S))):
                if settled.wait(_LOOK_S) or self._hangups != hangups:
                    break
        finally:
            channel.unsubscribe(note)
        return states[:1] == [grpc.ChannelConnectivity.READY]

    def _give_up(self, channel: grpc.Channel) -> None:
        """Close a connection over which a call failed; the next call begins with the next gateway."""
        with self._lock:
            if self._channel is channel:
                self._channel = None
                self._turn = (self._turn + 1) % len(self._addresses)
        channel.close()


def deadline_s(method: Method, request_bytes: int) -> float:
    """Return how long a call may take, in seconds."""
    reply_bytes = MAX_REPLY_BYTES if method is Method.FETCH else 0
    return CALL_S + (request_bytes + reply_bytes) / SLOWEST_BYTES_S


def _failure(method: Method, error: grpc.RpcError) -> TransportFailed:
    """Return what to raise. Of what the gateway wrote, only a denial of the protocol is repeated."""
    code, details = error.code(), error.details() or ""
    if details in _DENIALS:
        return TransportFailed(f"{method}: denied: {details}.", denial=details)
    return TransportFailed(f"{method}: the call failed ({code.name}).")

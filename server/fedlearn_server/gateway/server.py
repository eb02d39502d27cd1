"""The door for phones: a gRPC server with TLS in front of ``Handlers``."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

import grpc

from fedlearn.errors import OutOfRange
from fedlearn.proto import gateway_pb2 as pb
from fedlearn_server.gateway.handlers import Handlers
from fedlearn_server.gateway.rules import Denied
from fedlearn_server.gateway.tls import CertificateFiles

SERVICE: Final = pb.DESCRIPTOR.services_by_name["Gateway"].full_name
_LAST_S: Final = 5.0
"""What is being answered when the port is closed has so long to end."""
_HEADER_BYTES: Final = 8 * 1024

_OPTIONS: Final = (
    ("grpc.so_reuseport", 0),  # a second gateway on the port is a mistake
    ("grpc.max_send_message_length", 2 * 2**20),
    ("grpc.max_metadata_size", _HEADER_BYTES),
    ("grpc.max_concurrent_streams", 16),  # of one connection
    ("grpc.max_connection_idle_ms", 120_000),
    ("grpc.max_connection_age_ms", 3_600_000),
    ("grpc.max_connection_age_grace_ms", 60_000),
    ("grpc.keepalive_time_ms", 60_000),  # phones vanish without a word
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 30_000),
    ("grpc.http2.max_ping_strikes", 2),
)


class Door:
    """Listens from the moment it is made.

    Args:
        handlers: answer.
        certificate: of this gateway.
        host: to listen on; an IPv6 address in brackets.
        port: 0 picks a free one.
        threads: calls that are answered at a time; as many again may wait, the rest hear RESOURCE_EXHAUSTED.

    Raises:
        OutOfRange: the port is taken, or the address is not this machine's.
    """

    def __init__(
        self, handlers: Handlers, certificate: CertificateFiles, host: str, port: int, *, threads: int = 32
    ) -> None:
        self._handlers = handlers
        self._pool = ThreadPoolExecutor(threads, "gateway")
        limits = (("grpc.max_receive_message_length", handlers.max_bytes),)
        self._server = grpc.server(self._pool, options=(*_OPTIONS, *limits), maximum_concurrent_rpcs=2 * threads)
        methods = {name: grpc.unary_unary_rpc_method_handler(partial(self._answer, name)) for name in handlers.methods}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
        try:
            self.port = int(self._server.add_secure_port(f"{host}:{port}", certificate.credentials()))
        except RuntimeError as error:
            self._pool.shutdown()
            raise OutOfRange(f"listen={host}:{port}: cannot listen there; is the port taken?") from error
        self._server.start()

    def drain(self, seconds: float) -> None:
        """Go on answering for so long, and close; by then the handlers give no new work."""
        time.sleep(seconds)
        self.close(_LAST_S)

    def close(self, grace: float = 0.0) -> None:
        """Take no more calls; those under way have ``grace`` seconds."""
        self._server.stop(grace).wait()
        self._pool.shutdown()

    def _answer(self, method: str, request: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            return self._handlers.call(method, request, context.peer())
        except Denied as denied:
            context.set_code(denied.status)
            context.set_details(denied.denial.value)
            return b""

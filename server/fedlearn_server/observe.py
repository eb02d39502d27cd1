"""What an operator sees of a process: JSON logs, Prometheus metrics and two health endpoints. ::

    log_json("node")
    metrics = NodeMetrics()                         # .online, .answered, .link_failed; FleetLink(..., metrics.tap)
    server = serve(metrics.registry, health, port)  # server.port; server.close()

``/healthz`` says that the process lives, ``/readyz`` that it does its work (503 and the reason otherwise), ``/metrics``
is for Prometheus. A ServerApp uses ``fedlearn_server.observed``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from http import HTTPStatus
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app

from fedlearn.errors import OutOfRange
from fedlearn_server.logs import log_json
from fedlearn_server.metrics import NodeMetrics, ServerMetrics, error_code

__all__ = ["Health", "NodeMetrics", "ObservationServer", "ServerMetrics", "log_json", "serve"]

Health = Callable[[], str | None]
"""None: all is well; else the reason why not."""

REQUEST_S = 5.0
PLAIN = ("Content-Type", "text/plain; charset=utf-8")


class ObservationServer:
    """Serves /metrics, /healthz and /readyz from a thread until it is closed."""

    def __init__(self, server: WSGIServer) -> None:
        self._server = server
        self._thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="observe", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_port)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def serve(registry: CollectorRegistry, health: Health, port: int = 0, host: str = "127.0.0.1") -> ObservationServer:
    """Serve a process's metrics and health.

    Nothing is authenticated and nothing secret is said; keep the port inside the operator's network.

    Args:
        registry: the metrics.
        health: called for each /readyz, from another thread; what it raises counts as a reason.
        port: 0 picks a free one.
        host: the address to listen on.

    Raises:
        OutOfRange: the port is taken, or not one.
    """
    try:
        server = _Server((host, port), _Handler)
    except (OSError, OverflowError) as error:
        raise OutOfRange(f"metrics_port={port}: cannot listen on {host} ({error}); 0 picks a free port.") from error
    server.set_app(_application(registry, health))
    return ObservationServer(server)


def _application(registry: CollectorRegistry, health: Health) -> Callable[[WSGIEnvironment, StartResponse], Any]:
    metrics = make_wsgi_app(registry)

    def application(environment: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        path = environment["PATH_INFO"]
        if environment["REQUEST_METHOD"] != "GET":
            return _say(start, HTTPStatus.METHOD_NOT_ALLOWED, "only GET")
        if path == "/metrics":
            found: Iterable[bytes] = metrics(environment, start)
            return found
        if path == "/healthz":
            return _say(start, HTTPStatus.OK, "ok")
        if path == "/readyz":
            reason = _asked(health)
            status = HTTPStatus.OK if reason is None else HTTPStatus.SERVICE_UNAVAILABLE
            return _say(start, status, "ok" if reason is None else reason)
        return _say(start, HTTPStatus.NOT_FOUND, "there are /metrics, /healthz and /readyz")

    return application


def _asked(health: Health) -> str | None:
    try:
        return health()
    except Exception as problem:  # noqa: BLE001 - whatever it is, the process is not ready
        return f"health could not be told: {type(problem).__name__} {error_code(problem)}"


def _say(start: StartResponse, status: HTTPStatus, words: str) -> list[bytes]:
    body = f"{words}\n".encode()
    start(f"{status.value} {status.phrase}", [PLAIN, ("Content-Length", str(len(body)))])
    return [body]


class _Server(ThreadingMixIn, WSGIServer):
    """A thread a request, so that a client that hangs holds up nobody."""

    daemon_threads = True
    allow_reuse_address = True

    def server_bind(self) -> None:
        """Bind without looking up the machine's name, which may take seconds where there is no name server."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_S

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the parent's name
        """Log nothing: a scrape every few seconds is no event."""

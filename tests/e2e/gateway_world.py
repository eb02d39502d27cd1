"""A gateway over TLS on loopback, and phones that speak to it in raw bytes."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import grpc

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
import gateway_door as doors
import gateway_fleet as fleets

from fedlearn.device.padding import padded
from fedlearn.task import CohortReply
from fedlearn_server.deployment.certificates import ensure_certificates, now_utc
from fedlearn_server.deployment.keys import write_node_key
from fedlearn_server.gateway.cohort import GatewayHost
from fedlearn_server.gateway.settings import GatewaySettings
from fedlearn_server.gateway.state import GatewayState

PATH = "/fedlearn.gateway.v1.Gateway/"
CALL_S = 30.0


def settings_in(directory: Path, **changes: Any) -> GatewaySettings:
    """Settings of a gateway whose every file lies in ``directory``."""
    certs = directory / "certs"
    ensure_certificates(certs, now_utc())
    if not (directory / "operator.key").exists():
        (directory / "operator.key").write_bytes(doors.OPERATOR.pem())
        (directory / "operator.key").chmod(0o600)
        write_node_key(directory / "node.key")
    values: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "certificate": certs / "server.crt",
        "key": certs / "server.key",
        "store": str(directory / "gateway.db"),
        "populations": (fleets.POPULATION,),
        "issuers": (doors.ISSUER.public,),
        "task_key": directory / "operator.key",
        "superlink": f"127.0.0.1:{free_port()}",
        "superlink_ca": certs / "ca.crt",
        "node_key": directory / "node.key",
        "directory": directory / "node",
        "device_rate": 1e3,
        "peer_rate": 1e5,
        "peer_burst": 1_000_000,
    }
    return GatewaySettings(**{**values, **changes})


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Line:
    """One connection to a gateway."""

    def __init__(self, port: int, ca: Path) -> None:
        credentials = grpc.ssl_channel_credentials(ca.read_bytes())
        self._channel = grpc.secure_channel(f"127.0.0.1:{port}", credentials)

    def raw(self, method: str, frame: bytes) -> bytes:
        """Send any bytes; return the reply's, or raise grpc.RpcError."""
        reply: bytes = self._channel.unary_unary(PATH + method)(frame, timeout=CALL_S)
        return reply

    def ask(self, request: Any) -> Any:
        method = type(request).DESCRIPTOR.name.removesuffix("Request")
        return doors.REPLIES[method].FromString(self.raw(method, padded(request)))

    def close(self) -> None:
        self._channel.close()


@contextmanager
def line(port: int, ca: Path) -> Iterator[Line]:
    with closing(Line(port, ca)) as made:
        yield made


class Question:
    """What SuperLink asks of a gateway, in a thread of its own."""

    def __init__(self, state: GatewayState, terms: Any, task: Any) -> None:
        self._answer = GatewayHost(state)(terms.to_json(), 0, 1)
        self._task = task
        self._reply: CohortReply | Exception | None = None
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        try:
            self._reply = self._answer(self._task)
        except Exception as error:  # noqa: BLE001 - raised again by ``reply``
            self._reply = error

    def reply(self) -> CohortReply:
        """Wait for the answer."""
        self._thread.join(60.0)
        if isinstance(self._reply, Exception):
            raise self._reply
        assert self._reply is not None, "no answer came"
        return self._reply

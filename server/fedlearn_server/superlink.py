"""A SuperLink whose control API is the operator's alone: ``python -m fedlearn_server.superlink``.

Flower's SuperLink listens on one TCP port for nodes, operators and ServerApps. Nodes sign what they send, a ServerApp
has a token, but nothing asks an operator who he is: whoever reaches the port may start code, register a node of his own
and so read sums. Loopback is no wall between the users of one machine. Here every path but those of nodes, of
ServerApps and the health check needs the operator's token. ServerApps are started by this process alone, which knows
its own secret, and their token is handed over in memory, never in a command line that others can read.
"""

from __future__ import annotations

import hmac
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any, Final

from fedlearn.errors import RunError, SuperLinkRefused
from fedlearn.rng import os_bytes
from fedlearn_server.flower import OPERATOR_HEADER, LaunchLink, read_operator_token, run_superlink

SECRET_BYTES: Final = 32
OPEN_PATHS: Final = ("/v1/fleet/", "/v1/runtime/")
OPERATOR_TOKEN: Final = "--operator-token"  # noqa: S105 - a name
HEALTH: Final = "/health"
POLL_S: Final = 0.5  # each look costs SuperLink as much as a node's
RETRY_S: Final = 0.5
FLOWER_SETTINGS: Final = frozenset(
    {"FLWR_HOME", "FLWR_LOG_LEVEL", "FLWR_TELEMETRY_ENABLED", "FLWR_DISABLE_UPDATE_CHECK"}
)
"""Variables that Flower may read here. Another one opens a second, unguarded port, hands content to a tracer, ..."""

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class OperatorOnly:
    """Lets requests of nodes, of ServerApps and health checks through, and any other one only with the token.

    Args:
        app: what is guarded.
        token: the operator's, hex.
    """

    def __init__(self, app: App, token: str) -> None:
        self._app = app
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, or answer 403."""
        if scope["type"] == "http" and not self._may(scope):
            await _refuse(send)
            return
        await self._app(scope, receive, send)

    def _may(self, scope: Scope) -> bool:
        path = str(scope["path"])
        if path == HEALTH or path.startswith(OPEN_PATHS):
            return True
        given = [value for name, value in scope["headers"] if name.lower() == OPERATOR_HEADER.encode()]
        return len(given) == 1 and hmac.compare_digest(given[0], self._token)


async def _refuse(send: Send) -> None:
    body = b'{"detail":"This needs the token of the operator of this SuperLink."}'
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def main(arguments: Sequence[str]) -> None:
    """Run SuperLink until it is stopped.

    Args:
        arguments: ``--operator-token FILE``, then those of ``flower-superlink``.
    """
    token = read_operator_token(Path(_option(arguments, OPERATOR_TOKEN)))
    arguments = [given for given in arguments if given not in {OPERATOR_TOKEN, _option(arguments, OPERATOR_TOKEN)}]
    secret = os_bytes(SECRET_BYTES)
    address, ca = (
        _option(arguments, "--host") + ":" + _option(arguments, "--port"),
        _option(arguments, "--ssl-ca-certfile"),
    )
    memory = os.memfd_create("fedlearn-secret")  # a file that a kill leaves nowhere
    os.write(memory, secret)
    kept = ("--isolation", "process", "--superexec-auth-secret-file", f"/proc/self/fd/{memory}")
    sys.argv = ["flower-superlink", *arguments, *kept]
    for name in [name for name in os.environ if name.startswith("FLWR_") and name not in FLOWER_SETTINGS]:
        del os.environ[name]
    threading.Thread(target=_launch, args=(address, Path(ca), secret), daemon=True).start()
    run_superlink(lambda app: OperatorOnly(app, token))


def _option(arguments: Sequence[str], name: str) -> str:
    if name not in arguments[:-1]:
        raise SuperLinkRefused(f"{name} is missing: a guarded SuperLink needs a token, a host, a port and TLS.")
    return arguments[list(arguments).index(name) + 1]


def _launch(address: str, ca: Path, secret: bytes) -> None:
    """Start a ServerApp for each run that waits. It ends with this process, which it watches."""
    try:
        link = LaunchLink(address, ca, secret)
        running: list[subprocess.Popen[bytes]] = []
        while True:
            running = [process for process in running if process.poll() is None]  # and reap those that ended
            try:
                token = link.acquire()
            except RunError as error:
                logger.warning("not ready to start ServerApps: %s", error)
                time.sleep(RETRY_S)
                continue
            if token is None:
                time.sleep(POLL_S)
            else:
                running.append(_start(token, address, ca))
    except BaseException:
        logger.exception("a SuperLink that cannot start ServerApps is of no use; it ends")
        os._exit(1)


def _start(token: str, address: str, ca: Path) -> subprocess.Popen[bytes]:
    """Start a ServerApp. Its token lies in memory: others can read a command line, and a disk keeps what it had."""
    memory = os.memfd_create("fedlearn-token")
    try:
        os.write(memory, token.encode())
        command = [
            *(str(Path(sys.executable).parent / "flwr-serverapp"), "--runtime-api-address", address),
            *("--root-certificates", str(ca), "--parent-pid", str(os.getpid())),
            *("--token-file", f"/proc/self/fd/{memory}"),
        ]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[memory])  # noqa: S603 - no shell
    finally:
        os.close(memory)


if __name__ == "__main__":
    main(sys.argv[1:])

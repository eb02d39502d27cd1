"""HEALTHCHECK of the images: ``python health.py superlink | node | gateway | device``; exit status 0 if it is well.

Standard library only: it runs every ten seconds, beside what it asks.
"""

from __future__ import annotations

import os
import socket
import ssl
import sys
import urllib.request
from collections.abc import Callable
from typing import Final

TIMEOUT_S: Final = 6.0


def superlink() -> None:
    """SuperLink answers over TLS, with the certificate of the fleet's authority."""
    address = os.environ.get("FEDLEARN_SUPERLINK", "superlink:9092")
    ca = os.environ.get("FEDLEARN_CA", "/var/lib/fedlearn/operator/superlink/certs/ca.crt")
    _get(f"https://{address}/health", ssl.create_default_context(cafile=ca))


def node() -> None:
    """The node is online at its SuperLink."""
    _get(f"http://127.0.0.1:{os.environ.get('FEDLEARN_METRICS_PORT', '9101')}/readyz", None)


def gateway() -> None:
    """The gateway is online at its SuperLink and ready for phones."""
    _get(f"http://127.0.0.1:{os.environ.get('FEDLEARN_METRICS_PORT', '9102')}/readyz", None)


def device() -> None:
    """The daemon takes connections of apps."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(TIMEOUT_S)
        probe.connect(os.environ.get("FEDLEARN_SOCKET", "/run/fedlearn/device.sock"))


CHECKS: Final[dict[str, Callable[[], None]]] = {check.__name__: check for check in (superlink, node, gateway, device)}


def _get(url: str, context: ssl.SSLContext | None) -> None:
    with urllib.request.urlopen(url, timeout=TIMEOUT_S, context=context) as answer:  # noqa: S310 - of our own process
        if answer.status != 200:
            raise OSError(f"{url}: status {answer.status}")


def main(arguments: list[str]) -> int:
    """Ask one part; 0 if it is well, 1 if not, with the reason."""
    try:
        CHECKS[arguments[0]]()
    except OSError as error:
        sys.stderr.write(f"{arguments[0]}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""This machine's pip settings for a build in a container, handed over as secrets: none stays in a layer.

Folders that pip reads here (find-links, file:// indexes) cannot be seen from a build. They are served on loopback while
it lasts, which a build with ``--network=host`` reaches.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

PLACES: Final = ("index-url", "extra-index-url", "find-links")
KEPT: Final = (*PLACES, "trusted-host", "proxy", "timeout", "default-timeout")


def installed_settings() -> dict[str, str]:
    """Return what pip reads from its files and environment here, by option; the environment wins."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True, timeout=60
    )
    found: dict[str, str] = {}
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        scope, _, option = name.partition(".")
        if scope in {"global", "install", ":env:"}:
            found[option] = value.strip("'\"").replace("\\n", "\n")
    return found


@contextmanager
def build_secrets(folder: Path, settings: Mapping[str, str]) -> Iterator[dict[str, Path]]:
    """Write the secrets of a build, and serve the folders they name while it lasts.

    Args:
        folder: private, for the secrets; the caller removes it.
        settings: as ``installed_settings`` returns them.

    Yields:
        Secret's id -> file.
    """
    servers: list[ThreadingHTTPServer] = []
    try:
        lines = ["[global]"]
        for option in KEPT:
            if option in settings:
                values = [_reachable(value, option, servers) for value in settings[option].split()]
                lines.append(f"{option} = {' '.join(values)}")
        secrets = {"pip": folder / "pip.conf"}
        if "cert" in settings:
            secrets["ca"] = folder / "ca.pem"
            secrets["ca"].write_bytes(Path(settings["cert"]).read_bytes())
            lines.append("cert = /run/secrets/ca")
        secrets["pip"].write_text("\n".join(lines) + "\n", encoding="utf-8")
        yield secrets
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def _reachable(value: str, option: str, servers: list[ThreadingHTTPServer]) -> str:
    """Return a place as a build reaches it: a local folder by a loopback server of its own."""
    parts = urlsplit(value)
    if option not in PLACES or parts.scheme not in {"", "file"}:
        return value
    path = Path(unquote(parts.path))
    # an index refers to its files beside it ("../../files/...")
    root = path if option == "find-links" else path.parent
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(root)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    servers.append(server)
    below = path.relative_to(root).as_posix()
    return f"http://127.0.0.1:{server.server_port}/" + ("" if below == "." else f"{below}/")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        del format, args

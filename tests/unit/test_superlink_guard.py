"""The wall before SuperLink's control API: what needs the operator's token, and what does not."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from fedlearn.errors import SuperLinkRefused
from fedlearn_server import superlink
from fedlearn_server.flower import OPERATOR_HEADER, read_operator_token
from fedlearn_server.superlink import OperatorOnly, main

TOKEN = "5e" * 32
HEADER = OPERATOR_HEADER.encode()


def ask(path: str, headers: list[tuple[bytes, bytes]], kind: str = "http") -> int:
    """Return the status that a request gets: 200 if it came through."""
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nothing is read before a request is let through")

    scope = {"type": kind, "path": path, "headers": headers}
    asyncio.run(OperatorOnly(app, TOKEN)(scope, receive, send))
    return int(sent[0]["status"])


@pytest.mark.parametrize("path", ["/v1/fleet/pull-messages", "/v1/runtime/get-nodes", "/health"])
def test_nodes_and_server_apps_need_no_operator(path: str) -> None:
    assert ask(path, []) == 200


GUARDED = [
    "/v1/control/start-run",
    "/v1/control/list-nodes",
    "/v1/control/register-node",
    "/docs",
    "/openapi.json",
    "/",
    "",
    "/v1/fleet",
    "/v1/Fleet/pull-messages",
    "/v1//control/start-run",
    "//v1/control/start-run",
    "/health/",
    "/v2/anything",
]


@pytest.mark.parametrize("path", GUARDED)
def test_everything_else_is_the_operators(path: str) -> None:
    assert ask(path, []) == 403
    assert ask(path, [(HEADER, TOKEN.encode())]) == 200


@pytest.mark.parametrize(
    "headers",
    [
        [(HEADER, b"")],
        [(HEADER, b"5f" * 32)],
        [(HEADER, TOKEN.encode() + b" ")],
        [(HEADER, TOKEN.upper().encode())],
        [(b"authorization", TOKEN.encode())],
        [(HEADER, TOKEN.encode()), (HEADER, b"00" * 32)],
        [(HEADER, b"00" * 32), (HEADER, TOKEN.encode())],
    ],
)
def test_no_other_token(headers: list[tuple[bytes, bytes]]) -> None:
    assert ask("/v1/control/start-run", headers) == 403


def test_a_header_may_be_in_any_case() -> None:
    assert ask("/v1/control/list-runs", [(HEADER.upper(), TOKEN.encode())]) == 200


def test_the_start_of_the_server_is_no_request() -> None:
    assert ask("/", [], kind="lifespan") == 200


@pytest.mark.parametrize("content", ["", "5e", "5e" * 33, "zz" * 32, "5E" * 32])
def test_a_file_without_a_token(tmp_path: Path, content: str) -> None:
    path = tmp_path / "token"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(SuperLinkRefused, match="not an operator's token"):
        read_operator_token(path)


def test_a_token_that_others_can_read(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    path.chmod(0o640)
    with pytest.raises(SuperLinkRefused, match="others can read"):
        read_operator_token(path)
    path.chmod(0o600)
    assert read_operator_token(path) == TOKEN
    with pytest.raises(SuperLinkRefused, match="no operator's token"):
        read_operator_token(tmp_path / "absent")


def test_flower_is_told_nothing_by_whoever_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of its variables opens the control API at a second port, where nobody asks for a token."""
    path = tmp_path / "token"
    path.write_text(TOKEN)
    path.chmod(0o600)
    seen: set[str] = set()
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(superlink, "_launch", lambda *_: None)
    monkeypatch.setattr(superlink, "run_superlink", lambda _: seen.update(os.environ))
    monkeypatch.setattr(os, "environ", {"PATH": "/bin", "FLWR_HOME": "/d", "FLWR_INTERNAL_GRPC_CONTROL_API": "1"})
    main(["--operator-token", str(path), "--host", "127.0.0.1", "--port", "1", "--ssl-ca-certfile", "/d/ca.crt"])
    assert seen == {"PATH", "FLWR_HOME"}


@pytest.mark.parametrize("given", [[], ["--host", "127.0.0.1", "--port", "1"], ["--port", "1", "--host"]])
def test_no_superlink_without_tls(given: list[str], tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(TOKEN)
    path.chmod(0o600)
    with pytest.raises(SuperLinkRefused, match="is missing"):
        main(["--operator-token", str(path), *given])

"""The submitter's line to SuperLink names what is wrong with its settings, and refuses one that has no node."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from flwr.proto.control_pb2 import ListRunsResponse
from flwr.proto.run_pb2 import Run

from fedlearn.errors import DeploymentRefused, OutOfRange, RoundFailed, SuperLinkRefused, SuperLinkUnreachable
from fedlearn.lab import compose
from fedlearn.lab.config import RuntimeConfig
from fedlearn.lab.superlink import line as lines
from fedlearn.lab.superlink.line import Line
from fedlearn.lab.superlink.serverapp import LOG_FILE
from fedlearn.lab.superlink.tail import Notices
from fedlearn_server import flower, training
from fedlearn_server.deployment.certificates import make_authority, now_utc
from fedlearn_server.flower import ControlLink, FlowerNode
from fedlearn_server.logs import _Lines

NODE = FlowerNode(1, "node-1", "registered", 0.0)


@dataclass
class Link:
    """Stands for ControlLink."""

    known: tuple[FlowerNode, ...]

    def nodes(self) -> tuple[FlowerNode, ...]:
        return self.known

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def local() -> RuntimeConfig:
    return compose(["experiment=city_quick", "runtime=superlink"]).runtime


@pytest.fixture
def remote(local: RuntimeConfig, tmp_path: Path) -> RuntimeConfig:
    """A SuperLink elsewhere, with everything in order."""
    make_authority(tmp_path, now_utc())
    token = tmp_path / "token"
    token.write_text("a" * 64)
    token.chmod(0o600)
    return replace(local, address="127.0.0.1:1", ca=str(tmp_path / "ca.crt"), token=str(token))


@pytest.mark.parametrize("kind", ["absent", "short", "open"])
def test_a_token_that_is_none(remote: RuntimeConfig, kind: str) -> None:
    path = Path(str(remote.token))
    if kind == "absent":
        path.unlink()
    elif kind == "short":
        path.write_text("abc")
    else:
        path.chmod(0o644)
    with pytest.raises(OutOfRange) as refused:
        Line(remote).check()
    assert str(refused.value).startswith(f"runtime.token={path}: ")
    if kind == "open":
        assert f"`chmod 600 {path}`" in str(refused.value)
        assert "`fedlearn up`, which makes a new one" in str(refused.value)


def test_an_authority_that_is_none(remote: RuntimeConfig) -> None:
    Path(str(remote.ca)).write_text("no certificate")
    with pytest.raises(OutOfRange, match=r"^runtime\.ca=.*ca\.crt: no certificate"):
        Line(remote).check()


def test_nobody_listens(remote: RuntimeConfig) -> None:
    with pytest.raises(SuperLinkUnreachable, match=r"does not answer: .*[^.]\. start it again, or correct runtime"):
        Line(remote).check()


@pytest.mark.parametrize(
    ("problem", "error", "words"),
    [
        (httpx.ConnectError("refused"), SuperLinkUnreachable, "SuperLink at here:1 does not answer: refused."),
        (httpx.ReadTimeout(""), SuperLinkUnreachable, "SuperLink at here:1 does not answer: ReadTimeout."),
        (OSError("gone."), SuperLinkUnreachable, "SuperLink at here:1: gone."),
        (503, SuperLinkUnreachable, "SuperLink at here:1 cannot answer now (503): This needs the token."),
        (
            403,
            SuperLinkRefused,
            "SuperLink at here:1 refuses (403): This needs the token. For `fedlearn train`, runtime.token names the "
            "file with it: operator.token of that SuperLink.",
        ),
        (400, SuperLinkRefused, "SuperLink at here:1 refuses (400): This needs the token."),
    ],
    ids=["connection", "silence", "system", "busy", "token", "other"],
)
def test_what_superlink_says_is_a_sentence(problem: Exception | int, error: type[Exception], words: str) -> None:
    """Its remedy follows it."""
    if isinstance(problem, int):
        response = httpx.Response(problem, json={"detail": "This needs the token."})
        problem = httpx.HTTPStatusError("", request=httpx.Request("POST", "http://here"), response=response)
    with pytest.raises(error) as raised, flower._translated("here:1"):
        raise problem
    assert str(raised.value) == words


def test_runs_are_told_newest_first(remote: RuntimeConfig) -> None:
    """SuperLink's answer is a map, which has no order."""
    link = ControlLink(str(remote.address), Path(str(remote.ca)))
    runs = {
        7: Run(run_id=7, pending_at="2026-01-02T03:04:05+00:00"),
        3: Run(run_id=3, pending_at="2026-01-02T03:04:05.5+00:00"),
        5: Run(run_id=5, pending_at="2025-12-31T23:59:59.9+00:00"),
    }
    link._client = SimpleNamespace(ListRuns=lambda _: ListRunsResponse(run_dict=runs))
    assert [(run.run_id, run.submitted) for run in link.runs()] == [
        (run_id, runs[run_id].pending_at) for run_id in (3, 7, 5)
    ]


@pytest.mark.parametrize("where", ["here", "fleet", "elsewhere"])
def test_no_node_is_refused_at_once(
    local: RuntimeConfig, remote: RuntimeConfig, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    runtime = {"here": local, "fleet": replace(local, fleet=SimpleNamespace()), "elsewhere": remote}[where]
    words = {"here": "`fedlearn up --nodes 3` starts", "fleet": "`fedlearn up --nodes 3 --gateways FILE` starts"}
    monkeypatch.setattr(lines, "_open", lambda _: Link(()))
    monkeypatch.setattr(lines, "opened", lambda _: SimpleNamespace(address="here:1", nodes=()))
    with pytest.raises(DeploymentRefused, match=rf"has no node, .*{words.get(where, 'register one there')}"):
        Line(runtime).check()
    monkeypatch.setattr(lines, "_open", lambda _: Link((NODE,)))
    Line(runtime).check()  # it may come online
    monkeypatch.setattr(lines, "opened", lambda _: SimpleNamespace(nodes=(NODE,) * 5))
    if where == "here":
        assert Line(runtime).nodes_remedy == "`fedlearn up` starts some.", "--nodes 3 would remove two"


def test_what_a_training_logs_is_what_its_follower_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_round(*_: object) -> None:
        raise RoundFailed(problems.pop(0))

    problems = ["no node is there; start one: `fedlearn up` or `fedlearn node`.", *[COUNTED] * 2]
    monkeypatch.setattr(training, "run_round", run_round)
    monkeypatch.setattr(training.time, "sleep", lambda _: None)
    said: list[str] = []
    notices = Notices(tmp_path / LOG_FILE, said.append)
    handler = logging.FileHandler(tmp_path / LOG_FILE)
    handler.setFormatter(_Lines("serverapp"))
    training.logger.addHandler(handler)
    job: Any = SimpleNamespace(asking=SimpleNamespace(attempts=3))
    state: Any = SimpleNamespace(step=7)
    try:
        with pytest.raises(RoundFailed):
            training._run_step(job, state, *[None] * 3)  # type: ignore[arg-type]
    finally:
        training.logger.removeHandler(handler)
        handler.close()
    notices.read()
    assert said == [
        "step 7: attempt 1 given up: no node is there; tried again.",
        "step 7: attempt 2 given up: no part(s) of the population accepted, at least 2 needed; tried again.",
    ]
    logged = (tmp_path / LOG_FILE).read_text()
    assert "too_late" not in logged, "counts of phones stay out of logs"
    assert len([json.loads(line) for line in logged.splitlines()]) == 2


COUNTED = "step 7: no part(s) of the population accepted, at least 2 needed (3 too_late); no answer within 120 s."

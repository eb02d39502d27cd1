"""What an operator sees: endpoints that tell the truth, counts of a conversation, and logs without anybody's words."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from fedlearn.errors import DataMissing, OutOfRange, Reason
from fedlearn_server.collect import Asking, Conversation
from fedlearn_server.flower import NODE_FAILED
from fedlearn_server.grids.in_process import InProcessGrid
from fedlearn_server.metrics import NODE_METRICS, SERVER_METRICS, Metric, NodeMetrics, ServerMetrics
from fedlearn_server.observe import ObservationServer, serve
from fedlearn_server.observed import observed_server
from fedlearn_server.round import RoundOutcome, Unprotected

CANARY = "canary-7f3a"


def get(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def samples(page: str) -> dict[str, float]:
    """``name`` or ``name{value}`` -> value of a metrics page."""
    found = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            label = "".join(f"{{{value}}}" for value in sample.labels.values())
            found[sample.name + label] = sample.value
    return found


@pytest.fixture
def served() -> Iterator[Callable[..., ObservationServer]]:
    servers: list[ObservationServer] = []

    def start(health: Callable[[], str | None], registry: CollectorRegistry | None = None) -> ObservationServer:
        servers.append(serve(registry or CollectorRegistry(), health))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def outcome(rejected: dict[Reason, int] | None = None) -> RoundOutcome:
    unprotected = Unprotected(0.5, 3, 0.0, None, rejected or {}, ())
    return RoundOutcome(0, 1, False, {"w": np.zeros(1, np.float32)}, 1.0, 0.1, unprotected, 0.2)


class TestEndpoints:
    def test_ready_follows_health(self, served: Callable[..., ObservationServer]) -> None:
        said: list[str | None] = [None]
        server = served(lambda: said[0])
        assert get(server.port, "/readyz") == (200, "ok\n")
        said[0] = "SuperLink does not answer"
        assert get(server.port, "/readyz") == (503, "SuperLink does not answer\n")
        assert get(server.port, "/healthz") == (200, "ok\n")

    def test_a_health_that_raises_is_a_reason_without_its_words(self, served: Callable[..., ObservationServer]) -> None:
        def health() -> str | None:
            raise DataMissing(CANARY)

        status, words = get(served(health).port, "/readyz")
        assert (status, words) == (503, "health could not be told: DataMissing FL201\n")

    @pytest.mark.parametrize(("path", "method", "status"), [("/", "GET", 404), ("/metrics", "POST", 405)])
    def test_nothing_else_is_there(
        self, served: Callable[..., ObservationServer], path: str, method: str, status: int
    ) -> None:
        assert get(served(lambda: None).port, path, method)[0] == status

    def test_a_client_that_hangs_holds_up_nobody(self, served: Callable[..., ObservationServer]) -> None:
        port = served(lambda: None).port
        with socket.create_connection(("127.0.0.1", port)) as silent:
            silent.sendall(b"GET /healthz HT")
            assert get(port, "/healthz")[0] == 200

    def test_a_taken_port_is_refused_with_the_way_out(self, served: Callable[..., ObservationServer]) -> None:
        port = served(lambda: None).port
        with pytest.raises(OutOfRange, match=f"metrics_port={port}.*0 picks a free"):
            serve(CollectorRegistry(), lambda: None, port)

    def test_a_closed_server_has_given_its_port_back(self) -> None:
        server = serve(CollectorRegistry(), lambda: None)
        server.close()
        serve(CollectorRegistry(), lambda: None, server.port).close()


class TestMetrics:
    def test_a_node_counts(self, served: Callable[..., ObservationServer]) -> None:
        metrics = NodeMetrics()
        metrics.online(True)
        metrics.answered(0.1)
        metrics.answered(0.1, ValueError(CANARY))
        metrics.answered(0.1, DataMissing(CANARY))
        metrics.tap("PullMessages", b"12", b"345")
        page = get(served(lambda: None, metrics.registry).port, "/metrics")[1]
        found = samples(page)
        assert found["fedlearn_node_online"] == 1
        assert found["fedlearn_node_answers_total"] == 3
        assert found["fedlearn_node_failures_total{other}"] == found["fedlearn_node_failures_total{FL201}"] == 1
        assert (found["fedlearn_node_sent_bytes_total"], found["fedlearn_node_received_bytes_total"]) == (2, 3)
        assert CANARY not in page

    @pytest.mark.parametrize("unprotected", [False, True])
    def test_figures_of_cohorts_are_exported_on_request_only(self, unprotected: bool) -> None:
        with observed_server(unprotected=unprotected) as observed:
            show = observed.rounds(lambda _: None)(outcome({Reason.LATE: 2}))
            assert show is not None
            show()
            found = samples(get(observed.port, "/metrics")[1])
        assert found.get("fedlearn_server_rejected_total{late}") == (2 if unprotected else None)
        assert ("fedlearn_server_round_seconds_count" in found) is unprotected
        assert found["fedlearn_server_rounds_total"] == found["fedlearn_server_ledger_charges"] == 1

    def test_a_round_counts_once_it_is_published(self) -> None:
        shown: list[str] = []
        with observed_server() as observed:
            publish = observed.rounds(lambda _: lambda: shown.append("shown"))(outcome())
            assert samples(get(observed.port, "/metrics")[1])["fedlearn_server_rounds_total"] == 0
            assert publish is not None
            publish()
            assert samples(get(observed.port, "/metrics")[1])["fedlearn_server_rounds_total"] == 1
        assert shown == ["shown"]

    def test_a_serverapp_without_rounds_is_not_ready(self) -> None:
        with observed_server(silent_s=-1.0) as observed:
            assert get(observed.port, "/readyz") == (503, "no round was published for 0 s\n")

    def test_seconds_since_a_round_are_of_the_moment(self) -> None:
        now = [5.0]
        metrics = ServerMetrics(clock=lambda: now[0])
        now[0] = 12.0
        assert metrics.registry.get_sample_value("fedlearn_server_since_round_seconds") == 7.0
        metrics.round_done(1)
        assert metrics.registry.get_sample_value("fedlearn_server_since_round_seconds") == 0.0

    def test_the_page_of_docs_has_every_metric(self, repository: Path) -> None:
        rows = re.findall(
            r"^\| `(fedlearn_\w+)` \| .* \| (yes|no) \|$", (repository / "docs/observability.md").read_text(), re.M
        )
        listed: tuple[Metric, ...] = (*NODE_METRICS, *SERVER_METRICS)
        assert rows == [(metric.name, "yes" if metric.unprotected else "no") for metric in listed]


class Forgetful:
    """A ClientApp that loses the first question of part 1, fails part 2 and answers the rest."""

    def __init__(self) -> None:
        self.lost = False

    def __call__(self, message: Message, context: object) -> Message:
        place = message.content["fedlearn.place"]
        if place["partition"] == 1 and not self.lost:
            self.lost = True
            return Message(Error(code=3, reason="gone"), reply_to=message)
        if place["partition"] == 2:
            return Message(Error(code=NODE_FAILED, reason="ValueError"), reply_to=message)
        reply = ConfigRecord({"payload": b"", "challenge": place["challenge"]})
        return Message(RecordDict({"fedlearn.reply": reply}), reply_to=message)


def test_a_conversation_is_counted() -> None:
    asking = Asking(deadline_s=20.0, resend_s=10.0)
    with observed_server() as observed:
        nodes = Conversation(observed.grid(InProcessGrid(Forgetful(), 2)), "{}", 3, asking)
        answers = [answer for task in (b"one", b"two") for answer in nodes.ask(task, 0)]
        found = samples(get(observed.port, "/metrics")[1])
    assert len(answers) == 6
    assert found["fedlearn_server_rounds_begun_total"] == 2
    assert found["fedlearn_server_parts_asked_total"] == 6
    assert found["fedlearn_server_parts_asked_again_total"] == 1
    replies = [found[f"fedlearn_server_replies_total{{{outcome}}}"] for outcome in ("answer", "error", "lost")]
    assert replies == [4, 2, 1]
    assert found["fedlearn_server_nodes"] == 2


LOGGING = f"""
import logging, sys, threading, warnings
before = logging.getLogger("flwr")
before.addHandler(logging.StreamHandler(sys.stderr))
before.propagate = False
from fedlearn.errors import DataMissing
from fedlearn_server.logs import log_json
log_json("node")
ours = logging.getLogger("fedlearn_server.node")
def fail():
    raise DataMissing("{CANARY}")
try:
    fail()
except DataMissing as error:
    ours.warning("part %d failed: %s", 4, error, extra={{"step": 3, "owner": "{CANARY}"}})
    ours.error(error)
    logging.getLogger("flwr").error("it failed: %s", error, exc_info=True)
    logging.getLogger("flwr").error(f"it failed: {{error}}")
ours.info("mismatch %d %d", "{CANARY}")
ours.debug("{CANARY}")
logging.getLogger("httpx").info("{CANARY}")
warnings.warn("{CANARY}")
thread = threading.Thread(target=fail)
thread.start()
thread.join()
ours.info("two\\nlines")
fail()
"""


def test_logs_are_json_lines_without_the_words_of_an_exception() -> None:
    done = subprocess.run([sys.executable, "-c", LOGGING], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert CANARY not in done.stderr + done.stdout
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert all({"time", "level", "component", "logger", "message"} <= set(line) for line in lines)
    assert {line["component"] for line in lines} == {"node"}
    first, second, template, withheld, mismatch, warned, thread, two, last = lines
    assert re.fullmatch(r"part 4 failed: DataMissing FL201 at <string>:\d+", first["message"])
    assert (first["step"], first["level"], first["logger"]) == (3, "warning", "fedlearn_server.node")
    assert "owner" not in first
    assert second["message"].startswith("DataMissing FL201")
    assert template["message"].startswith("it failed: %s (")
    assert template["error"].startswith("DataMissing FL201")
    assert withheld["message"].startswith("withheld (")
    assert mismatch["message"] == "mismatch %d %d"
    assert warned["logger"] == "py.warnings"
    assert thread["error"].startswith("DataMissing FL201")
    assert last["level"] == thread["level"] == "critical"
    assert two["message"] == "two\nlines"

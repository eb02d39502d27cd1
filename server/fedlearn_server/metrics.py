"""Every metric that a node or a ServerApp exports: names, units, help and labels, in one place.

A label takes values from a short list that is fixed in the code: error codes, reasons, outcomes. Nothing here names a
phone, a user or a run. ``docs/observability.md`` repeats the list, and a test compares the two.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from fedlearn.errors import FedlearnError, Reason

OTHER = "other"
SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Kind(Enum):
    """What a metric is to Prometheus."""

    COUNTER = Counter
    GAUGE = Gauge
    HISTOGRAM = Histogram


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Args:
        name: as Prometheus shows it; counters end in ``_total``, and a unit is part of the name.
        kind: counter, gauge or histogram.
        help: what it counts.
        labels: names of labels, each with few values.
        unprotected: it is a function of the phones that took part, and no noise covers it: exported only on request,
            and never where the population is real.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    unprotected: bool = False


NODE_ONLINE = Metric("fedlearn_node_online", Kind.GAUGE, "1 while the node is online at its SuperLink, else 0.")
NODE_ANSWERS = Metric("fedlearn_node_answers_total", Kind.COUNTER, "Answers that were sent, failures included.")
NODE_FAILURES = Metric(
    "fedlearn_node_failures_total",
    Kind.COUNTER,
    "Questions that ended in a failure, by fedlearn error code.",
    ("code",),
)
NODE_LINK_ERRORS = Metric(
    "fedlearn_node_link_errors_total",
    Kind.COUNTER,
    "Calls to SuperLink that failed, by fedlearn error code.",
    ("code",),
)
NODE_SENT = Metric("fedlearn_node_sent_bytes_total", Kind.COUNTER, "Bytes of requests to SuperLink, before TLS.")
NODE_RECEIVED = Metric("fedlearn_node_received_bytes_total", Kind.COUNTER, "Bytes of its responses, before TLS.")
NODE_SECONDS = Metric(
    "fedlearn_node_answer_seconds",
    Kind.HISTOGRAM,
    "Seconds a question took; they grow with the phones that took part.",
    unprotected=True,
)

SERVER_BEGUN = Metric(
    "fedlearn_server_rounds_begun_total",
    Kind.COUNTER,
    "Rounds that asked anybody, attempts that were given up included.",
)
SERVER_ROUNDS = Metric("fedlearn_server_rounds_total", Kind.COUNTER, "Rounds that were published.")
SERVER_CHARGES = Metric(
    "fedlearn_server_ledger_charges",
    Kind.GAUGE,
    "Charges of this run in the ledger, lost ones included; 0: no privacy.",
)
SERVER_ASKED = Metric(
    "fedlearn_server_parts_asked_total", Kind.COUNTER, "Parts of the population asked for the first time in a round."
)
SERVER_ASKED_AGAIN = Metric("fedlearn_server_parts_asked_again_total", Kind.COUNTER, "Parts asked again after silence.")
SERVER_REPLIES = Metric(
    "fedlearn_server_replies_total",
    Kind.COUNTER,
    "Replies that were pulled: answer, error (the node failed), lost (SuperLink's word that a node has gone).",
    ("outcome",),
)
SERVER_SINCE = Metric(
    "fedlearn_server_since_round_seconds", Kind.GAUGE, "Seconds since a round was published, or since the start."
)
SERVER_NODES = Metric("fedlearn_server_nodes", Kind.GAUGE, "Nodes online when the ServerApp last looked.")
SERVER_SECONDS = Metric(
    "fedlearn_server_round_seconds",
    Kind.HISTOGRAM,
    "Seconds a published round took; they grow with the phones that took part.",
    unprotected=True,
)
SERVER_REJECTED = Metric(
    "fedlearn_server_rejected_total",
    Kind.COUNTER,
    "Contributions left out of published rounds, of parts and of phones, by reason.",
    ("reason",),
    unprotected=True,
)

NODE_METRICS = (
    NODE_ONLINE,
    NODE_ANSWERS,
    NODE_FAILURES,
    NODE_LINK_ERRORS,
    NODE_SENT,
    NODE_RECEIVED,
    NODE_SECONDS,
)
SERVER_METRICS = (
    SERVER_BEGUN,
    SERVER_ROUNDS,
    SERVER_CHARGES,
    SERVER_ASKED,
    SERVER_ASKED_AGAIN,
    SERVER_REPLIES,
    SERVER_SINCE,
    SERVER_NODES,
    SERVER_SECONDS,
    SERVER_REJECTED,
)


class Registered:
    """A list of metrics in a registry of their own; what is unprotected and was not asked for is counted nowhere.

    Args:
        metrics: the list.
        unprotected: export figures of realised cohorts too: simulated populations only.
    """

    def __init__(self, metrics: tuple[Metric, ...], *, unprotected: bool) -> None:
        self.registry = CollectorRegistry()
        self._made: dict[str, Counter | Gauge | Histogram] = {}
        for metric in metrics:
            if unprotected or not metric.unprotected:
                self._made[metric.name] = _make(metric, self.registry)

    def add(self, metric: Metric, amount: float = 1.0, label: str | None = None) -> None:
        """Add to a counter."""
        found = self._found(metric, label)
        if isinstance(found, Counter):
            found.inc(amount)

    def set(self, metric: Metric, value: float | Callable[[], float]) -> None:
        """Set a gauge, or what it is read from."""
        found = self._made.get(metric.name)
        if isinstance(found, Gauge):
            if callable(value):
                found.set_function(value)
            else:
                found.set(value)

    def time(self, metric: Metric, seconds: float) -> None:
        """Put a time in a histogram."""
        found = self._made.get(metric.name)
        if isinstance(found, Histogram):
            found.observe(seconds)

    def _found(self, metric: Metric, label: str | None) -> Counter | Gauge | Histogram | None:
        found = self._made.get(metric.name)
        return found if found is None or label is None else found.labels(label)


class NodeMetrics(Registered):
    """What a resident node counts.

    Args:
        unprotected: export figures of realised cohorts too: simulated populations only.
    """

    def __init__(self, *, unprotected: bool = False) -> None:
        super().__init__(NODE_METRICS, unprotected=unprotected)

    def online(self, value: bool) -> None:
        """Say whether the node is online."""
        self.set(NODE_ONLINE, float(value))

    def answered(self, seconds: float, problem: Exception | None = None) -> None:
        """Count an answer that was sent: an error reply if ``problem`` is given."""
        self.add(NODE_ANSWERS)
        self.time(NODE_SECONDS, seconds)
        if problem is not None:
            self.add(NODE_FAILURES, label=error_code(problem))

    def link_failed(self, problem: Exception) -> None:
        """Count a call to SuperLink that failed."""
        self.add(NODE_LINK_ERRORS, label=error_code(problem))

    def tap(self, method: str, request: bytes, response: bytes) -> None:
        """Count the bytes of a call: a ``tap`` for ``FleetLink``."""
        del method
        self.add(NODE_SENT, len(request))
        self.add(NODE_RECEIVED, len(response))


class ServerMetrics(Registered):
    """What a ServerApp counts; ``fedlearn_server.observed`` fills it.

    Args:
        unprotected: export figures of realised cohorts too: simulated populations only.
        clock: monotonic seconds.
    """

    def __init__(self, *, unprotected: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(SERVER_METRICS, unprotected=unprotected)
        self._clock = clock
        self._last = clock()
        self.set(SERVER_SINCE, lambda: self.silent_s)

    @property
    def silent_s(self) -> float:
        """Seconds since a round was published, or since the start."""
        return self._clock() - self._last

    def round_done(self, charges: int) -> None:
        """Count a published round."""
        self._last = self._clock()
        self.add(SERVER_ROUNDS)
        self.set(SERVER_CHARGES, charges)

    def rejected(self, reason: Reason, count: int) -> None:
        """Count rejections of a published round."""
        self.add(SERVER_REJECTED, count, label=reason.value)


def error_code(problem: BaseException) -> str:
    """Return the fedlearn code of an error, or ``other``: never its words, which may quote data."""
    return problem.code if isinstance(problem, FedlearnError) else OTHER


def _make(metric: Metric, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
    if metric.kind is Kind.HISTOGRAM:
        return Histogram(metric.name, metric.help, metric.labels, registry=registry, buckets=SECONDS)
    if metric.kind is Kind.GAUGE:
        return Gauge(metric.name, metric.help, metric.labels, registry=registry)
    return Counter(metric.name, metric.help, metric.labels, registry=registry)

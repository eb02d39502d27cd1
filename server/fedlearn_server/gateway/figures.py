"""What a gateway counts, beside what its node counts: never per device, and nothing of who took part unless asked for.

``docs/gateway.md`` repeats the list, and a test compares the two.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from fedlearn.device.requests import Denial
from fedlearn_server.gateway.limits import Buckets
from fedlearn_server.metrics import NODE_METRICS, Kind, Metric, NodeMetrics, Registered

logger = logging.getLogger(__name__)

DENIALS = Metric(
    "fedlearn_gateway_denials_total",
    Kind.COUNTER,
    "Requests that got no task, were not enrolled or were not answered, by reason.",
    ("reason",),
)
REJECTED = Metric(
    "fedlearn_gateway_rejected_total",
    Kind.COUNTER,
    "Uploads that broke a rule, by reason; a phone that follows the protocol sends none.",
    ("reason",),
)
UPLOADS = Metric(
    "fedlearn_gateway_uploads_total",
    Kind.COUNTER,
    "Uploads that were answered: accepted, late.",
    ("outcome",),
    unprotected=True,
)
CALL_SECONDS = Metric(
    "fedlearn_gateway_call_seconds", Kind.HISTOGRAM, "Seconds an answer took; its count is one of calls.", (), True
)
SLOWEST = Metric("fedlearn_gateway_slowest_seconds", Kind.GAUGE, "Longest answer of the last minute.")
STORE_FAILURES = Metric(
    "fedlearn_gateway_store_failures_total", Kind.COUNTER, "Requests that the store could not serve (FL709)."
)
FAULTS = Metric("fedlearn_gateway_faults_total", Kind.COUNTER, "Requests that met a bug in the gateway; always 0.")
DRAINING = Metric("fedlearn_gateway_draining", Kind.GAUGE, "1 while no new tasks are given because the end is wished.")
COLLECTIONS = Metric("fedlearn_gateway_collections", Kind.GAUGE, "Collections that are open in the shared state.")
ROOM = Metric("fedlearn_gateway_room", Kind.GAUGE, "Contributions that open collections still want.", (), True)
ACCEPTED = Metric("fedlearn_gateway_accepted", Kind.GAUGE, "Contributions that open collections have.", (), True)
CERTIFICATE_EXPIRES = Metric(
    "fedlearn_gateway_certificate_expires_timestamp_seconds", Kind.GAUGE, "When the certificate expires, Unix time."
)
STATUS_ISSUED = Metric(
    "fedlearn_gateway_status_issued_timestamp_seconds",
    Kind.GAUGE,
    "When the signed status that is handed out was issued, Unix time; 0: there is none.",
)

GATEWAY_METRICS: Final = (
    DENIALS,
    REJECTED,
    UPLOADS,
    CALL_SECONDS,
    SLOWEST,
    STORE_FAILURES,
    FAULTS,
    DRAINING,
    COLLECTIONS,
    ROOM,
    ACCEPTED,
    CERTIFICATE_EXPIRES,
    STATUS_ISSUED,
)
WINDOW_S: Final = 60.0
LINES_A_SECOND: Final = 10.0
LINES_AT_ONCE: Final = 200
"""A flood of bad requests must not fill a disk with lines: what is over is counted, and said with the next line."""


class GatewayMetrics(NodeMetrics):
    """What a gateway counts; its node's metrics are among them.

    Args:
        unprotected: count who took part too: simulated populations only.
        clock: monotonic seconds.
    """

    def __init__(self, *, unprotected: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        Registered.__init__(self, (*NODE_METRICS, *GATEWAY_METRICS), unprotected=unprotected)
        self._clock = clock
        self._lines = Buckets(LINES_A_SECOND, LINES_AT_ONCE, clock=clock, most=1)
        self._unsaid = 0
        self._slowest: deque[tuple[float, float]] = deque()
        self._lock = threading.Lock()
        self.set(SLOWEST, self.slowest)

    def denied(self, method: str, denial: Denial) -> None:
        """Count and log a refusal."""
        self.add(DENIALS, label=denial.value)
        self._say("denied", method, denial.value)

    def rejected(self, reason: str) -> None:
        """Count and log an upload that broke a rule."""
        self.add(REJECTED, label=reason)
        self._say("rejected", "Upload", reason)

    def uploaded(self, outcome: str) -> None:
        """Count an upload that broke none."""
        self.add(UPLOADS, label=outcome)

    def store_failed(self, method: str) -> None:
        """Count a request that the store could not serve."""
        self.add(STORE_FAILURES)
        self._say("the store failed", method, Denial.BUSY.value)

    def fault(self) -> None:
        """Count a bug."""
        self.add(FAULTS)

    def call_took(self, seconds: float) -> None:
        """Note how long an answer took."""
        self.time(CALL_SECONDS, seconds)
        now = self._clock()
        with self._lock:  # falling maxima: what is shorter and older can never be the longest again
            while self._slowest and self._slowest[-1][1] <= seconds:
                self._slowest.pop()
            self._slowest.append((now, seconds))
            self._forget(now)

    def slowest(self) -> float:
        """Return the longest answer of the last minute, seconds."""
        with self._lock:
            self._forget(self._clock())
            return self._slowest[0][1] if self._slowest else 0.0

    def _forget(self, now: float) -> None:
        while self._slowest and self._slowest[0][0] < now - WINDOW_S:
            self._slowest.popleft()

    def _say(self, what: str, method: str, reason: str) -> None:
        if not self._lines.take(None):
            self._unsaid += 1  # two threads may count as one
            return
        unsaid, self._unsaid = self._unsaid, 0
        more = f"; {unsaid} lines were left out before" if unsaid else ""
        logger.info("%s: %s%s", what, method, more, extra={"reason": reason})

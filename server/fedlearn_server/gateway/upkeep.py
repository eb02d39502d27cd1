"""What a gateway does beside answering: it tidies up, and shows figures of the shared state."""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from fedlearn.clock import Clock, system_clock
from fedlearn.errors import GatewayStoreFailed
from fedlearn_server.gateway.documents import Documents
from fedlearn_server.gateway.figures import ACCEPTED, COLLECTIONS, ROOM, STATUS_ISSUED, GatewayMetrics
from fedlearn_server.gateway.state import GatewayState

logger = logging.getLogger(__name__)

EVERY_S: Final = 1.0
TIDY_S: Final = 3600.0


class Upkeep:
    """A thread of its own, from ``start`` to ``close``.

    Args:
        state: to be kept tidy.
        documents: whose status is watched.
        figures: to be filled.
        clock: seconds since the Unix epoch.
    """

    def __init__(
        self, state: GatewayState, documents: Documents, figures: GatewayMetrics, clock: Clock = system_clock
    ) -> None:
        self._state = state
        self._documents = documents
        self._figures = figures
        self._clock = clock
        self._ended = threading.Event()
        self._failing: str | None = None
        self._thread = threading.Thread(target=self._work, name="gateway-upkeep", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def problem(self) -> str | None:
        """Return why the store could not be used a moment ago, or None."""
        return self._failing

    def close(self) -> None:
        """End."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        tidied = -TIDY_S
        while not self._ended.wait(EVERY_S):
            try:
                self._show()
                if time.monotonic() - tidied >= TIDY_S:
                    self._state.tidy(self._clock())
                    tidied = time.monotonic()
                self._say(None)
            except GatewayStoreFailed as error:
                self._say(f"{error.code} the store cannot be used")
            except Exception:  # without this thread nothing is ever tidied
                self._figures.fault()
                logger.exception("a bug in the gateway")

    def _show(self) -> None:
        found = self._state.figures()
        self._figures.set(COLLECTIONS, found.collections)
        self._figures.set(ROOM, found.room)
        self._figures.set(ACCEPTED, found.accepted)
        self._figures.set(STATUS_ISSUED, self._documents.status_issued())

    def _say(self, problem: str | None) -> None:
        if problem != self._failing:
            if problem is None:
                logger.info("the store can be used again")
            else:
                logger.warning(problem)
            self._failing = problem

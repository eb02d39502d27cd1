"""Group commit: uploads of many requests become durable in one transaction."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final, Protocol

from fedlearn.clock import Clock, system_clock
from fedlearn.errors import GatewayStoreFailed
from fedlearn_server.gateway.accepting import Upload, Verdict

MOST_IN_BATCH: Final = 64
MOST_WAITING: Final = 256
MOST_WAITING_BYTES: Final = 256 * 2**20


class Accepting(Protocol):
    """Who accepts a batch: ``GatewayState``."""

    def accept(self, uploads: list[Upload], now: float) -> list[Verdict]:
        """Return a verdict each."""
        ...


@dataclass(frozen=True, slots=True)
class _Waiting:
    upload: Upload = field(repr=False)
    verdict: Future[Verdict]
    bytes: int


class Intake:
    """One thread that writes; while it writes a batch, the next one gathers.

    So a single upload waits for nobody, and a crowd shares the price of a write. A verdict is given when it is durable.

    Args:
        state: accepts batches.
        clock: seconds since the Unix epoch.
    """

    def __init__(self, state: Accepting, clock: Clock = system_clock) -> None:
        self._state = state
        self._clock = clock
        self._queue: queue.Queue[_Waiting | None] = queue.Queue()
        self._lock = threading.Lock()
        self._uploads = 0
        self._bytes = 0
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="gateway-intake", daemon=True)
        self._thread.start()

    def submit(self, upload: Upload) -> Future[Verdict]:
        """Return the verdict to come; its exception is GatewayStoreFailed where nothing was acknowledged.

        Raises:
            GatewayStoreFailed: as many uploads as may wait are waiting, or the intake was closed.
        """
        waiting = _Waiting(upload, Future(), len(upload.contribution))
        with self._lock:
            if self._closed:
                raise GatewayStoreFailed("busy: the gateway is leaving; send again to another one.")
            if self._uploads >= MOST_WAITING or self._bytes + waiting.bytes > MOST_WAITING_BYTES:
                raise GatewayStoreFailed("busy: more uploads are waiting than can be written; send again later.")
            self._uploads += 1
            self._bytes += waiting.bytes
            self._queue.put(waiting)
        return waiting.verdict

    def close(self) -> None:
        """Write what is waiting, and take no more."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        going = True
        while going:
            batch = [self._queue.get()]
            while len(batch) < MOST_IN_BATCH and not self._queue.empty():
                batch.append(self._queue.get())
            going = None not in batch
            self._write([waiting for waiting in batch if waiting is not None])

    def _write(self, batch: list[_Waiting]) -> None:
        if not batch:
            return
        with self._lock:
            self._uploads -= len(batch)
            self._bytes -= sum(waiting.bytes for waiting in batch)
        batch = [waiting for waiting in batch if waiting.verdict.set_running_or_notify_cancel()]
        try:
            verdicts = self._state.accept([waiting.upload for waiting in batch], self._clock())
        except Exception as error:  # noqa: BLE001 - whatever it is, each who waits must hear of it
            for waiting in batch:
                waiting.verdict.set_exception(error)
            return
        for waiting, verdict in zip(batch, verdicts, strict=True):
            waiting.verdict.set_result(verdict)

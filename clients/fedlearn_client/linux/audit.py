"""Linux default of the ``AuditSink`` hook: JSON lines in a file that only this user reads, rotated by size."""

from __future__ import annotations

import json
import math
import os
import threading
from pathlib import Path
from typing import Final

from fedlearn_client.hooks import ClockAndRng

MAX_FILE_BYTES: Final = 1024 * 1024
MAX_WORD: Final = 200


class JsonLines:
    """Writes one line an event: time, kind, fields. The file and its predecessor (``.1``) are all that is kept.

    An event that cannot be written is dropped and counted: the log of the phone maker must never stop the phone. What
    the owner may read (egress, runs, receipts) is not here but in the store.

    Args:
        path: of the file; made with mode 0600, in a directory that is there.
        clock_rng: for the time of each event.
        max_bytes: of a file before it is rotated.
    """

    def __init__(self, path: Path, clock_rng: ClockAndRng, max_bytes: int = MAX_FILE_BYTES) -> None:
        self._path = path
        self._clock_rng = clock_rng
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self.dropped = 0

    def record(self, kind: str, fields: dict[str, str | int | float | bool]) -> None:
        event = {"time": round(self._clock_rng.now(), 3), "kind": kind[:MAX_WORD]}
        event |= {name: _plain(value) for name, value in fields.items() if name not in event}
        line = json.dumps(event, sort_keys=True, allow_nan=False).encode() + b"\n"
        with self._lock:
            try:
                self._append(line)
            except OSError:
                self.dropped += 1

    def _append(self, line: bytes) -> None:
        handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(handle).st_size + len(line) > self._max_bytes:
                os.close(handle)
                handle = -1
                self._path.replace(self._path.with_name(self._path.name + ".1"))
                handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.write(handle, line)
        finally:
            if handle != -1:
                os.close(handle)


def _plain(value: object) -> str | int | float | bool:
    if isinstance(value, bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return str(value)[:MAX_WORD]

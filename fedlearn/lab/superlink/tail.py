"""Reads ``metrics.jsonl`` while another process writes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fedlearn.report.rounds import RoundRecord
from fedlearn.report.schema import decode, parse


class Tail:
    """Tells each step's record once, in order; line n is step n.

    The writer appends a line a round, and replaces the file when it begins: what it had not published is then done and
    recorded again, and was told already.

    Args:
        path: the file; may not be there yet.
        observe: told each record.
    """

    def __init__(self, path: Path, observe: Callable[[RoundRecord], None]) -> None:
        self._path = path
        self._observe = observe
        self._seen: tuple[int, int, int] | None = None
        self._next = 0

    def read(self) -> int:
        """Tell what is new, and return how many steps that were; a line that is being written counts when it is whole.

        Raises:
            DataCorrupt: a whole line is not a round.
        """
        try:
            found = self._path.stat()
            version = (found.st_ino, found.st_size, found.st_mtime_ns)
            if version == self._seen:
                return 0
            lines = self._path.read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return 0
        self._seen = version
        new = lines[self._next :]
        for line in new:
            at = f"{self._path}:{self._next + 1}"
            record = decode(RoundRecord, parse(line, at), at)
            self._next += 1
            self._observe(record)
        return len(new)

"""Reads ``metrics.jsonl`` and a ServerApp's log while another process writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


class Notices:
    """Says what a ServerApp logs that an engineer should know: attempts that were given up.

    Args:
        path: its log, JSON lines; may not be there yet. What is in it already was said before.
        say: told each.
    """

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self._path = path
        self._say = say
        self._at = path.stat().st_size if path.exists() else 0

    def read(self) -> None:
        """Say what is new; a line that is being written counts when it is whole."""
        try:
            if self._path.stat().st_size <= self._at:
                return
            with self._path.open("rb") as file:
                file.seek(self._at)
                new = file.read()
        except FileNotFoundError:
            return
        whole = new[: new.rfind(b"\n") + 1]
        self._at += len(whole)
        for line in whole.splitlines():
            words = _given_up(line)
            if words:
                self._say(words)


def _given_up(line: bytes) -> str:
    """Return what a log line says of an attempt that was given up, or ""."""
    try:
        plain: Any = json.loads(line)
        return f"step {plain['step']}: attempt {plain['attempt']} given up: {plain['reason']}; tried again."
    except (ValueError, KeyError, TypeError):
        return ""

"""JSON log lines that say what happened and where, never whose data it happened to.

A line has time, level, component, logger and message. The words of an exception may quote a phone's data, so that a
line has its kind, its fedlearn code and the line of code it came from. The words of other libraries' loggers are
not ours to vouch for: of such a record the template is kept, and its place in the code.
"""

from __future__ import annotations

import logging
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from pythonjsonlogger.json import JsonFormatter

from fedlearn_server.metrics import OTHER, error_code

OURS = ("fedlearn", "fedlearn_server", "fedlearn_client")
FIELDS = ("step", "attempt", "part", "node_id", "run_id", "reason", "seconds", "bytes")
"""What ``extra=`` may add to a line, as a number or a short word."""
WORD_LENGTH = 64


def log_json(component: str, stream: TextIO = sys.stderr, level: int = logging.INFO) -> None:
    """Write every log record of this process as one JSON line; handlers that were there before are taken away.

    Exceptions that nobody catches end as a line too, in any thread, without their words.

    Args:
        component: which part of fedlearn this process is, e.g. ``node``.
        stream: where the lines go.
        level: records below it are left out; other libraries' below WARNING always are.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Lines(component))
    handler.addFilter(_worth_a_line)
    for name in list(logging.root.manager.loggerDict):
        found = logging.getLogger(name)
        found.handlers.clear()
        found.propagate = True
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(level)
    logging.captureWarnings(capture=True)
    logging.raiseExceptions = False  # it would print the arguments of a record that cannot be formatted
    sys.excepthook = _uncaught
    threading.excepthook = lambda end: _uncaught(end.exc_type, end.exc_value, end.exc_traceback)


def _worth_a_line(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or _is_ours(record)


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] in OURS


def _uncaught(kind: type[BaseException], problem: BaseException | None, trace: TracebackType | None) -> None:
    if issubclass(kind, (KeyboardInterrupt, SystemExit)):
        return
    info = (kind, problem or kind(), trace)
    logging.getLogger("fedlearn_server.uncaught").critical("ended by an exception", exc_info=info)


class _Lines(JsonFormatter):
    """Builds the line from an allow-list of fields."""

    def __init__(self, component: str) -> None:
        super().__init__()
        self._component = component

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "component": self._component,
            "logger": record.name,
            "message": _message(record) if _is_ours(record) else _template(record),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = _describe(record.exc_info[1])
        line.update((name, value) for name in FIELDS if (value := _plain(record.__dict__.get(name))) is not None)
        return self.serialize_log_record(line)


def _message(record: logging.LogRecord) -> str:
    """Return a record's message with each exception in it replaced by its kind and code."""
    arguments = record.args
    if isinstance(arguments, tuple):
        arguments = tuple(_describe(value) if isinstance(value, BaseException) else value for value in arguments)
    try:
        return str(record.msg) % arguments if arguments else _described(record.msg)
    except (TypeError, ValueError, KeyError):
        return _described(record.msg)


def _described(message: object) -> str:
    return _describe(message) if isinstance(message, BaseException) else str(message)


def _template(record: logging.LogRecord) -> str:
    """Return the template of another library's record, and where it was logged; a message without is withheld."""
    place = f"{record.module}:{record.lineno}"
    return f"{record.msg} ({place})" if record.args and isinstance(record.msg, str) else f"withheld ({place})"


def _describe(problem: BaseException) -> str:
    """Return kind, code and the innermost line of code of an exception."""
    code, kind = error_code(problem), type(problem).__name__
    said = kind if code == OTHER else f"{kind} {code}"
    trace = problem.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return said if trace is None else f"{said} at {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"


def _plain(value: object) -> str | int | float | None:
    if isinstance(value, (int, float)):
        return value
    return value[:WORD_LENGTH] if isinstance(value, str) else None

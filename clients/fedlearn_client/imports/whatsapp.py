"""WhatsApp's "export chat" text file.

A message begins with a time and a name; further lines belong to it::

    31/12/2023, 21:41 - Ana: are we still on            (Android)
    [31.12.23, 21:41:05] Ana: for noodles tomorrow?     (iOS)
    2023/12/31 下午9:41 - Ana: 明天吃面吗                  (Android, Chinese)

The order of day and month follows the phone's region and is not written down: it is taken from a date that only one
order can explain, and if there is none the file is refused rather than guessed. An export does not mark what was
forwarded or quoted; what the owner forwarded cannot be told from what the owner wrote.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from datetime import datetime
from itertools import chain
from typing import BinaryIO, Final

from fedlearn.errors import SignalRefused
from fedlearn_client.imports.line import OwnLine

_MARKS: Final = dict.fromkeys(map(ord, "\u200e\u200f\u202a\u202b\u202c\ufeff")) | {0x202F: " ", 0xA0: " "}
_HEAD: Final = re.compile(
    r"\[?(?P<a>\d{1,4})[./-](?P<b>\d{1,2})[./-](?P<c>\d{1,4}),? "
    r"(?P<noon>[上下]午)? ?"
    r"(?P<hour>\d{1,2})[:.](?P<minute>\d{2})(?:[:.](?P<second>\d{2}))?(?: ?(?P<half>[AaPp])\.?[Mm]\.?)?"
    r"(?:\] | - )(?P<rest>.*)",
    re.DOTALL,
)
_MEDIA: Final = re.compile(
    r"<[^<>]{3,40}>|(?:image|video|audio|sticker|GIF|document|Contact card) omitted", re.IGNORECASE
)


def own_lines(file: BinaryIO, owner: str) -> Iterator[OwnLine]:
    """Yield the owner's messages, as they stand in the file.

    Args:
        file: the export, UTF-8.
        owner: the owner's name as the export writes it.

    Raises:
        SignalRefused: the file is not UTF-8 or no export, dates fit no one order, or nobody has the owner's name.
    """
    prefix = f"{owner}: "
    dates: set[tuple[int, int, int]] = set()
    mine: list[tuple[re.Match[str], str]] = []
    for head, text in _messages(file):
        dates.add((int(head["a"]), int(head["b"]), int(head["c"])))
        if text.startswith(prefix):
            mine.append((head, text.removeprefix(prefix)))
    if not dates:
        raise SignalRefused("file: no WhatsApp export; expected lines such as '31/12/2023, 21:41 - NAME: text'.")
    if not mine:
        raise SignalRefused("--me: nobody of this name wrote in the file; give the name as the export writes it.")
    order = _order(dates)
    for head, text in mine:
        if not _MEDIA.fullmatch(text.strip()):
            yield OwnLine(text, _time(head, order))


def _messages(file: BinaryIO) -> Iterator[tuple[re.Match[str], str]]:
    """Yield (head, whole text after the time) of each message."""
    head: re.Match[str] | None = None
    lines: list[str] = []
    try:
        for raw in chain(file, [b""]):
            line = raw.decode("utf-8").translate(_MARKS).rstrip("\r\n")
            found = _HEAD.fullmatch(line) if raw else None
            if (found is not None or not raw) and head is not None:
                yield head, "\n".join(lines)
            if found is not None:
                head, lines = found, [found["rest"]]
            elif head is not None:
                lines.append(line)
    except UnicodeDecodeError as error:
        raise SignalRefused("file: not UTF-8; export the chat again without changing the file.") from error


def _order(dates: Collection[tuple[int, int, int]]) -> str:
    """Return which of ymd, dmy, mdy the dates are written in."""
    fits = [
        order
        for order in ("ymd", "dmy", "mdy")
        if all(_plausible(dict(zip(order, date, strict=True))) for date in dates)
    ]
    if len(fits) == 1:
        return fits[0]
    # all dates equal under two orders (1/1, 2/2, ...): either reads them alike
    if fits == ["dmy", "mdy"] and all(a == b for a, b, _ in dates):
        return "dmy"
    problem = "several orders of day, month and year fit" if fits else "no order of day, month and year fits all dates"
    raise SignalRefused(f"file: {problem}; export a longer part of the chat.")


def _plausible(date: dict[str, int]) -> bool:
    year = date["y"]
    return 1 <= date["m"] <= 12 and 1 <= date["d"] <= 31 and (year >= 1990 or 0 <= year <= 99) and year < 2200


def _time(head: re.Match[str], order: str) -> float:
    """Return the message's time; the export has the phone's local time without a zone, so this machine's is taken."""
    date = dict(zip(order, (int(head["a"]), int(head["b"]), int(head["c"])), strict=True))
    hour = int(head["hour"])
    half = head["half"] or head["noon"]
    if half:
        hour = hour % 12 + (12 if half in {"P", "p", "下午"} else 0)
    year = date["y"] if date["y"] > 99 else 2000 + date["y"]
    try:
        return datetime(year, date["m"], date["d"], hour, int(head["minute"]), int(head["second"] or 0)).timestamp()
    except ValueError as error:
        raise SignalRefused("file: a date that does not exist; export the chat again.") from error

"""Times as documents write them: UTC to the second, ``YYYY-MM-DDTHH:MM:SSZ``."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

from fedlearn.errors import PolicyInvalid

_FORMAT: Final = "%Y-%m-%dT%H:%M:%SZ"
_SHAPE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")


def parse_time(text: str, field: str) -> float:
    """Return seconds since the Unix epoch.

    Raises:
        PolicyInvalid: another format, or no day of the calendar; names ``field``.
    """
    wrong = PolicyInvalid(f"{field}={text[:40]!r}: write a UTC time like 2027-01-31T00:00:00Z.")
    if not _SHAPE.fullmatch(text):
        raise wrong
    try:
        return datetime.strptime(text, _FORMAT).replace(tzinfo=UTC).timestamp()
    except ValueError as error:
        raise wrong from error


def format_time(seconds: float) -> str:
    """Return ``seconds`` since the Unix epoch as documents write it, cut to the second.

    Raises:
        PolicyInvalid: outside the years 1..9999, or not finite.
    """
    try:
        moment = datetime.fromtimestamp(seconds // 1, UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise PolicyInvalid(f"time={seconds}: not a time between the years 1 and 9999.") from error
    # not strftime, which leaves zeros out of years below 1000
    return f"{moment.replace(tzinfo=None).isoformat(timespec='seconds')}Z"

"""Bounds of what a caller may hand over or ask for. ``docs/device-api.md`` lists them; conformance tests them."""

from __future__ import annotations

import re
from typing import Final

STREAM_NAME: Final = re.compile(r"[a-z0-9._-]{1,64}")
FEEDBACK_STREAM: Final = "feedback"
"""Stream of an app's choices that arrive as feedback; registered by the first one, for choices only."""

SIGNALS_PER_PUSH: Final = 500
SIGNAL_ID_BYTES: Final = 64
TEXT_BYTES: Final = 16 * 1024
FOREIGN_SPANS: Final = 64
ITEM_KEY_BYTES: Final = 512
FUTURE_S: Final = 300.0

NAME_BYTES: Final = 128
"""Of an app id, a purpose id or a recipient id in a request."""

PURPOSES_PER_RESTRICTION: Final = 64
RANKED_ITEMS: Final = 100
RANKED_ITEMS_DEFAULT: Final = 10
RANKING_ID_BYTES: Final = 16
RANKINGS_PER_APP: Final = 64
RANKINGS: Final = 512
RANKING_TTL_S: Final = 3600.0

LOG_ROWS: Final = 1000
LOG_ROWS_DEFAULT: Final = 100
LOG_BODY_BYTES: Final = 4 * 1024 * 1024
"""Of all bodies in one reply of the egress log; entries past it come without theirs."""

SMALL_REQUEST_BYTES: Final = 64 * 1024
PUSH_REQUEST_BYTES: Final = 9 * 1024 * 1024  # 500 texts of 16 KiB, and what surrounds them
INSTALL_REQUEST_BYTES: Final = 8 * 1024 * 1024
STATUS_REQUEST_BYTES: Final = 1024 * 1024

CALLS_PER_APP: Final = 4
"""Calls of one app that may be under way at a time, watches not counted."""

WATCHERS: Final = 4

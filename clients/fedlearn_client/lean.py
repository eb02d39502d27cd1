"""Imports asyncio, hashlib and hmac without OpenSSL: 5 MB of the daemon that nothing in it uses. Import it first.

asyncio speaks to nobody over TLS here, and hashlib has its own SHA-2 and BLAKE2 where OpenSSL is not to be had. Each
looks for OpenSSL once, when it is imported; so it is hidden for just that moment, and whoever needs ``ssl`` later (a
phone maker's own transport) imports it as ever. Does nothing where the modules are loaded already, as in tests.
"""

from __future__ import annotations

import importlib
import sys
from typing import Final

_HIDDEN: Final = {"asyncio": "ssl", "hashlib": "_hashlib", "hmac": "_hashlib"}


def import_lean() -> None:
    """Import what is not imported yet."""
    for module, hidden in _HIDDEN.items():
        if module in sys.modules or hidden in sys.modules:
            continue
        sys.modules[hidden] = None  # type: ignore[assignment]  # makes the import fail, as the language says
        try:
            importlib.import_module(module)
        finally:
            del sys.modules[hidden]


import_lean()

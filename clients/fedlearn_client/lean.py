"""Imports asyncio, hashlib and hmac without OpenSSL: 5 MB of the daemon that nothing in it uses. Import it first.

asyncio speaks to nobody over TLS here, and hashlib has its own SHA-2 and BLAKE2 where OpenSSL is not to be had. Each
looks for OpenSSL once, when it is imported; so it is hidden for just that moment, and whoever needs ``ssl`` later (a
phone maker's own transport) imports it as ever. Does nothing where the modules are loaded already, as in tests.
"""

from __future__ import annotations

from typing import Final

from fedlearn_client.light import HASHES, import_without

_HIDDEN: Final = {"asyncio": "ssl", **HASHES}


def import_lean() -> None:
    """Import what is not imported yet."""
    for module, hidden in _HIDDEN.items():
        import_without(module, hidden)


import_lean()

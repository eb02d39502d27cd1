"""Imports a module of the standard library without a large one that it would like to have, and can do without."""

from __future__ import annotations

import importlib
import sys
from typing import Final

HASHES: Final = {"hashlib": "_hashlib", "hmac": "_hashlib"}
"""They have their own SHA-2 and BLAKE2; with OpenSSL they are 4 MB larger."""


def import_without(module: str, hidden: str) -> None:
    """Import ``module`` while ``hidden`` is not to be had; nothing happens where either is imported already."""
    if module in sys.modules or hidden in sys.modules:
        return
    sys.modules[hidden] = None  # type: ignore[assignment]  # makes the import fail, as the language says
    try:
        importlib.import_module(module)
    finally:
        del sys.modules[hidden]

"""Gives memory back to the system: a daemon that was busy once must not stay large for days."""

from __future__ import annotations

import ctypes
import gc
from typing import Final

_M_ARENA_MAX: Final = -8  # <malloc.h>
_ARENAS: Final = 2


def keep_small() -> None:
    """Have the C library keep few pools of free memory; to be called before there are threads. Nothing, elsewhere."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _ARENAS)


def give_back() -> None:
    """Collect garbage and hand free pages back; takes a few milliseconds. Only the first, where there is no glibc."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)

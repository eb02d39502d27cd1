"""Gives memory back to the system: a daemon that was busy once must not stay large for days."""

from __future__ import annotations

import ctypes
import gc
import resource
from typing import Final

_M_ARENA_MAX: Final = -8  # <malloc.h>
_ARENAS: Final = 2
_M_MMAP_THRESHOLD: Final = -3
_M_TRIM_THRESHOLD: Final = -1
_LARGE_BYTES: Final = 128 * 1024
_LARGEST_KEPT: Final = 32 * 1024 * 1024  # glibc takes no more
_SET_DUMPABLE: Final = 4  # <sys/prctl.h>


def keep_small() -> None:
    """Have the C library keep few pools of free memory; to be called before there are threads. Nothing, elsewhere."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _ARENAS)
        # the default, held fast: else it grows with the first catalogue that is freed, and later ones tear up the heap
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def leave_no_dump() -> None:
    """Have a crash write no image of this process, which holds what apps push until a worker has read it.

    The limit alone does not hold where the kernel hands dumps to a program.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_SET_DUMPABLE, 0, 0, 0, 0)


def reuse_large() -> None:
    """Have the C library keep freed memory for the next step of a training: asking the system each time is slow."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
        mallopt(_M_TRIM_THRESHOLD, 2 * _LARGEST_KEPT)


def give_back() -> None:
    """Collect garbage and hand free pages back; takes a few milliseconds. Only the first, where there is no glibc."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)

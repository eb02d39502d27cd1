"""What a worker gives up before it reads a byte of data.

``isolate`` runs first, while there is one thread; ``seal`` after the imports. Each layer is tried by itself, and what
holds is reported by name; the daemon decides whether it is enough. On a kernel without user namespaces or on a
processor without a table in ``seccomp``, that layer is absent and said to be. ``layers`` lists them.
"""

from __future__ import annotations

import ctypes
import resource
from typing import Final

from fedlearn_client.worker import seccomp
from fedlearn_client.worker.layers import LIMITS, NETWORK, NO_NEW_PRIVILEGES, NOT_DUMPABLE, SECCOMP

MEMORY_BYTES: Final = 1 << 30  # address space, most of it never touched: the libraries alone map 150 MB
OPEN_FILES: Final = 16
TRAINING_CPU_S: Final = 600

_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000
_SET_DUMPABLE, _SET_NO_NEW_PRIVS, _GET_DUMPABLE, _GET_NO_NEW_PRIVS = 4, 38, 3, 39


def isolate() -> tuple[str, ...]:
    """Enter an empty network namespace, and forbid new privileges and dumps; return the layers that hold.

    Must run while the process has one thread: the kernel refuses a user namespace to a process with more.
    """
    libc = _libc()
    layers = []
    if libc.unshare(_NEW_USER | _NEW_NETWORK) == 0 or libc.unshare(_NEW_NETWORK) == 0:
        layers.append(NETWORK)
    libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.prctl(_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1:
        layers.append(NO_NEW_PRIVILEGES)
    libc.prctl(_SET_DUMPABLE, 0, 0, 0, 0)
    if libc.prctl(_GET_DUMPABLE, 0, 0, 0, 0) == 0:
        layers.append(NOT_DUMPABLE)
    return tuple(layers)


def seal(*, cpu_s: int | None) -> tuple[str, ...]:
    """Set the limits and install the filter; return the layers that hold. Nothing can be imported afterwards.

    Args:
        cpu_s: seconds of CPU time after which the kernel ends the process, or None.
    """
    layers = []
    if _limit(cpu_s):
        layers.append(LIMITS)
    if seccomp.install(_libc()):
        layers.append(SECCOMP)
    return tuple(layers)


def _limit(cpu_s: int | None) -> bool:
    wanted = {
        resource.RLIMIT_AS: MEMORY_BYTES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_NPROC: 0,
    }
    if cpu_s is not None:
        wanted[resource.RLIMIT_CPU] = cpu_s
    for kind, most in wanted.items():
        _, hard = resource.getrlimit(kind)
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(kind, (least, least))
        except (OSError, ValueError):
            return False
    return True


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)

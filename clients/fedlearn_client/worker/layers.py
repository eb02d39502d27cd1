"""The layers that may confine a worker, by name.

=====================  ==================================================================================
layer                  what it stops
=====================  ==================================================================================
``network_namespace``  any network but an empty one of its own
``no_new_privileges``  gaining rights by running a set-uid program
``not_dumpable``       core dumps, and reading its memory by another process of the same user
``seccomp``            sockets, processes, threads, opening files, executable memory (``seccomp``)
``resource_limits``    core dumps, writing files, many open files, new processes, unbounded memory and CPU time
=====================  ==================================================================================
"""

from __future__ import annotations

from typing import Final

NETWORK: Final = "network_namespace"
NO_NEW_PRIVILEGES: Final = "no_new_privileges"
NOT_DUMPABLE: Final = "not_dumpable"
SECCOMP: Final = "seccomp"
LIMITS: Final = "resource_limits"
LAYERS: Final = (NETWORK, NO_NEW_PRIVILEGES, NOT_DUMPABLE, SECCOMP, LIMITS)


def missing(layers: frozenset[str]) -> tuple[str, ...]:
    """Return what a daemon must not do without: limits, and a way to keep the network out. () is enough."""
    needed = [] if LIMITS in layers else [LIMITS]
    if not layers & {NETWORK, SECCOMP}:
        needed.append(f"{NETWORK} or {SECCOMP}")
    return tuple(needed)

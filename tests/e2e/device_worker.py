"""A worker that is not the phone's own, for proofs: one whose nonces are known, or one that betrays its owner.

``device_worker.py MODE HEX ...``: ``nonce`` gives every contribution the nonce HEX, ``values`` hides HEX in its vector.
"""

from __future__ import annotations

import sys
from typing import Any

from fedlearn_client.worker import __main__ as worker
from fedlearn_client.worker import sandbox

mode, hidden = sys.argv[1], bytes.fromhex(sys.argv[2])
confine = sandbox.seal


def in_vector(values: Any, grid_step: float) -> Any:
    """Nothing of the update, and a byte of HEX in each of the first places."""
    from fedlearn.privacy.grid import to_grid

    grid = to_grid(values, grid_step) * 0
    grid[: len(hidden)] = list(hidden)
    return grid


def seal(*, cpu_s: int | None) -> tuple[str, ...]:
    """Called after all imports."""
    from fedlearn_client import contribution

    if mode == "nonce":
        contribution.os_bytes = lambda count: hidden[:count].ljust(count, b"\0")
    else:
        contribution.to_grid = in_vector
    return confine(cpu_s=cpu_s)


sandbox.seal = seal
sys.exit(worker.main(sys.argv[3:]))

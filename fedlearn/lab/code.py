"""Which code ran: a digest over the installed sources, so that a result says what made it."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from fedlearn import __version__

PACKAGES = ("fedlearn", "fedlearn_server")


@lru_cache(maxsize=1)
def code_digest() -> str:
    """SHA-256 (hex) over the path and bytes of every source file of the installed packages."""
    total = hashlib.sha256()
    for package in PACKAGES:
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            continue
        root = Path(spec.submodule_search_locations[0])
        for path in sorted(root.rglob("*.py")):
            total.update(f"{package}/{path.relative_to(root).as_posix()}".encode())
            total.update(path.read_bytes())
    return total.hexdigest()


def code_version() -> str:
    """Package version and source digest."""
    return f"{__version__}+{code_digest()[:12]}"

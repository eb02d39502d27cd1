"""A ledger as JSON lines: what a verifier that shares no code with this package reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from fedlearn.ledger.entries import Row, canonical

HEADER: Final = canonical({"format": "fedlearn-ledger", "version": 2})


def export_lines(rows: Iterable[Row]) -> Iterator[str]:
    """Yield the lines of an export, without line ends: its header, then a row each, as stored and unchecked."""
    yield HEADER
    for row in rows:
        yield canonical({name: getattr(row, name) for name in row.__slots__})

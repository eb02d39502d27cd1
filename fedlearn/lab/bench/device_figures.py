"""Figures beside their limits, and what they were measured on. No name of a machine, no path."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import distribution, version
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rich.table import Table

from fedlearn.errors import OutOfRange

PACKAGES: Final = (
    *("fedlearn", "fedlearn-client", "cryptography", "grpcio", "numpy", "onnxruntime", "protobuf", "sqlcipher3"),
    "torch",
)
"""Whose versions a result carries."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured quantity.

    Args:
        name: what was measured.
        unit: of the numbers; "" for counts and ratios.
        median: over the repeats.
        least, most: of the repeats.
        repeats: >= 1.
        limit: of the project, or None: for information.
        at_least: whether the limit is a floor; else it is a ceiling.
        protocol: how it was measured.
    """

    name: str
    unit: str
    median: float
    least: float
    most: float
    repeats: int
    limit: float | None
    at_least: bool
    protocol: str

    @property
    def is_met(self) -> bool | None:
        """Whether the median keeps the limit; None where there is none."""
        if self.limit is None:
            return None
        return self.median >= self.limit if self.at_least else self.median <= self.limit


def figure(
    name: str,
    unit: str,
    values: Sequence[float],
    protocol: str,
    *,
    limit: float | None = None,
    at_least: bool = False,
) -> Figure:
    """Return the figure of some repeats; raise OutOfRange where there are none."""
    if not values:
        raise OutOfRange(f"bench: {name} was not measured once; repeats must be >= 1.")
    return Figure(
        name, unit, statistics.median(values), min(values), max(values), len(values), limit, at_least, protocol
    )


@dataclass(frozen=True, slots=True)
class Machine:
    """What the figures were measured on.

    Args:
        cores: that this process may use.
        processor: architecture.
        system: kernel's name.
        python: version.
        versions: package -> version.
        load: runnable processes, mean of the last minute, before and after.
    """

    cores: int
    processor: str
    system: str
    python: str
    versions: dict[str, str]
    load: tuple[float, float]


def this_machine(load_before: float) -> Machine:
    """Return the facts of this machine; the load after is that of now."""
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        processor=platform.machine(),
        system=platform.system(),
        python=platform.python_version(),
        versions={name: version(name) for name in PACKAGES},
        load=(round(load_before, 2), round(os.getloadavg()[0], 2)),
    )


def closure(name: str) -> frozenset[str]:
    """Return the names of everything that an installed package needs, itself included, by its metadata."""
    pending, seen = [Requirement(name)], set[tuple[str, str]]()
    while pending:
        requirement = pending.pop()
        for extra in ("", *requirement.extras):
            if (requirement.name, extra) in seen:
                continue
            seen.add((requirement.name, extra))
            needed = [Requirement(line) for line in distribution(requirement.name).requires or ()]
            pending += [need for need in needed if need.marker is None or need.marker.evaluate({"extra": extra})]
    return frozenset(str(canonicalize_name(found)) for found, _ in seen)


def figures_table(figures: Iterable[Figure]) -> Table:
    """Return the figures for people: one a line, with the limit and whether it is kept."""
    table = Table("figure", "median", "least to most", "limit", "kept", "n")
    for position in (1, 2, 3, 5):
        table.columns[position].justify = "right"
    for one in figures:
        limit = "" if one.limit is None else f"{'>=' if one.at_least else '<='} {_number(one.limit)}"
        spread = "" if one.least == one.most else f"{_number(one.least)} to {_number(one.most)}"
        kept = {None: "", True: "yes", False: "NO"}[one.is_met]
        table.add_row(one.name, f"{_number(one.median)} {one.unit}".strip(), spread, limit, kept, str(one.repeats))
    return table


def _number(value: float) -> str:
    if value == 0.0 or 1e-3 <= abs(value) < 10.0:
        return f"{value:.3g}"
    return f"{value:.1e}" if abs(value) < 1e-3 else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"

"""The factorization a mechanism uses: coefficients that ship with the package, else optimised once and cached.

Both are kept as records that state what they are for, their sensitivity and their error. A record is believed only
after its coefficients were checked, both figures computed again, and its digest compared. No guarantee rests on that: a
ledger computes the sensitivity of whatever factorization its event names. It keeps a damaged file from costing accuracy
in silence.

``python -m fedlearn.privacy.coefficients`` makes the shipped records again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Final

from fedlearn.errors import InvalidSpend, MissingDependency, UnknownSetting
from fedlearn.files import cache_directory, write_durably
from fedlearn.privacy.error import max_error
from fedlearn.privacy.factorization import (
    INDEPENDENT,
    Blt,
    Factorization,
    Toeplitz,
    Tree,
    factorization_from_json,
    factorization_to_json,
)
from fedlearn.privacy.participation import Participation
from fedlearn.privacy.sensitivity import squared_sensitivity

MECHANISMS: Final = ("gaussian", "blt", "banded", "tree")
BUFFERS: Final = 2
MOST_BANDS: Final = 400
"""Bands beyond this are cut off: the noise state would be over 3 GB per million parameters."""

_OPTIMIZED: Final[Mapping[str, type[Factorization]]] = {"blt": Blt, "banded": Toeplitz}
_ALGORITHM_VERSION: Final = 1
# The figures are sums of a few thousand floats; another platform's may differ in the last digits.
_FIGURE_TOLERANCE: Final = 1e-9
_FIELDS: Final = {"mechanism", "steps", "min_separation", "max_participations", "factorization", "sens2", "max_error"}


@dataclass(frozen=True, slots=True)
class _Setting:
    mechanism: str
    steps: int
    min_separation: int
    max_participations: int

    def sens2(self, factorization: Factorization) -> float:
        return squared_sensitivity(factorization, self.steps, self.min_separation, self.max_participations)


def best_factorization(mechanism: str, steps: int, min_separation: int, max_participations: int) -> Factorization:
    """Return the factorization that a mechanism uses for these participation bounds.

    Args:
        mechanism: "gaussian" (independent noise), "blt" (2 buffers), "banded" (as many bands as min_separation, 400 at
            most) or "tree".
        steps: n >= 1.
        min_separation: b >= 1, y - x.
        max_participations: k in [1, ceil(n / b)].

    Raises:
        UnknownSetting: no such mechanism.
        InvalidSpend: another argument is out of range, or a shipped record is not what was shipped.
        MissingDependency: scipy is not installed.
    """
    if mechanism not in MECHANISMS:
        raise UnknownSetting(f"privacy.mechanism={mechanism!r}: unknown, choose one of {', '.join(MECHANISMS)}.")
    Participation(min_separation, max_participations).check_fits(steps)
    if mechanism == "gaussian":
        return INDEPENDENT
    if mechanism == "tree":
        return Tree()
    setting = _Setting(mechanism, steps, min_separation, max_participations)
    shipped = shipped_records(mechanism).get(setting)
    return _cached(setting) if shipped is None else _verified(shipped, setting)


def shipped_settings(mechanism: str) -> tuple[tuple[int, int, int], ...]:
    """Return (steps, min_separation, max_participations) of what ships for "blt" or "banded"."""
    return tuple((key.steps, key.min_separation, key.max_participations) for key in shipped_records(mechanism))


@cache
def shipped_records(mechanism: str) -> Mapping[_Setting, object]:
    """Return the shipped records of "blt" or "banded", none of them verified yet.

    Raises:
        InvalidSpend: the file is not a list of records.
    """
    name = f"{mechanism}.json"
    try:
        rows = json.loads(files("fedlearn.privacy.coefficients").joinpath(name).read_text(encoding="utf-8"))
        return {
            _Setting(mechanism, row["steps"], row["min_separation"], row["max_participations"]): row for row in rows
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidSpend(f"{name}: not the list of coefficients that was shipped; reinstall fedlearn.") from error


def write_shipped(directory: Path, bounds: Iterable[tuple[int, int, int]]) -> None:
    """Optimise for each (steps, min_separation, max_participations); write a file per mechanism into ``directory``."""
    ordered = sorted(bounds)
    for mechanism in _OPTIMIZED:
        rows = [_canonical(_record(_Setting(mechanism, *each))) for each in ordered]
        write_durably(directory / f"{mechanism}.json", ("[\n" + ",\n".join(rows) + "\n]\n").encode())


def _record(setting: _Setting) -> dict[str, object]:
    """Optimise, and return the record."""
    factorization = _optimize(setting)
    sens2 = setting.sens2(factorization)
    record: dict[str, object] = {
        "mechanism": setting.mechanism,
        "steps": setting.steps,
        "min_separation": setting.min_separation,
        "max_participations": setting.max_participations,
        "factorization": factorization_to_json(factorization),
        "sens2": sens2,
        "max_error": max_error(factorization, setting.steps, sens2),
    }
    return {**record, "check": _digest(record)}


def _optimize(setting: _Setting) -> Factorization:
    try:
        from fedlearn.privacy.banded_optimizer import optimize_banded  # noqa: PLC0415  # needs scipy
        from fedlearn.privacy.blt_optimizer import optimize_blt  # noqa: PLC0415  # needs scipy
    except ImportError as error:
        raise MissingDependency("Optimising a mechanism needs scipy: pip install 'fedlearn[privacy]'") from error
    bounds = (setting.steps, setting.min_separation, setting.max_participations)
    if setting.mechanism == "blt":
        return optimize_blt(*bounds, buffers=BUFFERS)
    return optimize_banded(*bounds, bands=min(setting.min_separation, setting.steps, MOST_BANDS))


def _verified(record: object, setting: _Setting) -> Factorization:
    """Return the record's factorization if all that the record says of it is true.

    Raises:
        InvalidSpend: it is not.
    """
    where = f"coefficients of {setting.mechanism} for {setting.steps} steps, min_separation {setting.min_separation}"
    if not isinstance(record, Mapping) or set(record) != {*_FIELDS, "check"}:
        raise InvalidSpend(f"{where}: the record's fields are not {', '.join(sorted(_FIELDS))} and check.")
    if record["check"] != _digest({name: record[name] for name in _FIELDS}):
        raise InvalidSpend(f"{where}: the record was changed after it was made; make it again or reinstall fedlearn.")
    if any(record[name] != getattr(setting, name) for name in setting.__slots__):
        raise InvalidSpend(f"{where}: the record is of other bounds.")
    factorization = factorization_from_json(record["factorization"])
    if not isinstance(factorization, _OPTIMIZED[setting.mechanism]):
        raise InvalidSpend(f"{where}: the record is of a {type(factorization).__name__}.")
    sens2 = setting.sens2(factorization)
    found = {"sens2": sens2, "max_error": max_error(factorization, setting.steps, sens2)}
    for name, figure in found.items():
        stated = record[name]
        if not isinstance(stated, float) or not math.isclose(stated, figure, rel_tol=_FIGURE_TOLERANCE):
            raise InvalidSpend(f"{where}: the record states {name}={stated}, its coefficients have {figure}.")
    return factorization


def _cached(setting: _Setting) -> Factorization:
    """Return what an earlier call optimised, else optimise now; a cache that fails costs time, not correctness."""
    path = _cache_path(setting)
    try:
        return _verified(json.loads(path.read_text(encoding="utf-8")), setting)
    except (OSError, ValueError):  # InvalidSpend is a ValueError
        record = _record(setting)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, _canonical(record).encode())
    except OSError:
        pass
    return _verified(record, setting)


def _cache_path(setting: _Setting) -> Path:
    key = [_ALGORITHM_VERSION, BUFFERS, MOST_BANDS, *(getattr(setting, name) for name in setting.__slots__)]
    return cache_directory() / "factorizations" / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()}.json"


def _digest(record: Mapping[str, object]) -> str:
    return hashlib.sha256(_canonical(record).encode()).hexdigest()


def _canonical(record: Mapping[str, object]) -> str:
    return json.dumps(record, sort_keys=True, separators=(",", ":"))

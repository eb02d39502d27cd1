"""Check the record of a fedlearn ledger without trusting, importing or sharing a line with fedlearn.

    python verifier.py EXPORT.jsonl [--checkpoint FILE] [--operator-key HEX] [--authority-key HEX]
                       [--run DIR ...] [--json]

Needs Python 3.11, ``cryptography`` and ``dp-accounting`` (which brings numpy and scipy). One file on purpose: whoever
reads it has read everything that is run. Exit status: 0 verified, 1 rejected, 2 usage or unreadable.

Every rule and every epsilon below is written from the published definitions: Balle and Wang 2018 (exact Gaussian); Bun
and Steinke 2016 (zCDP); Canonne, Kamath and Steinke 2020 (conversions); Doroshenko, Ghazi, Kamath, Kumar and Manurangsi
2022 (PLD, by dp-accounting); Wang, Balle and Kasiviswanathan 2019 (fixed-size cohorts, by dp-accounting); Papernot and
Steinke 2022 (repeat and select, by dp-accounting); Kalinin and Lampert 2024 (Toeplitz sensitivity); Kairouz et al. 2021
(trees); Feldman and Zrnic 2021 (filters).
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import math
import re
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import ROUND_CEILING, Context
from functools import lru_cache, partial, reduce
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

try:
    import dp_accounting
    import numpy as np
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from dp_accounting.pld import privacy_loss_distribution as pld
    from dp_accounting.rdp import rdp_privacy_accountant as rdp
    from scipy import special
except ImportError as missing:
    sys.stderr.write(f"error: {missing}. Run: pip install cryptography dp-accounting\n")
    raise SystemExit(2) from missing

Vector = np.ndarray[Any, np.dtype[np.float64]]

NOT_ANCHORED: Final = "not anchored: later entries may be missing"
NOT_PINNED: Final = "operator key: as named by the record itself, not pinned"

GRID: Final = 1e-4
"""Discretisation of privacy losses."""

FFT_ERROR: Final = 1.25e-16
"""Allowance per composed event for the floating-point error in delta of composing by FFT; measured: at most 1.06e-16.
"""

RENYI_ERROR: Final = 1e-12
"""Allowance for (order - 1) x divergence of a sampled event, absolute and relative; measured: at most 7e-14, and for a
tiny sampling probability below zero, which a large count would turn into a credit.
"""

TAIL_ERROR: Final = 1e-10
"""Allowance per truncated event for the relative error of scipy's binomial tails."""

ORDERS: Final = (
    *(1.01, 1.02, 1.03, 1.05, 1.07),
    *(1 + tenth / 10 for tenth in range(1, 100)),
    *(float(order) for order in range(11, 65)),
    *(72.0, 80.0, 96.0, 112.0, 128.0, 160.0, 192.0, 256.0, 320.0, 384.0, 512.0, 768.0, 1024.0, 2048.0),
)
"""Orders of Renyi divergence that are tried. Each gives a valid epsilon; the least counts."""

MOST_CELLS: Final = 1 << 22
"""Cells of a loss distribution; one that is wider is put on a coarser grid, which only raises epsilon."""

MOST_STEPS: Final = 10_000_000
"""Steps of one matrix mechanism that are recomputed; more are refused rather than taken on trust."""

SLACK: Final = 1e-9
"""Relative excess over a filter's capacity put down to floating point: a capacity is itself rounded."""

PLD_SLACK: Final = 1e-6
"""The same for a plan that was calibrated to its cap with loss distributions."""


class Rejected(Exception):
    """The record does not hold; ``entry`` is the number of the entry at fault, or None for the record as a whole."""

    def __init__(self, reason: str, entry: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.entry = entry


class Unreadable(Exception):
    """There is no record to judge: a file is absent, locked or not accessible."""


def _refuse(reason: str) -> NoReturn:
    raise ValueError(reason)


# ---------------------------------------------------------------------------------------------------------------------
# Strict JSON: what the bytes say is what was signed, in one spelling only
# ---------------------------------------------------------------------------------------------------------------------


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        _refuse("a JSON key occurs twice")
    return found


def _no_constant(name: str) -> NoReturn:
    _refuse(f"{name} is no JSON number")


def parse_json(text: str) -> Any:
    """Parse JSON; refuses duplicate keys, NaN, infinities and absurd nesting by ValueError."""
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except RecursionError:
        _refuse("JSON nested too deeply")


def canonical(value: object) -> str:
    """Return the one spelling that is hashed and signed: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _fields(value: Any, wanted: Iterable[str], what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        _refuse(f"{what} is not a JSON object")
    surplus, absent = sorted(set(value) - set(wanted)), sorted(set(wanted) - set(value))
    if surplus or absent:
        _refuse(f"{what}: surplus fields {surplus}, missing fields {absent}")
    return value


def _text(name: str, value: Any) -> str:
    if type(value) is not str:
        _refuse(f"{name} is not text")
    return str(value)


def _natural(name: str, value: Any, least: int = 0) -> int:
    if type(value) is not int or value < least:
        _refuse(f"{name}={value!r} is not an integer >= {least}")
    return int(value)


def _number(name: str, value: Any) -> float:
    if type(value) is not float or not math.isfinite(value):
        _refuse(f"{name}={value!r} is not a finite floating-point number")
    return float(value)


def _positive(name: str, value: Any) -> float:
    return _number(name, value) if type(value) is float and value > 0 else _refuse(f"{name}={value!r} is not > 0")


def _between(name: str, value: Any) -> float:
    found = _positive(name, value)
    return found if found < 1 else _refuse(f"{name}={found} is not in (0, 1)")


def _hex(digits: int, name: str, value: Any) -> str:
    if type(value) is not str or not re.fullmatch(f"[0-9a-f]{{{digits}}}", value):
        _refuse(f"{name} is not {digits} lower-case hexadecimal digits")
    return str(value)


def _one_of(choices: tuple[str, ...], name: str, value: Any) -> str:
    return str(value) if value in choices else _refuse(f"{name}={value!r} is not one of {', '.join(choices)}")


# ---------------------------------------------------------------------------------------------------------------------
# What was released: events and strategy matrices
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Poisson:
    """One noisy sum over a Poisson-sampled cohort; z is the noise's std over the clip norm."""

    z: float
    q: float


@dataclass(frozen=True)
class Truncated:
    """The same, of which a random subset is kept where the cohort is over its cap."""

    z: float
    q: float
    population: int
    cap: int


@dataclass(frozen=True)
class FixedSize:
    """A cohort drawn without replacement; z is over TWICE the clip norm: one unit replaces another."""

    z: float
    population: int
    cohort: int


@dataclass(frozen=True)
class Metric:
    """Figures released once; z is over their L2 sensitivity."""

    z: float


@dataclass(frozen=True)
class Matrix:
    """All steps of one matrix mechanism; z is over the clip norm, before the matrix's sensitivity."""

    form: str
    first: tuple[float, ...]
    second: tuple[float, ...]
    steps: int
    separation: int
    participations: int
    z: float

    def cut(self, steps: int) -> Matrix:
        """Return the mechanism of the first ``steps`` steps: the leading block of its matrix, and what fits in it."""
        first = self.first[:steps] if self.form == "toeplitz" else self.first
        most = -(-steps // self.separation)
        return replace(self, first=first, steps=steps, participations=min(self.participations, most))


@dataclass(frozen=True)
class Repeated:
    """A training of ``count`` events, repeated a random number of times, of which only the best is shown."""

    event: Poisson | Truncated | FixedSize | Metric | Matrix
    count: int
    mean: float
    shape: float


Event = Poisson | Truncated | FixedSize | Metric | Matrix | Repeated
Spend = tuple[tuple[Event, int], ...]

RELATIONS: Final[dict[type, tuple[str, ...]]] = {
    Poisson: ("add_or_remove",),
    Truncated: ("add_or_remove",),
    FixedSize: ("replace_one",),
    Metric: ("add_or_remove", "zero_out"),
    Matrix: ("zero_out",),
}


def parse_event(body: Any) -> Event:
    """Read an event; ValueError for an unknown kind, surplus or missing fields, or a value out of range."""
    kind = body.get("kind") if isinstance(body, dict) else None
    if not isinstance(kind, str) or kind not in _EVENTS:
        _refuse(f"event kind {kind!r} is unknown")
    names, build = _EVENTS[kind]
    found = _fields(body, ("kind", *names), f"event {kind}")
    return build(*(found[name] for name in names))


def _z(value: Any) -> float:
    return _positive("noise_multiplier", value)


def _q(value: Any) -> float:
    found = _positive("sampling_probability", value)
    return found if found <= 1 else _refuse(f"sampling_probability={found} is not in (0, 1]")


def _part_of(population: Any, name: str, part: Any) -> tuple[int, int]:
    whole, some = _natural("population", population, 1), _natural(name, part, 1)
    return (whole, some) if some <= whole else _refuse(f"{name}={some} is larger than population={whole}")


def _matrix(factorization: Any, steps: Any, separation: Any, participations: Any, z: Any) -> Matrix:
    form, first, second = _factorization(factorization)
    n, b = _natural("steps", steps, 1), _natural("min_separation", separation, 1)
    k = _natural("max_participations", participations, 1)
    if k > -(-n // b):
        _refuse(f"max_participations={k}: {n} steps with separation {b} leave room for {-(-n // b)}")
    if form == "toeplitz" and len(first) > n:
        _refuse(f"{len(first)} coefficients for {n} steps")
    return Matrix(form, first, second, n, b, k, _z(z))


def _factorization(body: Any) -> tuple[str, tuple[float, ...], tuple[float, ...]]:
    kind = body.get("kind") if isinstance(body, dict) else None
    if kind == "tree":
        _fields(body, ("kind",), "factorization tree")
        return "tree", (), ()
    if kind == "toeplitz":
        listed = _fields(body, ("kind", "coefficients"), "factorization toeplitz")["coefficients"]
        c = _numbers("coefficients", listed)
        # The sensitivity bound holds for these only.
        if c[0] != 1 or c[-1] < 0 or any(later > earlier for earlier, later in pairwise(c)):
            _refuse("coefficients do not begin with 1, increase or are negative")
        return "toeplitz", c, ()
    if kind == "blt":
        found = _fields(body, ("kind", "decay", "scale"), "factorization blt")
        decay, scale = _numbers("decay", found["decay"]), _numbers("scale", found["scale"])
        if len(decay) != len(scale) or len(set(decay)) < len(decay) or not all(0 < d < 1 for d in decay):
            _refuse("decays are not distinct, in (0, 1) and as many as scales")
        if not all(s > 0 for s in scale) or math.fsum(scale) > 1:
            _refuse("scales are not > 0 with a sum <= 1")
        return "blt", decay, scale
    _refuse(f"factorization kind {kind!r} is unknown")


def _numbers(name: str, values: Any) -> tuple[float, ...]:
    if not isinstance(values, list) or not values:
        _refuse(f"{name} is not a list of numbers")
    return tuple(_number(name, value) for value in values)


def _repeated(event: Any, count: Any, mean: Any, shape: Any) -> Repeated:
    inner = parse_event(event)
    if isinstance(inner, Repeated):
        _refuse("repeat_and_select of a repeat_and_select")
    if _number("mean", mean) < 1:
        _refuse(f"mean={mean} is not >= 1")
    read = math.inf if shape == "inf" else _number("shape", shape)
    if read < 0:
        _refuse(f"shape={shape} is not >= 0")
    return Repeated(inner, _natural("count", count, 1), mean, read)


_EVENTS: Final[dict[str, tuple[tuple[str, ...], Callable[..., Event]]]] = {
    "poisson_gaussian": (("noise_multiplier", "sampling_probability"), lambda z, q: Poisson(_z(z), _q(q))),
    "truncated_poisson_gaussian": (
        ("noise_multiplier", "sampling_probability", "population", "cohort_cap"),
        lambda z, q, n, m: Truncated(_z(z), _q(q), *_part_of(n, "cohort_cap", m)),
    ),
    "fixed_size_gaussian": (
        ("noise_multiplier", "population", "cohort"),
        lambda z, n, m: FixedSize(_z(z), *_part_of(n, "cohort", m)),
    ),
    "metric_release": (("noise_multiplier",), lambda z: Metric(_z(z))),
    "matrix_gaussian": (
        ("factorization", "steps", "min_separation", "max_participations", "noise_multiplier"),
        _matrix,
    ),
    "repeat_and_select": (("event", "count", "mean", "shape"), _repeated),
}


# ---------------------------------------------------------------------------------------------------------------------
# Sensitivity of matrix mechanisms
# ---------------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def squared_sensitivity(event: Matrix) -> float:
    """Return the largest squared L2 change of C x by one unit of clip norm 1, rounded up.

    Raises:
        ValueError: the mechanism is too long to be recomputed here.
    """
    if event.steps > MOST_STEPS:
        _refuse(f"steps={event.steps}: more than {MOST_STEPS} are not recomputed")
    if event.form == "tree":
        return float(tree_sensitivity(event.steps, event.separation, event.participations))
    n, column = event.steps, _column(event)
    total = np.zeros(n)
    for participation in range(event.participations):
        at = participation * event.separation
        total[at : at + len(column)] += column[: n - at]
    # Every term is >= 0: the relative error of n + k + 4 additions and products is below this.
    return float(total @ total) * (1 + 2.0**-52 * (2 * event.participations + 64 + math.isqrt(n)))


def _column(event: Matrix) -> Vector:
    """Return the first column of C, as far as it is not zero."""
    if event.form == "toeplitz":
        return np.array(event.first)
    powers = np.arange(event.steps - 1, dtype=np.float64)
    tail = np.zeros(event.steps - 1)
    for decay, scale in zip(event.first, event.second, strict=True):
        tail += scale * decay**powers
    return np.concatenate([[1.0], tail])


Table = list[np.ndarray[Any, np.dtype[np.int64]]]
_CANNOT: Final = -(1 << 40)


def tree_sensitivity(steps: int, separation: int, participations: int) -> int:
    """Return the largest sum over tree nodes of (participations below the node) squared, exactly.

    The trees are the complete binary ones that ``steps`` falls into, largest first. For one tree, table[p][s, e] is the
    most that exactly p participations can add up to if the first s and the last e steps stay free. A tree is two
    halves, and p participations under it add p squared for its root. Between the halves at least separation - 1 steps
    stay free, r of them in the right half.

    Raises:
        ValueError: so large a table is not recomputed.
    """
    b = min(separation, steps)
    k = min(participations, -(-steps // b))
    sizes = [bit for bit in reversed(range(steps.bit_length())) if steps >> bit & 1]
    if k == 1:
        return sizes[0] + 1
    if sum((min(k, -(-(1 << height) // b)) ** 2) * b**3 for height in range(sizes[0])) > 1 << 37:
        _refuse(f"tree of {steps} steps with separation {b}: too large to be recomputed")
    tables = [_leaf(b, k)]
    for height in range(1, sizes[0]):
        tables.append(_under_root(_joined(tables[-1], tables[-1], 1 << (height - 1), b, k), k))
    first = _first_rows(tables, sizes[0], b, k)
    for height in sizes[1:]:
        first = _joined(first, tables[height], None, b, k, right_length=1 << height)
    return int(max(row[0, 0] for row in first))


def _leaf(b: int, k: int) -> Table:
    none, one, cannot = np.zeros((b, b), np.int64), np.full((b, b), _CANNOT), np.full((b, b), _CANNOT)
    one[0, 0] = 1
    return [none, one, *(cannot for _ in range(k - 1))]


def _under_root(table: Table, k: int) -> Table:
    return [values + p * p for p, values in zip(range(k + 1), table, strict=True)]


def _first_rows(tables: list[Table], height: int, b: int, k: int) -> Table:
    """Return the table of the tree of that height for s = 0 only: nothing lies before the first tree."""
    rows = [values[:1] for values in tables[0]]
    for level in range(1, height + 1):
        rows = _under_root(_joined(rows, tables[level - 1], None, b, k, right_length=1 << (level - 1)), k)
    return rows


def _joined(
    left: Table, right: Table, left_length: int | None, b: int, k: int, *, right_length: int | None = None
) -> Table:
    """Return the table of two trees side by side; ``left_length`` is None where nothing blocks the left one's start."""
    right_length = left_length if right_length is None else right_length
    rows = left[0].shape[0]
    e = np.arange(b)
    spill = np.clip(e - (right_length or 0), 0, None)
    result: Table = [np.zeros((rows, b), np.int64)]
    for p in range(1, k + 1):
        # All in the left tree: what is to stay free beyond the right one reaches into it. All in the right: likewise.
        best = left[p][:, spill]
        start = np.zeros(1, np.int64) if left_length is None else np.clip(np.arange(b) - left_length, 0, None)
        best = np.maximum(best, right[p][start, :])
        for some in range(1, p):
            if left[some].max() < 0 or right[p - some].max() < 0:
                continue
            for r in range(b):
                best = np.maximum(best, left[some][:, b - 1 - r, None] + right[p - some][r])
        result.append(np.maximum(best, _CANNOT))
    return result


# ---------------------------------------------------------------------------------------------------------------------
# Epsilon: recomputed from events, every rounding toward more
# ---------------------------------------------------------------------------------------------------------------------


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Return delta of a Gaussian mechanism with sensitivity over std = mu (Balle and Wang 2018), rounded up."""
    near, far = epsilon / mu - mu / 2, epsilon / mu + mu / 2
    if near < 0:
        plus, minus, scale = special.ndtr(-near), math.exp(epsilon + special.log_ndtr(-far)), 1.0
    else:  # the same two terms over their common factor: nothing underflows
        plus, minus = special.erfcx(near / math.sqrt(2)), special.erfcx(far / math.sqrt(2))
        scale = math.exp(-near * near / 2) / 2
    # The difference cancels: allow for ten units in the last place of each term.
    return float((plus - minus + 2e-15 * (plus + minus)) * scale)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the smallest epsilon whose exact delta is at most ``delta``, rounded up."""
    goal = delta * (1 - 1e-12)
    low, high = 0.0, 1.0
    if mu == 0 or gaussian_delta(mu, 0.0) <= goal:
        return 0.0
    while gaussian_delta(mu, high) > goal:
        low, high = high, 2 * high
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if gaussian_delta(mu, middle) > goal else (low, middle)
    return high


def squared_mu(event: Event) -> float | None:
    """Return mu squared of an event that is a Gaussian mechanism, else None."""
    match event:
        case Matrix(z=z):
            return squared_sensitivity(event) / (z * z)
        case Metric(z=z) | Poisson(z=z, q=1.0):
            return 1 / (z * z)
        case _:
            return None


def epsilon_of(spend: Iterable[tuple[Event, int]], delta: float, relation: str) -> float:
    """Return an upper bound on epsilon at ``delta`` of all these events, fixed in advance, together."""
    total: Counter[Event] = Counter()
    for event, count in spend:
        total[event] += count
    return _epsilon(frozenset((event, count) for event, count in total.items() if count > 0), delta, relation)


@lru_cache(maxsize=4096)
def _epsilon(spend: frozenset[tuple[Event, int]], delta: float, relation: str) -> float:
    if not spend:
        return 0.0
    if any(isinstance(event, FixedSize | Repeated) for event, _ in spend):
        return _rdp_epsilon(spend, delta)
    if relation == "zero_out":
        squared = math.fsum(count * (squared_mu(event) or 0.0) for event, count in spend)
        return gaussian_epsilon(math.sqrt(squared) * (1 + 1e-15), delta)
    return _pld_epsilon(spend, delta)


def method_of(spend: Iterable[tuple[Event, int]], relation: str) -> str:
    """Name how epsilon of these events is recomputed."""
    if any(isinstance(event, FixedSize | Repeated) for event, _ in spend):
        return f"dp-accounting, Renyi DP over {len(ORDERS)} orders"
    return "exact Gaussian" if relation == "zero_out" else f"dp-accounting, PLD, grid {GRID:g}"


def _pld_epsilon(spend: frozenset[tuple[Event, int]], delta: float) -> float:
    # In a fixed order: the last bits must not depend on how a set is walked through.
    sampled = sorted(
        ((event, n) for event, n in spend if isinstance(event, Poisson | Truncated) and squared_mu(event) is None),
        key=repr,
    )
    plain = math.fsum(count * (squared_mu(event) or 0.0) for event, count in spend)
    truncated = sum(count for event, count in sampled if isinstance(event, Truncated))
    goal = delta * math.exp(-TAIL_ERROR * truncated) - FFT_ERROR * (sum(count for _, count in sampled) + len(spend))
    if goal <= delta / 2:
        return math.inf  # so many events that floating point cannot certify this delta
    cell = _cell(spend, sampled, plain)
    parts = [_loss(event, count, cell) for event, count in sampled]
    if plain > 0:  # n Gaussians are one with z / sqrt(n)
        std = (1 - 1e-15) / math.sqrt(plain)
        parts.append(pld.from_gaussian_mechanism(std, value_discretization_interval=cell))
    with np.errstate(over="ignore"):
        return float(reduce(lambda one, other: one.compose(other), parts).get_epsilon_for_delta(goal))


def _loss(event: Poisson | Truncated, count: int, cell: float) -> Any:
    if isinstance(event, Truncated):
        single = pld.from_truncated_subsampled_gaussian_mechanism(
            event.population, event.q, event.cap, event.z, value_discretization_interval=cell
        )
    else:
        single = pld.from_gaussian_mechanism(event.z, sampling_prob=event.q, value_discretization_interval=cell)
    return single.self_compose(count)


def _cell(spend: frozenset[tuple[Event, int]], sampled: list[tuple[Poisson | Truncated, int]], plain: float) -> float:
    """Return the grid, or a coarser one where the loss is so wide that the distribution would not fit into memory."""
    rough = plain + math.fsum(count * 4 / (event.z * event.z) for event, count in sampled)
    if rough / 2 + 16 * math.sqrt(rough) < GRID * MOST_CELLS / 2:
        return GRID
    reach = _rdp_epsilon(spend, 1e-13)
    single = max((2 / (event.z * event.z) + 24 / event.z for event, _ in sampled), default=0.0)
    return max(GRID, 2 * max(reach, single) / MOST_CELLS)


def _rdp_epsilon(spend: frozenset[tuple[Event, int]], delta: float) -> float:
    return max(0.0, float(np.min(renyi(spend, ORDERS) + _overhead(np.array(ORDERS), delta))))


def renyi(spend: Iterable[tuple[Event, int]], orders: Sequence[float]) -> Vector:
    """Return the Renyi DP of all these events at each of ``orders``; ValueError where one is no number >= 0."""
    total = sum((count * _renyi(event, tuple(orders)) for event, count in spend), np.zeros(len(orders)))
    # One that is none must not pass for zero: with nearly no noise, dp-accounting subtracts infinities.
    return total if (total >= 0).all() else _refuse("Renyi DP that is no number >= 0: epsilon cannot be recomputed")


@lru_cache(maxsize=4096)
def _renyi(event: Event, orders: tuple[float, ...]) -> Vector:
    squared = squared_mu(event)
    if squared is not None:
        return np.array(orders) * squared / 2
    match event:
        case Truncated(z=z):
            # One unit more may push another one out: at worst twice the clip norm, and no amplification is claimed.
            return np.array(orders) * 2 / (z * z)
        case Poisson(z=z, q=q):
            step = dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(z))
            relation = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
        case FixedSize(z=z, population=population, cohort=cohort):
            step = dp_accounting.SampledWithoutReplacementDpEvent(population, cohort, dp_accounting.GaussianDpEvent(z))
            relation = dp_accounting.NeighboringRelation.REPLACE_ONE
        case Repeated():
            # dp-accounting has no public function for this: its event would not take a matrix mechanism as its part.
            single = renyi([(event.event, event.count)], orders)
            return np.asarray(rdp._compute_rdp_repeat_and_select(orders, single, event.mean, event.shape))
        case _:
            raise TypeError(event)
    accountant = dp_accounting.rdp.RdpAccountant(orders, relation)
    with np.errstate(all="ignore"):  # what is no number is refused by the caller
        accountant.compose(step)
    allowance = RENYI_ERROR * np.array(orders) / (np.array(orders) - 1)
    return np.asarray(np.asarray(accountant.rdp) * (1 + RENYI_ERROR) + allowance)


# ---------------------------------------------------------------------------------------------------------------------
# Filters: what a scope may spend when each run is chosen in sight of the earlier ones
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gate:
    """A privacy filter: rho of zCDP, or Renyi DP of one order that was fixed before the first run."""

    order: float | None
    delta: float

    def cost(self, spend: Spend) -> float:
        """Return what these events take of a capacity; ValueError for an event that the filter cannot bound."""
        if self.order is None:
            return math.fsum(count * _rho(event) for event, count in spend)
        orders = sorted({*ORDERS, self.order})
        at = orders.index(self.order)
        repeated = [(event, count) for event, count in spend if isinstance(event, Repeated)]
        others = [(event, count) for event, count in spend if not isinstance(event, Repeated)]
        return float(renyi(others, [self.order])[0] + renyi(repeated, orders)[at])

    def epsilon(self, cost: float) -> float:
        """Return the epsilon at delta that this cost stands for, or 0 for none."""
        if cost == 0:
            return 0.0
        if self.order is None:
            return max(0.0, -_highest(lambda order: -cost * order - _overhead(order, self.delta)))
        return max(0.0, cost + float(_overhead(np.array(self.order), self.delta)))

    def capacity(self, epsilon: float) -> float:
        """Return the largest cost whose epsilon is at most this one."""
        if self.order is None:
            return max(0.0, _highest(lambda order: (epsilon - _overhead(order, self.delta)) / order))
        return max(0.0, epsilon - float(_overhead(np.array(self.order), self.delta)))


def _highest(value: Callable[[Vector], Vector]) -> float:
    """Return the highest value found at any order above 1; each order gives a valid one, so none is too good."""
    coarse = np.linspace(-6, 14, 2001)
    best = coarse[int(np.argmax(value(1 + np.exp(coarse))))]
    return float(np.max(value(1 + np.exp(np.linspace(best - 0.01, best + 0.01, 2001)))))


def _overhead(order: Vector, delta: float) -> Vector:
    """Return epsilon at delta less the Renyi divergence at ``order`` (Canonne, Kamath and Steinke 2020, prop. 12)."""
    return np.log1p(-1 / order) - (math.log(delta) + np.log(order)) / (order - 1)


def _rho(event: Event) -> float:
    squared = squared_mu(event)
    if squared is not None:
        return squared / 2
    match event:
        case Poisson(z=z) | FixedSize(z=z):
            return 1 / (2 * z * z)
        case Truncated(z=z, population=population, cap=cap):
            return (0.5 if cap == population else 2) / (z * z)
        case _:
            _refuse("repeat_and_select cannot be bounded by zCDP")


# ---------------------------------------------------------------------------------------------------------------------
# Entries and the rules by which one may follow another
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scope:
    """What the ledger was opened for."""

    ledger_id: str
    population: str
    kind: str
    unit: str
    relation: str
    epsilon: float
    delta: float
    gate: str
    order: float | None
    operator_key: str
    authority_key: str | None

    @property
    def filter(self) -> Gate | None:
        """The gate, or None for a ledger of one run whose whole plan is fixed in advance."""
        return None if self.gate == "plan" else Gate(self.order, self.delta)


def parse_scope(body: Any) -> Scope:
    """Read a scope; ValueError says what is wrong with it."""
    names = ("ledger_id", "population", "kind", "unit", "neighboring_relation", "epsilon", "delta", "gate", "order")
    found = _fields(body, (*names, "operator_key", "authority_key"), "scope")
    gate, order = _one_of(("plan", "zcdp", "rdp"), "gate", found["gate"]), found["order"]
    if (order is not None) != (gate == "rdp"):
        _refuse(f"order={order!r}: an rdp gate has an order, no other gate has")
    if order is not None and _number("order", order) <= 1:
        _refuse(f"order={order} is not > 1")
    authority = found["authority_key"]
    return Scope(
        ledger_id=_hex(32, "ledger_id", found["ledger_id"]),
        population=_text("population", found["population"]),
        kind=_one_of(("simulated", "enrolled"), "kind", found["kind"]),
        unit=_text("unit", found["unit"]),
        relation=_one_of(
            ("add_or_remove", "zero_out", "replace_one"), "neighboring_relation", found["neighboring_relation"]
        ),
        epsilon=_positive("epsilon", found["epsilon"]),
        delta=_between("delta", found["delta"]),
        gate=gate,
        order=order,
        operator_key=_hex(64, "operator_key", found["operator_key"]),
        authority_key=None if authority is None else _hex(64, "authority_key", authority),
    )


def _plan(body: Any) -> Spend:
    if not isinstance(body, list) or not body:
        _refuse("plan is not a list of planned events")
    parts = []
    for part in body:
        found = _fields(part, ("event", "count"), "planned event")
        event, count = parse_event(found["event"]), _natural("count", found["count"], 1)
        if isinstance(event, Matrix) and count != 1:
            _refuse(f"count={count} of a matrix mechanism: one event is the whole mechanism")
        parts.append((event, count))
    return tuple(parts)


_digest, _signature = partial(_hex, 64), partial(_hex, 128)
RULES: Final = ("completed", "data_independent", "judgement")
KINDS: Final[dict[str, dict[str, Callable[[str, Any], object]]]] = {
    "opened": {"scope": lambda _, value: parse_scope(value)},
    "granted": {"purpose": _text, "epoch": _text, "epsilon": _positive, "authority_signature": _signature},
    "run_opened": {
        "run": _text,
        "purpose": _text,
        "epoch": _text,
        "plan": lambda _, value: _plan(value),
        "config_digest": _digest,
    },
    "reserved": {"run": _text, "part": _natural, "step": _natural, "attempt": _natural},
    "voided": {"reservation": _natural, "reason": _text},
    "charged": {
        "reservation": _natural,
        "run": _text,
        "part": _natural,
        "step": _natural,
        "task_digest": _digest,
        "sum_digest": _digest,
    },
    "committed": {"charge": _natural, "published_digest": _digest},
    "run_closed": {"run": _text, "rule": partial(_one_of, RULES), "reason": _text},
    "recovered": {"reason": _text, "authority_signature": _signature},
}
_COMMON: Final = {"sequence": _natural, "time": _number}


class Row(NamedTuple):
    """An entry as it is stored."""

    sequence: int
    kind: str
    body: str
    hash: str
    signature: str


def parse_entry(row: Row) -> dict[str, Any]:
    """Read a row's body; ValueError unless it is the canonical spelling of exactly the fields of its kind."""
    if row.kind not in KINDS:
        _refuse(f"kind {row.kind!r} is unknown")
    body = parse_json(row.body)
    if not row.body.isascii() or canonical(body) != row.body:
        _refuse("the body is not canonical JSON")
    wanted = {**_COMMON, **KINDS[row.kind]}
    return {name: wanted[name](name, value) for name, value in _fields(body, wanted, row.kind).items()}


@dataclass
class Run:
    """What follows for one run from the entries so far."""

    name: str
    purpose: str
    epoch: str
    plan: Spend
    opened_at: int
    open_reservation: int | None = None
    made: Counter[int] = field(default_factory=Counter)
    highest: dict[int, int] = field(default_factory=dict)
    attempts: Counter[tuple[int, int]] = field(default_factory=Counter)
    committed: set[tuple[int, int]] = field(default_factory=set)
    last_published: str | None = None
    end: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether it may still spend."""
        return self.end is None

    @property
    def spent(self) -> Spend:
        """What counts as spent: the charges, or the whole plan of a run that was stopped on sight of data or lost."""
        if self.end in ("judgement", "recovered"):
            return self.plan
        return tuple(
            (event.cut(self.highest[part] + 1), 1)
            if isinstance(event, Matrix)
            else (event, count if isinstance(event, Repeated) else self.made[part])
            for part, (event, count) in enumerate(self.plan)
            if self.made[part] > 0
        )

    @property
    def held(self) -> Spend:
        """What is not available to others: what was spent, or the whole plan while the run may go on."""
        return self.plan if self.is_open else self.spent


@dataclass
class Reservation:
    """A step that was announced."""

    run: str
    part: int
    step: int


@dataclass
class Charge:
    """A step that was paid."""

    run: str
    part: int
    step: int
    committed: bool = False


class Book:
    """The state machine: takes entries one by one and refuses, by ValueError, one that may not follow."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.runs: dict[str, Run] = {}
        self.quotas: dict[tuple[str, str], float] = {}
        self.grants = 0
        self.recoveries: list[int] = []
        self.voided = 0
        self.reservations: dict[int, Reservation] = {}
        self.charges: dict[int, Charge] = {}

    def apply(self, kind: str, entry: Mapping[str, Any]) -> None:
        """Take the next entry into account."""
        take: dict[str, Callable[..., None]] = {
            "granted": self._granted,
            "run_opened": self._run_opened,
            "reserved": self._reserved,
            "voided": self._voided,
            "charged": self._charged,
            "committed": self._committed,
            "run_closed": self._run_closed,
            "recovered": self._recovered,
        }
        take[kind](**{name: value for name, value in entry.items() if name != "time"})

    def _granted(self, *, sequence: int, purpose: str, epoch: str, epsilon: float, authority_signature: str) -> None:
        text = {"ledger_id": self.scope.ledger_id, "sequence": sequence, "purpose": purpose, "epoch": epoch}
        self._by_authority(b"fedlearn ledger grant v1\n", {**text, "epsilon": epsilon}, authority_signature)
        runs = self.runs_of(purpose, epoch)
        if epsilon > self.scope.epsilon:
            _refuse(f"a quota of {epsilon:g} under a cap of {self.scope.epsilon:g}")
        if runs:
            self._within(epsilon, [run.held for run in runs], f"the quota of ({purpose}, {epoch}) granted here")
        self.quotas[purpose, epoch] = epsilon
        self.grants += 1

    def _run_opened(
        self, *, sequence: int, run: str, purpose: str, epoch: str, plan: Spend, config_digest: str
    ) -> None:
        del config_digest
        scope = self.scope
        if run in self.runs:
            _refuse(f"run {run!r} was opened before")
        for event, _ in plan:
            if scope.relation not in RELATIONS[type(event.event if isinstance(event, Repeated) else event)]:
                _refuse(f"a planned event has no meaning under {scope.relation}")
        if scope.gate == "plan" and self.runs:
            _refuse("a second run under a gate for one plan")
        if scope.authority_key is not None and (purpose, epoch) not in self.quotas:
            _refuse(f"no grant for purpose {purpose!r}, epoch {epoch!r}")
        everyone = [other.held for other in self.runs.values()]
        self._within(scope.epsilon, [*everyone, plan], "the cap")
        if (purpose, epoch) in self.quotas:
            peers = [other.held for other in self.runs_of(purpose, epoch)]
            self._within(self.quotas[purpose, epoch], [*peers, plan], f"the quota of ({purpose}, {epoch})")
        self.runs[run] = Run(run, purpose, epoch, plan, sequence)

    def _reserved(self, *, sequence: int, run: str, part: int, step: int, attempt: int) -> None:
        found = self._open_run(run)
        if found.open_reservation is not None:
            _refuse(f"reservation {found.open_reservation} of run {run!r} is still open")
        if part >= len(found.plan):
            _refuse(f"part {part}: the plan of run {run!r} has {len(found.plan)}")
        event = found.plan[part][0]
        if isinstance(event, Matrix) and step >= event.steps:
            _refuse(f"step {step} lies beyond the {event.steps} steps that were analysed")
        if (part, step) in found.committed:
            _refuse(f"step {step} of part {part} was committed before; a step is released once")
        if attempt != found.attempts[part, step]:
            _refuse(f"attempt {attempt} of step {step}, where {found.attempts[part, step]} charges were made")
        found.open_reservation = sequence
        self.reservations[sequence] = Reservation(run, part, step)

    def _voided(self, *, sequence: int, reservation: int, reason: str) -> None:
        del sequence, reason
        self._taken(reservation, "voided")
        self.voided += 1

    def _charged(
        self, *, sequence: int, reservation: int, run: str, part: int, step: int, task_digest: str, sum_digest: str
    ) -> None:
        del task_digest, sum_digest
        held = self._taken(reservation, "charged")
        if (held.run, held.part, held.step) != (run, part, step):
            _refuse(f"a charge of {run!r}, part {part}, step {step} on a reservation for another")
        found = self.runs[run]
        event, count = found.plan[part]
        found.made[part] += 1
        found.attempts[part, step] += 1
        found.highest[part] = max(found.highest.get(part, 0), step)
        if not isinstance(event, Matrix) and found.made[part] > count:
            _refuse(f"charge number {found.made[part]} of part {part}, for which {count} were planned")
        self.charges[sequence] = Charge(run, part, step)

    def _committed(self, *, sequence: int, charge: int, published_digest: str) -> None:
        del sequence
        found = self.charges.get(charge)
        if found is None:
            _refuse(f"a commit of {charge}, which is no charge")
        self._open_run(found.run)
        if found.committed:
            _refuse(f"a second commit of charge {charge}")
        run = self.runs[found.run]
        if (found.part, found.step) in run.committed:
            _refuse(f"step {found.step} of part {found.part} was committed under another charge")
        found.committed = True
        run.committed.add((found.part, found.step))
        run.last_published = published_digest

    def _run_closed(self, *, sequence: int, run: str, rule: str, reason: str) -> None:
        del sequence, reason
        found = self._open_run(run)
        if found.open_reservation is not None:
            _refuse(f"run {run!r} is closed with its reservation {found.open_reservation} open")
        found.end = rule

    def _recovered(self, *, sequence: int, reason: str, authority_signature: str) -> None:
        text = {"ledger_id": self.scope.ledger_id, "sequence": sequence, "reason": reason}
        self._by_authority(b"fedlearn ledger recovery v1\n", text, authority_signature)
        for run in self.runs.values():
            if run.is_open:
                run.end, run.open_reservation = "recovered", None
        self.recoveries.append(sequence)

    def runs_of(self, purpose: str, epoch: str) -> list[Run]:
        """Return the runs of one quota."""
        return [run for run in self.runs.values() if (run.purpose, run.epoch) == (purpose, epoch)]

    def _open_run(self, name: str) -> Run:
        found = self.runs.get(name)
        if found is None:
            _refuse(f"run {name!r} was never opened")
        if not found.is_open:
            _refuse(f"run {name!r} was closed ({found.end})")
        return found

    def _taken(self, reservation: int, verb: str) -> Reservation:
        held = self.reservations.get(reservation)
        if held is None or self.runs[held.run].open_reservation != reservation:
            _refuse(f"reservation {reservation} is {verb}, but it is not open")
        self.runs[held.run].open_reservation = None
        return held

    def _by_authority(self, domain: bytes, text: dict[str, Any], signature: str) -> None:
        key = self.scope.authority_key
        if key is None:
            _refuse("the scope has no authority that could sign this")
        if not signed_by(key, domain + canonical(text).encode(), signature):
            _refuse("the authority's signature is not valid")

    def _within(self, epsilon: float, spends: list[Spend], of_what: str) -> None:
        """Refuse spends that together exceed ``epsilon`` at the scope's delta."""
        scope = self.scope
        if scope.filter is None:
            found = epsilon_of((pair for spend in spends for pair in spend), scope.delta, scope.relation)
            if not found <= epsilon * (1 + PLD_SLACK):
                _refuse(f"epsilon {up(found)} is planned, more than {of_what}: {epsilon:g}")
            return
        cost = math.fsum(_cost(scope.filter, spend) for spend in spends)
        capacity = scope.filter.capacity(epsilon)
        if not cost <= capacity * (1 + SLACK):
            _refuse(f"{scope.gate} cost {cost:.6g} is more than {of_what} allows: {capacity:.6g} (epsilon {epsilon:g})")


@lru_cache(maxsize=4096)
def _cost(gate: Gate, spend: Spend) -> float:
    return gate.cost(spend)


def signed_by(key: str, message: bytes, signature: str) -> bool:
    """Return whether ``signature`` (hex) is one of ``message`` by the Ed25519 key (hex)."""
    try:
        _public_key(key).verify(bytes.fromhex(signature), message)
    except (InvalidSignature, ValueError):
        return False
    return True


@lru_cache(maxsize=64)
def _public_key(key: str) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))


def up(value: float) -> str:
    """Print with six digits, rounded up."""
    if not math.isfinite(value):
        return str(value)
    return f"{float(Context(prec=6, rounding=ROUND_CEILING).create_decimal_from_float(value)):g}"


# ---------------------------------------------------------------------------------------------------------------------
# Files: exports, ledger files, checkpoints
# ---------------------------------------------------------------------------------------------------------------------

GENESIS: Final = "0" * 64
_SQLITE: Final = b"SQLite format 3\0"


def read_bytes(path: Path) -> bytes:
    """Return a file's content, or raise Unreadable."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unreadable(f"{path}: cannot be read ({error.strerror})") from error


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of an export, or of a SQLite ledger file that nobody holds, in order.

    Raises:
        Unreadable: the file is absent, not accessible or in use.
        Rejected: it is no export of version 2, or a row is not exactly what one is.
    """
    try:
        with path.open("rb") as file:
            head = file.read(len(_SQLITE))
    except OSError as error:
        raise Unreadable(f"{path}: cannot be read ({error.strerror})") from error
    return _sqlite_rows(path) if head == _SQLITE else _export_rows(read_bytes(path))


def _export_rows(content: bytes) -> Iterator[Row]:
    lines = content.split(b"\n")
    if _export_line(lines[0], None) != {"format": "fedlearn-ledger", "version": 2}:
        raise Rejected("the first line is not that of a fedlearn ledger export of version 2")
    for number, line in enumerate(lines[1:-1]):
        yield _row(_export_line(line, number), number)
    if len(lines) < 2 or lines[-1]:
        raise Rejected("the last line does not end: the export was cut off", len(lines) - 2)


def _export_line(line: bytes, number: int | None) -> Any:
    try:
        text = line.decode("ascii")
        value = parse_json(text)
        # In one of the two usual spacings: a byte that does not matter is a byte that could carry something.
        if text not in (json.dumps(value, separators=(",", ":")), json.dumps(value)):
            _refuse("the line is not written as JSON usually is")
    except ValueError as error:
        raise Rejected(f"not a line of an export ({error})", number) from error
    # A number that merely equals an integer is not one.
    if number is None and isinstance(value, dict) and type(value.get("version")) is not int:
        return None
    return value


def _row(value: Any, number: int) -> Row:
    try:
        found = _fields(value, Row._fields, "row")
        return Row(
            _natural("sequence", found["sequence"]),
            _text("kind", found["kind"]),
            _text("body", found["body"]),
            _hex(64, "hash", found["hash"]),
            _hex(128, "signature", found["signature"]),
        )
    except ValueError as error:
        raise Rejected(str(error), number) from error


def _sqlite_rows(path: Path) -> Iterator[Row]:
    # Without a log beside it nobody has the file open, and reading it need not touch its folder.
    alone = not any(path.with_name(path.name + suffix).exists() for suffix in ("-wal", "-journal"))
    name = f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if alone else ''}"
    try:
        connection = sqlite3.connect(name, uri=True, timeout=2.0)
    except sqlite3.Error as error:
        raise Unreadable(f"{path}: {error}") from error
    try:
        query = f"SELECT {', '.join(Row._fields)} FROM entries ORDER BY sequence"  # noqa: S608 - names of our own
        for number, values in enumerate(connection.execute(query)):
            yield _row(dict(zip(Row._fields, values, strict=True)), number)
    except sqlite3.OperationalError as error:
        if "locked" in str(error) or "unable to open" in str(error) or "readonly" in str(error):
            raise Unreadable(f"{path}: {error}; wait until the process that holds it has ended") from error
        raise Rejected(f"not a ledger file of version 2 ({error})") from error
    except (sqlite3.Error, ValueError, OverflowError) as error:
        raise Rejected(f"the ledger file is damaged ({error})") from error
    finally:
        connection.close()


@dataclass(frozen=True)
class Pins:
    """Keys that the reviewer got from somewhere else than the record."""

    operator: str | None = None
    authority: str | None = None


@dataclass
class Record:
    """A record whose every entry was checked."""

    path: Path
    hashes: list[str]
    kinds: Counter[str]
    first_time: float
    last_time: float
    book: Book

    @property
    def scope(self) -> Scope:
        """What the ledger was opened for."""
        return self.book.scope


def check_record(path: Path, pins: Pins) -> Record:
    """Read a record and check each entry: chain, signatures, and that it may follow the ones before it.

    Raises:
        Unreadable: there is no record to judge.
        Rejected: the first entry that does not hold, and why.
    """
    record: Record | None = None
    previous = GENESIS
    for number, row in enumerate(read_rows(path)):
        try:
            if row.hash != hashlib.sha256(f"{previous}\n{row.kind}\n{row.body}".encode()).hexdigest():
                _refuse("its hash does not follow from the entry before it")
            entry = parse_entry(row)
            if not row.sequence == entry["sequence"] == number:
                _refuse(f"it says it is number {row.sequence} and {entry['sequence']}, but it is number {number}")
            if (row.kind == "opened") != (number == 0):
                _refuse("a ledger begins with its scope and has one")
            if record is None:
                record = Record(path, [], Counter(), entry["time"], entry["time"], Book(_pinned(entry["scope"], pins)))
            if not signed_by(
                record.scope.operator_key, f"fedlearn ledger entry v2\n{row.hash}".encode(), row.signature
            ):
                _refuse("the operator's signature is not valid")
            if number > 0:
                record.book.apply(row.kind, entry)
        except (ValueError, ArithmeticError) as error:
            raise Rejected(str(error), number) from error
        previous, record.last_time = row.hash, entry["time"]
        record.hashes.append(row.hash)
        record.kinds[row.kind] += 1
    if record is None:
        raise Rejected("the record is empty: not even a scope")
    return record


def _pinned(scope: Scope, pins: Pins) -> Scope:
    if pins.operator not in (None, scope.operator_key):
        _refuse(f"the record names another operator key than was pinned: {scope.operator_key}")
    if pins.authority not in (None, scope.authority_key):
        _refuse(f"the record names another authority key than was pinned: {scope.authority_key}")
    return scope


def check_checkpoint(path: Path, record: Record) -> str:
    """Return what a checkpoint proves about a record; Rejected if the record does not satisfy it."""
    names = ("format", "version", "ledger_id", "length", "hash", "time", "signature")
    try:
        found = _fields(parse_json(read_bytes(path).decode("ascii")), names, "checkpoint")
        if found["format"] != "fedlearn-ledger-checkpoint" or _natural("version", found["version"]) != 1:
            _refuse("not a ledger checkpoint of version 1")
        signed = {
            "ledger_id": _hex(32, "ledger_id", found["ledger_id"]),
            "length": _natural("length", found["length"], 1),
            "hash": _hex(64, "hash", found["hash"]),
            "time": _number("time", found["time"]),
        }
        signature = _hex(128, "signature", found["signature"])
    except ValueError as error:
        raise Rejected(f"checkpoint: {error}") from error
    if signed["ledger_id"] != record.scope.ledger_id:
        raise Rejected(f"checkpoint: of another ledger, {signed['ledger_id']}")
    message = b"fedlearn ledger checkpoint v1\n" + canonical(signed).encode()
    if not signed_by(record.scope.operator_key, message, signature):
        raise Rejected("checkpoint: not signed by the record's operator key")
    length = int(found["length"])
    if len(record.hashes) < length:
        raise Rejected(f"truncated or rolled back: {len(record.hashes)} entries, the checkpoint saw {length}")
    if record.hashes[length - 1] != found["hash"]:
        raise Rejected("forked: at the checkpoint's length the record has another hash", length - 1)
    return f"checkpoint satisfied: nothing of the first {length} entries is missing or changed"


# ---------------------------------------------------------------------------------------------------------------------
# Run directories: the published model, and what the summary claims
# ---------------------------------------------------------------------------------------------------------------------

LEDGER_FILE: Final = "ledger.sqlite"
MODEL_STATE: Final = "checkpoint.safetensors"


@dataclass
class Directory:
    """What was found of one run directory."""

    path: Path
    records: list[Record]
    matched: list[tuple[Path, Record, Run]]
    summary: str


def check_directory(path: Path, pins: Pins, shared: Record | None) -> Directory:
    """Check the ledgers of a run directory, that each published model is the one last committed, and its summary.

    Raises:
        Unreadable: there is no such directory.
        Rejected: a ledger does not hold, a model is not the committed one, or the summary claims less than was spent.
    """
    if not path.is_dir():
        raise Unreadable(f"{path}: not a run directory")
    records = {file.parent: check_record_at(file, pins) for file in sorted(path.rglob(LEDGER_FILE))}
    for record in records.values():
        if shared is not None and shared.scope.ledger_id == record.scope.ledger_id:
            _same_history(shared, record)
    matched: list[tuple[Path, Record, Run]] = []
    for file in sorted(path.rglob(MODEL_STATE)):
        if file.relative_to(path).parts[0] == "controls" and file.parent not in records:
            continue  # trained without privacy, and says so
        found = records.get(file.parent, shared)
        if found is None:
            raise Rejected(f"{file}: no ledger lies beside it; name the export of its ledger")
        matched.append((file, found, _committed_run(file, found)))
    for folder, record in records.items():
        if record.kinds["committed"] and not (folder / MODEL_STATE).exists():
            raise Rejected(f"{folder}: its ledger has commits, but there is no {MODEL_STATE}")
    if len({(id(record), run.name) for _, record, run in matched}) < len(matched):
        raise Rejected(f"{path}: two models claim the commit of one run")
    return Directory(path, list(records.values()), matched, _check_summary(path, matched))


def check_record_at(path: Path, pins: Pins) -> Record:
    """Check a record and name its file in the reason of a rejection."""
    try:
        return check_record(path, pins)
    except Rejected as rejected:
        raise Rejected(f"{path}: {rejected.reason}", rejected.entry) from rejected


def _same_history(one: Record, other: Record) -> None:
    short = min(len(one.hashes), len(other.hashes))
    if one.hashes[:short] != other.hashes[:short]:
        raise Rejected(f"forked: {one.path} and {other.path} are two histories of ledger {one.scope.ledger_id}")


def _committed_run(file: Path, record: Record) -> Run:
    digest = hashlib.sha256(read_bytes(file)).hexdigest()
    for run in record.book.runs.values():
        if run.last_published == digest:
            return run
    raise Rejected(f"{file}: its SHA-256 {digest[:16]}... is not what the last commit of any run of its ledger names")


def _check_summary(path: Path, matched: list[tuple[Path, Record, Run]]) -> str:
    """Return what summary.json claims; Rejected if it claims less than the ledgers hold."""
    file = path / "summary.json"
    if not file.exists():
        return "no summary.json: nothing was claimed"
    try:
        summary = parse_json(read_bytes(file).decode("utf-8"))
        privacy = summary["privacy"]
        if privacy["epsilon"] is None:
            return "summary.json claims no epsilon"
        _check_epsilons(summary, matched)
        _check_spend(privacy, matched)
    except Rejected as rejected:
        raise Rejected(f"{file}: {rejected.reason}") from rejected
    except (ValueError, KeyError, TypeError, ArithmeticError) as error:
        raise Rejected(f"{file}: damaged ({error!r})") from error
    return f"summary.json claims no less than was spent: epsilon {privacy['epsilon']} at delta {privacy['delta']}"


def _check_epsilons(summary: dict[str, Any], matched: list[tuple[Path, Record, Run]]) -> None:
    if not matched:
        raise Rejected("claims an epsilon, but no model here has a ledger")
    privacy = summary["privacy"]
    delta, together, relation = (
        _between("delta", privacy["delta"]),
        privacy["if_all_published"],
        matched[0][1].scope.relation,
    )
    if privacy["neighboring_relation"] != relation.replace("_", "-"):
        raise Rejected(f"claims {privacy['neighboring_relation']!r}, but the ledger's relation is {relation}")
    one = max(epsilon_of(run.spent, delta, record.scope.relation) for _, record, run in matched)
    claims = [("epsilon", privacy["epsilon"], one)]
    claims += [(f"epsilon of {row['name']!r}", row["epsilon"], one) for row in summary["models"] if row["protected"]]
    if together is not None:
        every = epsilon_of((pair for _, _, run in matched for pair in run.spent), delta, relation)
        claims.append(("epsilon if all are published", together["epsilon"], every))
        if together["models"] != len(matched):
            raise Rejected(f"speaks of {together['models']} models, but {len(matched)} are here")
    for name, claimed, spent in claims:
        if claimed is None or not float(claimed) >= spent * (1 - PLD_SLACK):
            raise Rejected(f"claims {name} {claimed} at delta {delta}; the ledger says {up(spent)}")


def _check_spend(privacy: dict[str, Any], matched: list[tuple[Path, Record, Run]]) -> None:
    made = sum(sum(run.made.values()) for _, _, run in matched)
    kept = sum(len(run.committed) for _, _, run in matched)
    charges = privacy["charges"]
    if charges is not None and (charges["total"], charges["committed"], charges["wasted"]) != (made, kept, made - kept):
        raise Rejected(f"claims charges {charges}; the ledger has {made}, {kept} of them committed")
    if not privacy.get("spend"):
        return
    listed, spent = Counter[Event](), Counter[Event]()
    for item in privacy["spend"]:
        listed[parse_event(parse_json(item["event"]))] += _natural("count", item["count"], 1)
    for _, _, run in matched:
        for event, count in run.spent:
            spent[event] += count
    if listed != spent:
        raise Rejected("lists other events than the ledger holds as spent")


# ---------------------------------------------------------------------------------------------------------------------
# The report
# ---------------------------------------------------------------------------------------------------------------------

PROVEN: Final = (
    "every entry follows from the one before it (SHA-256) and is signed by the operator key (Ed25519)",
    "every grant and recovery is signed by the authority key, where the scope has one",
    "every epsilon here follows from the entries; it was recomputed, not read",
)
ENFORCED: Final = (
    "a run began only if its whole plan still fit the cap, and the quota of its purpose and epoch",
    "nothing was charged without a reservation, beyond the plan or the analysed length, or after a run's end",
    "nothing was published without a charge, no charge paid for two publications, no step was published twice",
    "charges whose result was lost count as spent; a run stopped by judgement or lost counts whole",
)
WORD: Final = (
    "each update was clipped to the stated norm before it was added",
    "noise of the stated size was drawn, after the charge, from a secret source, and only once per charge",
    "who was in a cohort was drawn as the events say and stayed secret; participation kept its separation and limit",
    "a voided reservation drew no noise; a stop called completed or data-independent was fixed before the run",
    "a repeat-and-select's number of repetitions was drawn beforehand, and nothing of the losers was shown",
    "training that was never entered here, e.g. while settings were tuned, touched none of these devices",
    "the times of the entries",
)


def facts_of(record: Record, pins: Pins, anchor: str | None) -> dict[str, Any]:
    """Return what was found of one record, as JSON."""
    scope, book = record.scope, record.book
    every = list(book.runs.values())
    pairs = sorted({(run.purpose, run.epoch) for run in every} | set(book.quotas))
    return {
        "path": str(record.path),
        "ledger_id": scope.ledger_id,
        "population": scope.population,
        "kind": scope.kind,
        "unit": scope.unit,
        "neighboring_relation": scope.relation,
        "cap": {"epsilon": scope.epsilon, "delta": scope.delta},
        "gate": scope.gate,
        "order": scope.order,
        "operator_key": scope.operator_key,
        "operator_key_pinned": pins.operator is not None,
        "authority_key": scope.authority_key,
        "authority_key_pinned": pins.authority is not None,
        "anchor": anchor or NOT_ANCHORED,
        "entries": len(record.hashes),
        "last_hash": record.hashes[-1],
        "kinds": dict(sorted(record.kinds.items())),
        "recoveries": book.recoveries,
        "runs": [_run_facts(run, scope) for run in every],
        "quotas": [
            {
                "purpose": purpose,
                "epoch": epoch,
                "granted": book.quotas.get((purpose, epoch)),
                **_figures(book.runs_of(purpose, epoch), scope),
            }
            for purpose, epoch in pairs
        ],
        "scope": _figures(every, scope) | _filter_facts(every, scope),
    }


def _run_facts(run: Run, scope: Scope) -> dict[str, Any]:
    charges = sum(run.made.values())
    return {
        "run": run.name,
        "purpose": run.purpose,
        "epoch": run.epoch,
        "state": run.end or "open",
        "charges": charges,
        "committed": len(run.committed),
        "lost": charges - len(run.committed),
        "method": method_of(run.plan, scope.relation),
        "last_published": run.last_published,
        **_figures([run], scope),
        "planned": epsilon_of(run.plan, scope.delta, scope.relation),
    }


def _figures(runs: Sequence[Run], scope: Scope) -> dict[str, float]:
    return {
        "spent": epsilon_of((pair for run in runs for pair in run.spent), scope.delta, scope.relation),
        "reserved": epsilon_of((pair for run in runs for pair in run.held), scope.delta, scope.relation),
    }


def _filter_facts(runs: Sequence[Run], scope: Scope) -> dict[str, float]:
    gate = scope.filter
    if gate is None:
        return {}
    spent = math.fsum(_cost(gate, run.spent) for run in runs)
    held = math.fsum(_cost(gate, run.held) for run in runs)
    return {
        "capacity": gate.capacity(scope.epsilon),
        "cost_spent": spent,
        "cost_reserved": held,
        "adaptive_spent": gate.epsilon(spent),
        "adaptive_reserved": gate.epsilon(held),
    }


def text_of(facts: Mapping[str, Any]) -> str:
    """Return one record's facts for a reader."""
    cap, order = facts["cap"], "" if facts["order"] is None else f" of order {facts['order']:g}"
    pinned = "pinned" if facts["operator_key_pinned"] else "as named by the record itself, not pinned"
    authority = "none: no grants, no recoveries" if facts["authority_key"] is None else facts["authority_key"]
    if facts["authority_key"] is not None:
        authority += " (pinned)" if facts["authority_key_pinned"] else " (as named by the record itself, not pinned)"
    lines = [
        f"record         {_plain(facts['path'])}",
        f"ledger         {facts['ledger_id']}",
        f"population     {_plain(facts['population'])} ({facts['kind']})",
        f"unit           {_plain(facts['unit'])}, {facts['neighboring_relation'].replace('_', '-')}",
        f"cap            epsilon {cap['epsilon']:g} at delta {cap['delta']:g}, gate {facts['gate']}{order}",
        f"entries        {facts['entries']}: " + ", ".join(f"{n} {kind}" for kind, n in facts["kinds"].items()),
        f"operator key: {pinned}",
        f"               {facts['operator_key']}",
        f"authority key: {authority}",
        f"{facts['anchor']}",
        "",
        *_table(
            ("run", "purpose", "epoch", "state", "charges", "committed", "lost", "spent", "reserved", "accounted by"),
            [
                (
                    *(_plain(run[name]) for name in ("run", "purpose", "epoch", "state")),
                    *(str(run[name]) for name in ("charges", "committed", "lost")),
                    up(run["spent"]),
                    up(run["reserved"]),
                    run["method"],
                )
                for run in facts["runs"]
            ],
        ),
        "",
        *_table(
            ("purpose", "epoch", "quota", "spent", "reserved"),
            [
                (
                    _plain(quota["purpose"]),
                    _plain(quota["epoch"]),
                    "none" if quota["granted"] is None else f"{quota['granted']:g}",
                    up(quota["spent"]),
                    up(quota["reserved"]),
                )
                for quota in facts["quotas"]
            ],
        ),
        "",
        *_scope_lines(facts),
    ]
    return "\n".join(lines)


def _scope_lines(facts: Mapping[str, Any]) -> list[str]:
    scope, delta = facts["scope"], facts["cap"]["delta"]
    lines = [f"whole scope    epsilon {up(scope['spent'])} spent, {up(scope['reserved'])} reserved, at delta {delta:g}"]
    if "capacity" in scope:
        lines += [
            "               (exact, if all runs had been fixed beforehand)",
            f"filter         epsilon {up(scope['adaptive_spent'])} spent, {up(scope['adaptive_reserved'])} reserved: "
            "holds however each run was chosen in sight of earlier ones",
            f"               cost {up(scope['cost_spent'])} spent, {up(scope['cost_reserved'])} reserved, "
            f"of a capacity of {scope['capacity']:.6g}",
        ]
    if facts["recoveries"]:
        lines.append(
            f"recoveries     entries {', '.join(map(str, facts['recoveries']))}: entries were lost before them"
        )
    return lines


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]


def _plain(text: object) -> str:
    """Return text without characters that could steer a terminal or rewrite the report."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in str(text))


def _word(records: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return what nothing here proves about these records."""
    more = []
    if any(facts["anchor"] == NOT_ANCHORED for facts in records):
        more.append("no entry was left out at the end, or the whole record replaced by another: it is not anchored")
    if not all(facts["operator_key_pinned"] for facts in records):
        more.append("the operator key is the operator's: it was not pinned")
    return (*WORD, *more)


def _paragraphs(records: Sequence[Mapping[str, Any]]) -> list[str]:
    parts = (
        ("PROVEN from the record", PROVEN),
        ("ENFORCED by rules checked here", ENFORCED),
        ("THE OPERATOR'S WORD", _word(records)),
    )
    return [line for title, lines in parts for line in ("", title, *(f"  - {text}" for text in lines))]


# ---------------------------------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------------------------------


def verify(
    export: Path | None, checkpoint: Path | None = None, pins: Pins | None = None, directories: Sequence[Path] = ()
) -> dict[str, Any]:
    """Check everything that was named and return what was found.

    Raises:
        Unreadable: something that was named is not there.
        Rejected: the first thing that does not hold.
    """
    pins = pins or Pins()
    shared = None if export is None else check_record(export, pins)
    checked = [check_directory(directory, pins, shared) for directory in directories]
    records = [shared] if shared is not None else []
    named = {tuple(record.hashes) for record in records}
    records += [record for found in checked for record in found.records if tuple(record.hashes) not in named]
    anchors: dict[str, str] = {}
    if checkpoint is not None:
        anchors = _anchored(checkpoint, records)
    try:
        facts = [facts_of(record, pins, anchors.get(record.scope.ledger_id)) for record in records]
    except (ValueError, ArithmeticError) as error:
        raise Rejected(f"an epsilon cannot be recomputed ({error})") from error
    runs = [
        {
            "path": str(found.path),
            "models": [{"file": str(file), "run": run.name} for file, _, run in found.matched],
            "summary": found.summary,
        }
        for found in checked
    ]
    return {
        "verified": True,
        "records": facts,
        "directories": runs,
        "assurances": {"proven": PROVEN, "enforced": ENFORCED, "word": _word(facts)},
        "dp_accounting": importlib.metadata.version("dp-accounting"),
    }


def _anchored(checkpoint: Path, records: list[Record]) -> dict[str, str]:
    """Return ledger id -> what the checkpoint proves; it must be of the first record or of one that has its id."""
    if not records:
        raise Rejected("checkpoint: there is no record to anchor")
    try:
        named = parse_json(read_bytes(checkpoint).decode("ascii")).get("ledger_id")
    except (ValueError, AttributeError) as error:
        raise Rejected(f"checkpoint: not a JSON object ({error})") from error
    own = [record for record in records if record.scope.ledger_id == named] or records[:1]
    return {record.scope.ledger_id: check_checkpoint(checkpoint, record) for record in own}


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="verifier.py", description="Check the record of a fedlearn ledger.")
    parser.add_argument("export", nargs="?", type=Path, help="export (JSON lines) or ledger.sqlite")
    parser.add_argument("--checkpoint", type=Path, help="signed checkpoint that you kept")
    parser.add_argument("--operator-key", metavar="HEX", help="the operator's public key, got out of band")
    parser.add_argument("--authority-key", metavar="HEX", help="the authority's public key, got out of band")
    parser.add_argument("--run", type=Path, action="append", default=[], metavar="DIR", help="run directory to compare")
    parser.add_argument("--json", action="store_true", help="the same facts as JSON")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0 verified, 1 rejected, 2 usage or unreadable."""
    options = _arguments().parse_args(arguments)
    if options.export is None and not options.run:
        sys.stderr.write("error: name an export, a run directory (--run), or both\n")
        return 2
    for name in ("operator_key", "authority_key"):
        key = getattr(options, name)
        if key is not None and not re.fullmatch("[0-9a-f]{64}", key):
            sys.stderr.write(f"error: --{name.replace('_', '-')}: a public key is 64 lower-case hexadecimal digits\n")
            return 2
    try:
        found = verify(
            options.export, options.checkpoint, Pins(options.operator_key, options.authority_key), options.run
        )
    except Unreadable as error:
        return _end(options.json, 2, {"verified": False, "unreadable": str(error)}, f"UNREADABLE: {_plain(error)}")
    except Rejected as error:
        where = "" if error.entry is None else f"entry {error.entry}: "
        facts = {"verified": False, "entry": error.entry, "reason": error.reason}
        return _end(options.json, 1, facts, f"REJECTED: {where}{_plain(error.reason)}")
    return _end(options.json, 0, found, _report(found))


def _report(found: Mapping[str, Any]) -> str:
    parts = [text_of(facts) for facts in found["records"]]
    for directory in found["directories"]:
        lines = [f"run directory  {_plain(directory['path'])}"]
        lines += [
            f"               {_plain(model['file'])} is what the last commit of {_plain(model['run'])!r} names"
            for model in directory["models"]
        ]
        parts.append("\n".join([*lines, f"               {_plain(directory['summary'])}"]))
    return "\n\n".join(parts) + "\n" + "\n".join([*_paragraphs(found["records"]), "", "VERIFIED"])


def _end(as_json: bool, status: int, facts: Mapping[str, Any], text: str) -> int:
    sys.stdout.write((json.dumps(_finite(facts), indent=1, allow_nan=False) if as_json else text) + "\n")
    return status


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    sys.exit(main())

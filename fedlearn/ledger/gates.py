"""Which runs a budget admits.

Under a privacy filter runs may be chosen by looking at what earlier ones released: the sum of their zCDP parameters
(Bun and Steinke 2016), or of their Renyi divergences at one order that was fixed before the first run (Mironov 2017),
stays below a capacity that gives (epsilon, delta), and a run that would go over it does not begin (Feldman and Zrnic
2021). The gate ``plan`` admits one run only and lets the accountant of record certify it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

from fedlearn.errors import InvalidSpend, LedgerError
from fedlearn.ledger.entries import Planned
from fedlearn.ledger.runs import cut
from fedlearn.ledger.scope import GateKind, Scope
from fedlearn.privacy import accountants
from fedlearn.privacy.events import Event, MatrixGaussian
from fedlearn.privacy.filter import RdpFilter, ZcdpFilter
from fedlearn.privacy.gaussian import renyi_epsilon, zcdp_epsilon


class Filter(Protocol):
    """A capacity, and what an event takes of it; both rounded to the safe side."""

    @property
    def capacity(self) -> float:
        """What may be taken in all."""
        ...

    def cost(self, event: Event, count: int) -> float:
        """Return what ``count`` times the event takes; ``inf`` or InvalidSpend where it has no bound."""
        ...


@lru_cache(maxsize=256)
def filter_of(scope: Scope, epsilon: float) -> Filter | None:
    """Return the filter that keeps ``epsilon`` at the scope's delta; None for the gate ``plan``."""
    if scope.gate is GateKind.PLAN:
        return None
    if scope.order is None:
        return ZcdpFilter(epsilon, scope.delta)
    return RdpFilter(scope.order, epsilon, scope.delta)


def require_meaning(scope: Scope, epsilon: float) -> None:
    """Raise InvalidSpend if no filter cost, however small, stays within ``epsilon`` at the scope's delta and order."""
    try:
        filter_of(scope, epsilon)
    except InvalidSpend as error:
        raise InvalidSpend(
            f"epsilon={epsilon:g}: below what the ledger's order {scope.order} can show at delta {scope.delta:g}, even "
            "for no release at all; grant more, or make a ledger of gate zcdp."
        ) from error


def cost(scope: Scope, parts: Sequence[Planned]) -> float:
    """Return an upper bound on what the parts take of a filter: zCDP rho, or the divergence at the scope's order.

    Raises:
        LedgerError: the scope's gate is no filter.
        InvalidSpend: an event that has no bound under the scope's relation.
    """
    if parts:
        accountants.accounting_for([(part.event, part.count) for part in parts], scope.neighboring_relation)
    return _sum_up([_cost(scope, part) for part in parts])


def fits(scope: Scope, epsilon: float, held: float, parts: Sequence[Planned]) -> bool:
    """Return whether ``parts`` fit into ``epsilon`` at the scope's delta beside what is held.

    Args:
        scope: the ledger's.
        epsilon: the cap, or a quota.
        held: filter cost of what other runs hold; 0.0 with the gate ``plan``, under which there are none.
        parts: of one run.

    Raises:
        InvalidSpend: an event that has no accountant under the scope's relation.
    """
    chosen = filter_of(scope, epsilon)
    if chosen is None:
        return plan_epsilon(scope, parts) <= epsilon
    return _sum_up((held, cost(scope, parts))) <= chosen.capacity


def plan_epsilon(scope: Scope, parts: Sequence[Planned]) -> float:
    """Return epsilon of the parts together by the accountant of record, at the scope's delta and relation."""
    events = [(part.event, part.count) for part in parts]
    return accountants.epsilon(events, scope.delta, neighboring_relation=scope.neighboring_relation)


def filter_epsilon(scope: Scope, taken: float) -> float:
    """Return the epsilon, at the scope's delta, that a filter cost stands for; holds for runs chosen adaptively.

    Args:
        scope: with gate ``zcdp`` or ``rdp``.
        taken: of ``cost``, >= 0.
    """
    if taken == 0:
        return 0.0
    if scope.order is None:
        return zcdp_epsilon(taken, scope.delta)
    return renyi_epsilon(scope.order, taken, math.log(scope.delta) * (1 + 1e-15))  # rounded towards more epsilon


def most_that_fits(scope: Scope, epsilon: float, held: float, plan: Sequence[Planned]) -> int:
    """Return how many releases of the plan's first event fit: its count, or the steps of a matrix mechanism."""
    first = plan[0]
    if scope.gate is GateKind.PLAN and len(plan) == 1 and not isinstance(first.event, MatrixGaussian):
        relation = scope.neighboring_relation
        return accountants.largest_count(
            first.event, epsilon, scope.delta, at_most=first.count, neighboring_relation=relation
        )

    def fitting(count: int) -> bool:
        try:
            return fits(scope, epsilon, held, (_first(first, count), *plan[1:]))
        except InvalidSpend:
            return False

    low, high = 0, first.event.steps if isinstance(first.event, MatrixGaussian) else first.count
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fitting(middle) else (low, middle - 1)
    return low


def _first(part: Planned, count: int) -> Planned:
    return Planned(cut(part.event, count), 1) if isinstance(part.event, MatrixGaussian) else Planned(part.event, count)


def _sum_up(values: Sequence[float]) -> float:
    """Add up with one rounding, upward."""
    total = math.fsum(values)
    return math.nextafter(total, math.inf) if total > 0 else total


@lru_cache(maxsize=4096)
def _cost(scope: Scope, part: Planned) -> float:
    chosen = filter_of(scope, scope.epsilon)
    if chosen is None:
        raise LedgerError("gate plan: admits one run by its epsilon; it has no filter.")
    taken = chosen.cost(part.event, part.count)
    if not taken >= 0:
        raise InvalidSpend(f"the filter cost of {part} is {taken}; it must be >= 0.")
    return taken

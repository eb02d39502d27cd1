"""What is left of a ledger's cap and quotas, recomputed from its entries."""

from __future__ import annotations

from dataclasses import dataclass

from fedlearn.ledger import gates
from fedlearn.ledger.book import Book, Quota
from fedlearn.ledger.entries import Planned


@dataclass(frozen=True, slots=True)
class Holding:
    """Events that a budget line holds.

    Args:
        events: each with how often.
        cost: by the gate's filter, which is what admits runs: zCDP rho or Renyi divergence; None with gate ``plan``.
        filter_epsilon: epsilon that follows from ``cost``, valid for runs chosen adaptively; None with gate ``plan``.
        epsilon: by the accountant of record over the same events: tighter, valid for runs fixed beforehand.
    """

    events: tuple[Planned, ...]
    cost: float | None
    filter_epsilon: float | None
    epsilon: float


@dataclass(frozen=True, slots=True)
class BudgetLine:
    """The cap, or one quota.

    Args:
        quota: (purpose, epoch), or None for the cap.
        granted: epsilon of the cap or of the quota; None for a label without a grant.
        capacity: what ``granted`` allows in the filter's terms; None without a filter or a grant.
        held: reserved and spent together: what a new run has to fit beside.
        spent: what counts as spent; of the cap: the lifetime spend.
        runs: opened under it.
        open_runs: of these, not closed.
    """

    quota: Quota | None
    granted: float | None
    capacity: float | None
    held: Holding
    spent: Holding
    runs: int
    open_runs: int


def budget_lines(book: Book) -> tuple[BudgetLine, ...]:
    """Return the cap's line and one of each (purpose, epoch) that has a grant or a run, in the order of their names.

    Raises:
        InvalidSpend: an event has no accountant under the scope's relation.
    """
    labels = {(state.opened.purpose, state.opened.epoch) for state in book.runs.values()} | set(book.grants)
    return (_line(book, None), *(_line(book, quota) for quota in sorted(labels)))


def _line(book: Book, quota: Quota | None) -> BudgetLine:
    scope = book.required_scope
    grant = None if quota is None else book.grants.get(quota)
    granted = scope.epsilon if quota is None else None if grant is None else grant.epsilon
    chosen = None if granted is None else gates.filter_of(scope, granted)
    under = book.under(quota)
    return BudgetLine(
        quota=quota,
        granted=granted,
        capacity=None if chosen is None else chosen.capacity,
        held=_holding(book, book.held(quota)),
        spent=_holding(book, book.spent(quota)),
        runs=len(under),
        open_runs=sum(state.closed is None for state in under),
    )


def _holding(book: Book, events: tuple[Planned, ...]) -> Holding:
    scope = book.required_scope
    if gates.filter_of(scope, scope.epsilon) is None:
        return Holding(events, None, None, gates.plan_epsilon(scope, events))
    cost = gates.cost(scope, events)
    return Holding(events, cost, gates.filter_epsilon(scope, cost), gates.plan_epsilon(scope, events))

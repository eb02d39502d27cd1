"""Epsilon from events: which accountant answers for which events, under which relation.

================  =====================================  ===================================================
relation          events                                 accountant
================  =====================================  ===================================================
add-or-remove     Poisson-sampled, truncated, metrics    privacy loss distributions (``pld``)
zero-out          matrix mechanisms, metrics             the exact Gaussian (``gaussian``)
replace-one       fixed-size cohorts                     Renyi divergences (``renyi``)
any               with a repeat-and-select among them    Renyi divergences, for the whole spend
================  =====================================  ===================================================

Everything else is refused: an event is never converted to another relation by name. Every rounding errs toward more
epsilon, and a figure that is no number >= 0 is an error, never zero.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache, partial
from typing import Final, cast

from fedlearn.errors import InvalidSpend
from fedlearn.privacy.dp_library import accounting_version
from fedlearn.privacy.events import (
    Event,
    FixedSizeGaussian,
    MatrixGaussian,
    MetricRelease,
    NeighboringRelation,
    PoissonGaussian,
    RepeatAndSelect,
    SingleEvent,
    TruncatedPoissonGaussian,
    event_to_json,
    kind_of,
)
from fedlearn.privacy.gaussian import gaussian_delta, gaussian_epsilon, mu_of, total_mu
from fedlearn.privacy.pld import REPORTED, SEARCHING, LossEvent, loss_delta, loss_epsilon
from fedlearn.privacy.renyi import composed_curve, curve_delta, curve_epsilon

__all__ = [
    "ACCOUNTANT_OF_RECORD",
    "NO_CROSS_CHECK",
    "REPORTED",
    "SEARCHING",
    "Accounting",
    "Spend",
    "accounting_for",
    "accounting_version",
    "delta_at",
    "epsilon",
    "epsilon_curve",
    "largest_count",
    "require_accountant",
]

ACCOUNTANT_OF_RECORD: Final = "pld"

NO_CROSS_CHECK: Final = "no cross-check"

_REFUSED: Final = {
    "gdp": "its central-limit approximation reports less epsilon than is spent (0.717 where 2.355 is spent)",
    "clt": "its central-limit approximation reports less epsilon than is spent (0.717 where 2.355 is spent)",
}
_MAX_ANCHORS: Final = 128

_KINDS: Final[dict[NeighboringRelation, tuple[type[SingleEvent], ...]]] = {
    NeighboringRelation.ADD_OR_REMOVE: (PoissonGaussian, TruncatedPoissonGaussian, MetricRelease),
    NeighboringRelation.ZERO_OUT: (MatrixGaussian, MetricRelease),
    NeighboringRelation.REPLACE_ONE: (FixedSizeGaussian,),
}

Spend = Sequence[tuple[Event, int]]
"""Events with how often each happened."""


class _Route(Enum):
    """The accountant that answers."""

    LOSSES = "losses"
    EXACT = "exact"
    RENYI = "renyi"


@dataclass(frozen=True, slots=True)
class Accounting:
    """How a figure was made, in words for a report.

    Args:
        accountant: what composed the events.
        conversion: how (epsilon, delta) was read off the composition.
        cross_check: the second, independent accountant and where it runs, or ``"no cross-check"``.
    """

    accountant: str
    conversion: str
    cross_check: str


def accounting_for(events: Spend, neighboring_relation: NeighboringRelation) -> Accounting:
    """Return which accountant answers for these events under this relation.

    Raises:
        InvalidSpend: none does; the message says why.
    """
    spend = _normalised(events)
    return _describe(spend, _route(spend, neighboring_relation), neighboring_relation)


def require_accountant(name: str) -> None:
    """Refuse every accountant but the one of record.

    Raises:
        InvalidSpend: the accountant under-reports (``gdp``, ``clt``) or is unknown.
    """
    if name in _REFUSED:
        raise InvalidSpend(f"accountant={name!r} is refused: {_REFUSED[name]}. Use {ACCOUNTANT_OF_RECORD!r}.")
    if name != ACCOUNTANT_OF_RECORD:
        raise InvalidSpend(f"accountant={name!r} is unknown. Use {ACCOUNTANT_OF_RECORD!r}.")


def epsilon(
    events: Spend,
    delta: float,
    *,
    discretization: float = REPORTED,
    neighboring_relation: NeighboringRelation = NeighboringRelation.ADD_OR_REMOVE,
    accountant: str = ACCOUNTANT_OF_RECORD,
) -> float:
    """Return an upper bound on the epsilon of all events together.

    Args:
        events: each event and how often it happened (>= 0), in any order.
        delta: in (0, 1).
        discretization: grid of privacy losses, ``REPORTED`` or ``SEARCHING``; the other accountants have none.
        neighboring_relation: of the budget; decides with the kinds of events which accountant answers.
        accountant: only ``"pld"``: the one of record for the relation.

    Returns:
        Epsilon >= 0: 0.0 for no events, ``inf`` when no finite epsilon holds at this delta.

    Raises:
        InvalidSpend: a count, delta, relation or accountant that cannot be accounted for, a delta so small that
            floating point cannot bound it over this many events, or a figure that came out as no number.
    """
    require_accountant(accountant)
    spend = _normalised(events)
    route = _route(spend, neighboring_relation)
    _require_delta(delta)
    return _checked(_epsilon(spend, delta, discretization, route), "epsilon") if spend else 0.0


def delta_at(
    events: Spend,
    target_epsilon: float,
    *,
    discretization: float = REPORTED,
    neighboring_relation: NeighboringRelation = NeighboringRelation.ADD_OR_REMOVE,
) -> float:
    """Return an upper bound on the delta of all events together at ``target_epsilon`` >= 0.

    Raises:
        InvalidSpend: epsilon is negative or NaN, a count is not an integer >= 0, or no accountant answers.
    """
    if not target_epsilon >= 0:
        raise InvalidSpend(f"epsilon={target_epsilon}: must be >= 0.")
    spend = _normalised(events)
    route = _route(spend, neighboring_relation)
    if not spend:
        return 0.0
    if route is _Route.EXACT:
        value = gaussian_delta(_total_mu(spend), target_epsilon)
    elif route is _Route.RENYI:
        value = curve_delta(composed_curve(spend), target_epsilon)
    else:
        value = loss_delta(cast(Sequence[tuple[LossEvent, int]], spend), target_epsilon, discretization)
    return _checked(value, "delta")


def epsilon_curve(
    event: Event,
    counts: Sequence[int],
    delta: float,
    *,
    neighboring_relation: NeighboringRelation = NeighboringRelation.ADD_OR_REMOVE,
) -> tuple[float, ...]:
    """Return upper bounds on epsilon after each of ``counts`` repetitions of one event.

    Cheap enough to draw a curve: losses are on the ``SEARCHING`` grid, only the largest count is also computed on the
    ``REPORTED`` one and caps the rest (fewer events never cost more), and beyond 128 distinct counts each takes the
    value of the next larger one that was computed. All three err toward more epsilon.

    Args:
        event: the repeated event.
        counts: repetitions, each >= 0, in any order.
        delta: in (0, 1).
        neighboring_relation: as in ``epsilon``.

    Returns:
        One epsilon per entry of ``counts``.
    """
    distinct = sorted(set(counts))
    if not distinct:
        return ()
    stride = math.ceil(len(distinct) / _MAX_ANCHORS)
    anchors = sorted({distinct[-1], *distinct[stride - 1 :: stride]})
    cap = epsilon([(event, distinct[-1])], delta, neighboring_relation=neighboring_relation)
    value_at: dict[int, float] = {}
    running = cap
    for anchor in reversed(anchors):
        coarse = epsilon([(event, anchor)], delta, discretization=SEARCHING, neighboring_relation=neighboring_relation)
        running = min(running, coarse)
        value_at[anchor] = running
    values: dict[int, float] = {}
    following = iter(anchors)
    current = next(following)
    for count in distinct:
        while current < count:
            current = next(following)
        values[count] = value_at[current] if count > 0 else 0.0
    return tuple(values[count] for count in counts)


def largest_count(
    event: Event,
    target_epsilon: float,
    delta: float,
    *,
    spent: Spend = (),
    at_most: int = 1 << 20,
    neighboring_relation: NeighboringRelation = NeighboringRelation.ADD_OR_REMOVE,
) -> int:
    """Return the largest n such that ``spent`` plus n times ``event`` stays within (target_epsilon, delta).

    Args:
        event: the event to repeat.
        target_epsilon: budget, >= 0.
        delta: in (0, 1).
        spent: what was spent before.
        at_most: where the search stops, >= 0.
        neighboring_relation: as in ``epsilon``.

    Returns:
        n in [0, at_most]; 0 also when ``spent`` alone is over the budget.

    Raises:
        InvalidSpend: the events have no accountant under the relation.
    """
    route = _route(_normalised([*spent, (event, 1)]), neighboring_relation)
    grids = (SEARCHING, REPORTED) if route is _Route.LOSSES else (REPORTED,)

    def fits(discretization: float, count: int) -> bool:
        spend = [*spent, (event, count)]
        try:
            value = epsilon(spend, delta, discretization=discretization, neighboring_relation=neighboring_relation)
        except InvalidSpend:  # delta too small for so many events: cannot be certified, so it does not fit
            return False
        return value <= target_epsilon

    low = 0
    for discretization in grids:  # the searching grid's answer is never too large: the other lies at or above it
        low = _largest(partial(fits, discretization), low, at_most)
    return low


def _largest(fits: Callable[[int], bool], low: int, at_most: int) -> int:
    """Return the largest count in [low, at_most] that fits, taking ``low`` for granted; gallops, then bisects."""
    stride = 1
    while low + stride <= at_most and fits(low + stride):
        low, stride = low + stride, 2 * stride
    high = min(low + stride, at_most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _normalised(events: Spend) -> tuple[tuple[Event, int], ...]:
    """Merge equal events and sort, so that equal spends share one cache entry."""
    total: Counter[Event] = Counter()
    for event, count in events:
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise InvalidSpend(f"count={count!r} of {event}: must be an integer >= 0.")
        total[event] += count
    kept = [(event, count) for event, count in total.items() if count > 0]
    return tuple(sorted(kept, key=lambda pair: event_to_json(pair[0]))) if len(kept) > 1 else tuple(kept)


def _route(spend: Spend, relation: NeighboringRelation) -> _Route:
    """Return the accountant that answers, or refuse."""
    if not isinstance(relation, NeighboringRelation):
        raise InvalidSpend(f"neighboring_relation={relation!r}: must be one of {', '.join(NeighboringRelation)}.")
    allowed = _KINDS[relation]
    released = [event.event if isinstance(event, RepeatAndSelect) else event for event, _ in spend]
    for event in released:
        if not isinstance(event, allowed):
            has = [name.value for name, kinds in _KINDS.items() if isinstance(event, kinds)]
            raise InvalidSpend(
                f"neighboring_relation={relation.value!r}: {kind_of(event)} has an accountant under "
                f"{' or '.join(has)} only; an event is never converted to another relation by name."
            )
    if any(isinstance(event, RepeatAndSelect) for event, _ in spend):
        if any(isinstance(event, TruncatedPoissonGaussian) for event in released):
            raise InvalidSpend(
                "repeat_and_select: is accounted for by Renyi divergences, which truncated_poisson_gaussian does not "
                "have; use poisson_gaussian without a cap, or give the tuning a budget of its own."
            )
        return _Route.RENYI
    return {
        NeighboringRelation.ADD_OR_REMOVE: _Route.LOSSES,
        NeighboringRelation.ZERO_OUT: _Route.EXACT,
        NeighboringRelation.REPLACE_ONE: _Route.RENYI,
    }[relation]


def _describe(spend: Spend, route: _Route, relation: NeighboringRelation) -> Accounting:
    kinds = {type(event) for event, _ in spend}
    if route is _Route.EXACT:
        return Accounting(
            "exact Gaussian: squares of sensitivity over std add up (Dong, Roth and Su 2022)",
            "exact (Balle and Wang 2018, theorem 8)",
            "PLD of the same Gaussian",
        )
    if route is _Route.LOSSES:
        return Accounting(
            "PLD (dp-accounting), pessimistic, losses on a grid of 1e-4",
            "exact for the discretized losses (Doroshenko et al. 2022)",
            "Opacus PRV, in `fedlearn bench accounting`" if kinds == {PoissonGaussian} else NO_CROSS_CHECK,
        )
    source = {
        NeighboringRelation.ADD_OR_REMOVE: "Poisson sampling by Mironov, Talwar and Zhang 2019 (dp-accounting)",
        NeighboringRelation.ZERO_OUT: "plain Gaussians",
        NeighboringRelation.REPLACE_ONE: "fixed-size cohorts by Wang, Balle and Kasiviswanathan 2019",
    }[relation]
    if RepeatAndSelect in kinds:
        source += ", repeat and select by Papernot and Steinke 2022"
    return Accounting(f"RDP: {source}", "RDP to DP by Canonne, Kamath and Steinke 2020, proposition 12", NO_CROSS_CHECK)


def _require_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise InvalidSpend(f"delta={delta}: must be in (0, 1).")


def _checked(value: float, name: str) -> float:
    """Return the figure, unless it is no number >= 0: such a figure is never taken for zero."""
    if not value >= 0:
        raise InvalidSpend(f"{name}={value}: the accountant gave no number >= 0 at these parameters; no figure holds.")
    return value


def _total_mu(spend: Spend) -> float:
    return total_mu((mu_of(event), count) for event, count in spend)


@lru_cache(maxsize=512)
def _epsilon(spend: tuple[tuple[Event, int], ...], delta: float, discretization: float, route: _Route) -> float:
    if route is _Route.EXACT:
        return gaussian_epsilon(_total_mu(spend), delta)
    if route is _Route.RENYI:
        return curve_epsilon(composed_curve(spend), delta)
    return loss_epsilon(cast(Sequence[tuple[LossEvent, int]], spend), delta, discretization)
